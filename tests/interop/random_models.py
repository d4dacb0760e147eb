"""Small random models of `transformers`, with knob values and sizes drawn anew for each seed."""

import random
from typing import Any

import torch
import transformers

# What must not be 0 or 1 in every weight, or a wrong mapping passes.
_SCALE = 0.2


def _common(r: random.Random) -> dict[str, Any]:
    kv_heads, group, head = r.choice([1, 2]), r.choice([1, 2, 3]), r.choice([4, 8])
    heads = kv_heads * group
    return {
        "vocab_size": r.choice([40, 56]),
        "hidden_size": heads * head,
        "intermediate_size": r.choice([20, 36]),
        "num_hidden_layers": r.choice([2, 3, 4]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": r.choice([1e-6, 1e-3]),
        "tie_word_embeddings": r.choice([False, True]),
        "hidden_act": r.choice(["silu", "gelu", "relu", "gelu_pytorch_tanh"]),
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": rope(r),
    }


def rope(r: random.Random) -> dict[str, Any]:
    """One of the kinds of scaling."""
    base = {"rope_theta": r.choice([100.0, 10_000.0])}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "beta_slow": 0.5}
    llama3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return base | r.choice(
        [
            {"rope_type": "default"},
            {"rope_type": "linear", "factor": 3.0},
            llama3 | {"original_max_position_embeddings": 16},
            yarn,
            yarn | {"attention_factor": 1.3},
            yarn | {"mscale": 0.7, "mscale_all_dim": 1.1},
        ]
    )


def _kinds(r: random.Random, count: int) -> list[str]:
    return [r.choice(["full_attention", "sliding_attention"]) for _ in range(count)]


def _config(kind: str, r: random.Random) -> Any:
    c = _common(r)
    head_dim, window, bias = {"head_dim": r.choice([4, 12])}, {"sliding_window": r.choice([3, 5])}, r.choice([False, True])
    types = {"layer_types": _kinds(r, c["num_hidden_layers"])}
    gemma = {k: v for k, v in c.items() if k != "hidden_act"} | {"hidden_activation": "gelu_pytorch_tanh", **head_dim}
    experts = {"num_experts_per_tok": r.choice([1, 2, 3]), "norm_topk_prob": r.choice([False, True])}
    match kind:
        case "gpt2":
            sizes = {"n_embd": c["hidden_size"], "n_layer": c["num_hidden_layers"], "n_head": c["num_attention_heads"]}
            act = {"activation_function": r.choice(["gelu_new", "relu"]), "n_inner": r.choice([None, 20])}
            tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
            norm = {"layer_norm_epsilon": c["rms_norm_eps"]}
            return transformers.GPT2Config(vocab_size=40, n_positions=64, **norm, **sizes, **act, **tokens)
        case "llama":
            return transformers.LlamaConfig(**c, **head_dim, attention_bias=bias, mlp_bias=r.choice([False, True]))
        case "mistral":
            return transformers.MistralConfig(**c, **head_dim, **r.choice([{"sliding_window": None}, window]))
        case "qwen2":
            return transformers.Qwen2Config(**c, **r.choice([{}, window | types | {"use_sliding_window": True}]))
        case "qwen3":
            sliding = r.choice([{}, window | types | {"use_sliding_window": True}])
            return transformers.Qwen3Config(**c, **head_dim, **sliding, attention_bias=bias)
        case "gemma":
            return transformers.GemmaConfig(**gemma, attention_bias=bias)
        case "gemma2":
            caps = {"attn_logit_softcapping": r.choice([None, 2.0]), "final_logit_softcapping": r.choice([None, 3.0])}
            return transformers.Gemma2Config(**gemma, **window, **types, **caps, query_pre_attn_scalar=r.choice([5, 12]))
        case "gemma3_text":
            parameters = {kind: rope(r) for kind in ("full_attention", "sliding_attention")}
            gemma |= {"rope_parameters": parameters, "query_pre_attn_scalar": 7, "final_logit_softcapping": r.choice([None, 3.0])}
            return transformers.Gemma3TextConfig(**gemma, **window, **types)
        case "phi3":
            c["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": r.choice([0.5, 1.0])}
            return transformers.Phi3Config(**c, **r.choice([{"sliding_window": None}, window]))
        case "olmo2":
            return transformers.Olmo2Config(**c, attention_bias=bias)
        case "smollm3":
            turned = [r.choice([0, 1]) for _ in range(c["num_hidden_layers"])]
            return transformers.SmolLM3Config(**c, no_rope_layers=turned, attention_bias=bias)
        case "mixtral":
            del experts["norm_topk_prob"]
            sliding = r.choice([{"sliding_window": None}, window])
            return transformers.MixtralConfig(**c, **head_dim, **experts, **sliding, num_local_experts=4)
        case "qwen3_moe":
            dense = r.choice([{"mlp_only_layers": [r.choice([0, 1])]}, {"decoder_sparse_step": 2}, {}])
            return transformers.Qwen3MoeConfig(**c, **head_dim, **experts, **dense, num_experts=4, moe_intermediate_size=12)
        case "olmoe":
            return transformers.OlmoeConfig(**c, **experts, num_experts=4, clip_qkv=r.choice([None, 0.5]))
    raise ValueError(kind)


def random_model(kind: str, seed: int) -> Any:
    """A model of `transformers`, all of whose weights matter."""
    r = random.Random(f"{kind} {seed}")
    torch.manual_seed(seed)
    config = _config(kind, r)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            one = 1.0 if ("norm" in name or "ln_" in name) and not kind.startswith("gemma") else 0.0
            p.copy_(torch.randn_like(p) * _SCALE + one * (p.dim() == 1))
    return model
