"""A generated world of dialogues: a customer orders coffee, and changes his mind on the way.

    prompt     hello this is anna , large latte please
    response   what milk
               > oat but make it small
               order small oat latte
               > thanks

The policy (an agent) asks for what it has not been told, at most two slots at once, and orders; an order ends
the dialogue, and after four turns it ends anyway. It is right where each slot has the value that the customer
told last: a guess is wrong even where it meets what he would have said. All that he wants, and the word that
he changes his mind to with his first or his second answer, stands in the row. 40 words.

`gold` is a known function of row and transcript: 2 for a right order, 1/3 for each right slot of an order,
less 0.3 a turn and 0.5 a fault, standardised to the demonstrations: their mean is 0 and their standard
deviation 1. The best is 0.98, after two turns.

Demonstrations are of honest agents who sometimes ask what they know, guess, or ignore a change, with known
probabilities: `turn_odds` is the law of their next turn, so the loss of the best language model is known.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from rlhf_jax.tasks.task import Environment, Row, Task, one_line, split_rows

SLOTS = {
    "size": ("small", "medium", "large"),
    "milk": ("oat", "soy", "almond", "dairy"),
    "drink": ("latte", "mocha", "cocoa", "chai", "flatwhite"),
}
SLOT_OF = {value: slot for slot, values in SLOTS.items() for value in values}
GREETINGS = ("hello", "hi", "morning")
NAMES = ("anna", "ben", "carl", "dora", "emil", "frida", "gus", "hana")

TURNS = 4
THANKS, NO, SORRY = "> thanks", "> no", "> sorry"
CHANGE_ODDS = {0: 0.25, 1: 0.5, 2: 0.25}  # the answer with which he changes his mind; 0: never

# the agents, at each turn
NEEDLESS = 0.2  # asks for a slot that was told
GUESS = 0.2  # orders although a slot was not told
BOTH = 0.3  # asks for two missing slots at once
IGNORE = 0.5  # orders the value before a change

RIGHT, SLOT, TURN, FAULT = 2.0, 1 / 3, -0.3, -0.5
MEAN, SCALE = 1.136, 1.292  # of the sum under the agents' law
FLOOR = -8.0


class Outcome(NamedTuple):
    """The numbers that gold consists of."""

    right: bool  # the order is what the customer told
    slots: int  # right slots of the order
    turns: int
    faults: int


@cache
def all_rows() -> tuple[Row, ...]:
    """All 1416 rows, each with another prompt, in a fixed order; "answer" is the order of the best agent."""
    told = [(value,) for value in SLOT_OF]
    told += [
        pair for a, b in itertools.combinations(SLOTS, 2) for pair in itertools.product(SLOTS[a], SLOTS[b])
    ]  # fmt: skip
    rows = []
    for n, (greeting, name, values) in enumerate(itertools.product(GREETINGS, NAMES, told)):
        rng = random.Random(n)
        wants = {slot: rng.choice(of_slot) for slot, of_slot in SLOTS.items()}
        wants |= {SLOT_OF[value]: value for value in values}
        at = rng.choices(list(CHANGE_ODDS), list(CHANGE_ODDS.values()))[0]
        change = rng.choice([value for value in SLOT_OF if value not in wants.values()])
        prompt = f"{greeting} this is {name} , {' '.join(values)} please"
        answer = _order(wants | ({SLOT_OF[change]: change} if at == 1 else {}))
        row = {"prompt": prompt, **wants, "change": change if at else "", "at": at}
        rows.append(row | {"answer": answer})
    return tuple(rows)


# --- the customer


@lru_cache(4096)
def question(turn: str) -> tuple[str, ...]:
    """The slots that a turn asks for; empty where it is no question."""
    found = _QUESTION.fullmatch(turn)
    slots = tuple(filter(None, found.groups())) if found else ()
    return slots if len({*slots}) == len(slots) else ()


@lru_cache(4096)
def order(turn: str) -> dict[str, str]:
    """The value of each slot in an order; empty where a turn is none."""
    found = _ORDER.fullmatch(turn)
    return dict(zip(SLOTS, found.groups(), strict=True)) if found else {}


def told(prompt: str, lines: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(the last value that the customer told of each slot, the value before it where he changed it)."""
    last, before = {}, {}
    for word in " ".join([prompt, *lines[1::2]]).split():
        if (slot := SLOT_OF.get(word)) and last.get(slot, word) != word:
            before[slot] = last[slot]
        if slot:
            last[slot] = word
    return last, before


def reply(row: Row, lines: Sequence[str]) -> tuple[str, bool]:
    """(the customer's reply to the last line, whether the dialogue is over)."""
    slots, ordered = question(lines[-1]), order(lines[-1])
    if ordered:
        return THANKS if ordered == told(row["prompt"], lines)[0] else NO, True
    if not slots:
        return SORRY, False
    answers = sum(bool(question(turn)) for turn in lines[::2])  # this one included
    changed = row["at"] and answers > row["at"]
    wants = row | ({SLOT_OF[row["change"]]: row["change"]} if changed else {})
    text = " ".join([">", *(wants[slot] for slot in slots)])
    return f"{text} but make it {row['change']}" if answers == row["at"] else text, False


ENVIRONMENT = Environment(turns=TURNS, turn_length=5, reply_length=7, reply=reply)


# --- gold


