"""Places for processes: on a GPU each has its own share, and nobody else's."""

import subprocess

import pytest

from rlhf_jax.sweeps import processes


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(names)`: the GPUs that this process sees; None where nothing says so."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(processes, "_gpus", list)

    def see(names):
        if names is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    return see


@pytest.mark.parametrize(
    ("names", "jobs", "shares"),
    [
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("4,5,6,7", 2, ["4,5", "6,7"]),
        ("0,1,2", 2, ["0", "1"]),
        ("MIG-a,MIG-b", 2, ["MIG-a", "MIG-b"]),
        ("0,1", 1, [None]),  # one process has what it would have alone
        ("", 3, [None] * 3),
        (None, 3, [None] * 3),
    ],
)
def test_each_process_has_gpus_of_its_own(gpus, names, jobs, shares):
    gpus(names)
    assert [x.get("CUDA_VISIBLE_DEVICES") for x in processes.environments(jobs)] == shares


def test_more_processes_than_gpus_are_refused_but_on_a_cpu(gpus, monkeypatch):
    gpus("0")
    with pytest.raises(ValueError, match=r"jobs = 2: JAX takes .* and 1 is here: use 1 at most"):
        processes.environments(2)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert processes.environments(2) == [{}, {}]


def test_the_last_words_of_a_log_are_its_error_or_its_last_line(tmp_path):
    log = tmp_path / "a.log"
    for text, said in (
        ("", f"see {log}"),
        ("one\nerror: first\nerror: seed is 13\n  at the end\n\n", "error: seed is 13"),
        ("Traceback\nKeyError: 3\n", "KeyError: 3"),
    ):
        log.write_text(f"error: an earlier one\n{text}")
        assert processes._last_words(log, len("error: an earlier one\n")) == said


def test_a_terminal_shows_the_last_line_of_each_run(tmp_path):
    log = tmp_path / "lr=1.log"
    log.write_text("ppo: 9/9  of an earlier start\n")
    numbers = {"lr=1": "[1/2] lr=1", "lr=2": "[2/2] lr=2"}
    with log.open("a") as file, (tmp_path / "lr=2.log").open("a") as other:
        ended = subprocess.Popen(["true"])
        ended.wait()
        one = processes.Running(ended, file, 0, 0.0, file.tell())
        two = processes.Running(ended, other, 1, 0.0, 0)
        file.write("sft: 20/20\nppo: 3/60  kl 0.1\n\n")
        file.flush()
        lines = processes.progress([("lr=1", one), ("lr=2", two)], numbers)
    assert lines == ["[1/2] lr=1: ppo: 3/60  kl 0.1", "[2/2] lr=2"]
