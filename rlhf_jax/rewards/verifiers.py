"""Verifiable rewards: numbers, mathematics, overlap with references, patterns, and programs with tests.

Each is a reward `(prompts, responses, *, column) -> one float a response`, which `--rl.reward verifiers:NAME`
names. The column "answer" holds a reference answer for each prompt, or a list of several, of which the best
counts. Scores lie between 0 and 1. A response of more than 100,000 characters scores 0.
"""

import ast
import contextlib
import functools
import importlib.util
import numbers
import queue
import re
from collections.abc import Callable, Mapping, Sequence

from rlhf_jax.rewards import answers, sandbox
from rlhf_jax.rewards import child as process
from rlhf_jax.rewards.child import Child, ChildEndedError
from rlhf_jax.rewards.functions import Call, RewardError, columns_of, load, parts_of, shorten

LONGEST = 100_000  # characters of a response that is read
LONGEST_BOX = 1_000  # characters that math-verify is asked about
PYTHON = "python", "python3", "py"  # marks of fenced blocks
PATTERN_SECONDS = 1.0
MATH_SECONDS = 5.0
START_SECONDS = 60.0  # to import SymPy on a busy machine


def number(prompts, responses, *, answer) -> list[float]:
    """1 where the final number of a response equals that of a reference exactly, as fractions.

    `answers.number` says which number is final; a response that offers two has none. References are read in
    the same way, so GSM8K's worked answers serve as they are. Raises RewardError for a reference without one.
    """

    def same(response: str, reference: str) -> bool:
        wanted = answers.number(reference)
        if wanted is None:
            raise RewardError(f"the answer {shorten(reference)} has no number: mend the row")
        return answers.number(response) == wanted

    return _best(responses, answer, same)


def math(prompts, responses, *, answer) -> list[float]:
    r"""1 where math-verify finds that a response's `\boxed{...}` equals a reference, such as 1/2 and 0.5.

    A response without a box, with boxes that differ, or with a box that has the word "or" or more than 1,000
    characters scores 0; math-verify would also read the text around a box, and take "4 or 5" for 4. A sum
    that is not worked out equals its value. A comparison that takes more than five seconds counts as
    unequal. Needs the extra `[math]`.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise RewardError(
            "the reward verifiers:math needs math-verify: install it with the extra rlhf_jax[math]"
        )

    def same(response: str, reference: str) -> bool:
        said = answers.boxed(response)
        if said is None or len(said) > LONGEST_BOX or re.search(r"\bor\b", said, re.IGNORECASE):
            return False
        return _equal(said, answers.boxed(reference) or reference)

    return _best(responses, answer, same)


def exact(prompts, responses, *, answer) -> list[float]:
    """1 where a response equals a reference, but for white space."""
    plain = lambda text: " ".join(text.split())
    return _best(responses, answer, lambda response, one: plain(response) == plain(one))


def chrf(prompts, responses, *, answer) -> list[float]:
    """Character F-score, chrF2 (Popović, 2015), of sacrebleu for single sentences, divided by 100."""
    score = _chrf().sentence_score
    return _best(responses, answer, lambda response, one: score(response, [one]).score / 100)


def rouge(prompts, responses, *, answer) -> list[float]:
    """ROUGE-L (Lin, 2004), the F1 of the longest common subsequence of stemmed English words."""
    score = _rouge().score
    return _best(responses, answer, lambda response, one: score(one, response)["rougeL"].fmeasure)


def pattern(prompts, responses, *, pattern) -> list[float]:
    """1 where the regular expression in the column "pattern" matches a whole response.

    White space at the ends of the response is left out. The syntax is that of the package regex, which
    extends `re`. A match that takes more than one second counts as none. Raises RewardError for a pattern
    that is no regular expression.
    """
    import regex

    def matches(response: str, expression: str) -> bool:
        try:
            return (
                regex.fullmatch(expression, response.strip(), timeout=PATTERN_SECONDS) is not None
            )
        except TimeoutError:
            return False
        except regex.error as error:
            raise RewardError(
                f"the pattern {shorten(expression)} is no regular expression ({error}): mend the row"
            ) from None

    return _best(responses, pattern, matches)


def code(prompts, responses, *, tests) -> list[float]:
    """1 where the Python code of a response passes the assert statements in the column "tests".

    These are one text, or a list of lines. The code is the last fenced block marked as Python, else the last
    fenced block, else the whole response. `sandbox.passes` runs it, and says what the code can and cannot
    do. Raises RewardError for what `statements` refuses.
    """

    def passes(response: str, lines) -> float:
        text = statements(lines)
        return float(len(response) <= LONGEST and sandbox.passes(program(response), text))

    return [passes(*pair) for pair in zip(responses, tests, strict=True)]


def statements(tests) -> str:
    """The tests of one row, a text or a list of lines, as one text.

    Raises RewardError for anything else, for what is no Python, and for tests without an assert statement.
    """
    lines = [tests] if isinstance(tests, str) else tests
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise RewardError(
            f"the tests {shorten(tests)} are no text and no list of lines: mend the row"
        )
    text = "\n".join(lines)
    try:
        parsed = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise RewardError(
            f"the tests {shorten(text)} are no Python ({error}): mend the row"
        ) from None
    if not any(isinstance(node, ast.Assert) for node in ast.walk(parsed)):
        raise RewardError(f"the tests {shorten(text)} assert nothing: mend the row")
    return text


def program(response: str) -> str:
    """The Python code of a response, without its fence."""
    blocks = []
    for block in response.split("```")[1::2]:
        mark, _, body = block.partition("\n")
        marked = mark.strip().lower()
        blocks.append((marked in PYTHON, body if marked.isalnum() or not marked else block))
    if not blocks:
        return response
    return next((body for python, body in reversed(blocks) if python), blocks[-1][1])


REWARDS = {fn.__name__: fn for fn in (number, math, exact, chrf, rouge, pattern, code)}
"""The rewards of this file by name."""


def references(answer) -> list[str]:
    """The references of one row, which has a text, a number, or a list of these, as texts.

    Raises RewardError for anything else, such as an object, and for an empty list.
    """
    several = hasattr(answer, "__iter__") and not isinstance(answer, str | Mapping)
    found = list(answer) if several else [answer]
    if not found or not all(isinstance(x, str | numbers.Real) for x in found):
        raise RewardError(
            f"the answer {shorten(answer)} is no text and no list of texts: mend the row"
        )
    return [str(x) for x in found]


def check_references(place: str, prompts: Sequence[str], columns: Sequence[Mapping]):
    """Raises ValueError where the built-in verifier `place` cannot read a row's reference or tests."""
    if not place.startswith("verifiers:"):
        return
    (part,) = parts_of(load(place))
    for prompt, row in zip(prompts, columns, strict=True):
        try:
            if place == "verifiers:code":  # to run even an empty program takes time
                statements(row.get("tests"))
            else:
                part.score(Call(0, [prompt], [""], columns_of([row])))
        except RewardError as error:
            raise ValueError(f'rl.reward = "{place}" cannot score all prompts: {error}') from error


