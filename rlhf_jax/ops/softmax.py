"""Log-probability and entropy of a softmax over the vocabulary, with gradients of their own.

They are computed from the logits in one pass, where autodiff writes several arrays of [n, V].
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

LEAST = -1e30  # in the place of -inf, which times a probability of zero is not a number


def _values(z, tokens):
    """(log-probability, entropy), and logsumexp, of float32 logits [n, V]."""
    log_sum = jax.nn.logsumexp(z, axis=-1)
    said = jnp.take_along_axis(z, tokens[:, None], axis=-1)[:, 0]
    p = jnp.exp(z - log_sum[:, None])
    entropy = log_sum - jnp.sum(jnp.where(p > 0, p * z, 0.0), axis=-1)
    return (said - log_sum, entropy), log_sum


def _slope(z, tokens, entropy, log_sum, of_logprob, of_entropy):
    """The gradient with respect to the logits, from those with respect to log-probability and entropy.

    These are None where nothing depends on them.
    """
    logp = z - log_sum[:, None]
    factor = 0.0 if of_logprob is None else of_logprob[:, None]
    said = jnp.where(jax.nn.one_hot(tokens, z.shape[-1], dtype=bool), factor, 0.0)
    if of_entropy is not None:
        factor += of_entropy[:, None] * (jnp.maximum(logp, LEAST) + entropy[:, None])
    return said - jnp.exp(logp) * factor


@jax.custom_vjp
def read(z: Float[Array, "n V"], tokens: Int[Array, " n"]):
    """(log-probability, entropy) [n] of float32 logits; the gradient keeps the logits."""
    return _values(z, tokens)[0]


def _read_fwd(z, tokens):
    found, log_sum = _values(z.value, tokens.value)
    return found, (z.value, tokens.value, found[1], log_sum)


def _read_bwd(kept, given):
    return _slope(*kept, *(None if isinstance(x, SymbolicZero) else x for x in given)), None


read.defvjp(_read_fwd, _read_bwd, symbolic_zeros=True)
