"""The coffee dialogues: customer and gold against a twin, degenerate agents, the agents' law."""

import collections
import itertools
import math
import random
import string

import numpy as np
import pytest

from rlhf_jax.tasks import dialogue
from rlhf_jax.tasks.dialogue import SLOTS, THANKS, TURNS
from rlhf_jax.tasks.task import Environment, Row, transcript

ROWS = dialogue.all_rows()
ASK = [f"what {slot}" for slot in SLOTS]
ASK += [f"what {a} and {b}" for a, b in itertools.permutations(SLOTS, 2)]
JUNK = [
    "",
    "hello",
    "what",
    "what milk milk",
    "what milk and milk",
    "order oat latte",
    "> large oat",
]


def orders_of(row):
    """Orders of all values that the row names, and of one that nobody named."""
    values = {slot: [row[slot]] for slot in SLOTS}
    for value in filter(None, [row["change"], "dairy"]):
        slot = dialogue.SLOT_OF[value]
        values[slot] = [*dict.fromkeys([*values[slot], value])]
    return [" ".join(["order", *x]) for x in itertools.product(*values.values())]


class Customer:
    """The twin: a customer with a memory, who is told one turn after the other."""

    def __init__(self, row: Row):
        self.wants = {slot: row[slot] for slot in SLOTS}
        self.row, self.answers, self.over, self.right = row, 0, False, False
        self.said = {
            slot: value for slot in SLOTS for value in SLOTS[slot] if value in row["prompt"].split()
        }
        self.worth = 0.0

    def hear(self, turn: str) -> str:
        words, known = turn.split(), dict(self.said)
        self.worth -= 0.3
        values = [value for value in words[1:]]
        fits = len(values) == 3 and all(
            value in of_slot for value, of_slot in zip(values, SLOTS.values(), strict=True)
        )
        if words[:1] == ["order"] and fits:
            meant = [known.get(slot) for slot in SLOTS]
            hits = sum(a == b for a, b in zip(values, meant, strict=True))
            self.over, self.right = True, hits == 3
            self.worth += hits / 3 + 2.0 * self.right - 0.5 * (None in meant)
            return "> thanks" if self.right else "> no"
        slots = [word for word in words[1:] if word != "and"]
        shape = ["what", *slots[:1], *(x for slot in slots[1:] for x in ("and", slot))]
        if words != shape or not 0 < len(slots) < 3 or not {*slots} <= {*SLOTS}:
            slots = []
        if not slots or len({*slots}) < len(slots):
            self.worth -= 0.5
            return "> sorry"
        self.answers += 1
        reply = ["> " + self.wants[slots[0]], *(self.wants[slot] for slot in slots[1:])]
        self.said |= {slot: self.wants[slot] for slot in slots}
        if self.answers == self.row["at"]:
            change = self.row["change"]
            slot = next(slot for slot in SLOTS if change in SLOTS[slot])
            self.wants[slot] = self.said[slot] = change
            reply.append("but make it " + change)
        return " ".join(reply)


def played(row, turns):
    """(transcript, worth) of given turns by the twin."""
    customer, lines = Customer(row), []
    for turn in turns:
        lines += [turn, customer.hear(turn)]
        if customer.over:
            break
    return "\n".join(lines), customer.worth


def test_rows_differ_in_their_prompts_and_name_all_that_a_customer_wants():
    assert len({row["prompt"] for row in ROWS}) == len(ROWS) == 1416
    at = collections.Counter(row["at"] for row in ROWS)
    for n, odds in dialogue.CHANGE_ODDS.items():
        assert abs(at[n] / len(ROWS) - odds) < 4 * (odds * (1 - odds) / len(ROWS)) ** 0.5
    for row in ROWS:
        named = dialogue.told(row["prompt"], [])[0]
        assert 0 < len(named) < 3 and named.items() <= row.items()
        assert bool(row["change"]) == (row["at"] > 0)
        assert row["change"] not in [row[slot] for slot in SLOTS]
    train, held_out = dialogue.TASK.prompts(0.1, 0)
    assert len(held_out) == 142 and not {x["prompt"] for x in train} & {
        x["prompt"] for x in held_out
    }


