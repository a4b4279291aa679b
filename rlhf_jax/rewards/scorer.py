"""Rewards as Python functions of texts: verifiers, rules, judges behind a network.

A reward is a function `(prompts, responses, **columns) -> one number a sample`, where `columns` are the
other fields of the samples' rows, each a list; it gets those that it names. A function that has a parameter
`responses` or `completions` elsewhere than in second place, as TRL's rewards do, is called by name. This
is a reward for short answers that name their subject:

    def names_it(prompts, responses, subject):
        return [0.7 * (s in r) - 0.01 * len(r) for r, s in zip(responses, subject)]

A slow one is called in threads, while the devices do something else:

    scorer = rewards.Scorer(rewards.load("verifier.py:names_it"), rewards.ScorerConfig())
    pending = scorer.submit(prompts, responses, subject=subjects)
    scores = pending.result()  # float32 [N], in the order of the samples

One that is not trusted to come back is named by its place, and called in child processes:

    scorer = rewards.Scorer("verifier.py:names_it", rewards.ScorerConfig(processes=True))

A sample's reward is a function of that sample alone, for the settings say how many of them a call gets.
"""

import asyncio
import importlib.util
import inspect
import math
import numbers
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from rlhf_jax.bounds import Bound, Settings, Whole
from rlhf_jax.rewards import child as reward_process
from rlhf_jax.rewards.child import Child, ChildEndedError

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
    jax = sys.modules.get("jax")  # which this file does not import, for a child to start quickly
    if jax and isinstance(values, jax.Array):
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
        takes(f"the reward {name!r}", fn)
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
    takes(said, getattr(module, name))
    return getattr(module, name)


class Takes(NamedTuple):
    """How a reward is called."""

    by_name: tuple[str, ...]
    """Its parameters for prompts (where it has one) and responses; empty: it takes them in that order."""
    columns: dict[str, bool]
    """The columns that it names, and whether it needs them."""
    every: bool
    """Whether it takes all columns, as **columns."""
    not_columns: tuple[str, ...]
    """Its parameters that prompts and responses fill."""

    def chosen(self, said: str, columns: Iterable[str]) -> list[str]:
        """Which of the columns it gets: all with **columns, else those that it names.

        Raises RewardError, about `said`, where one that it needs is not among them.
        """
        there = list(columns)
        for name, needed in self.columns.items():
            if needed and name not in there:
                listed = ", ".join(map(repr, there)) or "none"
                raise RewardError(
                    f"{said} asks for the column {name!r}, and the columns are {listed}: give it that "
                    "column, or the parameter a default"
                )
        own = lambda name: name in self.columns or (self.every and name not in self.not_columns)
        return [name for name in there if own(name)]


def takes(said: str, fn: Any) -> Takes:
    """How `fn` is called. Raises RewardError, about `said`, where it does not take prompts and responses."""
    if not callable(fn):
        raise RewardError(f"{said} is {_beginning(fn)}, which cannot be called: give a function")
    wrong = f"{said} does not take (prompts, responses, **columns), which a reward is called with"
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
    return Takes(by_name, columns, every, filled)


@dataclass(frozen=True)
class ScorerConfig(Settings):
    """Calls of a Python reward."""

    _incidental = ("threads", "processes", "samples_per_call", "timeout")

    threads: Whole = 8
    """Concurrent calls of the Python reward while the devices work; 0: one call after the other in the main
    thread, without a timeout unless in processes."""
    processes: bool = False
    """Run each call in a child process, for an untrusted reward: an exit, a crash or a hanging regular
    expression then ends that process only, and the error names the sample."""
    samples_per_call: Whole = 1
    """Samples per call; 0: all. An error in a call with several samples cannot name the faulty one."""
    timeout: Annotated[float, Bound(ge=0, le=10**9)] = 60.0
    """Time limit of a call, in seconds; 0: none."""

    def _unread(self) -> dict[str, str]:
        if self.threads or self.processes:
            return {}
        return {"timeout": "calls in line (threads = 0) have none, unless in processes"}


