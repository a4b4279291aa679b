"""Python functions as rewards: loading one from a file, calling it on some samples, checking its scores.

A reward is a function `(prompts, responses, **columns) -> one number a sample`. `columns` are the other
fields of the samples' rows, each a list; a function receives those that it names. A function with a parameter
`responses` or `completions` anywhere but in second place, as in TRL's rewards, is called by name. This
reward asks for short answers that name their subject:

    def names_it(prompts, responses, subject):
        return [0.7 * (s in r) - 0.01 * len(r) for r, s in zip(responses, subject)]
"""

import asyncio
import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

BUILT_IN = "verifiers", "features"
"""The files of this library whose rewards `load` finds by name."""
_LARGEST = float(np.finfo(np.float32).max)


class RewardError(ValueError):
    """A reward failed or returned something else than scores; the message names the sample."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A reward took longer than its timeout."""


@dataclass
class Call:
    """The samples that one call of a reward receives."""

    first: int  # index of the first sample in the batch
    prompts: list
    responses: list
    columns: dict[str, list]

    def sample(self, i: int) -> str:
        """A description of one sample by which a user finds it."""
        prompt, response = shorten(self.prompts[i]), shorten(self.responses[i])
        return f"sample {self.first + i} (prompt {prompt}, response {response})"

    def samples(self) -> str:
        """A description of all samples."""
        last = self.first + len(self.responses) - 1
        if last == self.first:
            return self.sample(0)
        return f"samples {self.first} to {last}, the first being {self.sample(0)}"

    def remedy(self) -> str:
        """Advice for finding the failing sample among several."""
        alone = len(self.responses) == 1
        return "" if alone else ", or set scorer.samples_per_call = 1 to see which sample it is"


class Signature(NamedTuple):
    """How to call a reward."""

    by_name: tuple[str, ...]
    """Parameters that take prompts (if any) and responses by name; empty: both are passed by position."""
    columns: dict[str, bool]
    """Columns that the reward names, each with True if it has no default."""
    every_column: bool
    """True if the reward takes every column, as **columns."""
    filled: tuple[str, ...]
    """Parameters that receive prompts and responses."""

    def select(self, label: str, columns: Iterable[str]) -> list[str]:
        """Names of those `columns` that the reward receives.

        Raises RewardError, in a sentence about `label`, if a column without a default is missing.
        """
        there = list(columns)
        for name, needed in self.columns.items():
            if needed and name not in there:
                listed = ", ".join(map(repr, there)) or "none"
                raise RewardError(
                    f"{label} asks for the column {name!r}, and the columns are {listed}: give it that "
                    "column, or the parameter a default"
                )
        rest = lambda name: self.every_column and name not in self.filled
        return [name for name in there if name in self.columns or rest(name)]


class Part(NamedTuple):
    """One function of a reward: the reward itself, or a term of a weighted sum."""

    name: str
    weight: float
    signature: Signature
    score: Callable[..., Float32[np.ndarray, " n"]]  # of the samples of a Call

    @property
    def label(self) -> str:
        """The name of the function in error messages."""
        return f"the reward {self.name!r}"


@dataclass(frozen=True)
class Weighted:
    """A weighted sum of rewards, itself a reward; `weighted` makes one."""

    functions: dict[str, tuple[float, Callable]]

    def __call__(self, prompts, responses, **columns) -> Float32[np.ndarray, " N"]:
        """Calls each function once and returns the sums."""
        call = Call(0, prompts, responses, columns)
        parts = parts_of(self)
        return weighted_sum(parts, {part.name: part.score(call) for part in parts})


def weighted(functions: Mapping[str, tuple[float, Callable]]) -> Weighted:
    """Combines `{name: (weight, reward_fn)}` into one reward: the sum of weight times reward_fn, in float64.

    Each function receives the columns that it names; `Pending.parts` returns each function's own scores.
    Raises RewardError if there is no function, a weight is not finite, or a function does not take
    (prompts, responses).
    """
    if not functions:
        raise RewardError("a weighted reward of no functions: give {name: (weight, function)}")
    for name, (weight, fn) in functions.items():
        if not math.isfinite(weight):
            raise RewardError(f"the weight of the reward {name!r} is {weight}: it must be finite")
        signature_of(f"the reward {name!r}", fn)
    return Weighted({name: (float(weight), fn) for name, (weight, fn) in functions.items()})


def load(place: str) -> Callable:
    """Loads the reward at "FILE.py:NAME", a function or another callable, or a built-in one, as
    "verifiers:number" or "features:length".

    The file runs as a module; its imports find files beside it only if they are on the path. Raises
    RewardError, in one sentence that names `place`, if the file or the name is missing, the file fails, or
    the named object does not take (prompts, responses); or if a library that a built-in one needs is missing.
    """
    path, _, name = place.rpartition(":")
    if path in BUILT_IN:
        return _built_in(path, name)
    file, label = Path(path).expanduser(), f"the reward {place!r}"
    if file.suffix != ".py" or not name:
        raise RewardError(
            f"{label} does not say what to call: write FILE.py:FUNCTION, verifiers:NAME or features:NAME"
        )
    if not file.is_file():
        raise RewardError(f"{label}: there is no file {str(file)!r}, check the path")
    spec = importlib.util.spec_from_file_location(f"reward_in_{file.stem}", file)
    assert spec and spec.loader  # there is one for every .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the types of their fields
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise RewardError(f"{label}: the file fails with {summary(error)}, mend it") from error
    if not hasattr(module, name):
        own = lambda x: isinstance(x, Weighted) or getattr(x, "__module__", "") == spec.name
        named = [repr(k) for k, x in vars(module).items() if callable(x) and own(x) and k[0] != "_"]
        there = ", ".join(named) or "nothing that can be called"
        raise RewardError(f"{label}: there is no {name!r} in the file, which has {there}")
    signature_of(label, getattr(module, name))
    return getattr(module, name)


