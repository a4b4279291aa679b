"""Rewards as Python functions of texts, for the setting rl.reward of any experiment that has it.

python launch.py rloo --rl.reward examples/rewards.py:short_and_kind
python launch.py grpo --reference FOLDER --data.prompts PROMPTS.jsonl --sample.length 64 \
        --rl.reward examples/rewards.py:right

A reward is called with lists of prompts and of responses, and gives a number for each response. Its other
parameters name columns of the prompts' rows: `right` wants rows like {"prompt": "6 times 7?", "answer": "42"}
and `near` a "tolerance" too.
A function written for TRL, with `completions` in the place of `responses`, is called by name.
`right_and_varied` pays for the right number and takes off for repetition, by rewards of the library.
"""

import math
import re

from rlhf_jax.rewards import features, verifiers
from rlhf_jax.rewards.functions import weighted

KIND = {"good", "great", "superb", "decent"}


def short(prompts, responses):
    """A tenth less for each word."""
    return [-0.1 * len(response.split()) for response in responses]


def kind(prompts, responses):
    """How many kind words there are."""
    return [sum(word in KIND for word in response.split()) for response in responses]


short_and_kind = weighted({"short": (0.5, short), "kind": (1.0, kind)})


def last_numbers(texts):
    """The last number of each text; NaN, which equals nothing, where there is none."""
    found = [re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", "")) for text in texts]
    return [float(numbers[-1]) if numbers else math.nan for numbers in found]


def right(prompts, responses, answer):
    """Whether the last number of a response is the answer."""
    return [x == float(y) for x, y in zip(last_numbers(responses), answer, strict=True)]


def near(prompts, responses, answer, tolerance):
    """Whether the last number of a response is at most the prompt's own tolerance away from the answer."""
    rows = zip(last_numbers(responses), answer, tolerance, strict=True)
    return [abs(x - float(y)) <= float(most) for x, y, most in rows]


parts = {"right": (1.0, verifiers.number), "repetition": (-0.5, features.repetition)}
right_and_varied = weighted(parts)