def _best(responses: Sequence[str], answer, score: Callable[[str, str], float]) -> list[float]:
    """The best score of each response over its references."""
    return [
        max(
            float(score(response, one)) if len(response) <= LONGEST else 0.0
            for one in references(row)
        )
        for response, row in zip(responses, answer, strict=True)
    ]


@functools.cache
def _chrf():
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@functools.cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


# --- math-verify in child processes, because SymPy may take for ever and only a kill stops it

_idle: "queue.LifoQueue[Child]" = queue.LifoQueue()


def _started() -> Child:
    """A child that compares expressions. Raises RewardError where math-verify does not work in it."""
    child = Child("from rlhf_jax.rewards import verifiers; verifiers.serve(fd)")
    try:
        works = child.ask({"said": "1", "reference": "1"}, START_SECONDS)["equal"]
    except (TimeoutError, ChildEndedError) as error:
        raise RewardError(f"math-verify does not start ({error}): install it again") from error
    if not works:
        raise RewardError("math-verify says that 1 is not 1: install it again")
    return child


def _equal(said: str, reference: str) -> bool:
    """True if math-verify says in time that two expressions are equal; a child that fails is replaced."""
    try:
        child = _idle.get_nowait()
    except queue.Empty:
        child = _started()
    with contextlib.suppress(TimeoutError, ChildEndedError):
        found = child.ask({"said": said, "reference": reference}, MATH_SECONDS)["equal"]
        _idle.put(child)
        return found
    return False


def serve(fd: int):
    """Runs in a child process: compares expressions by math-verify, pair after pair."""
    import logging
    import resource

    import math_verify  # pyright: ignore[reportMissingImports]

    logging.disable()  # its warnings that nothing limits the time
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    parse = lambda text: math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=0)

    def answer(question: dict) -> dict:
        try:
            reference, said = parse(question["reference"]), parse(question["said"])
            return {"equal": bool(math_verify.verify(reference, said, timeout_seconds=0))}
        except Exception:  # SymPy raises of any kind, RecursionError and MemoryError among them
            return {"equal": False}

    process.serve(fd, answer)