def test_customer_and_gold_are_those_of_a_twin_with_a_memory():
    """All pairs of turns with a few customers, and random longer dialogues with many."""
    rng = random.Random(0)
    cases = []
    for row in ROWS[100::900]:
        cases += [(row, x) for x in itertools.product([*ASK, *orders_of(row), *JUNK], repeat=2)]
    for row in rng.choices(ROWS, k=200):
        turns = [rng.choice(ASK) for _ in range(rng.randrange(TURNS))]
        cases.append((row, [*turns, rng.choice([*orders_of(row), *JUNK])]))
    worths = []
    for row, turns in cases:
        script = iter(turns)
        text, worth = played(row, turns)
        environment = dialogue.ENVIRONMENT._replace(turns=len(turns))
        assert environment.play(row, lambda lines, script=script: next(script)) == text
        assert dialogue.worth(row, text) == pytest.approx(worth), (row, text)
        worths.append(worth)
    gold = dialogue.gold([row for row, _ in cases], [played(*case)[0] for case in cases])
    want = (np.array(worths) - dialogue.MEAN) / dialogue.SCALE
    np.testing.assert_allclose(gold, want, atol=1e-5)
    assert np.ptp(worths) > 4


def test_the_best_dialogues_have_the_highest_gold():
    """Over all dialogues of one or two turns of a few customers; each further turn costs more."""
    rows = ROWS[::9]
    said = dialogue.best(rows)
    best = dialogue.gold(rows, said)
    np.testing.assert_allclose(best, best[0])
    assert dialogue.right_orders(rows, said).all()
    assert [text.split("\n")[-2] for text in said] == [row["answer"] for row in rows]
    for row in ROWS[100::900]:
        turns = [*ASK, *orders_of(row), ""]
        every = [played(row, x)[0] for n in (1, 2) for x in itertools.product(turns, repeat=n)]
        assert dialogue.gold([row] * len(every), every).max() == best[0]
    most = 2 + 1 + 3 * dialogue.TURN  # of three turns, without any fault
    assert (most - dialogue.MEAN) / dialogue.SCALE < best[0]


