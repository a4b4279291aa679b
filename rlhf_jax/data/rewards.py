"""Rewards as Python functions of texts: verifiers, rules, judges behind a network.

A reward is a function `(prompts, responses, **columns) -> one number a sample`, where `columns` are the
other fields of the samples' rows, each a list; it gets those that it names. This is one, for short
answers that name their subject:

    def names_it(prompts, responses, subject):
        return [0.7 * (s in r) - 0.01 * len(r) for r, s in zip(responses, subject)]

A slow one is called in threads, while the devices do something else:

    scorer = rewards.Scorer(rewards.load("verifier.py:names_it"), rewards.ScorerConfig())
    pending = scorer.submit(prompts, responses, subject=subjects)
    scores = pending.result()  # float32 [N], in the order of the samples

A sample's reward is a function of that sample alone, for the settings say how many of them a call gets.
"""

import importlib.util
import inspect
import math
import numbers
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

_LARGEST = float(np.finfo(np.float32).max)


class RewardError(ValueError):
    """A reward that failed, or gave what is no reward; one sentence that names the sample."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A reward that did not come in time."""


def as_scores(values: Any, n: int) -> Float32[np.ndarray, " N"]:
    """The scores of `n` samples as float32, whatever numbers came: 0.7 stays 0.7, and True becomes 1.

    Raises RewardError, a ValueError, where there are not `n` of them in some order, or one (named by its
    index) is no finite number.
    """
    return _as_scores(values, n, "the reward", f"{n} samples", "sample {}".format)


def _as_scores(values, n: int, name: str, samples: str, sample: Callable[[int], str]):
    """`as_scores`, where errors call the reward `name`, its samples `samples` and one `sample(index)`."""
    if isinstance(values, jax.Array):
        values = np.asarray(values)
    try:
        found = len(values)
    except TypeError:
        found = None
    if found is None or isinstance(values, Mapping | Set):
        raise RewardError(
            f"{name} gave {_beginning(values)} for {samples}: give a list with a number for each"
        )
    if found != n:
        raise RewardError(f"{name} gave {found} scores for {samples}: give one for each")
    scores = np.empty(n, np.float32)
    for i, value in enumerate(values):
        number = value.item() if getattr(value, "shape", None) == () else value
        if not isinstance(number, numbers.Real) or not abs(number) <= _LARGEST:  # pyright: ignore[reportOperatorIssue]
            raise RewardError(
                f"{name} of {sample(i)} is {_beginning(value)}: give a finite number, which "
                "float32 can hold"
            )
        scores[i] = number
    return scores


@dataclass(frozen=True)
class Weighted:
    """A reward that is a sum of others; `weighted` makes one."""

    functions: dict[str, tuple[float, Callable]]

    def __call__(self, prompts, responses, **columns) -> Float32[np.ndarray, " N"]:
        """The sums, each function called once, here and now."""
        cfg = ScorerConfig(threads=0, samples_per_call=0)
        return Scorer(self, cfg).submit(prompts, responses, **columns).result()


def weighted(functions: Mapping[str, tuple[float, Callable]]) -> Weighted:
    """`{name: (weight, reward_fn)}` as one reward: the sum of weight times reward_fn, in float64.

    Each function gets the columns that it names; `Pending.parts` gives what each said. Raises RewardError
    where there is no function, a weight is not finite, or one does not take (prompts, responses).
    """
    if not functions:
        raise RewardError("a weighted reward of no functions: give {name: (weight, function)}")
    for name, (weight, fn) in functions.items():
        if not math.isfinite(weight):
            raise RewardError(f"the weight of the reward {name!r} is {weight}: it must be finite")
        _parameters(f"the reward {name!r}", fn)
    return Weighted({name: (float(weight), fn) for name, (weight, fn) in functions.items()})


def load(place: str) -> Callable:
    """The reward at "FILE.py:NAME", a function or whatever else can be called like one.

    The file is run as a module; what lies beside it is not found by its imports, unless on the path.
    Raises RewardError, in one sentence that names `place`, where there is no such file or name, the file
    fails, or what has the name does not take (prompts, responses).
    """
    path, _, name = place.rpartition(":")
    file, said = Path(path).expanduser(), f"the reward {place!r}"
    if file.suffix != ".py" or not name:
        raise RewardError(f"{said} does not say what to call: write FILE.py:FUNCTION")
    if not file.is_file():
        raise RewardError(f"{said}: there is no file {str(file)!r}, check the path")
    spec = importlib.util.spec_from_file_location(f"reward_in_{file.stem}", file)
    assert spec and spec.loader  # there is one for every .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the types of their fields
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise RewardError(f"{said}: the file fails with {_said(error)}, mend it") from error
    if not hasattr(module, name):
        own = lambda x: isinstance(x, Weighted) or getattr(x, "__module__", "") == spec.name
        named = [repr(k) for k, x in vars(module).items() if callable(x) and own(x) and k[0] != "_"]
        there = ", ".join(named) or "nothing that can be called"
        raise RewardError(f"{said}: there is no {name!r} in the file, which has {there}")
    _parameters(said, getattr(module, name))
    return getattr(module, name)


