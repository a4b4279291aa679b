"""Calls of Python rewards, in threads or child processes, while the devices work.

    scorer = Scorer(functions.load("verifier.py:names_it"), ScorerConfig())
    pending = scorer.submit(prompts, responses, subject=subjects)
    scores = pending.result()  # float32 [N], in the order of the samples

A reward that may hang, exit or crash is named by its place and called in child processes:

    scorer = Scorer("verifier.py:names_it", ScorerConfig(processes=True))

The settings fix how many samples a call gets, so a sample's score does not depend on the batch.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32

from rlhf_jax.bounds import Bound, Settings, Whole
from rlhf_jax.rewards import child as reward_process
from rlhf_jax.rewards.child import Child, ChildEndedError
from rlhf_jax.rewards.functions import (
    Call,
    Part,
    RewardError,
    RewardTimeoutError,
    Signature,
    as_scores,
    load,
    parts_of,
    shorten,
    weighted_sum,
)


@dataclass(frozen=True)
class ScorerConfig(Settings):
    """Settings for calling a Python reward."""

    _incidental = ("threads", "processes", "samples_per_call", "timeout")

    threads: Whole = 8
    """Concurrent calls of the Python reward while the devices work; 0: one call after the other in the main
    thread, without a timeout unless in processes."""
    processes: bool = False
    """Makes the calls in as many child processes, for a reward that is not trusted: if it exits, crashes,
    or hangs in a regular expression, its own process ends, and the error names the sample."""
    samples_per_call: Whole = 1
    """Samples in a call, 0: all; an error in a call with several samples cannot name the one that failed."""
    timeout: Annotated[float, Bound(ge=0, le=10**9)] = 60.0
    """Longest duration of a call, in seconds; 0: no limit."""

    def _unread(self) -> dict[str, str]:
        if self.threads or self.processes:
            return {}
        return {"timeout": "calls in line (threads = 0) have none, unless in processes"}


@dataclass
class _Chunk(Call):
    """A call of each part of the reward on some samples, and its progress."""

    scores: list[np.ndarray] = field(default_factory=list)  # of each part, so far
    running: str = ""  # name of the part at work,
    since: float = math.inf  # and the time at which it was called
    done: bool = False
    error: BaseException | None = None

    def late(self, timeout: float) -> RewardTimeoutError:
        """The error of a call that takes longer than `timeout`."""
        return RewardTimeoutError(
            f"the reward {self.running!r} takes more than {timeout:g} seconds on "
            f"{self.samples()}: raise scorer.timeout or mend the function{self.remedy()}"
        )


class Scorer:
    """Calls a reward on the samples of a batch, in threads or child processes.

    `reward` is a function, or a place as `functions.load` takes it. Raises RewardError as `load` does, and
    for a function that is to be called in child processes, which need a place.
    """

    def __init__(self, reward: Callable | str, cfg: ScorerConfig = ScorerConfig()):
        self.cfg = cfg
        if not cfg.processes:
            self._parts = parts_of(load(reward) if isinstance(reward, str) else reward)
        elif isinstance(reward, str):
            self._parts = _Children(reward, cfg).parts()
        else:
            raise RewardError(
                "scorer.processes = True and the reward is a function: name it as FILE.py:FUNCTION"
            )

    def check(self, prompts: Sequence[str], rows: Sequence[Mapping[str, Any]]):
        """Raises RewardError if the reward names a column that some rows of `prompts` lack."""
        there = {name for row in rows for name in row}
        for part in self._parts:
            for name in part.signature.select(part.label, sorted(there)):
                lack = [i for i, row in enumerate(rows) if name not in row]
                if lack and name in part.signature.columns:
                    raise RewardError(
                        f"{part.label} asks for the column {name!r}, and {len(lack)} of {len(rows)} prompts "
                        f"lack it, the first being {shorten(prompts[lack[0]])}: give it to all of them"
                    )

    def submit(
        self, prompts: Sequence, responses: Sequence, /, **columns: Sequence | np.ndarray
    ) -> "Pending":
        """Starts to score N samples and returns without waiting (with threads = 0: after the calls).

        Each part of the reward sees each sample once. Raises RewardError for lists that differ in length, and
        for a column that the reward names and `columns` lack.
        """
        n = len(responses)
        for name, values in [("prompts", prompts), *columns.items()]:
            if len(values) != n:
                raise RewardError(
                    f"{n} responses have {len(values)} {name!r}: give one for each response"
                )
        read = {name for part in self._parts for name in part.signature.select(part.label, columns)}
        chunks, size = [], self.cfg.samples_per_call or max(n, 1)
        for first in range(0, n, size):
            cut = slice(first, first + size)
            own = {name: list(columns[name][cut]) for name in columns if name in read}
            chunks.append(_Chunk(first, list(prompts[cut]), list(responses[cut]), own))

        # the thread that waits for a child process also ends it
        timeout = 0.0 if self.cfg.processes else self.cfg.timeout
        pending = Pending(self._parts, chunks, timeout)
        if not self.cfg.threads:
            pending.work()
        # Daemon threads, because the interpreter waits at exit for an executor's threads, and a call that
        # hangs cannot be ended. Each batch has its own, so that such a call does not hold up the next batch.
        for _ in range(min(self.cfg.threads, len(chunks))):
            threading.Thread(target=pending.work, name="reward", daemon=True).start()
        return pending


class Pending:
    """Scores of a batch in progress, from `Scorer.submit`.

    The scores do not depend on the order in which threads work, and of several failures the one of the first
    sample is raised: chunks are begun in order and waited for in order. After a failure no chunk is begun.
    """

    def __init__(self, parts: list[Part], chunks: list[_Chunk], timeout: float):
        self._parts, self._chunks, self._timeout = parts, chunks, timeout
        self._waiting = iter(chunks)
        self._error: BaseException | None = None
        self._failed = False
        self._changed = threading.Condition()

    def result(self) -> Float32[np.ndarray, " N"]:
        """Waits for the scores and returns them.

        Raises RewardError for the first sample whose reward failed (chained to the original error) or is no
        finite number, and RewardTimeoutError for a call that takes longer than the timeout.
        """
        return weighted_sum(self._parts, self.parts())

    def parts(self) -> dict[str, Float32[np.ndarray, " N"]]:
        """Scores of each function of a weighted reward before its weight; of another reward, its scores."""
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
        """Scores one chunk after the other, until none is left or one has failed; each thread runs this."""
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
                    chunk.scores.append(part.score(chunk))
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
        """Waits until a chunk is done or late, and returns its error."""
        while not chunk.done:
            left = chunk.since + self._timeout - time.monotonic() if self._timeout else math.inf
            if left <= 0:
                return chunk.late(self._timeout)
            self._changed.wait(left if math.isfinite(left) else None)
        return chunk.error


class _Children:
    """The child processes of one reward; each starts when it is first needed, and again after it was lost."""

    def __init__(self, place: str, cfg: ScorerConfig):
        self._place, self._timeout = place, cfg.timeout
        self._idle: queue.LifoQueue[Child | None] = queue.LifoQueue()  # None: one may be started
        for _ in range(max(1, cfg.threads)):
            self._idle.put(None)

    def parts(self) -> list[Part]:
        """The functions of the reward, which the first child reads from its file."""
        child, answer = self._start()
        self._idle.get()
        self._idle.put(child)
        return [
            Part(name, weight, Signature(*signature), partial(self._score, n, name))
            for n, (name, weight, signature) in enumerate(answer["parts"])
        ]

    def _start(self) -> tuple[Child, dict]:
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

    def _score(self, part: int, name: str, chunk: _Chunk) -> Float32[np.ndarray, " n"]:
        """The scores of a chunk by one function."""
        label, child = f"the reward {name!r}", self._idle.get()
        question = {
            "part": part,
            "timeout": self._timeout,
            "call": [chunk.first, chunk.prompts, chunk.responses, chunk.columns],
        }
        try:
            child = child or self._start()[0]
            answer = child.ask(question, self._timeout)
        except TimeoutError:
            child = None
            raise chunk.late(self._timeout) from None
        except ChildEndedError as error:
            child = None
            raise RewardError(
                f"{label} {error} on {chunk.samples()}: mend the function{chunk.remedy()}"
            ) from None
        finally:
            self._idle.put(child)
        if "error" in answer:
            raise RewardError(answer["error"])
        return as_scores(answer.get("scores"), len(chunk.responses), label, chunk)


def serve(fd: int):
    """Runs in a child process: reads a reward from its file, then scores the samples of call after call."""
    parts: list[Part] = []

    def answer(question: dict) -> dict:
        try:
            if "place" in question:
                parts[:] = parts_of(load(question["place"]))
                return {"parts": [(part.name, part.weight, part.signature) for part in parts]}
            part, call = parts[question["part"]], Call(*question["call"])
            return {"scores": part.score(call).tolist()}
        except RewardError as error:
            return {"error": str(error)}

    reward_process.serve(fd, answer)
