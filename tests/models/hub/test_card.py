"""Model cards: metadata that the hub reads, numbers of the run, and no folder of the machine."""

import pathlib
import re

import pytest
import yaml

from rlhf_jax.models.hub import card

CONFIG = {
    "experiment": "rloo",
    "settings": {"seed": 3},
    "used": {
        "seed": 3,
        "reference": "someone/base@v1",
        "policy": "/home/me/runs/first",
        "data": {
            "prompts": "0.7:hf:openai/gsm8k/main:train[:90%],0.3:/data/secret/own.jsonl",
            "prompt_length": 64,
        },
        "rl": {"kl_coef": 0.05, "reward": "/home/me/my_rewards.py:right"},
        "sample": {"length": 32, "stop": [2, 3]},
        "lora": {"rank": 0},
    },
    "command": ["launch.py", "rloo", "--policy", "/home/me/runs/first", "--run=/home/me/runs/second"],
    "versions": {"rlhf_jax": "1.0", "jax": "0.10", "flax": None},
}  # fmt: skip
INTERVAL = lambda mean: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
RESULTS = {
    "gold": {"before": INTERVAL(0.5), "after": INTERVAL(1.25)},
    "win rate of RLOO over the policy before training, by gold": INTERVAL(0.9),
    "kl": INTERVAL(3.0),
    "kl before training": INTERVAL(1.0),
    "the policy before training": "/home/me/runs/first",
    "reward accuracy": {"held-out pairs": INTERVAL(0.7)},
    "SFT held-out loss, nats a token": 1.5,
    "calibration": [{"low": 0.5}],
    "seconds": {"rloo": 10.0},
    "python": {"mean": 1.0, "low": None, "high": None},
}
OWN = card.Export("someone/new", "rloo", is_reward=False, base="someone/base@v1")


def split(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_metadata_name_base_data_and_library():
    data, body = split(card.text(OWN, CONFIG, RESULTS))
    assert data == {
        "base_model": "someone/base",
        "base_model_relation": "finetune",
        "datasets": ["openai/gsm8k"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf_jax", "rlhf", "rloo"],
    }
    assert body.lstrip().startswith("# new\n") and "from_pretrained('someone/new')" in body
    assert "No license is stated here" in body


def test_every_number_is_of_the_run_and_its_interval_stands_beside_it():
    _, body = split(card.text(OWN, CONFIG, RESULTS))
    for line in (
        "| gold | 0.500 (0.400 to 0.600) | 1.250 (1.150 to 1.350) |",
        "| win rate of RLOO over the policy before training, by gold |  | 0.900 (0.800 to 1.000) |",
        "| kl | 1.000 (0.900 to 1.100) | 3.000 (2.900 to 3.100) |",
        "| python |  | 1.000 |",
        "| `rl.kl_coef` | 0.05 |",
        "Before is `first`, where training started; the KL is to the reference.",
        "Versions: rlhf_jax 1.0, jax 0.10.",
    ):
        assert line in body, line
    assert not re.search("held-out pairs|SFT|calibration|seconds|rl.best", body)


def test_no_folder_of_the_machine_is_told():
    text = card.text(OWN, CONFIG, RESULTS)
    assert "/home" not in text and "secret" not in text and " /" not in text
    assert "launch.py rloo --policy first --run=second" in text and "my_rewards.py:right" in text


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("sft", "| SFT held-out loss, nats a token | 1.5 |"),
        ("reward", "| reward accuracy, held-out pairs | 0.700 (0.600 to 0.800) |"),
        ("held_out_reward", "The run has no results for this model."),
    ],
)
def test_a_stage_has_the_results_that_are_about_it(stage, line):
    export = OWN._replace(stage=stage, is_reward="reward" in stage)
    data, body = split(card.text(export, CONFIG, RESULTS))
    assert line in body and "| gold" not in body
    assert data["pipeline_tag"] == "text-" + (
        "classification" if export.is_reward else "generation"
    )
    assert ("AutoModelForSequenceClassification" in body) == export.is_reward


def test_adapters_and_best_checkpoints_say_so(tmp_path):
    data, body = split(card.text(OWN._replace(is_adapter=True, is_best=True), CONFIG, RESULTS))
    assert data["library_name"] == "peft" and data["base_model_relation"] == "adapter"
    assert (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer" in body
    )
    assert "They are of the last checkpoint, and this export is the best one" in body
    (tmp_path / "base").mkdir()
    local = OWN._replace(base=str(tmp_path / "base"))
    data, body = split(card.text(local, CONFIG, {}))
    assert "base_model" not in data and "`base`" in body and str(pathlib.Path(tmp_path)) not in body
    assert "random weights" in card.text(OWN._replace(base=""), CONFIG, {})