@dataclass(frozen=True)
class ScorerConfig:
    """How a reward in Python is called."""

    threads: int = 8
    """Calls at once, while the devices work; 0: in line, one after the other, with no timeout."""
    samples_per_call: int = 1
    """Samples that a call gets, 0: all; an error in a call with several cannot say which of them it was."""
    timeout: float = 60.0
    """Most seconds of a call; 0: no limit."""

    def __post_init__(self):
        for name in ("threads", "samples_per_call"):
            if getattr(self, name) < 0:
                raise ValueError(f"scorer.{name} = {getattr(self, name)}: it must be 0 or more")
        if not 0 <= self.timeout <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"scorer.timeout = {self.timeout}: it must be a number of seconds, or 0 for no limit"
            )


class _Part(NamedTuple):
    """One function of a reward, and the columns that it names."""

    name: str
    weight: float
    fn: Callable
    columns: list[str]


@dataclass
class _Chunk:
    """The samples of one call (of each part), and what became of them."""

    first: int  # the index of the first one in the batch
    prompts: list
    responses: list
    columns: dict[str, list]
    scores: list[np.ndarray] = field(default_factory=list)  # of each part, so far
    running: str = ""  # the part at work,
    since: float = math.inf  # and when it was called
    done: bool = False
    error: BaseException | None = None

    def sample(self, i: int) -> str:
        """Which sample that is, to whoever has to find it."""
        prompt, response = _beginning(self.prompts[i]), _beginning(self.responses[i])
        return f"sample {self.first + i} (prompt {prompt}, response {response})"

    def samples(self) -> str:
        """All of them."""
        last = self.first + len(self.responses) - 1
        if last == self.first:
            return self.sample(0)
        return f"samples {self.first} to {last}, the first being {self.sample(0)}"

    def remedy(self) -> str:
        """How to learn more, where that is possible."""
        alone = len(self.responses) == 1
        return "" if alone else ", or set scorer.samples_per_call = 1 to see which sample it is"


@dataclass(frozen=True)
class Scorer:
    """Calls a reward function on the samples of a batch, in threads."""

    reward_fn: Callable
    cfg: ScorerConfig = ScorerConfig()

    def submit(
        self, prompts: Sequence, responses: Sequence, **columns: Sequence | np.ndarray
    ) -> "Pending":
        """Starts to score N samples, and comes back without waiting (after the calls, with threads = 0).

        The reward sees each sample once. Raises RewardError where lists differ in length, or the reward
        names a column that is not there.
        """
        n = len(responses)
        for name, values in {"prompts": prompts, **columns}.items():
            if len(values) != n:
                raise RewardError(
                    f"{n} responses have {len(values)} {name!r}: give one for each response"
                )
        if isinstance(self.reward_fn, Weighted):
            functions = self.reward_fn.functions
        else:
            name = getattr(self.reward_fn, "__name__", type(self.reward_fn).__name__)
            functions = {name: (1.0, self.reward_fn)}
        parts = [
            _Part(name, weight, fn, _asked(f"the reward {name!r}", fn, columns))
            for name, (weight, fn) in functions.items()
        ]
        chunks, size = [], self.cfg.samples_per_call or max(n, 1)
        for first in range(0, n, size):
            cut = slice(first, first + size)
            own = {name: list(values[cut]) for name, values in columns.items()}
            chunks.append(_Chunk(first, list(prompts[cut]), list(responses[cut]), own))

        pending = Pending(parts, chunks, self.cfg.timeout)
        if not self.cfg.threads:
            pending.work()
        # Daemons, which the interpreter leaves behind as it exits: it would wait for an executor's threads,
        # and nothing can end a call that hangs. A batch has its own, so the next one is not held up.
        for _ in range(min(self.cfg.threads, len(chunks))):
            threading.Thread(target=pending.work, name="reward", daemon=True).start()
        return pending


