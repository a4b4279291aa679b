import os
import pathlib
import subprocess
import sys

import pytest

import launch

TOY = '''"""A toy that prints its settings.

It costs nothing.
"""

import os
from dataclasses import dataclass

CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]


@dataclass(frozen=True)
class Data:
    held_out: float = 0.1
    """Share of the prompts that no stage trains on."""


@dataclass(frozen=True)
class Config:
    seed: int = 0
    """Seed of everything."""
    data: Data = Data()


config: Config = Config()


def main(cfg):
    print(cfg.seed, cfg.data.held_out, CACHE)
    if cfg.seed == 13:
        raise ValueError("seed is 13: take another")
    if cfg.seed == 14:
        raise KeyboardInterrupt
    if cfg.seed == 75:
        raise SystemExit(75)
'''


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """`start(*args)`: exit code, standard output and standard error."""
    folder = tmp_path / f"experiments_of_{tmp_path.name}"  # a name that no other test has imported
    tools = folder / "tools"
    tools.mkdir(parents=True)
    (tools / "toy.py").write_text(TOY)
    (tools / "broken.py").write_text('"""Never imported."""\nimport no_such_module\nconfig = 1\n')
    (tools / "rewards.py").write_text('"""No experiment."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "as the user set it")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    monkeypatch.delenv("RLHF_JAX_TRACEBACK", raising=False)

    def start(*args):
        try:
            code = launch.main(list(args), folder)
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return start


def test_alone_it_lists_the_experiments_without_importing_them(start):
    code, out, _ = start()
    assert code == 0
    assert "\n  broken  Never imported.\n  toy     A toy that prints its settings.\n" in out
    assert "rewards" not in out


def test_help_explains_every_setting(start):
    code, out, _ = start("toy", "--help")
    assert code == 0
    assert "Seed of everything." in out and "Share of the prompts that no" in out
    assert "--data.held-out" in out and "It costs nothing." in out


def test_settings_are_dotted_names_in_either_spelling(start):
    assert start("toy")[:2] == (0, "0 0.1 as the user set it\n")
    assert start("toy", "--data.held-out", "0.2")[1].startswith("0 0.2 ")
    assert start("toy", "--data.held_out", "0.3", "--seed", "4")[1].startswith("4 0.3 ")


def test_what_is_misspelt_is_refused_with_the_nearest_name(start):
    code, out, err = start("toi")
    assert (code, out) == (
        2,
        "",
    ) and err == "error: there is no experiment 'toi': did you mean toy?\n"
    assert start("xylophone")[2].endswith("there are broken, toy\n")
    code, out, err = start("toy", "--data.heldout", "0.2")
    assert (code, out) == (2, "") and "--data.held-out" in err
    assert start("toy", "--seed", "abc")[0] == 2


def test_bad_input_is_one_sentence_and_a_stopped_run_keeps_its_code(start, monkeypatch):
    code, _, err = start("toy", "--seed", "13")
    assert (code, err) == (1, "error: seed is 13: take another\n")
    code, _, err = start("toy", "--seed", "14")
    assert code == 130 and "the same command goes on where it was" in err
    assert start("toy", "--seed", "75")[0] == 75
    monkeypatch.setenv("RLHF_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seed is 13"):
        start("toy", "--seed", "13")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--distributed"], 'distributed = "": write auto, or HOST:PORT'),
        (["--distributed", "--seed", "1"], 'distributed = "": write auto, or HOST:PORT'),
        (["--distributed=here"], 'distributed = "here": write auto, or HOST:PORT'),
        (["--distributed", "a:1,2,2"], 'distributed = "a:1,2,2": write auto, or HOST:PORT'),
        (["--distributed=auto", "--on", "slurm"], 'distributed = "auto" beside on = "slurm"'),
    ],
)
def test_distributed_is_refused_where_it_is_given_wrongly(start, args, said):
    code, out, err = start("toy", *args)
    assert (code, out) == (1, "") and err.startswith(f"error: {said}")


def test_an_option_is_cut_out_in_either_spelling():
    for words in (["--on", "slurm"], ["--on=slurm"]):
        assert launch.cut_at(["--a", "1", *words, "--b", "2"], "--on") == (
            ["--a", "1"],
            "slurm",
            ["--b", "2"],
        )
    assert launch.cut_at(["--once", "1"], "--on") == (["--once", "1"], None, [])


def test_who_has_no_home_has_no_cache_there(start, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", home)
    assert start("toy")[:2] == (0, "0 0.1 as the user set it\n")


def test_from_the_command_line_before_jax_is_imported(tmp_path):
    (tmp_path / "trial" / "tools").mkdir(parents=True)
    (tmp_path / "trial" / "tools" / "toy.py").write_text(
        TOY + "\n\nimport sys\nassert 'jax' not in sys.modules\n"
    )
    root = pathlib.Path(launch.__file__).parent
    program = (
        f"import launch, pathlib; launch.main(['toy'], pathlib.Path({str(tmp_path / 'trial')!r}))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert answer.stdout == f"0 0.1 {tmp_path / '.cache' / 'rlhf_jax' / 'jax'}\n", answer.stderr
    listing = subprocess.run([sys.executable, root / "launch.py"], capture_output=True, text=True)
    assert listing.returncode == 0 and "EXPERIMENT --help" in listing.stdout
