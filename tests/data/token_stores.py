"""Small token stores for tests, held in memory."""

import numpy as np

from lm_jax.data.store import TokenStore

EOS = 0


def make_store(sizes, *, seed=0, dtype=np.uint16, vocab_size=5000, prefix="doc") -> TokenStore:
    """Documents of `sizes` tokens each, end-of-text included; no two neighbouring tokens are equal by accident only."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tokens = np.random.default_rng(seed).integers(1, vocab_size, offsets[-1]).astype(dtype)
    tokens[offsets[1:] - 1] = EOS
    return TokenStore(
        tokens=tokens,
        offsets=offsets,
        eos=EOS,
        num_bytes=int(offsets[-1]) * 3,
        document_names=tuple(f"{prefix}{i}" for i in range(len(sizes))),
        fingerprint=f"{prefix}-{seed}-{list(sizes)}",
    )
