"""The example on another engine's samples: its own, and those of a file."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent


def run(*args):
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/train_on_samples.py", *args],
        cwd=ROOT,
        env=os.environ | {"JAX_NUMPY_RANK_PROMOTION": "raise", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_samples_of_another_engine_raise_the_score_of_the_learner():
    before, after = map(float, re.findall(r"score ([\d.]+), after training ([\d.]+)", run())[0])
    assert before < 3 and after > before + 1.5


def test_a_file_of_samples_is_read(tmp_path):
    """Uneven prompts and responses of an engine that draws 1 or 2 at random, and is paid for 2."""
    rng = np.random.default_rng(0)
    path = tmp_path / "samples.jsonl"
    with open(path, "w") as file:
        for _ in range(256):
            response = rng.integers(1, 3, rng.integers(1, 6)).tolist()
            row = dict(prompt=[3] * int(rng.integers(1, 4)), response=response)
            row |= dict(logprobs=[float(np.log(0.5))] * len(response))
            row |= dict(score=float(np.mean(np.array(response) == 2)))
            file.write(json.dumps(row) + "\n")
    said = run(str(path))
    scores = [float(x) for x in re.findall(r"score +([\d.]+) \(as of", said)]
    assert 0.4 < scores[0] < 0.6 and scores[-1] > scores[0] + 0.2, said
    assert "sampled anew" not in said
