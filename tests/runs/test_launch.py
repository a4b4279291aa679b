import os
import pathlib
import subprocess
import sys

import pytest

import launch
import rlhf_jax
from rlhf_jax import launcher

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
    assert (
        "\n\nTools\n  broken  Never imported.\n  toy     A toy that prints its settings.\n" in out
    )
    assert "rewards" not in out


def test_the_list_has_headings_and_an_order_that_each_file_sets_for_itself(tmp_path):
    for file, text in {
        "tools/a.py": '"""A."""\nconfig = 1\n',
        "methods/b.py": '"""B (Nobody et al., 1999)."""\nconfig = 1\n',
        "methods/c.py": '"""C.\n\n-\n\n    z  Last\n    y  First"""\nconfigs = {"z": 1, "y": 2}\norder = 2\n',
        "methods/d.py": f'"""{"D " * 90}"""\nconfig = 1\norder = 1\n',
        "sharks/e.py": '"""E."""\nconfig = 1\n',
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    known = launch.experiments(tmp_path)
    assert [*known] == ["d", "z", "y", "b", "a", "e"]
    lines = launcher.listing(known).splitlines()
    assert lines[1:12] == ["", "Methods", lines[3], "  z  Last", "  y  First", "  b  B",
                           "", "Tools", "  a  A.", "", "Sharks"]  # fmt: skip
    assert lines[3].endswith("D D ...") and max(map(len, lines)) <= 100


def test_the_list_of_today_begins_with_what_one_begins_with():
    known = [*launch.experiments(launch.EXPERIMENTS)]
    lines = launcher.listing(launch.experiments(launch.EXPERIMENTS)).splitlines()
    assert not [line for line in lines if line.endswith(" ...")]
    assert known[0] == "sentiment" and known[-1] == "export"
    assert known.index("reward") < known.index("rloo") < known.index("dpo") < known.index("raft")


def test_help_explains_every_setting(start):
    code, out, _ = start("toy", "--help")
    assert code == 0
    assert "Seed of everything." in out and "Share of the prompts that no" in out
    assert "--data.held-out" in out and "It costs nothing." in out


def test_settings_are_dotted_names_in_either_spelling(start):
    assert start("toy")[:2] == (0, "0 0.1 as the user set it\n")
    assert start("toy", "--data.held-out", "0.2")[1].startswith("0 0.2 ")
    assert start("toy", "--data.held_out", "0.3", "--seed", "4")[1].startswith("4 0.3 ")


def test_the_version_is_that_of_the_package(start):
    assert start("--version") == (0, f"rlhf_jax {rlhf_jax.__version__}\n", "")


def test_where_it_is_sent_is_explained_without_an_experiment_and_with_one(start):
    for words in (["--on", "slurm", "--help"], ["toy", "--on", "slurm", "--help"]):
        code, out, _ = start(*words)
        assert code == 0 and "--tasks-per-node INT >= 1 (1)" in out and "SLURM" in out
    assert start("--on", "slurm")[0] == 2
    assert start("toi", "--on", "slurm", "--dry-run")[0] == 2
    assert start("--on", "shark", "--help")[2] == "error: on = 'shark': use slurm, tpu-vm, k8s\n"


def test_what_is_misspelt_is_refused_with_the_nearest_name(start):
    code, out, err = start("toi")
    assert (code, out) == (
        2,
        "",
    ) and err == "error: there is no experiment 'toi': did you mean toy?\n"
    assert start("xylophone")[2].endswith("there are broken, toy\n")
    code, out, err = start("toy", "--data.heldout", "0.2")
    assert (code, out) == (2, "") and err == (
        "error: there is no setting --data.heldout here: use --data.held-out (Share of the prompts that no "
        "stage trains on); python launch.py toy --help explains\n"
    )
    assert start("toy", "--seed", "abc")[0] == 2


def test_bad_input_is_one_sentence_and_a_stopped_run_keeps_its_code(start, monkeypatch):
    code, _, err = start("toy", "--seed", "13")
    assert (code, err) == (1, "error: seed is 13: take another\n")
    code, _, err = start("toy", "--seed", "14")
    assert code == 130 and "the same command resumes the run" in err
    assert start("toy", "--seed", "75")[0] == 75
    monkeypatch.setenv("RLHF_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seed is 13"):
        start("toy", "--seed", "13")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--distributed"], 'distributed = "" is no address: use auto, or HOST:PORT'),
        (
            ["--distributed", "--seed", "1"],
            'distributed = "" is no address: use auto, or HOST:PORT',
        ),
        (["--distributed=here"], 'distributed = "here" is no address: use auto, or HOST:PORT'),
        (
            ["--distributed", "a:1,2,2"],
            'distributed = "a:1,2,2" is no address: use auto, or HOST:PORT',
        ),
        (
            ["--distributed=auto", "--on", "slurm"],
            'distributed = "auto" conflicts with on = "slurm"',
        ),
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


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in; what a test imports from it is forgotten."""
    folder, modules, path = tmp_path / "here", {*sys.modules}, [*sys.path]
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


SEVERAL = '''"""Some toys.

    one     The first toy
    other   The second, é

Start it with

    python launch.py other --seed 3

    one     1.45   3.3
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    seed: int = 0
    run: str = ""


def lay(*given):
    print(*given)


configs = {
    "one": Config(seed=1),
    # both é
    "other": Config(
        seed=2,
    ),
}


def main(cfg: Config, name: str):
    lay("other", cfg)
    lay("other", cfg.seed)
    lay(name, "other")
'''


def test_a_copy_of_one_of_several_runs_under_its_own_name(start, here, tmp_path):
    folder = next(tmp_path.glob("experiments_of_*"))
    (folder / "tools" / "several.py").write_text(SEVERAL)
    code, out, err = start("new", "mine_of_it", "--from", "other")
    assert (code, err) == (0, "") and out == (
        "mine_of_it.py is a copy of other: python launch.py ./mine_of_it.py --help\n"
    )
    text = (here / "mine_of_it.py").read_text()
    assert "The first toy" not in text and '"one"' not in text and "    one     1.45" in text
    assert (
        "    mine_of_it   The second, é" in text
        and "python launch.py ./mine_of_it.py --seed" in text
    )
    said = "mine_of_it Config(seed=5, run='')\nother 5\nmine_of_it other\n"
    for name in ("./mine_of_it.py", "mine_of_it", "mine_of_it.py"):
        assert start(name, "--seed", "5") == (0, said, "")
    assert start("new", "mine_of_it", "--from", "other")[::2] == (
        1,
        "error: mine_of_it.py already exists: choose another name\n",
    )


def test_a_copy_of_a_whole_file_keeps_it(start, here):
    assert start("new", "my_toy.py", "--from", "toy")[0] == 0
    assert (here / "my_toy.py").read_text() == TOY
    assert start("./my_toy.py")[:2] == (0, "0 0.1 as the user set it\n")
    code, out, _ = start("./my_toy.py", "--on", "slurm", "--dry-run")
    assert code == 0 and f"launch.py {here / 'my_toy.py'}\n" in out and "job-name=my_toy" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["mine"], "new needs a name and an experiment"),
        (["--from", "toy"], "new needs a name and an experiment"),
        (["mine", "--from", "toi"], "there is no experiment 'toi': did you mean toy?"),
        (
            ["my-toy", "--from", "toy"],
            "NAME = 'my-toy' is no module name: use lower-case letters, dig",
        ),
        (["../mine", "--from", "toy"], "NAME = '../mine' is no module name: use lower"),
        (["class", "--from", "toy"], "NAME = 'class' is no module name: use lower"),
        (["toy", "--from", "toy"], "NAME = 'toy' is taken here"),
        (["json", "--from", "toy"], "NAME = 'json' is taken here or by a Python module"),
    ],
)
def test_a_copy_is_refused_under_a_name_that_cannot_be_its(start, here, args, said):
    code, out, err = start("new", *args)
    assert (code, out) == (2, "") and err.startswith(f"error: {said}") and err.count("\n") == 1
    assert not [*here.iterdir()]


def test_a_file_that_is_no_experiment_is_refused(start, here):
    assert start("./none.py")[::2] == (2, "error: there is no file none.py\n")
    (here / "empty.py").write_text("")
    assert "empty.py must set config" in start("./empty.py")[2]
    (here / "json.py").write_text(TOY)
    code, _, err = start("./json.py")
    assert code == 1 and err.startswith("error: json.py has the name of a Python module")


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
