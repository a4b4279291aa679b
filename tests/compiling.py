"""How tests compile: quickly, and well where a program runs for longer than it compiles."""

import contextlib

import jax


@contextlib.contextmanager
def optimised():
    """Context, or decorator, in which LLVM optimises what is compiled, as it does outside of the tests."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