class _Part(NamedTuple):
    """One function of a reward."""

    name: str
    weight: float
    takes: Takes
    fn: Callable[["_Chunk"], Float32[np.ndarray, " n"]]  # the scores of a chunk

    @property
    def said(self) -> str:
        """What errors call it."""
        return f"the reward {self.name!r}"


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

    def late(self, timeout: float) -> RewardTimeoutError:
        """The error of a call that takes longer than `timeout`."""
        return RewardTimeoutError(
            f"the reward {self.running!r} takes more than {timeout:g} seconds on "
            f"{self.samples()}: raise scorer.timeout or mend the function{self.remedy()}"
        )


class Scorer:
    """Calls a reward on the samples of a batch, in threads or child processes.

    `reward` is a function, or the place of one as `load` takes it. Raises RewardError as that does, and where
    a function is to be called in other processes, which only a place can be.
    """

    def __init__(self, reward: Callable | str, cfg: ScorerConfig = ScorerConfig()):
        self.cfg = cfg
        if cfg.processes and not isinstance(reward, str):
            raise RewardError(
                "scorer.processes = True and the reward is a function: name it as FILE.py:FUNCTION"
            )
        if cfg.processes:
            self._parts = _Children(str(reward), cfg).parts()
        else:
            self._parts = _parts(load(reward) if isinstance(reward, str) else reward)

    def check(self, prompts: Sequence[str], rows: Sequence[Mapping[str, Any]]):
        """Raises RewardError where the reward names a column that the rows of `prompts` do not all have."""
        there = {name for row in rows for name in row}
        for part in self._parts:
            for name in part.takes.chosen(part.said, sorted(there)):
                lack = [i for i, row in enumerate(rows) if name not in row]
                if lack and name in part.takes.columns:
                    raise RewardError(
                        f"{part.said} asks for the column {name!r}, and {len(lack)} of {len(rows)} prompts "
                        f"lack it, the first being {_beginning(prompts[lack[0]])}: give it to all of them"
                    )

    def submit(
        self, prompts: Sequence, responses: Sequence, /, **columns: Sequence | np.ndarray
    ) -> "Pending":
        """Starts to score N samples, and comes back without waiting (after the calls, with threads = 0).

        The reward sees each sample once. Raises RewardError where lists differ in length, or the reward
        names a column that is not there.
        """
        n = len(responses)
        for name, values in [("prompts", prompts), *columns.items()]:
            if len(values) != n:
                raise RewardError(
                    f"{n} responses have {len(values)} {name!r}: give one for each response"
                )
        asked = {name for part in self._parts for name in part.takes.chosen(part.said, columns)}
        chunks, size = [], self.cfg.samples_per_call or max(n, 1)
        for first in range(0, n, size):
            cut = slice(first, first + size)
            own = {name: list(columns[name][cut]) for name in columns if name in asked}
            chunks.append(_Chunk(first, list(prompts[cut]), list(responses[cut]), own))

        pending = Pending(
            self._parts, chunks, 0.0 if self.cfg.processes else self.cfg.timeout
        )  # a child is killed by the thread that waits for it
        if not self.cfg.threads:
            pending.work()
        # Daemons, which the interpreter leaves behind as it exits: it would wait for an executor's threads,
        # and nothing can end a call that hangs. A batch has its own, so the next one is not held up.
        for _ in range(min(self.cfg.threads, len(chunks))):
            threading.Thread(target=pending.work, name="reward", daemon=True).start()
        return pending


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The columns of rows: every field that a row has, with None for the rows that lack it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


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
                    chunk.scores.append(part.fn(chunk))
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
                return chunk.late(self._timeout)
            self._changed.wait(left if math.isfinite(left) else None)
        return chunk.error


