"""How the large experiments are laid out on so many chips."""

import dataclasses

from lm_jax.config import Experiment
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Chips:
    """A mesh, the rows of a batch, and how many micro-batches they are run in."""

    mesh: MeshShape
    rows: int
    accumulate: int = 1
    layout: Layout = dataclasses.field(default_factory=Layout)


def on_chips(experiment: Experiment, arg: str, layouts: dict[int, Chips]) -> Experiment:
    """The experiment on `arg` chips, for one of the numbers of `layouts`."""
    if arg not in map(str, layouts):
        raise ConfigError(f"the experiment has no layout {arg!r}; it has {', '.join(map(str, layouts))} (chips), and 'smoke'")
    chips = layouts[int(arg)]
    experiment.data.batch_size, experiment.step.accumulate = chips.rows, chips.accumulate
    for config in experiment.evals:
        config.batch_size = chips.rows // chips.accumulate
    return dataclasses.replace(experiment, mesh=chips.mesh, layout=chips.layout)
