"""Reading a config.json of Hugging Face: every knob is used, known to change nothing, or refused."""

from typing import Any

from lm_jax.core.errors import DataError

_NEEDED = object()

# What says nothing about how logits are computed from tokens.
_HARMLESS = {
    *("architectures", "model_type", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "auto_map"),
    *("output_hidden_states", "output_attentions", "output_router_logits", "return_dict", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "num_labels", "is_encoder_decoder", "initializer_range", "pad_token_id"),
    *(
        "bos_token_id",
        "eos_token_id",
        "max_position_embeddings",
        "gradient_checkpointing",
        "pretraining_tp",
        "cache_implementation",
    ),
    *("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "router_aux_loss_coef"),
    *("router_jitter_noise", "task_specific_params", "_attn_implementation", "attn_implementation", "unsloth_version"),
}


class Knobs:
    """The fields of a config.json. `finish` raises for those that were never asked for and may change what is computed."""

    def __init__(self, values: dict[str, Any]):
        self.values, self._used = values, set()

    def take(self, name: str, default: Any = _NEEDED) -> Any:
        """The value; where there is none (or null) the default. Raises `DataError` where there is no default either."""
        self._used.add(name)
        value = self.values.get(name)
        if value is None and default is _NEEDED:
            raise DataError(f"config.json lacks {name!r}")
        return default if value is None else value

    def only(self, name: str, *allowed: Any) -> None:
        """Raises `DataError` where the value is there and not one of those `allowed`."""
        if (value := self.take(name, None)) is not None and value not in allowed:
            raise DataError(f"config.json: {name}={value!r} is not supported; it may be {', '.join(map(repr, allowed))}")

    def finish(self) -> None:
        """Raises `DataError` for knobs that nothing has read."""
        if quantized := self.values.get("quantization_config"):
            raise DataError(
                f"the weights are quantized ({quantized.get('quant_method')}), which lm_jax does not read: load them with "
                "transformers, dequantize them there (model.dequantize()), and save_pretrained"
            )
        for name, value in self.values.items():
            if name not in self._used | _HARMLESS and value is not None and value is not False and value != {}:
                raise DataError(f"config.json: {name}={value!r} is a knob that lm_jax does not have for this architecture")
