"""Small random models of `transformers`, with knob values and sizes drawn anew for each seed."""

import random
from typing import Any

import numpy as np
import torch
import transformers

from lm_jax.interop.architectures import ARCHITECTURES

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
            fraction = r.choice([0.5, 1.0])
            pairs = int(c["hidden_size"] // c["num_attention_heads"] * fraction) // 2
            factors = {name: [r.uniform(1.0, 4.0) for _ in range(pairs)] for name in ("short_factor", "long_factor")}
            length = r.choice([2, 64])  # above which rows are long: all that are tried, or none
            long = factors | {"rope_type": "longrope", "factor": r.choice([2.0, 32.0]), "original_max_position_embeddings": length}
            c["rope_parameters"] = r.choice([{"rope_type": "default"}, long])
            c["rope_parameters"] |= {"rope_theta": 100.0, "partial_rotary_factor": fraction}
            return transformers.Phi3Config(**c, **r.choice([{"sliding_window": None}, window]))
        case "olmo2":
            return transformers.Olmo2Config(**c, attention_bias=bias)
        case "olmo3":
            c["rope_parameters"] = {kind: rope(r) for kind in ("full_attention", "sliding_attention")}
            return transformers.Olmo3Config(**c, **window, **types, attention_bias=bias)
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
        case "gpt_oss":
            sizes = head_dim | window | {"num_experts_per_tok": r.choice([1, 2, 3]), "num_local_experts": 4}
            limit = {"swiglu_limit": r.choice([0.3, 7.0])}
            return transformers.GptOssConfig(**c, **sizes, **types, **limit, attention_bias=bias)
        case "deepseek_v3":
            c["num_key_value_heads"] = c["num_attention_heads"]
            sizes = {"q_lora_rank": r.choice([None, 12]), "kv_lora_rank": r.choice([8, 10]), "qk_nope_head_dim": r.choice([4, 6])}
            sizes |= {"qk_rope_head_dim": r.choice([4, 8]), "v_head_dim": r.choice([6, 8]), "n_routed_experts": 8}
            groups = {"n_group": r.choice([1, 2, 4]), "topk_group": 1, "n_shared_experts": r.choice([1, 2])}
            groups["topk_group"] = r.randint(1, groups["n_group"])
            experts["num_experts_per_tok"] = r.randint(1, 8 // groups["n_group"] * groups["topk_group"])
            more = {"first_k_dense_replace": r.choice([0, 1]), "moe_intermediate_size": 12, "num_mtp_layers": 0}
            more |= {"routed_scaling_factor": r.choice([1.0, 2.5]), "rope_interleave": r.choice([False, True])}
            return transformers.DeepseekV3Config(**c, **sizes, **groups, **experts, **more, attention_bias=bias)
        case "bert" | "roberta":
            kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
            sizes = {name: c[name] for name in kept} | {"max_position_embeddings": 40, "type_vocab_size": r.choice([1, 3])}
            pad = {"pad_token_id": r.choice([0, 1])} if kind == "roberta" else {}
            return transformers.AutoConfig.for_model(kind, **sizes, **pad, layer_norm_eps=c["rms_norm_eps"])
        case "modernbert":
            kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            act = {"hidden_activation": c["hidden_act"], "classifier_activation": r.choice(["gelu", "relu"])}
            biases = {f"{name}_bias": r.choice([False, True]) for name in ("norm", "attention", "mlp", "decoder", "classifier")}
            tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
            more = types | {"local_attention": r.choice([4, 8]), "norm_eps": c["rms_norm_eps"]}
            return transformers.ModernBertConfig(**{name: c[name] for name in kept}, **act, **biases, **tokens, **more)
        case "t5":
            sizes = {"d_model": c["hidden_size"], "d_kv": r.choice([4, 6]), "d_ff": c["intermediate_size"]}
            sizes |= {"num_layers": c["num_hidden_layers"], "num_decoder_layers": r.choice([1, 2])}
            buckets = {"relative_attention_num_buckets": r.choice([4, 8]), "relative_attention_max_distance": r.choice([9, 20])}
            act = {"feed_forward_proj": r.choice(["relu", "gated-gelu", "gated-silu"])}
            more = {"vocab_size": c["vocab_size"], "num_heads": c["num_attention_heads"], "layer_norm_epsilon": c["rms_norm_eps"]}
            tied = r.choice([{}, {"tie_word_embeddings": False}])
            return transformers.T5Config(**sizes, **buckets, **act, **more, **tied, decoder_start_token_id=0)
        case "whisper":
            sizes = {"d_model": c["hidden_size"], "vocab_size": c["vocab_size"], "num_mel_bins": r.choice([5, 8])}
            for side in ("encoder", "decoder"):
                sizes |= {f"{side}_layers": r.choice([1, 2]), f"{side}_ffn_dim": r.choice([20, 24])}
                sizes[f"{side}_attention_heads"] = c["num_attention_heads"]
            lengths = {"max_source_positions": 12, "max_target_positions": 40, "activation_function": r.choice(["gelu", "relu"])}
            tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
            more = {"scale_embedding": r.choice([False, True]), "begin_suppress_tokens": None}
            return transformers.WhisperConfig(**sizes, **lengths, **tokens, **more)
        case "vit":
            kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
            sizes = {name: c[name] for name in kept} | {"image_size": r.choice([8, [8, 12]]), "patch_size": r.choice([2, 4])}
            more = {"num_channels": r.choice([1, 3]), "qkv_bias": bias, "num_labels": r.choice([2, 5])}
            return transformers.ViTConfig(**sizes, **more, layer_norm_eps=c["rms_norm_eps"])
        case "clip":
            kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
            both = [{name: drawn[name] for name in kept} for drawn in (c, _common(r))]
            text = both[0] | {"vocab_size": c["vocab_size"], "max_position_embeddings": 40, "layer_norm_eps": c["rms_norm_eps"]}
            text |= {"bos_token_id": 1, "eos_token_id": r.choice([2, 5]), "pad_token_id": 0}
            vision = both[1] | {"image_size": 8, "patch_size": r.choice([2, 4]), "layer_norm_eps": r.choice([1e-5, 1e-3])}
            return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=r.choice([6, 10]))
    raise ValueError(kind)


def random_model(kind: str, seed: int) -> Any:
    """A model of `transformers`, all of whose weights matter."""
    r = random.Random(f"{kind} {seed}")
    torch.manual_seed(seed)
    config = _config(kind, r)
    config._attn_implementation = "eager"
    model = getattr(transformers, ARCHITECTURES[kind].class_name)(config).eval()
    with torch.no_grad():
        biases = [(name, buffer) for name, buffer in model.named_buffers() if "correction_bias" in name]
        for name, p in [*model.named_parameters(), *biases]:
            one = 1.0 if ("norm" in name.lower() or "ln_" in name) and not kind.startswith("gemma") else 0.0
            p.copy_(torch.randn_like(p) * _SCALE + one * (p.dim() == 1))
    return model


def inputs(kind: str, config: Any, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A batch for an encoder or an encoder-decoder, as ours and as that of `transformers`; texts are padded at the right."""
    rng, text = np.random.default_rng(seed), getattr(config, "text_config", config)
    tokens, images = rng.integers(3, getattr(text, "vocab_size", 10), (3, 14)), {}
    real = (np.arange(14) < np.array([[14], [9], [11]])).astype(np.int64)
    if kind in ("vit", "clip"):
        vision = getattr(config, "vision_config", config)
        size = vision.image_size if isinstance(vision.image_size, list) else [vision.image_size] * 2
        images = {"images": rng.normal(size=(3, *size, vision.num_channels)).astype(np.float32)}
    pixels = {"pixel_values": torch.tensor(images["images"].transpose(0, 3, 1, 2))} if images else {}
    match kind:
        case "bert" | "roberta" | "modernbert":
            ours, theirs = {"tokens": tokens, "segments": real}, {"input_ids": tokens, "attention_mask": real}
            if kind != "modernbert":
                ours["token_types"] = theirs["token_type_ids"] = rng.integers(0, config.type_vocab_size, tokens.shape)
            if kind == "roberta":  # which finds positions by what is padding
                theirs["input_ids"] = np.where(real, tokens, config.pad_token_id)
        case "t5":
            ours = {"tokens": tokens[:, :8], "memory_tokens": tokens, "memory_segments": real}
            theirs = {"input_ids": tokens, "attention_mask": real, "decoder_input_ids": tokens[:, :8]}
        case "whisper":
            mels = rng.normal(size=(3, 2 * config.max_source_positions, config.num_mel_bins)).astype(np.float32)
            ours, theirs = {"tokens": tokens, "mels": mels}, {"decoder_input_ids": tokens}
            pixels = {"input_features": torch.tensor(mels.transpose(0, 2, 1))}
        case "vit":
            ours, theirs = images, {}
        case "clip":
            tokens[np.arange(3), real.sum(axis=1) - 1] = 5 if text.eos_token_id == 5 else text.vocab_size - 1
            tokens = np.where(real, tokens, 0)
            ours, theirs = (
                images | {"memory_tokens": tokens, "memory_segments": real},
                {"input_ids": tokens, "attention_mask": real},
            )
    ours = {name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in ours.items()}
    return ours, {name: torch.tensor(value) for name, value in theirs.items()} | pixels
