"""A generated world: arithmetic word problems of two to four steps, with an answer that can be verified.

    prompt     anna has 3 apples . tom buys 5 . she buys 4 . she gives tom 2 . how many has she ?
    response   3 + 4 = 7 ; 7 - 2 = 5 #### 5

A response is its working, one step a sentence, and the number after "####" (the convention of GSM8K: Cobbe
et al., 2021). Every number that somebody owns on the way is between 1 and 20, and words are separated by
single spaces. A problem of two or three steps may hold an aside, a sentence about somebody else, which
changes nothing (as in GSM-IC: Shi et al., 2023).

Demonstrations are by workers who err in three ways, with known probabilities. Most of them count an aside as
a step (`FOOLED`). Some write no working, and half of them answer wrongly (`HEAD`, `HEAD_SLIPS`). All get a
step wrong now and then (`SLIPS`), and go on with the wrong number. A policy that has learned their law
is therefore right in half of its samples. Its likeliest tokens are right without an aside and wrong with one,
where a third of its samples are right: a verifier has more to teach than greedy decoding shows.

`gold` is 2 for the right number, less 1 for missing or wrong working and 2 for a text in another form.
Its largest value is 2, and its standard deviation under the workers' law is 1.3.
"""

import functools
import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from rlhf_jax.tasks.task import Row, Task, split_rows

NAMES = {"anna": "she", "mary": "she", "lucy": "she", "tom": "he", "ben": "he", "max": "he"}
WHOM = {"she": "her", "he": "him"}
THINGS = ("apples", "books", "cards", "coins", "pens", "stamps")
BEGINNINGS = ("{name} has {n} {thing} .", "{name} owns {n} {thing} .")
QUESTIONS = ("how many has {name} ?", "how many has {who} ?")
VERBS = {"buys": "+", "finds": "+", "sells": "-", "loses": "-"}
FACTORS = {"doubles": 2, "triples": 3}
CHANGES = (
    *(f"{{who}} {verb} {{n}} ." for verb in VERBS),
    *("{other} gives {whom} {n} .", "{who} gives {other} {n} ."),
    *(f"{{who}} {verb} them ." for verb in FACTORS),
)
ASIDES = tuple(f"{{other}} {verb} {{n}} ." for verb in VERBS)

ROWS = 6000  # distinct problems
LARGEST = 20
ASIDE = 0.75  # how many problems of two or three steps have one

# How workers err: the share who count an aside, the share without working, and the errors of a result.
FOOLED = 0.6
HEAD = 0.15
SLIPS = {0: 0.92, 1: 0.04, -1: 0.04}
HEAD_SLIPS = {0: 0.5, 1: 0.15, -1: 0.15, 2: 0.1, -2: 0.1}

RIGHT, WORKING, FORM = 2.0, 1.0, 2.0  # the parts of gold

_STEP = r"[0-9]{1,2} [-+*] [0-9]{1,2} = [0-9]{1,2}"
_FORM = re.compile(rf"(?:({_STEP}(?: ; {_STEP})*) )?#### ([0-9]{{1,2}})")


class Step(NamedTuple):
    """A sentence as an operation on what is owned; `aside` where it is about somebody else."""

    sign: str
    n: int
    aside: bool = False


class Problem(NamedTuple):
    """The number owned at first, and the sentences that follow."""

    start: int
    steps: tuple[Step, ...]


class Response(NamedTuple):
    """The steps that a response in the right form wrote, and the number after "####", as text."""

    steps: list[str]
    number: str


# --- problems


@functools.cache
def prompts() -> tuple[str, ...]:
    """All 6000 prompts, in a fixed order."""
    rng, found = random.Random(0), {}
    while len(found) < ROWS:
        prompt = _ask(rng)
        problem = read(prompt)
        both = own(problem), problem.steps
        if all(0 < n <= LARGEST for steps in both for n in numbers(problem.start, steps)):
            found[prompt] = None
    return tuple(found)


def _ask(rng: random.Random) -> str:
    """One problem, of numbers of any size."""
    name, who = rng.choice(list(NAMES.items()))
    other = rng.choice([x for x in NAMES if NAMES[x] != who])
    steps = rng.choices(CHANGES, k=rng.randint(2, 4))
    if len(steps) < 4 and rng.random() < ASIDE:
        steps.insert(rng.randint(0, len(steps)), rng.choice(ASIDES))
    named = {"name": name, "who": who, "whom": WHOM[who], "other": other}
    begin = rng.choice(BEGINNINGS).format(n=rng.randint(2, 12), thing=rng.choice(THINGS), **named)
    told = [step.format(n=rng.randint(1, 9), **named) for step in steps]
    return " ".join([begin, *told, rng.choice(QUESTIONS).format(**named)])


