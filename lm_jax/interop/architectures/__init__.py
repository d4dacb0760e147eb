"""The architectures of Hugging Face `transformers` that can be read and written, by their model_type."""

from lm_jax.interop.architectures.common import Architecture
from lm_jax.interop.architectures.gemma import GEMMA, GEMMA2, GEMMA3
from lm_jax.interop.architectures.gpt2 import GPT2
from lm_jax.interop.architectures.llama import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3, SMOLLM3
from lm_jax.interop.architectures.mixtral import MIXTRAL, OLMOE, QWEN3_MOE

_ALL = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, SMOLLM3, MIXTRAL, QWEN3_MOE, OLMOE)
ARCHITECTURES: dict[str, Architecture] = {architecture.model_type: architecture for architecture in _ALL}
