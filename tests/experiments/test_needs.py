"""Files are asked for by what a method uses: each of these commands is enough, and trains nothing more."""

import dataclasses
import json
import re

import jax
import pytest
import runs

import launch
from rlhf_jax.data import tokenizer
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import writing
from rlhf_jax.tasks import reviews

REWARD = f"--rl.reward {runs.ROOT}/tests/python_rewards.py:short"
# the shapes of runs.TINY, whose programs are compiled once for all tests
LENGTHS = "--data.prompt-length 10 --sample.length 24"
LOOP = f"--rl.iterations 5 --rl.batch-size 8 {LENGTHS}"
SHAPE = "--tokenizer W --model.d-model 16 --model.layers 1 --model.heads 2"
SFT = "--sft.steps 12 --sft.eval-every 6 --sft.batch-size 8"
ENOUGH = {  # settings, and the stages that are trained
    "grpo": (f"--reference F --data.prompts P {REWARD} {LOOP}", {"grpo"}),
    "rloo": (f"--reference F --reward-model R --data.prompts P {LOOP}", {"rloo"}),
    "dpo": (f"--reference F --data.comparisons C --dpo.batch-size 8 {LENGTHS}", {"dpo"}),
    "kto": (f"--reference F --data.ratings L --kto.batch-size 8 {LENGTHS}", {"kto"}),
    "sft": (f"--data.corpus T {SFT} {SHAPE} {LENGTHS}", {"sft"}),
    "reward": (
        f"--data.comparisons C {SFT} {SHAPE} {LENGTHS} --reward.batch-size 8", {"sft", "reward"}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The folders of a policy F, a reward model R and a tokenizer W; files of prompts P, pairs C, texts T and
    labels L."""
    place = tmp_path_factory.mktemp("needs")
    said = reviews.generate(0, 80, reviews.prompts())
    words = tokenizer.train((f"{prompt} {x}" for prompt, x in said), 400, place / "W")
    cfg = ModelConfig(context=34, d_model=16, heads=2, layers=1)
    cfg = dataclasses.replace(cfg, vocab_size=tokenizer.size(words))
    lm = networks.language_model(cfg)
    params = jax.jit(lm.init)(jax.random.key(0))
    reward = networks.reward_model(lm).init(jax.random.key(1), params)
    writing.save(place / "F", cfg, params, tokenizer=words)
    writing.save(place / "R", cfg, reward, is_reward=True, tokenizer=words)
    for name, fields in (("P", ["prompt"]), ("C", ["prompt", "chosen", "rejected"])):
        rows = [{x: f"{x} {i}" for x in fields} for i in range(40)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"p {i}", "response": f"r {i}", "label": i % 2} for i in range(40)]
    (place / "L.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"film {i}", "response": "it was good"} for i in range(40)]
    (place / "T.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {x: str(place / f"{x}.jsonl") for x in "PCTL"}
    return {x: str(place / x) for x in "FRW"} | files


@pytest.mark.parametrize("method", ENOUGH)
def test_these_are_enough(names, tmp_path, method):
    settings, stages = ENOUGH[method]
    draws = [] if method == "reward" else ["--eval-draws", "1"]
    command = [method, "--devices", "device", *(names.get(x, x) for x in settings.split()), *draws]
    assert launch.main([*command, "--run", str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == stages
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    first = {
        "grpo": "Python reward",
        "rloo": "score of the reward model",
        "dpo": "accuracy of the policy's own reward, held-out pairs",
        "kto": "AUC of the policy's own reward, held-out responses",
        "sft": "SFT held-out loss, nats a token",
        "reward": "reward accuracy",
    }
    assert next(iter(results)) == first[method]
    assert "gold" not in results


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("dpo --data.comparisons C --data.prompts P --reference F --data.corpus T",
         "data.corpus = .* has no effect because nothing here is trained on it"),
        (f"grpo --reference F --data.prompts P --data.comparisons C {REWARD}", "data.comparisons = "),
        ("rloo --reference F --data.prompts P", "data.comparisons is empty while other files are given"),
        ("sft --data.prompts P", "data.corpus is empty while other files are given"),
        ("sft --reference F", "reference = .* would skip SFT"),
        ("rloo --task reviews --data.prompts P", "task = 'reviews' has no effect because data files"),
    ],
)  # fmt: skip
def test_files_without_a_reader_are_refused_by_name(names, tmp_path, capsys, command, said):
    settings = [names.get(x, x) for x in command.split()]
    assert launch.main([*settings, "--run", str(tmp_path / "run")]) == 1

    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