def _built_in(path: str, name: str) -> Callable:
    """A reward of this library, called once on no samples, so that it imports the libraries that it needs."""
    from rlhf_jax.rewards import features, verifiers

    rewards = {"verifiers": verifiers, "features": features}[path].REWARDS
    if name not in rewards:
        there = ", ".join(f"{path}:{one}" for one in rewards)
        raise RewardError(f"the reward '{path}:{name}' is none of the library, which has {there}")
    columns = signature_of(f"the reward '{path}:{name}'", rewards[name]).columns
    rewards[name]([], [], **{column: [] for column in columns})
    return rewards[name]


def signature_of(label: str, fn: Any) -> Signature:
    """How to call `fn`. Raises RewardError, about `label`, if `fn` does not take prompts and responses."""
    if not callable(fn):
        raise RewardError(f"{label} is {shorten(fn)}, which cannot be called: give a function")
    wrong = f"{label} does not take (prompts, responses, **columns), which a reward is called with"
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise RewardError(f"{wrong}: {error}") from error
    parameters = signature.parameters.values()
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    second = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = second[1:2]
    responses = [name for name in ("responses", "completions") if name in named]
    if responses and responses[:1] != second:
        by_name = ("prompts",) * ("prompts" in named or every) + (responses[0],)
        filled = by_name
    elif second == ["prompts"]:
        raise RewardError(f"{wrong}: 'prompts' is its second parameter")
    else:
        by_name = ()
        try:
            filled = tuple(signature.bind_partial(None, None).arguments)
        except TypeError as error:
            raise RewardError(f"{wrong}: {error}") from error
    columns = {
        p.name: p.default is p.empty
        for p in parameters
        if p.name not in filled and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    return Signature(by_name, columns, every, filled)


def parts_of(reward: Callable) -> list[Part]:
    """The functions of a reward, called in this process."""
    if isinstance(reward, Weighted):
        functions = reward.functions
    else:
        functions = {getattr(reward, "__name__", type(reward).__name__): (1.0, reward)}
    parts = []
    for name, (weight, fn) in functions.items():
        signature = signature_of(f"the reward {name!r}", fn)
        parts.append(Part(name, weight, signature, partial(_score, name, fn, signature)))
    return parts


def _score(name: str, fn: Callable, signature: Signature, call: Call) -> Float32[np.ndarray, " n"]:
    """The scores of the samples of one call by `fn`, which gets lists of its own and may change them."""
    label, both = f"the reward {name!r}", (list(call.prompts), list(call.responses))
    named = {column: list(call.columns[column]) for column in signature.select(label, call.columns)}
    by_name = signature.by_name
    named |= dict(zip(by_name, both[-len(by_name) :], strict=bool(by_name)))
    try:
        values = fn(*(() if by_name else both), **named)
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
    except KeyboardInterrupt:
        raise
    except RewardError as error:  # of the library's own rewards
        raise RewardError(f"{label}: {error} (on {call.samples()})") from error
    except BaseException as error:  # SystemExit too, which a thread would keep to itself
        raise RewardError(
            f"{label} failed with {summary(error)} on {call.samples()}: mend the function{call.remedy()}"
        ) from error
    return as_scores(values, len(call.responses), label, call)


def as_scores(
    values: Any, n: int, label: str = "the reward", call: Call | None = None
) -> Float32[np.ndarray, " N"]:
    """Converts the scores of `n` samples, which may be any numbers or booleans, to float32.

    Raises RewardError if `values` is no ordered collection of `n` scores or a score is no finite number. The
    message names the reward as `label` and its samples as in `call`, or by their indices.
    """
    samples = call.samples() if call else f"{n} samples"
    jax = sys.modules.get(
        "jax"
    )  # not imported by this file, so that a child process starts quickly
    if jax and isinstance(values, jax.Array):
        values = np.asarray(values)
    try:
        found = len(values)
    except TypeError:
        found = None
    if found is None or isinstance(values, Mapping | Set):
        raise RewardError(
            f"{label} gave {shorten(values)} for {samples}: give a list with a number for each"
        )
    if found != n:
        raise RewardError(f"{label} gave {found} scores for {samples}: give one for each")
    scores = np.empty(n, np.float32)
    for i, value in enumerate(values):
        number = value.item() if getattr(value, "shape", None) == () else value
        if not isinstance(number, numbers.Real) or not abs(number) <= _LARGEST:  # pyright: ignore[reportOperatorIssue]
            sample = call.sample(i) if call else f"sample {i}"
            raise RewardError(
                f"{label} of {sample} is {shorten(value)}: give a finite number, which float32 can hold"
            )
        scores[i] = number
    return scores


def weighted_sum(
    parts: Sequence[Part], scores: Mapping[str, Float[np.ndarray, " N"]]
) -> Float32[np.ndarray, " N"]:
    """The scores of a reward [N], from those of its parts by name; summed in float64."""
    total = sum(part.weight * np.float64(scores[part.name]) for part in parts)
    return as_scores(total, len(scores[parts[0].name]))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The columns of rows: every field that any row has, with None for rows without it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def shorten(x: Any, most: int = 40) -> str:
    """The beginning of a value, on one line."""
    if isinstance(x, str):
        return repr(x[:most]) + "..." * (len(x) > most)
    text = " ".join(repr(x).split())
    return text[: 2 * most] + "..." * (len(text) > 2 * most)


def summary(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    return f"{kind} ({lines[0][:200]})" if lines else kind