@functools.lru_cache(2 * ROWS)
def read(prompt: str) -> Problem:
    """The problem in a prompt. Raises ValueError for a prompt of another world."""
    try:
        begin, *told, _ = [sentence.split() for sentence in prompt.split(" . ")]
        name, _, start, _ = begin
        who, steps = NAMES[name], []
        for subject, verb, *rest in told:
            if verb == "gives":
                sign, n = "-" if subject == who else "+", rest[-1]
            elif verb in FACTORS:
                sign, n = "*", FACTORS[verb]
            else:
                sign, n = VERBS[verb], rest[0]
            steps.append(Step(sign, int(n), subject != who and verb != "gives"))
        if all(step.aside for step in steps):
            raise ValueError("nothing happens")
        return Problem(int(start), tuple(steps))
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f'the prompt {prompt!r} is no problem of this world: write one such as "{prompts()[0]}"'
        ) from error


def own(problem: Problem) -> tuple[Step, ...]:
    """The steps that count: all but asides."""
    return tuple(step for step in problem.steps if not step.aside)


def apply(value: int, step: Step) -> int:
    """The number owned after a step, which is never below zero."""
    sign, n, _ = step
    return value + n if sign == "+" else max(value - n, 0) if sign == "-" else value * n


def numbers(start: int, steps: Sequence[Step]) -> list[int]:
    """The number owned at first and after each step."""
    found = [start]
    for step in steps:
        found.append(apply(found[-1], step))
    return found


def working(start: int, steps: Sequence[Step]) -> list[str]:
    """The steps as a worker without mistakes writes them."""
    found = numbers(start, steps)
    return [
        f"{a} {step.sign} {step.n} = {b}"
        for a, step, b in zip(found, steps, found[1:], strict=False)
    ]


def answer(prompt: str) -> str:
    """The right number."""
    problem = read(prompt)
    return str(numbers(problem.start, own(problem))[-1])


def written(steps: Sequence[str], number: str | int) -> str:
    """A response in the right form."""
    return " ".join([" ; ".join(steps), f"#### {number}"]).strip()


