"""The works that are measured: their shapes, their data, and how many multiplications they need.

Both sides read this file, so it needs NumPy alone. B rows, prompts of P tokens, responses of R tokens; a
training work without prompts has rows of L tokens.

Work is counted in floating-point operations that cannot be left out: 2 for each weight of a matrix that a
token passes, and 4 H h for each pair of a token and a column that it sees (L (L + 1) / 2 of them in a row);
the vocabulary's matrix only where a token is predicted. A gradient costs twice what its forward pass costs.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Of a model in Llama's form, with heads of width D / H; tied: one embedding serves both ends."""

    layers: int
    d_model: int
    heads: int
    d_mlp: int
    vocab_size: int
    tied: bool = False
    context: int = 256

    @property
    def block(self) -> int:
        """Weights of one layer's matrices."""
        return 4 * self.d_model**2 + 3 * self.d_model * self.d_mlp


MODELS = {
    "tiny": Shape(layers=2, d_model=128, heads=4, d_mlp=512, vocab_size=512),
    "small": Shape(layers=6, d_model=512, heads=8, d_mlp=1408, vocab_size=8192),
    "gpt2": Shape(
        layers=12, d_model=768, heads=12, d_mlp=2048, vocab_size=50257, tied=True, context=1024
    ),
}
"""0.7M, 27.7M and 124M parameters; the last has GPT-2-small's measures."""


@dataclass(frozen=True)
class Work:
    """A piece of work, and who does it beside us."""

    says: str
    peers: tuple[str, ...]
    rows: int
    prompt: int = 0
    response: int = 0
    length: int = 0
    same: str = ""
    """What both sides have to agree on: tokens, or loss; empty where they draw at random."""
    group: int = 1
    """Responses to one prompt."""
    epochs: int = 1
    beside: str = ""
    """The work that the peer does, where it is another."""


GENERATORS = ("transformers", "tunix", "bare")
WORKS = {
    "generate": Work("greedy", GENERATORS, 16, prompt=32, response=64, same="tokens"),
    "sample": Work("sampled at 1", GENERATORS, 16, prompt=32, response=64),
    "ragged": Work("sampled, ends drawn, 64 prompts", GENERATORS, 16, prompt=32, response=64),
    "reward": Work("step on pairs", ("torch", "trl"), 8, length=128, same="loss"),
    "sft": Work("step", ("torch", "trl", "tunix", "bare"), 8, length=128, same="loss"),
    "dpo": Work("step on pairs", ("torch", "trl", "tunix"), 8, prompt=64, response=64, same="loss"),
    "grpo": Work("iteration", ("trl", "tunix"), 16, prompt=32, response=64, group=4),
    "ppo": Work("iteration", ("trl112", "tunix"), 16, prompt=32, response=64, epochs=4),
    "shared": Work(
        "iteration of PPO with one trunk",
        ("ours",),
        16,
        prompt=32,
        response=64,
        epochs=4,
        beside="ppo",
    ),
    "packed": Work(
        "SFT step on packed texts", ("ours",), 32, length=128, same="loss", beside="padded"
    ),
    "start": Work(
        "command to end of a PPO iteration", ("trl112", "tunix"), 16, prompt=32, response=64
    ),
}
BETA, KL, LR, CLIP = 0.1, 0.04, 1e-5, 1.0
"""DPO's beta; GRPO's and PPO's weight of the KL; of Adam, whose gradients are clipped at a norm of 1."""
RAGGED_BATCHES = 4
"""Batches of prompts in the ragged work."""


def tokens(name: str, work: Work, vocab_size: int) -> np.ndarray:
    """What the work reads, int32 [rows, columns]: the same on both sides.

    Prompts; or whole rows; or pairs, [2, rows, columns], which share their prompts.
    """
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(0, vocab_size, shape, np.int32)
    if name == "dpo":
        said = draw(2, work.rows, work.response)
        prompts = np.broadcast_to(draw(work.rows, work.prompt), (2, work.rows, work.prompt))
        return np.concatenate([prompts, said], axis=2)
    if name == "reward":
        return draw(2, work.rows, work.length)
    if name in ("sft", "packed", "padded"):
        return draw(work.rows, work.length)
    rows = work.rows * (RAGGED_BATCHES if name == "ragged" else 1)
    return np.repeat(draw(rows // work.group, work.prompt), work.group, axis=0)


def sizes(work: Work) -> np.ndarray:
    """Tokens of each text of the packed work, and of the padded one: exponential, at a mean of L / 4."""
    drawn = np.random.default_rng(1).exponential(work.length / 4, work.rows)
    return np.clip(drawn.astype(int), 2, work.length)


def stops(name: str, work: Work, vocab_size: int) -> list[int]:
    """The tokens that end a response: none, or in the ragged work as many as end it at a mean of R / 4."""
    return list(range(round(4 * vocab_size / work.response))) if name == "ragged" else []


def lengths(rows: np.ndarray, stops: list[int]) -> np.ndarray:
    """Tokens of each response [n, R] up to its first stop, this included."""
    ends = np.isin(rows, stops)
    return np.where(ends.any(1), ends.argmax(1) + 1, rows.shape[1])


def score(rows: np.ndarray) -> np.ndarray:
    """GRPO's reward of responses [n, R]: the share of their tokens that are even."""
    return (np.asarray(rows) % 2 == 0).mean(1).astype(np.float32)


def passes(shape: Shape, rows: int, length: int, predicted: int, before: int = 0) -> float:
    """Operations of a forward pass: `length` tokens a row after `before` that a cache holds."""
    seen = length * before + length * (length + 1) / 2
    dense = 2 * length * shape.layers * shape.block + 4 * shape.layers * shape.d_model * seen
    return rows * (dense + 2 * predicted * shape.d_model * shape.vocab_size)


def operations(name: str, work: Work, shape: Shape) -> float:
    """Floating-point operations of one piece of work, for full-length responses.

    generate, sample, ragged   prefill, and a pass for each token but the last
    reward, sft                a pass and its gradient: 3 passes
    dpo                        3 passes, and the reference's
    grpo                       generation, the reference's pass and 3
    ppo                        generation; reward model, reference, policy and critic a pass each; in every
                               epoch 3 of policy and critic
    shared                     the same, where the critic is a head on the policy's trunk
    packed, padded             3 passes of each text, without its padding

    The ragged work is counted as if all its rows were of mean length.
    """
    B, P, R, L = work.rows, work.prompt, work.response, work.length
    if name == "reward":
        return 3 * passes(shape, 2 * B, L, 0)
    if name == "sft":
        return 3 * passes(shape, B, L, L - 1)
    if name in ("packed", "padded"):
        return 3 * sum(passes(shape, 1, int(n), int(n) - 1) for n in sizes(work))
    if name == "dpo":
        return 4 * passes(shape, 2 * B, P + R, R)
    if name == "ragged":
        work, R = replace(work, response=R // 4), R // 4
        B *= RAGGED_BATCHES
    generation = passes(shape, B, P, 1) + passes(shape, B, R - 1, R - 1, before=P)
    policy, trunk = passes(shape, B, P + R, R), passes(shape, B, P + R, 0)
    if name == "grpo":
        return generation + 4 * policy
    if name == "shared":
        return generation + 2 * policy + trunk + work.epochs * 3 * policy
    if name in ("ppo", "start"):
        return generation + 2 * (policy + trunk) + work.epochs * 3 * (policy + trunk)
    return generation
