"""Rewards as Python functions of texts, for the setting rl.reward of any experiment that has it.

python launch.py rloo --rl.reward examples/rewards.py:short_and_kind
python launch.py grpo --reference FOLDER --data.prompts PROMPTS.jsonl --sample.length 64 \
        --rl.reward examples/rewards.py:right

A reward is called with lists of prompts and of responses, and gives a number for each response. Its other
parameters name fields of the prompts' rows: `right` wants rows like {"prompt": "6 times 7?", "answer": "42"}.
A function written for TRL, with `completions` in the place of `responses`, is called by name.
`right_and_varied` pays for the right number and takes off for repetition, by rewards of the library.
"""

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


def right(prompts, responses, answer):
    """Whether the last number of a response is the answer."""
    said = [re.findall(r"-?\d+(?:\.\d+)?", response.replace(",", "")) for response in responses]
    return [bool(x) and float(x[-1]) == float(a) for x, a in zip(said, answer, strict=True)]


parts = {"right": (1.0, verifiers.number), "repetition": (-0.5, features.repetition)}
right_and_varied = weighted(parts)
