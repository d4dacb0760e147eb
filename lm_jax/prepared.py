"""The data of an experiment, and whether model, evals and samples fit it: what can only be checked once there is data."""

import jax

from lm_jax.config import Experiment
from lm_jax.core.errors import ConfigError
from lm_jax.data.base import Prepared
from lm_jax.data.tokenizers import Tokenizer


def prepare(experiment: Experiment) -> Prepared:
    """The experiment's data, tokenised now where the cache lacks it. Raises `ConfigError` when the model has too few
    tokens or classes, or where an eval could not run, `DataError` when a split of an eval is not there."""
    say = print if jax.process_index() == 0 else None
    data = experiment.data.prepare(progress=say)
    tokenizer = data.tokenizer
    vocab_size, num_outputs = experiment.model.vocab_size, experiment.model.num_outputs
    if vocab_size < data.vocab_size:
        raise ConfigError(
            f"model.vocab_size={vocab_size} is smaller than the {data.vocab_size} of the data ({tokenizer.vocab_size} are the "
            "tokenizer's); "
            f"set --config.model.vocab_size={data.vocab_size} or more"
        )
    if num_outputs is not None and num_outputs < data.num_outputs:
        raise ConfigError(
            f"model.classes={num_outputs} is below the {data.num_outputs} of the training data; "
            f"set --config.model.classes={data.num_outputs}"
        )
    experiment.model.check_end(tokenizer.eos, tokenizer.vocab_size)
    for config in experiment.evals:
        data.require(config.split)  # raises where there is none
        if lacking := [name for name in config.reads if not hasattr(data, name)]:
            raise ConfigError(
                f"evals {config.name!r}: a {type(config).__name__} reads {' and '.join(lacking)}, which a "
                f"{type(experiment.data).__name__} does not have"
            )
        try:
            config.check(experiment.model, data)
        except ConfigError as error:
            raise ConfigError(f"evals {config.name!r}: {error}") from error
    return data


def check_samples(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises `ConfigError` for prompts that cannot be any, or samples longer than the model's positions."""
    samples, limit = experiment.samples, experiment.model.max_length()
    if samples is None:
        return
    longest = max(map(len, experiment.data.prompts(tokenizer, samples.prompts)[0]))  # raises where one cannot be a prompt
    if limit is not None and longest + samples.max_tokens > limit:
        raise ConfigError(
            f"samples.max_tokens={samples.max_tokens} after a prompt of {longest} tokens exceeds the model's position table "
            f"of {limit}; set --config.samples.max_tokens={max(limit - longest, 1)} or less"
        )
