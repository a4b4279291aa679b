"""The package is of use without its launcher: the example trains, and loads no more than it needs."""

import os
import pathlib
import re
import subprocess
import sys

RUN = """
import runpy, sys
runpy.run_path("examples/import_ppo.py", run_name="__main__")
print("modules", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
NOT_NEEDED = {"tyro", "orbax", "transformers", "tokenizers", "grain", "tensorflow", "launch"}


def test_a_plain_dict_and_a_function_train_with_the_shipped_steps():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        cwd=pathlib.Path(__file__).parent.parent,
        env=os.environ | {"JAX_NUMPY_RANK_PROMOTION": "raise"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *lines, modules = done.stdout.splitlines()
    first, *_, last = [float(re.search(r"score +([\d.]+)", line)[1]) for line in lines]
    assert first < 2 and last > 8, done.stdout
    loaded = set(modules.split())
    assert "rlhf_jax" in loaded and not loaded & NOT_NEEDED, loaded & NOT_NEEDED


HELP = """
import contextlib, io, sys, launch
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    launch.main(["sentiment", "--help"])
print(*sys.modules)
"""
SLOW = {"transformers", "tensorflow", "torch", "pandas", "matplotlib"}
SLOW |= {"scipy.stats", "scipy.special", "scipy.optimize", "scipy.sparse"}


def test_help_waits_for_no_library_that_only_a_run_needs():
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "rlhf_jax.pipeline.on_policy" in loaded and not loaded & SLOW
