"""Looking into a model: what its layers attend to, given out beside what they compute."""

import contextlib
import contextvars
from collections.abc import Iterator

_watched: contextvars.ContextVar[bool] = contextvars.ContextVar("watched", default=False)
CROSS = "cross_attention"  # the name of the metric


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Inside, models that attend to a memory give among their metrics `CROSS`: the weights of the memory's tokens [B, T, S], the
    mean over layers and heads. Raises `ConfigError` where layers are split over a pipeline."""
    token = _watched.set(True)
    try:
        yield
    finally:
        _watched.reset(token)


def watched() -> bool:
    """Whether this is inside `watching`."""
    return _watched.get()
