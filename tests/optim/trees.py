"""A small decoder's parameters: logical axes, sizes, and random values (nested dicts)."""

import jax
import numpy as np

SIZES = {"layers": 8, "vocab": 24, "positions": 16, "embed": 16, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8}
SIZES |= {"expert_embed": SIZES["embed"], "expert_mlp": SIZES["mlp"], "experts": 2, "router": 2, "balance": 2}

AXES = {
    "embedding": {"table": ("vocab", "embed"), "positions": {"table": ("positions", "embed")}},
    "stack": {
        "block0": {
            "mixer": {
                "query": ("layers", "embed", "heads", "head_dim"),
                "key_bias": ("layers", "kv_heads", "head_dim"),
                "output": ("layers", "heads", "head_dim", "embed"),
            },
            "experts": {"up": ("layers", "experts", "expert_embed", "expert_mlp")},
            "router": {"balance": ("layers", "balance")},
            "norm": {"scale": ("layers", "embed")},
        },
    },
    "projection": ("embed", "mlp"),
    "head": ("embed", "vocab"),
    "head_bias": ("vocab",),
}


SMALL = {"table": ("vocab", "embed"), "mixer": {"query": ("layers", "embed", "heads", "head_dim")}, "bias": ("mlp",)}


def draw(seed: int, scale: float = 1.0, axes: dict = AXES) -> dict:
    """float32 NumPy arrays of the tree's shapes."""
    rng = np.random.default_rng(seed)
    shape = lambda names: tuple(SIZES[name] for name in names)  # noqa: E731
    values = lambda names: (scale * rng.normal(size=shape(names))).astype(np.float32)  # noqa: E731
    return jax.tree.map(values, axes, is_leaf=lambda x: isinstance(x, tuple))


def paths(tree: dict) -> dict[str, object]:
    """Path such as "stack/final_norm/scale" -> leaf."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {"/".join(part.key for part in path): leaf for path, leaf in flat}
