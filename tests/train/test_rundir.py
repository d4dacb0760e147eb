import pytest

from lm_jax.core.config import diff
from lm_jax.core.errors import ConfigError
from lm_jax.models.decoder import DecoderConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.train.rundir import claim_config, read_config


def test_the_error_of_another_experiment_names_few_of_its_differences_and_counts_the_rest(tmp_path):
    first, other = DecoderConfig(), EncoderDecoderConfig()
    claim_config(tmp_path, first)
    differing = diff(first, other)
    assert len(differing) > 20
    with pytest.raises(ConfigError, match=f"; and {len(differing) - 8} more$") as error:
        claim_config(tmp_path, other)
    assert all(line in str(error.value) for line in differing[:8]) and differing[8] not in str(error.value)
    assert diff(read_config(tmp_path), first) == []