def split_prompts(fraction_held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """(prompts to train on, prompts held out), a function of the two arguments alone.

    Raises ValueError where the fraction leaves one side empty.
    """
    return split_rows(prompts(), fraction_held_out, seed)


# --- the true score


def parse(response: str) -> Response | None:
    """The steps and the number of a response; None for a text in another form."""
    match = _FORM.fullmatch(response)
    return Response(match[1].split(" ; ") if match[1] else [], match[2]) if match else None


def says(response: str) -> str:
    """All that follows "####", without white space around it; empty where it is not there exactly once."""
    _, *after = response.split("####")
    return after[0].strip() if len(after) == 1 else ""


def gold(prompt: str, response: str) -> float:
    """The true score, between -3 and 2.

    2 where all that follows the only "####" is the right number; less the share of steps that are missing,
    wrong, or too many (each compared with the step in its place, as a worker without mistakes writes it);
    and less 2 for a text that is not STEP {; STEP} #### NUMBER or #### NUMBER, whose steps do not count.
    Raises ValueError for a prompt of another world.
    """
    problem, said = read(prompt), parse(response)
    steps = working(problem.start, own(problem))
    found = said.steps if said else []
    hits = sum(a == b for a, b in zip(steps, found, strict=False))
    missing = 1 - hits / max(len(steps), len(found))
    right = says(response) == answer(prompt)
    return RIGHT * right - WORKING * missing - FORM * (said is None)


def golds(prompts: Sequence[str], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The `gold` of each pair of texts."""
    return np.array([gold(p, r) for p, r in zip(prompts, responses, strict=True)], np.float32)


def accuracy(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """1 for each response whose "####" is followed by the row's answer and nothing else, else 0."""
    right = [row["answer"] == says(r) for row, r in zip(rows, responses, strict=True)]
    return np.array(right, np.float32)


def format_errors(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """1 for each response in another form than the workers', else 0."""
    return np.array([parse(r) is None for r in responses], np.float32)


def best(rows: Sequence[Row]) -> list[str]:
    """The response of a worker without mistakes to each row, whose gold is 2."""
    problems = [read(row["prompt"]) for row in rows]
    return [written(working(x.start, own(x)), numbers(x.start, own(x))[-1]) for x in problems]


# --- the workers


def generate(seed: int, n: int, allowed: Sequence[str]) -> list[tuple[str, str]]:
    """`n` prompts drawn from `allowed`, with replacement, and a worker's response to each."""
    rng = random.Random(seed)
    return [(prompt, _respond(read(prompt), rng)) for prompt in rng.choices(allowed, k=n)]


def readings(problem: Problem) -> list[tuple[tuple[Step, ...], float]]:
    """The steps that workers see in a problem, and the share of them who do."""
    steps = own(problem)
    if len(steps) == len(problem.steps):
        return [(steps, 1.0)]
    return [(steps, 1 - FOOLED), (problem.steps, FOOLED)]


def results(value: int, slips: dict[int, float]) -> dict[int, float]:
    """The numbers that workers get where `value` is right, and their probabilities."""
    found = defaultdict(float)
    for slip, p in slips.items():
        found[max(value + slip, 0)] += p
    return found


def log_prob(prompt: str, response: str) -> float:
    """The exact log-probability that a worker writes a response, in nats; -inf for one that nobody does."""
    problem, said = read(prompt), parse(response)
    if said is None:
        return -math.inf
    total = 0.0
    for steps, p in readings(problem):
        if said.steps:
            total += p * (1 - HEAD) * _worked(problem.start, steps, said)
        else:
            right = numbers(problem.start, steps)[-1]
            total += p * HEAD * _chance(right, HEAD_SLIPS, said.number)
    return math.log(total) if total else -math.inf


def answers(prompt: str) -> dict[int, float]:
    """The exact probability of each number that a worker may answer."""
    problem, total = read(prompt), defaultdict(float)
    for steps, p in readings(problem):
        for n, q in results(numbers(problem.start, steps)[-1], HEAD_SLIPS).items():
            total[n] += p * HEAD * q
        law = {problem.start: p * (1 - HEAD)}
        for step in steps:
            after = defaultdict(float)
            for value, q in law.items():
                for n, chance in results(apply(value, step), SLIPS).items():
                    after[n] += q * chance
            law = after
        for n, q in law.items():
            total[n] += q
    return total


def _chance(right: int, slips: dict[int, float], number: str) -> float:
    """The probability that a worker gets a number where `right` is right."""
    return results(right, slips).get(int(number), 0.0) if str(int(number)) == number else 0.0


def _worked(value: int, steps: Sequence[Step], said: Response) -> float:
    """The probability of a working and its answer by a worker who sees these steps."""
    if len(steps) != len(said.steps):
        return 0.0
    p = 1.0
    for step, text in zip(steps, said.steps, strict=True):
        task, _, number = text.rpartition(" = ")
        if task != f"{value} {step.sign} {step.n}":
            return 0.0
        p *= _chance(apply(value, step), SLIPS, number)
        value = int(number)
    return p * (said.number == str(value))


def _respond(problem: Problem, rng: random.Random) -> str:
    """One response of a worker."""
    draw = lambda odds: rng.choices(list(odds), list(odds.values()))[0]
    seen = readings(problem)
    (steps,) = rng.choices([steps for steps, _ in seen], [p for _, p in seen])
    value, found = problem.start, []
    if rng.random() < HEAD:
        return written([], draw(results(numbers(value, steps)[-1], HEAD_SLIPS)))
    for step in steps:
        result = draw(results(apply(value, step), SLIPS))
        found.append(f"{value} {step.sign} {step.n} = {result}")
        value = result
    return written(found, value)


# --- the task


def _rows(share: float, seed: int) -> tuple[list[Row], list[Row]]:
    train, held_out = split_prompts(share, seed)
    row = lambda prompt: {"prompt": prompt, "answer": answer(prompt)}
    return list(map(row, train)), list(map(row, held_out))


def _prompts_of(rows: Sequence[Row]) -> list[str]:
    return [row["prompt"] for row in rows]


def _facts(corpus: Sequence[tuple[str, str]]) -> dict[str, float]:
    right = [answers(prompt)[int(answer(prompt))] for prompt, _ in corpus]
    return {
        "entropy of the workers, nats a response": float(-np.mean([log_prob(*x) for x in corpus])),
        "accuracy of the workers": float(np.mean(right)),
    }


TASK = Task(
    prompts=_rows,
    corpus=lambda seed, n, rows: generate(seed, n, _prompts_of(rows)),
    gold=lambda rows, responses: golds(_prompts_of(rows), responses),
    metrics={"accuracy": accuracy, "format errors": format_errors},
    facts=_facts,
    defaults={"data.prompt_length": 32, "sample.length": 32},
    best=best,
)
