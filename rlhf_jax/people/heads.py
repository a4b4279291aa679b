"""Linear rewards on fixed features, each from a bootstrap of the labels: an ensemble for choosing pairs.

heads = bootstrap_heads(features[a] - features[b], labels, 8, rng)      # [M, D]
rewards = heads @ features.T                                            # [M, R]
"""

import numpy as np
import scipy
from jaxtyping import Float

RIDGE = 1.0
"""Precision of the normal prior of each weight, for features of deviation 1."""


def fit(
    x: Float[np.ndarray, "A D"],
    labels: Float[np.ndarray, " A"],
    counts: Float[np.ndarray, " A"],
    ridge: float = RIDGE,
) -> Float[np.ndarray, " D"]:
    """The weights w that minimise sum counts f(x w, labels) + ridge / 2 |w|^2, by Newton's method.

    f is the Bradley-Terry loss of a soft label p: -p log sigmoid(d) - (1 - p) log sigmoid(-d).
    """
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = scipy.special.expit(x @ w)
        gradient = x.T @ (counts * (p - labels)) + ridge * w
        hessian = (x * (counts * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w -= step / max(1.0, np.abs(x @ step).max(initial=0) / 4)  # far steps overshoot
        if np.abs(step).max() < 1e-10:
            break
    return w


def bootstrap_heads(
    x: Float[np.ndarray, "A D"],
    labels: Float[np.ndarray, " A"],
    members: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "M D"]:
    """Weights of each member on the differences of features `x`, each from A labels drawn with replacement.

    Heads that share their labels agree too much to tell what is not known. Without labels, a head is a draw
    from its prior.
    """
    scale = x.std(axis=0) if len(x) else np.ones(x.shape[1])
    scale = np.where(scale > 0, scale, 1.0)
    if not len(x):
        return rng.normal(size=(members, x.shape[1])) * RIDGE**-0.5
    counts = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=members)
    return np.stack([fit(x / scale, labels, c.astype(float)) / scale for c in counts])
