"""What tests of whole runs share: killing one, and reading what it left."""

import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np

from rlhf_jax.runs import checkpoint, metrics

ROOT = pathlib.Path(__file__).parent.parent
parts = str.split  # of a command line
# what a command reads depends on where texts and models come from, and what is not read is refused
SFT = parts("--sft.steps 12 --sft.eval-every 6")
STAGES = parts("--devices device --sft.batch-size 8 --reward.batch-size 8 --reward.save-every 4")
WORLD = parts("--data.demonstrations 80 --data.pairs 96")
SHAPE = parts("--model.d-model 16 --model.layers 1 --model.heads 2 --data.vocab-size 400")
LOOP = parts(
    "--data.held-out 0.05 --rl.iterations 5 --rl.batch-size 8 --rl.save-every 2 --eval-draws 1"
)
TINY = LOOP + SFT + STAGES + SHAPE + WORLD
"""Settings of a tiny on-policy run: tests that share them compile its programs once."""
PPO = parts("--ppo.epochs 2 --ppo.minibatches 2")


def kill(command: list[str], stage: str, iteration: int):
    """Runs `command` in a process of its own, which dies by SIGKILL before that iteration of `stage`."""
    program = textwrap.dedent(f"""
        import os, signal, sys, time
        sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
        import conftest, launch
        from rlhf_jax.runs import checkpoint, loop

        iterate = loop.iterate

        def killing(folder, stage, carry, body, **settings):
            def counting(carry, i):
                if stage == {stage!r} and i == {iteration}:
                    for _ in range(40):  # a save that is on its way ends first, if there is one
                        if checkpoint.latest(folder / "stages" / stage) is None:
                            time.sleep(0.05)
                    os.kill(os.getpid(), signal.SIGKILL)
                return body(carry, i)
            return iterate(folder, stage, carry, counting, **settings)

        loop.iterate = killing
        launch.main(sys.argv[1:])
    """)
    answer = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, cwd=ROOT
    )
    assert answer.returncode == -signal.SIGKILL, answer.stderr


def arrays(folder: pathlib.Path, stage: str) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint of a stage, by path."""
    place = folder / "stages" / stage
    step = checkpoint.latest(place)
    assert step is not None
    return checkpoint.read(place, step)


def untimed(folder: pathlib.Path) -> list[dict]:
    """The metrics, without when they were written and how long anything took."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time")}
        for row in metrics.read(folder / "metrics.jsonl")
    ]
