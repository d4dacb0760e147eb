"""lm_jax: a JAX/Flax research framework for scaled language-model pretraining."""

__version__ = "0.1.0"