def _parts(reward: Callable) -> list[_Part]:
    """The functions of a reward that is called in this process."""
    if isinstance(reward, Weighted):
        functions = reward.functions
    else:
        functions = {getattr(reward, "__name__", type(reward).__name__): (1.0, reward)}
    parts = []
    for name, (weight, fn) in functions.items():
        how = takes(f"the reward {name!r}", fn)
        parts.append(_Part(name, weight, how, partial(_call, name, fn, how)))
    return parts


def _call(name: str, fn: Callable, how: Takes, chunk: _Chunk) -> Float32[np.ndarray, " n"]:
    """The scores of a chunk by one function."""
    said, both = f"the reward {name!r}", (list(chunk.prompts), list(chunk.responses))
    named = {column: list(chunk.columns[column]) for column in how.chosen(said, chunk.columns)}
    named |= dict(zip(how.by_name, both[-len(how.by_name) :], strict=bool(how.by_name)))
    try:  # on lists of its own, which it may change
        values = fn(*(() if how.by_name else both), **named)
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, which a thread would keep to itself
        raise RewardError(
            f"{said} failed with {_said(error)} on {chunk.samples()}: mend the function"
            f"{chunk.remedy()}"
        ) from error
    return _as_scores(values, len(chunk.responses), said, chunk.samples(), chunk.sample)


class _Children:
    """The child processes of one reward, each started when it is first needed, or needed again."""

    def __init__(self, place: str, cfg: ScorerConfig):
        self._place, self._timeout = place, cfg.timeout
        self._idle: queue.LifoQueue[Child | None] = queue.LifoQueue()  # None: one may be started
        for _ in range(max(1, cfg.threads)):
            self._idle.put(None)

    def parts(self) -> list[_Part]:
        """The functions of the reward, which the first child reads from its file."""
        child, answer = self._started()
        self._idle.get()
        self._idle.put(child)
        return [
            _Part(name, weight, Takes(*how), partial(self._call, n, name))
            for n, (name, weight, how) in enumerate(answer["parts"])
        ]

    def _started(self) -> tuple[Child, dict]:
        child = Child("from rlhf_jax.rewards import scorer; scorer.serve(fd)")
        try:
            answer = child.ask({"place": self._place})
        except ChildEndedError as error:
            raise RewardError(
                f"the reward {self._place!r} {error} while its file was read: mend it"
            ) from None
        if "error" in answer:
            raise RewardError(answer["error"])
        return child, answer

    def _call(self, part: int, name: str, chunk: _Chunk) -> Float32[np.ndarray, " n"]:
        """The scores of a chunk by one function."""
        said, child = f"the reward {name!r}", self._idle.get()
        question = {
            "part": part,
            "timeout": self._timeout,
            "chunk": [chunk.first, chunk.prompts, chunk.responses, chunk.columns],
        }
        try:
            child = child or self._started()[0]
            answer = child.ask(question, self._timeout)
        except TimeoutError:
            child = None
            raise chunk.late(self._timeout) from None
        except ChildEndedError as error:
            child = None
            raise RewardError(
                f"{said} {error} on {chunk.samples()}: mend the function{chunk.remedy()}"
            ) from None
        finally:
            self._idle.put(child)
        if "error" in answer:
            raise RewardError(answer["error"])
        return _as_scores(
            answer.get("scores"), len(chunk.responses), said, chunk.samples(), chunk.sample
        )


def serve(fd: int):
    """What a child process does: it reads a reward from its file, then scores chunk after chunk."""
    parts: list[_Part] = []

    def answer(question: dict) -> dict:
        try:
            if "place" in question:
                parts[:] = _parts(load(question["place"]))
                return {"parts": [(part.name, part.weight, part.takes) for part in parts]}
            part, chunk = parts[question["part"]], _Chunk(*question["chunk"])
            return {"scores": part.fn(chunk).tolist()}
        except RewardError as error:
            return {"error": str(error)}

    reward_process.serve(fd, answer)


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