DEGENERATE = {
    "says nothing": lambda lines: "",
    "orders at once": lambda lines: "order small oat latte",
    "asks for ever": lambda lines: "what milk",
    "repeats the customer": lambda lines: lines[-1] if lines else "hello",
    "speaks for both": lambda lines: "what size and milk\n> small oat\norder small oat latte",
    "thanks himself": lambda lines: THANKS,
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_agents_lose(name):
    said = [dialogue.ENVIRONMENT.play(row, DEGENERATE[name]) for row in ROWS[::40]]
    gold = dialogue.gold(ROWS[::40], said)
    assert gold.mean() < -0.7 and gold.max() < 0  # agents have 0


def test_words_put_into_the_customers_mouth_are_faults():
    row = next(row for row in ROWS if "almond cocoa" in row["prompt"] and not row["at"])
    true = dialogue.best([row])[0]
    other = next(size for size in SLOTS["size"] if size != row["size"])
    forged = true.replace(f"> {row['size']}", f"> {other}")
    assert dialogue.outcome(row, forged).faults == 1
    assert dialogue.outcome(row, f"{true}\nwhat milk").faults == 1  # after the end
    longer = dialogue.outcome(row, "\n".join(["what milk", "> almond"] * 9))
    assert longer.faults == 9 - TURNS and longer.turns == 9


def test_hostile_texts_have_a_gold_within_bounds():
    rng = random.Random(1)
    best = dialogue.gold(ROWS[:1], dialogue.best(ROWS[:1]))[0]
    words = [
        *ASK,
        *dialogue.SLOT_OF,
        "order",
        ">",
        "\n",
        "\n\n",
        "\r",
        "\x00",
        "naïve",
        "what",
        *ASK,
    ]
    texts = ["", "\n" * 1000, "order " * 10_000, "\n".join(["what milk"] * 500)]
    for _ in range(200):
        texts.append(" ".join(rng.choices(words, k=rng.randrange(30))))
        texts.append("".join(rng.choices(string.printable, k=rng.randrange(60))))
    rows = rng.choices(ROWS, k=len(texts))
    gold = dialogue.gold(rows, texts)
    assert gold.dtype == np.float32 and np.all((gold >= dialogue.FLOOR) & (gold <= best))
    assert set(np.unique(dialogue.right_orders(rows, texts))) <= {0.0, 1.0}


def test_the_agents_law_is_that_of_their_dialogues():
    drawn = dialogue.corpus(0, 800, ROWS)
    first, example = collections.defaultdict(collections.Counter), {}
    for prompt, text in drawn:
        known = frozenset(dialogue.told(prompt, [])[0])
        first[known][text.split()[0]] += 1
        example[known] = prompt
    for known, counts in first.items():
        law = dialogue.turn_odds(example[known], [])
        assert sum(law.values()) == pytest.approx(1)
        p = sum(q for turn, q in law.items() if turn.startswith("order"))
        n = counts.total()
        assert p == pytest.approx((1 - dialogue.NEEDLESS) * dialogue.GUESS)
        assert abs(counts["order"] / n - p) < 4 * (p * (1 - p) / n) ** 0.5
    by_prompt = {row["prompt"]: row for row in ROWS}
    rows, texts = [by_prompt[prompt] for prompt, _ in drawn], [text for _, text in drawn]
    gold = dialogue.gold(rows, texts)
    assert abs(gold.mean()) < 4 / len(gold) ** 0.5 and abs(gold.std() - 1) < 0.1
    nats = -np.array([dialogue.log_prob(*pair) for pair in drawn])
    assert abs(nats.mean() - 2.824) < 4 * nats.std() / len(nats) ** 0.5  # by the whole tree
    assert dialogue.log_prob(ROWS[0]["prompt"], "what tea") == -math.inf


def test_an_agent_who_ignores_a_change_orders_what_was_told_before():
    prompt, lines = "hi this is ben , oat mocha please", ["what size", "> large but make it small"]
    assert dialogue.told(prompt, lines) == (
        dict(size="small", milk="oat", drink="mocha"),
        dict(size="large"),
    )
    law = dialogue.turn_odds(prompt, lines)
    want = (1 - dialogue.NEEDLESS) * dialogue.IGNORE
    assert law["order large oat mocha"] == pytest.approx(want)
    assert law["order small oat mocha"] == pytest.approx(want)


def test_the_python_reward_is_success_less_a_tenth_of_each_turn():
    rows = ROWS[:40]
    said = [dialogue.ENVIRONMENT.play(row, DEGENERATE["asks for ever"]) for row in rows[:20]]
    said += dialogue.best(rows[20:])
    columns = {name: [row[name] for row in rows] for name in (*SLOTS, "change", "at")}
    got = dialogue.success([row["prompt"] for row in rows], said, **columns)
    np.testing.assert_allclose(got, [-0.4] * 20 + [0.8] * 20)
    assert dialogue.TASK.metrics["turns"](rows, said).tolist() == [4] * 20 + [2] * 20


def test_columns_of_an_environment():
    environment = Environment(4, 5, 7, dialogue.reply)
    assert environment.length == 48
    assert environment.columns(48) == (5, 7) and environment.columns(96) == (10, 14)
    with pytest.raises(ValueError, match=r"sample.length = 50 .* 4 turns .* set it to 0, for 48"):
        environment.columns(50)
    assert transcript(["a", ""]) == "a" and transcript(["a", "", ""]) == "a\n\n"
