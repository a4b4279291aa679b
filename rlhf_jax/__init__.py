"""Reinforcement learning from human feedback in JAX and Flax: pure functions, composed by experiments."""

__version__ = "0.1.0"
