"""Named points where tests make a run fail, to prove that it survives. Off unless LM_JAX_FAULT is set."""

import errno
import os
import signal

_counts: dict[str, int] = {}


def fault(name: str) -> None:
    """Fails here when the environment says LM_JAX_FAULT="name:kind@n", at the n-th passage (from 1).

    Kinds: "kill" (SIGKILL to this process), "raise" (RuntimeError), "enospc" (OSError, disk full).
    """
    wanted = os.environ.get("LM_JAX_FAULT", "")
    if not wanted.startswith(f"{name}:"):
        return
    kind, _, at = wanted.removeprefix(f"{name}:").partition("@")
    _counts[name] = _counts.get(name, 0) + 1
    if _counts[name] != int(at or 1):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "enospc":
        raise OSError(errno.ENOSPC, "No space left on device")
    raise RuntimeError(f"fault {wanted}")
