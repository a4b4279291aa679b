"""What the launcher makes of signals, of output that nobody takes, and of a machine that does not serve."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rlhf_jax.devices import process

ROOT = pathlib.Path(__file__).parent.parent.parent
TOY = '''"""A toy."""
import hashlib, os, pathlib, signal, sys, threading, time

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

def deaf():  # no handler of Python's is called before it ends
    threading.Timer(0.2, stop).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)

def talk():
    for i in range(5000):
        print("line \\u2013 \\udcff", i, flush=i % 100 == 0)
    pathlib.Path("done").touch()

WHAT = os.environ["WHAT"]
if WHAT == "importing":
    try:
        stop()
        time.sleep(60)
    except:
        time.sleep(60)
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    seed: int = 0

config = Config()

def main(cfg):
    if WHAT == "full":
        raise OSError(28, "No space left on device", "results.json")
    {"deaf": deaf, "talk": talk, "stop": stop}[WHAT]()
'''


@pytest.fixture
def begin(tmp_path):
    """`begin(what, script, **environment)`: exit code, output and errors of the launcher of a toy."""
    (tmp_path / "toy.py").write_text(TOY)

    def begin(what, script="{}", **environment):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "WHAT": what} | environment
        done = subprocess.run(
            ["sh", "-c", script.format(f"{sys.executable} {ROOT / 'launch.py'} ./toy.py")],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return begin


@pytest.mark.parametrize("moment", ["importing", "stop", "deaf"])
def test_sigterm_ends_with_75_at_once_wherever_it_comes(begin, moment):
    code, _, err = begin(moment)
    assert code == process.PREEMPTED and "stopped by SIGTERM; start the same command again" in err


@pytest.mark.kills
@pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="Linux tells who listens"
)
@pytest.mark.parametrize("delay", [0, 0.01, 0.03, 0.1, 0.3, 1, 3])
def test_sigterm_ends_with_75_from_the_first_line_on(delay):
    """Soon after that line the process starts anew, with other settings of glibc, and is deaf meanwhile."""
    environment = {k: x for k, x in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "launch.py", "sentiment", "--help"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as run:
        listens = 0
        while not listens >> (signal.SIGTERM - 1) & 1:
            status = pathlib.Path(f"/proc/{run.pid}/status").read_text()
            listens = int(status.partition("SigCgt:")[2].split()[0], 16)
        time.sleep(delay)
        run.send_signal(signal.SIGTERM)
        assert run.wait(50) == process.PREEMPTED or delay >= 1


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("{} | head -1", ""),
        ("{} > /dev/full", "note: output cannot be written (No space left on device)"),
        ("{} >&- 2>&-", ""),
    ],
)
def test_printing_is_no_reason_to_lose_a_run(begin, tmp_path, script, told):
    code, _, err = begin("talk", script, LC_ALL="C", PYTHONUTF8="0", COLUMNS="0")
    assert (tmp_path / "done").exists() and code == 0, err
    assert err.startswith(told) and err.count("\n") == bool(told)


def test_an_error_of_the_machine_is_one_sentence_and_exit_1(begin):
    code, out, err = begin("full")
    assert (code, out) == (1, "")
    assert err == (
        "error: results.json: No space left on device: make room on that disk, and start the same "
        "command again to resume the run\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only", "runs/x"), "runs/x: Read-only: name a writable folder"),
        (OSError(errno.EACCES, "Denied", b"a\xff"), "a\udcff: Denied: name a folder of your own"),
        (OSError(errno.EMFILE, "Too many"), "HERE: Too many: raise the limit (ulimit -n 4096)"),
        (OSError(errno.EIO, "Bad disk", "x"), "x: Bad disk: fix that, and start the same command"),
        (OSError("a sentence"), "a sentence"),
        (Exception("I/O error: No space left (os error 28)"), "HERE: No space left on device: make"),
        (ValueError("NOT_FOUND: ... [os_error_code='24']"), "HERE: Too many open files: raise the"),
        (RuntimeError("Unable to initialize backend 'cuda': none"), "JAX_PLATFORMS = 'cuda' is not"),
    ],
)  # fmt: skip
def test_errors_have_a_remedy(monkeypatch, error, said):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert process.sentence(error, "HERE").startswith(said)


def test_a_platform_that_is_not_there_is_named():
    program = """
import jax
from rlhf_jax.devices import process
try:
    jax.devices()
except Exception as error:
    print(process.sentence(error))
"""
    environment = os.environ | {"JAX_PLATFORMS": "rocm", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("JAX_PLATFORMS = 'rocm' is not available here")


@pytest.mark.parametrize(
    "error", [ValueError("(os error 28)"), RuntimeError("x"), AssertionError()]
)
def test_other_errors_are_none_of_the_machine(error):
    with pytest.raises(type(error)) as caught:
        raise error
    assert process.sentence(caught.value) is None


@pytest.mark.parametrize(
    ("columns", "left"), [("0", None), ("1", None), ("x", None), ("100", "100")]
)
def test_a_width_that_nothing_can_be_shown_in_is_forgotten(monkeypatch, columns, left):
    monkeypatch.setenv("COLUMNS", columns)
    process.check_columns()
    assert os.environ.get("COLUMNS") == left


def test_the_children_of_a_stopped_process_go_with_it(tmp_path):
    program = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, ROOT)
from rlhf_jax.devices import process
if __name__ == "__main__":
    process.exit_on_sigterm()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
""".replace("ROOT", repr(str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == process.PREEMPTED
    state = pathlib.Path(f"/proc/{int(done.stdout)}/stat")
    if state.parent.parent.exists():
        for _ in range(100):
            if not state.exists() or state.read_text().split()[2] == "Z":
                break
            signal.sigtimedwait([], 0.05)
        else:
            raise AssertionError("the child lives on")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_note_is_written_before_a_process_that_ends_at_once(unbuffered):
    """With PYTHONUNBUFFERED, as in most containers, a stream has no lines that flush it."""
    program = (
        "import os, sys; from rlhf_jax.devices import process; process.make_streams_patient();"
        "print('note: one', file=sys.stderr); os._exit(0)"
    )
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.stderr == "note: one\n"
