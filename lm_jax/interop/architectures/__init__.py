"""The architectures of Hugging Face `transformers` that can be read and written, by their model_type."""

from lm_jax.interop.architectures.bert import BERT, MODERNBERT, ROBERTA
from lm_jax.interop.architectures.common import Architecture
from lm_jax.interop.architectures.deepseek import DEEPSEEK_V3
from lm_jax.interop.architectures.gemma import GEMMA, GEMMA2, GEMMA3
from lm_jax.interop.architectures.gpt2 import GPT2
from lm_jax.interop.architectures.gpt_oss import GPT_OSS
from lm_jax.interop.architectures.images import CLIP, VIT
from lm_jax.interop.architectures.llama import LLAMA, MISTRAL, OLMO2, OLMO3, PHI3, QWEN2, QWEN3, SMOLLM3
from lm_jax.interop.architectures.mixtral import MIXTRAL, OLMOE, QWEN3_MOE
from lm_jax.interop.architectures.t5 import T5
from lm_jax.interop.architectures.whisper import WHISPER

_DENSE = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, OLMO3, SMOLLM3)
_MIXTURES = (MIXTRAL, QWEN3_MOE, OLMOE, DEEPSEEK_V3, GPT_OSS)
_ENCODERS = (BERT, ROBERTA, MODERNBERT, T5, WHISPER, VIT, CLIP)
ARCHITECTURES: dict[str, Architecture] = {one.model_type: one for one in _DENSE + _MIXTURES + _ENCODERS}
