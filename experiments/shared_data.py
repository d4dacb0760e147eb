"""Where the experiments look for text that does not ship with them."""

import os
from pathlib import Path

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def folder(name: str) -> str:
    """The folder `name` beside the checkout (../shared/data); else relative, to be found by LM_JAX_DATA."""
    return name if "LM_JAX_DATA" in os.environ or not (_BESIDE / name).is_dir() else str(_BESIDE / name)