def outcome(row: Row, response: str) -> Outcome:
    """The outcome of any text, whose odd lines should be the customer's replies.

    Faults are a turn that is neither a question nor an order; an order of a slot that was not told; words put
    into the customer's mouth; and a turn after the end.
    """
    said, lines, over = response.split("\n"), [], False
    right, slots, faults = False, 0, 0
    for turn, heard in itertools.zip_longest(map(one_line, said[::2]), said[1::2]):
        if over or len(lines) == 2 * TURNS:
            faults += 1
            continue
        known, ordered = told(row["prompt"], lines)[0], order(turn)
        answer, over = reply(row, [*lines, turn])
        lines += [turn, answer]
        faults += not (ordered or question(turn))
        faults += heard is not None and one_line(heard) != answer
        if ordered:
            faults += len(known) < len(SLOTS)
            slots = sum(known.get(slot) == value for slot, value in ordered.items())
            right = answer == THANKS
    return Outcome(right, slots, len(said[::2]), faults)


def worth(row: Row, response: str) -> float:
    """The sum of which gold is the standardised form."""
    right, slots, turns, faults = outcome(row, response)
    return RIGHT * right + SLOT * slots + TURN * turns + FAULT * faults


def gold(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The true score of each transcript, at least -8."""
    worths = np.array([worth(*x) for x in zip(rows, responses, strict=True)])
    return np.maximum((worths - MEAN) / SCALE, FLOOR).astype(np.float32)


def right_orders(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """1 for each transcript that ends with a right order, otherwise 0."""
    return np.array([outcome(*x).right for x in zip(rows, responses, strict=True)], np.float32)


def turns_taken(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The policy's turns in each transcript."""
    return np.array([outcome(*x).turns for x in zip(rows, responses, strict=True)], np.float32)


def success(prompts, responses, size, milk, drink, change, at) -> list[float]:
    """A Python reward, as --rl.reward: 1 for a right order, less 0.1 a turn."""
    names = ("prompt", "size", "milk", "drink", "change", "at")
    columns = zip(prompts, size, milk, drink, change, at, strict=True)
    rows: list[Row] = [dict(zip(names, row, strict=True)) for row in columns]
    return (right_orders(rows, responses) - 0.1 * turns_taken(rows, responses)).tolist()


# --- the agents


def turn_odds(prompt: str, lines: Sequence[str]) -> dict[str, float]:
    """The law of an agent's next turn: the probability of each turn that has one."""
    known, before = told(prompt, lines)
    missing = [slot for slot in SLOTS if slot not in known]
    odds = dict.fromkeys(map(_ask, known), NEEDLESS / len(known))
    ordering = (1 - NEEDLESS) * (GUESS if missing else 1)
    guesses = list(itertools.product(*(SLOTS[slot] for slot in missing)))
    ignored = IGNORE if before else 0.0
    for share, values in ((1 - ignored, known), (ignored, known | before)):
        for guess in guesses:
            turn = _order(values | dict(zip(missing, guess, strict=True)))
            odds[turn] = odds.get(turn, 0.0) + share * ordering / len(guesses)
    asking = 1 - NEEDLESS - ordering if missing else 0.0
    single = (1 - BOTH) / 2 if len(missing) == 2 else 1.0
    odds |= {_ask(slot): single * asking for slot in missing}
    if len(missing) == 2:
        odds[_ask(*missing)] = BOTH * asking
    return {turn: p for turn, p in odds.items() if p}


def log_prob(prompt: str, response: str) -> float:
    """The log-probability of the agent's turns in a transcript, in nats; -inf outside the law."""
    lines = response.split("\n")
    odds = [
        turn_odds(prompt, lines[:n]).get(turn, 0.0) for n, turn in enumerate(lines) if n % 2 == 0
    ]
    return sum(map(math.log, odds)) if all(odds) else -math.inf


def corpus(seed: int, n: int, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """`n` transcripts of agents with customers drawn from `rows`, with replacement."""
    rng, pairs = random.Random(seed), []
    for row in rng.choices(rows, k=n):

        def speak(lines, prompt=row["prompt"]):
            odds = turn_odds(prompt, lines)
            return rng.choices(list(odds), list(odds.values()))[0]

        pairs.append((row["prompt"], ENVIRONMENT.play(row, speak)))
    return pairs


def best(rows: Sequence[Row]) -> list[str]:
    """The transcripts of an agent who asks for all missing slots at once, and orders what he was told."""

    def played(row):
        def speak(lines):
            known, _ = told(row["prompt"], lines)
            missing = [slot for slot in SLOTS if slot not in known]
            return _ask(*missing) if missing else _order(known)

        return ENVIRONMENT.play(row, speak)

    return [played(row) for row in rows]


def _ask(*slots: str) -> str:
    return f"what {' and '.join(slots)}"


def _order(values: dict[str, str]) -> str:
    return " ".join(["order", *(values[slot] for slot in SLOTS)])


_SLOT = "|".join(SLOTS)
_QUESTION = re.compile(rf"what ({_SLOT})(?: and ({_SLOT}))?")
_ORDER = re.compile("order " + " ".join(f"({'|'.join(values)})" for values in SLOTS.values()))


def _entropy(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    nats = -np.mean([log_prob(*pair) for pair in pairs])
    return {"entropy of the agents' turns, nats a response": float(nats)}


TASK = Task(
    prompts=lambda share, seed: split_rows(all_rows(), share, seed),
    corpus=corpus,
    gold=gold,
    metrics={"slot success": right_orders, "turns": turns_taken},
    facts=_entropy,
    defaults={"data.prompt_length": 10},
    best=best,
    environment=ENVIRONMENT,
)