class Pending:
    """The scores of a batch in the making; `Scorer.submit` makes one.

    Whatever the threads do first, the scores are the same, and of several failures the first sample's is
    raised: chunks are begun in order and waited for in order. After a failure no chunk is begun.
    """

    def __init__(self, parts: list[_Part], chunks: list[_Chunk], timeout: float):
        self._parts, self._chunks, self._timeout = parts, chunks, timeout
        self._waiting = iter(chunks)
        self._error: BaseException | None = None
        self._failed = False
        self._changed = threading.Condition()

    def result(self) -> Float32[np.ndarray, " N"]:
        """The scores, waited for.

        Raises RewardError for the first sample whose reward failed (chained to what was raised) or is no
        finite number, and RewardTimeoutError for one that takes longer than the timeout.
        """
        scores = self.parts()
        total = sum(part.weight * np.float64(scores[part.name]) for part in self._parts)
        return as_scores(total, sum(len(chunk.responses) for chunk in self._chunks))

    def parts(self) -> dict[str, Float32[np.ndarray, " N"]]:
        """What each function of a weighted reward said, before its weight; of any other, the scores."""
        with self._changed:
            for chunk in self._chunks:
                if self._error is None:
                    self._error = self._wait(chunk)
            self._failed |= self._error is not None
        if self._error is not None:
            raise self._error
        none = [np.zeros(0, np.float32)]
        return {
            part.name: np.concatenate(none + [chunk.scores[i] for chunk in self._chunks])
            for i, part in enumerate(self._parts)
        }

    def work(self):
        """Scores one chunk after the other, until there is none or one has failed: what threads run."""
        while True:
            with self._changed:
                chunk = None if self._failed else next(self._waiting, None)
            if chunk is None:
                return
            try:
                for part in self._parts:
                    with self._changed:
                        chunk.running, chunk.since = part.name, time.monotonic()
                        self._changed.notify_all()
                    chunk.scores.append(_call(part, chunk))
            except BaseException as error:
                chunk.error = error
                if isinstance(error, KeyboardInterrupt):  # in line
                    raise
            finally:
                with self._changed:
                    chunk.done = True
                    self._failed |= chunk.error is not None
                    self._changed.notify_all()

    def _wait(self, chunk: _Chunk) -> BaseException | None:
        """Waits until a chunk is done, or late: its error."""
        while not chunk.done:
            left = chunk.since + self._timeout - time.monotonic() if self._timeout else math.inf
            if left <= 0:
                return RewardTimeoutError(
                    f"the reward {chunk.running!r} takes more than {self._timeout:g} seconds on "
                    f"{chunk.samples()}: raise scorer.timeout or mend the function{chunk.remedy()}"
                )
            self._changed.wait(left if math.isfinite(left) else None)
        return chunk.error


def _call(part: _Part, chunk: _Chunk) -> Float32[np.ndarray, " n"]:
    """The scores of a chunk by one function."""
    name = f"the reward {part.name!r}"
    columns = {column: list(chunk.columns[column]) for column in part.columns}
    try:  # on lists of its own, which it may change
        values = part.fn(list(chunk.prompts), list(chunk.responses), **columns)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, which a thread would keep to itself
        raise RewardError(
            f"{name} failed with {_said(error)} on {chunk.samples()}: mend the function"
            f"{chunk.remedy()}"
        ) from error
    return _as_scores(values, len(chunk.responses), name, chunk.samples(), chunk.sample)


def _parameters(said: str, fn: Any) -> tuple[Mapping[str, inspect.Parameter], set[str]]:
    """(the parameters of a reward, those that prompts and responses fill)."""
    if not callable(fn):
        raise RewardError(f"{said} is {_beginning(fn)}, which cannot be called: give a function")
    try:
        signature = inspect.signature(fn)
        first_two = signature.bind_partial(None, None).arguments
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"{said} does not take (prompts, responses, **columns), which a reward is called with: {error}"
        ) from error
    return signature.parameters, set(first_two)


def _asked(said: str, fn: Any, columns: Collection[str]) -> list[str]:
    """Which of the columns a reward takes: all with **columns, else those that it names."""
    parameters, first_two = _parameters(said, fn)
    others = [p for name, p in parameters.items() if name not in first_two]
    named = {
        p.name: p.default is p.empty
        for p in others
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    for name, required in named.items():
        if required and name not in columns:
            there = ", ".join(map(repr, columns)) or "none"
            raise RewardError(
                f"{said} asks for the column {name!r}, and the columns are {there}: give it that column, "
                "or the parameter a default"
            )
    every = any(p.kind is p.VAR_KEYWORD for p in others)
    return [name for name in columns if every or name in named]


def _beginning(x: Any, most: int = 40) -> str:
    """How a value begins, on one line."""
    if isinstance(x, str):
        return repr(x[:most]) + "..." * (len(x) > most)
    text = " ".join(repr(x).split())
    return text[: 2 * most] + "..." * (len(text) > 2 * most)


def _said(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    return f"{kind} ({lines[0][:200]})" if lines else kind
