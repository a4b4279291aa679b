"""The installed package is whole: a wheel, unpacked where no checkout is, runs an experiment and a copy."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
import runs

import rlhf_jax

ROOT = pathlib.Path(__file__).parent.parent
SPAWN = """
import concurrent.futures, multiprocessing
from rlhf_jax import launcher
if __name__ == "__main__":
    main = launcher.load("compare").main
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        print(pool.submit(getattr, main, "__module__").result(100))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without the network."""
    pytest.importorskip("hatchling", reason="hatchling, of the extra [test], builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    program = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", program, folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return folder / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """`run(*args, program=[...])`: what the installed command prints, in a folder of its own."""
    site, here = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("here")
    zipfile.ZipFile(wheel).extractall(site)
    program = site / "rlhf-jax"  # as pip writes it
    program.write_text(
        "import sys\nfrom rlhf_jax.launcher import start\nif __name__ == '__main__':\n    sys.exit(start())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*args, program=program):
        command = [sys.executable, program, *args]
        done = subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.here = here
    return run


def test_the_wheel_takes_two_names_and_has_every_file(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"rlhf_jax", "feedback", f"rlhf_jax-{rlhf_jax.__version__}.dist-info"}
    for folder, at in (("rlhf_jax", ""), ("feedback", ""), ("experiments", "rlhf_jax/")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{at}{path.relative_to(ROOT)}" in names
    assert "rlhf_jax/py.typed" in names
    assert {f"rlhf_jax/runs/templates/report.{end}" for end in ("html.j2", "css")} <= {*names}
    told = zipfile.ZipFile(wheel).read(next(x for x in names if x.endswith("METADATA"))).decode()
    assert "Author: The rlhf_jax developers" in told
    assert "Project-URL: Repository, https://github.com/rlhf-jax/rlhf_jax" in told


@pytest.mark.slow
def test_it_runs_from_any_folder_without_a_checkout(run):
    where = run(
        "-c", "import rlhf_jax.experiments.methods.dpo as x; print(x.__file__)", program="-P"
    )
    assert str(ROOT) not in where
    assert run("--version") == f"rlhf_jax {rlhf_jax.__version__}\n"
    assert "rlhf-jax rloo --help-all shows" in run("rloo", "--help")
    (run.here / "spawning.py").write_text(SPAWN)
    assert run(program="spawning.py") == "rlhf_jax.experiments.studies.compare\n"


@pytest.mark.slow
def test_ppo_and_a_copy_train_there(run):
    run("sentiment", *runs.TINY, *runs.PPO)
    (folder,) = (run.here / "runs" / "sentiment").iterdir()
    assert (folder / "results.json").exists()
    assert (
        run("new", "mine", "--from", "rloo")
        == "mine.py is a copy of rloo: rlhf-jax ./mine.py --help\n"
    )
    run("./mine.py", *runs.TINY, "--start-from", str(folder))
    (own,) = (run.here / "runs" / "mine").iterdir()
    assert (own / "results.json").exists()
