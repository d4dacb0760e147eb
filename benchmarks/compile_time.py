"""Compile time of the train step against depth: `python -m benchmarks.compile_time`.

The quickstart's step with its layers scanned, at 4 and 32 layers, taking turns; prints the medians and their ratio.
"""

import statistics
import time

import jax

from experiments import shakespeare
from lm_jax import parts


def compile_seconds(num_layers: int) -> float:
    """Seconds to trace, lower and compile the step from nothing."""
    experiment = shakespeare.get_config()
    experiment.model.stack.repeats, experiment.model.stack.unroll = num_layers, 1
    jax.clear_caches()
    built = parts.build(experiment)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: parts.initial_state(experiment, built, key), key)
    shape = (experiment.data.batch_size, experiment.data.length)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, dtype in (("tokens", "int32"), ("targets", "int32"), ("weights", "float32"))
    }
    start = time.perf_counter()
    parts.jit_step(experiment, built).lower(state, batch, key).compile()
    return time.perf_counter() - start


def main() -> None:
    """Prints one line."""
    compile_seconds(4)  # the first pays for loading the compiler
    seconds = {4: [], 32: []}
    for _ in range(5):
        for num_layers, values in seconds.items():
            values.append(compile_seconds(num_layers))
    few, many = (statistics.median(values) for values in seconds.values())
    print(f"jax {jax.__version__}: 4 layers {few:.2f} s, 32 layers {many:.2f} s, ratio {many / few:.2f}")


if __name__ == "__main__":
    main()
