"""Verifiers, each with answers that try to pass without being right."""

import ctypes
import os
import pathlib
import queue
import subprocess
import sys
from fractions import Fraction

import pytest

from rlhf_jax.rewards import answers, functions, sandbox, verifiers
from rlhf_jax.rewards.child import Child
from rlhf_jax.rewards.functions import RewardError
from rlhf_jax.rewards.scorer import Scorer, ScorerConfig

MEGABYTE = 2**20
ROOT = pathlib.Path(__file__).parent.parent.parent


def score(reward, response, **columns):
    found = reward(["p"], [response], **{name: [x] for name, x in columns.items()})
    assert len(found) == 1 and type(found[0]) is float
    return found[0]


# numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16 - 3 - 4 = 9 eggs, so she makes 9 * 2 = $18 a day.", 18),
        ("It is 1,234,567.50 in all", Fraction("1234567.5")),
        ("so x = -4.", -4),
        ("so x = \N{MINUS SIGN}4.", -4),
        ("it lost -$5", -5),
        ("it lost $-5", -5),
        ("a quarter is 1/4", Fraction(1, 4)),
        (".5", Fraction(1, 2)),
        ("007", 7),
        ("5kg", 5),
        ("covid-19", 19),
        ("the same twice: 4, 4", 4),
        ("He has 3 apples and then 5", 5),
        ("work 3, 4 and more\n#### 1,018", 1018),
        ("#### Step 2\nwe add\n#### $7.", 7),
        (r"it is 3 + 4, or 7: \boxed{7}, as I said", 7),
        (r"\boxed{\$1{,}000\%}", 1000),
        (r"\boxed {-0.50}", Fraction(-1, 2)),
        (r"$\boxed{4}$ and again \boxed{4.0}", 4),
        ("1" * 30, int("1" * 30)),
    ],
)
def test_the_final_number_of_a_text(text, value):
    assert answers.number(text) == value


HEDGES = [
    "the answer is 4 or 5",
    "the answer is 5 or 4",
    "4 or maybe 5",
    "5, or (perhaps) 4",
    "4, 5",
    "3, 5, 4",
    "5/4/4",
    "4 and 5",
    "5 to 4",
    "5-4",
    "5\N{EN DASH}4",
    "4 5",
    "$5, $4",
    "4 or five",
    "five or 4",
    "4, or five",
    r"\boxed{4 or 5}",
    r"\boxed{5, 4}",
    r"\boxed{4}\boxed{5}",
    r"\boxed{5} or \boxed{4}",
    r"\boxed{4 \boxed{5}}",
    r"\boxed{5 \boxed{4}}",
    r"\boxed{\boxed{4}\boxed{5}}",
    "#### 4\n#### 5",
    "#### 4 or 5",
    "#### 5 or 4",
    "#### 4 or five",
    "#### 5 #### 4",
    "#### 4 ####5 ####",
]
NO_NUMBERS = [
    "",
    " \n",
    "four",
    "NaN",
    "nan",
    "inf",
    "-Infinity",
    "4/0",
    "1e5",
    "4e0",
    "5e-4",
    "2^4",
    "2^{4}",
    "x4",
    "1.4.4",
    "12/05/4",
    "٤",
    "\uff14",
    "४",
    "²",
    "½",
    "\uff144",
    "4\uff14",
    "4²",
    "4½",
    "²4",
    "9" * 31,
    r"\boxed{}",
    r"\boxed{4",
    r"4 \boxed{",
    r"\boxed{\boxed{4}}",
    r"\boxed{x = 4}",
    r"\boxed{2+2} 4",
    r"\boxed{nan}",
    "\\boxed{\uff14}",
    r"4 \boxed{\text{none}}",
]


@pytest.mark.parametrize("text", HEDGES + NO_NUMBERS)
def test_a_text_with_two_answers_or_none_has_no_number(text):
    assert answers.number(text) is None
    for wanted in ("4", "5"):
        assert score(verifiers.number, text, answer=wanted) == 0.0


LONG = {
    "digits": "4" * MEGABYTE,
    "thousands": "4" + ",444" * (MEGABYTE // 4) + "e5",
    "numbers": "4 " * (MEGABYTE // 2),
    "boxes": r"\boxed{" * (MEGABYTE // 7),
    "closed boxes": r"\boxed{" * (MEGABYTE // 8) + "4" + "}" * (MEGABYTE // 8),
    "spaces": "4" + " " * MEGABYTE + "or 5",
    "or": "or " * (MEGABYTE // 3),
    "marks": f"#### 4{' ' * 121}\n" * (MEGABYTE // 128),
    "fences": "```\n" * (MEGABYTE // 4),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_megabyte_scores_nothing_and_is_read_in_linear_time(kind):
    columns = {"answer": "4", "pattern": "(4|44)*x", "tests": "assert True"}
    for reward in set(verifiers.REWARDS.values()) - {verifiers.math}:
        named = functions.signature_of("", reward).columns
        assert score(reward, LONG[kind], **{name: columns[name] for name in named}) == 0.0
    answers.number(LONG[kind]), answers.boxed(LONG[kind]), verifiers.program(LONG[kind])


def test_numbers_are_compared_exactly():
    third = "0." + "3" * 20
    assert score(verifiers.number, third, answer="1/3") == 0.0
    assert score(verifiers.number, "2/6", answer="1/3") == 1.0
    assert score(verifiers.number, "9007199254740993", answer="9007199254740992") == 0.0
    assert score(verifiers.number, "so 18", answer="9 * 2 = <<9*2=18>>18\n#### 18") == 1.0
    assert score(verifiers.number, "18.0", answer=18) == 1.0


def test_the_best_of_several_references_counts():
    assert verifiers.number(["p"] * 3, ["1", "2", "3"], answer=[["1", "2"]] * 3) == [1.0, 1.0, 0.0]
    assert verifiers.exact(["p"], ["a  b\n"], answer=[("c", "a b")]) == [1.0]
    one = [score(verifiers.chrf, "the cat", answer=x) for x in ("a dog", "the cats")]
    assert score(verifiers.chrf, "the cat", answer=["a dog", "the cats"]) == max(one) > min(one)


@pytest.mark.parametrize("answer", ["four", "nan", "inf", float("nan"), "4 or 5", ""])
def test_a_reference_without_a_number_is_refused(answer):
    with pytest.raises(RewardError, match="has no number: mend the row"):
        score(verifiers.number, "4", answer=answer)


@pytest.mark.parametrize(
    "answer", [None, [], {"a": None}.values(), [None], b"4"[:0], {"4": 0}, [{"4": 0}]]
)
def test_what_is_no_reference_is_refused(answer):
    with pytest.raises(RewardError, match="is no text and no list of texts: mend the row"):
        score(verifiers.exact, "4", answer=answer)


# texts


def test_overlap_is_that_of_the_libraries():
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    said, wanted = "the cats were sitting on a mat", "a cat sat on the mat"
    chrf = sacrebleu.sentence_chrf(said, [wanted]).score / 100
    assert score(verifiers.chrf, said, answer=wanted) == pytest.approx(chrf)
    rouge = RougeScorer(["rougeL"], use_stemmer=True).score(wanted, said)["rougeL"].fmeasure
    assert score(verifiers.rouge, said, answer=wanted) == pytest.approx(rouge)
    # by hand: cat(s), on, mat of 7 and 6 words: 2 * 3 / 13, with the stems "cat" and "cat" equal
    assert rouge == pytest.approx(6 / 13)


@pytest.mark.parametrize("name", ["chrf", "rouge", "exact"])
def test_overlap_lies_between_nothing_and_one(name):
    reward = verifiers.REWARDS[name]
    assert score(reward, "one two", answer="one two") == pytest.approx(1.0)
    for text in ("", "?", "٤", "nan", " one two one two one two" * 9, "日本"):
        assert 0.0 <= score(reward, text, answer="one two") < 0.5


def test_a_pattern_matches_the_whole_response():
    assert score(verifiers.pattern, " ab12\n", pattern=r"[a-b]+\d+") == 1.0
    for text in ("", "xab12", "ab12x", "ab12\nab", "ab"):
        assert score(verifiers.pattern, text, pattern=r"[a-b]+\d+") == 0.0
    with pytest.raises(RewardError, match=r"the pattern '\(' is no regular expression \(missing"):
        score(verifiers.pattern, "a", pattern="(")


def test_a_pattern_that_backtracks_for_ever_does_not_match(monkeypatch):
    monkeypatch.setattr(verifiers, "PATTERN_SECONDS", 0.05)
    assert score(verifiers.pattern, "a" * 5000 + "b", pattern="(a|a|aa)+") == 0.0


# mathematics


@pytest.fixture
def math():
    pytest.importorskip("math_verify")
    return verifiers.math


def test_mathematics_is_equal_by_value(math):
    for said, wanted in [
        ("0.5", r"\frac{1}{2}"),
        ("(x+1)^2", "$x^2+2x+1$"),
        ("4", r"so \boxed{4}"),
    ]:
        assert score(math, rf"so \boxed{{{said}}}.", answer=wanted) == 1.0
    assert score(math, r"\boxed{3}", answer=["2", "3"]) == 1.0


def test_hostile_mathematics_is_wrong(math):
    loose = [
        "",
        "4",
        "the answer is 4 or 5",
        r"\boxed{4",
        r"\boxed{4} or \boxed{5}",
        "nan",
        LONG["boxes"],
    ]
    boxed = [
        "",
        "nan",
        "inf",
        "4 or 5",
        "4, 5",
        r"4 \text{ or five}",
        "٤",
        "5",
        "(" * 3000,
        r"\infty",
    ]
    for text in [*loose, *(rf"\boxed{{{x}}}" for x in boxed)]:
        assert score(math, text, answer="4") == 0.0


def test_mathematics_without_end_is_wrong_and_the_next_is_judged(math, monkeypatch):
    monkeypatch.setattr(verifiers, "MATH_SECONDS", 0.5)
    assert score(math, r"\boxed{9^{9^{9^{9}}}}", answer="2^{100}") == 0.0
    monkeypatch.setattr(verifiers, "MATH_SECONDS", 60.0)
    assert score(math, r"\boxed{2}", answer="2") == 1.0


def test_without_math_verify_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setattr(verifiers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RewardError, match=r"^the reward verifiers:math needs math-verify: .*\[math\]$"
    ):
        functions.load("verifiers:math")


def test_where_math_verify_does_not_start_nothing_is_taken_for_wrong(monkeypatch):
    monkeypatch.setattr(verifiers.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(verifiers, "_idle", queue.LifoQueue())
    broken = Child("import sys; sys.exit(3)")
    monkeypatch.setattr(verifiers, "Child", lambda program: broken)
    with pytest.raises(RewardError, match=r"^math-verify does not start \(ended its process with"):
        score(verifiers.math, r"\boxed{4}", answer="4")


# programs

GOOD = "def f(x):\n    return x * x\n"
TESTS = "assert f(2) == 4\nassert f(-3) == 9"
LIMITS = sandbox.Limits(seconds=1, patience=10.0)


@pytest.mark.parametrize(
    "code",
    [
        GOOD,
        GOOD + "for _ in range(100_000):\n    print('much')",
        GOOD + "open('/etc/passwd').read()",
        GOOD
        + "import asyncio, concurrent.futures, ctypes, json, math, random, re, subprocess, typing",
        GOOD + "if __name__ == '__main__':\n    input()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n" + GOOD,
    ],
)
def test_a_program_that_is_right_passes(code):
    assert sandbox.passes(code, TESTS, LIMITS)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "def f(x):\n    return x + x",
        "def f(",
        "\0",
        "\ud800",
        "(" * 10_000,
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "quit()",
        "def f(x):\n    f(x)",
        "import os\nfor i in range(9):\n    try: os.write(i, b'x' * 32)\n    except OSError: pass",
        "while True: pass",
        GOOD + "input()",
        GOOD + "import sys; x = sys.stdin.read(); assert x",
        GOOD + "x = 'x' * 10**9",
        GOOD + "import os; os.fork()",
        GOOD + "import os\nwhile True: os.fork()",
        GOOD + "import subprocess; subprocess.run(['true'])",
        GOOD + "import os; os.system('true')",
        GOOD + "import threading; threading.Thread(target=print).start()",
        GOOD + "import socket; socket.socket()",
        GOOD + "import _socket; _socket.socket()",
        GOOD + "import os; os.kill(os.getppid(), 0)",
        GOOD + "import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
        GOOD + "import os; assert os.environ.get('HOME')",
    ],
)  # fmt: skip
def test_a_program_that_is_wrong_or_hostile_fails(code):
    assert not sandbox.passes(code, TESTS, LIMITS)


def test_a_program_that_sleeps_is_ended():
    limits = sandbox.Limits(patience=0.3)
    assert not sandbox.passes("import time; time.sleep(1000)", TESTS, limits)


def test_a_program_changes_no_file(tmp_path):
    old = tmp_path / "old"
    old.write_text("mine")
    for change in [
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.open({str(tmp_path / 'new')!r}, os.O_CREAT)",
        f"open({str(old)!r}, 'w')",
        f"import os; os.remove({str(old)!r})",
        f"import os; os.rename({str(old)!r}, {str(tmp_path / 'new')!r})",
        f"import os; os.mkdir({str(tmp_path / 'new')!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
    ]:
        assert not sandbox.passes(f"{GOOD}{change}", TESTS, LIMITS)
        assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [("old", "mine")]


ACTS = {
    "make": "open(f'{folder}/new', 'w')",
    "truncate": "open(f'{folder}/old', 'w')",
    "cut": "os.truncate(f'{folder}/old', 1)",
    "remove": "os.remove(f'{folder}/old')",
    "link": "os.symlink('/', f'{folder}/new')",
    "process": "os.fork()",
    "shell": "subprocess.run(['true'])",
    "socket": "socket.socket()",
    "signal": "os.kill(os.getppid(), 0)",
}


def landlocked() -> bool:
    """True on a kernel whose Landlock knows all of the rights (version 3, Linux 6.2)."""
    return sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, 0, 1) >= 3


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("layer", ["forbid()", "addaudithook"])
def test_the_kernel_and_the_audit_hook_each_refuse_alone(layer, act, tmp_path):
    if layer == "forbid()" and not landlocked():
        pytest.skip("the kernel has no Landlock, or an early one")
    (tmp_path / "old").write_text("mine")
    begun = "harness.forbid()" if layer == "forbid()" else "sys.addaudithook(harness.guard)"
    program = f"""
import os, socket, subprocess, sys
from rlhf_jax.rewards import harness

folder = sys.argv[1]
{begun}
try:
    {ACTS[act]}
except PermissionError:
    print("refused")
"""
    asked = [sys.executable, "-c", program, str(tmp_path)]
    found = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT)
    assert (found.stdout, found.stderr) == ("refused\n", "")
    assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [("old", "mine")]


def test_nothing_is_left_of_a_program(monkeypatch):
    """Its process group is gone when the verdict is there, and no descriptor stays open."""
    groups, popen = [], sandbox.subprocess.Popen

    def started(*args, **settings):
        groups.append(popen(*args, **settings))
        return groups[-1]

    monkeypatch.setattr(sandbox.subprocess, "Popen", started)
    before = len(os.listdir("/dev/fd"))
    for code in (GOOD, f"{GOOD}import os; os.fork()", "import time; time.sleep(1000)"):
        sandbox.passes(code, TESTS, sandbox.Limits(patience=0.5))
        with pytest.raises(ProcessLookupError):
            os.killpg(groups[-1].pid, 0)
    assert len(groups) == 3 and len(os.listdir("/dev/fd")) == before


def test_a_set_has_the_same_order_in_each_run():
    asked = [sys.executable, "-c", "print(hash('a'))"]
    seeded = {"PYTHONHASHSEED": "0"}
    found = subprocess.run(asked, capture_output=True, text=True, env=seeded)
    assert sandbox.passes("", f"assert hash('a') == {found.stdout}", LIMITS)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```x = 1```", "x = 1"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nIt prints\n```text\n1\n```", "x = 1\n"),
        ("``````", ""),
        ("", ""),
    ],
)
def test_the_code_of_a_response(response, code):
    assert verifiers.program(response) == code


def test_the_rows_of_programs():
    fenced = f"So:\n```python\n{GOOD}```"
    assert score(verifiers.code, fenced, tests=TESTS) == 1.0
    assert score(verifiers.code, fenced, tests=TESTS.split("\n")) == 1.0
    assert score(verifiers.code, "I do not know.", tests=TESTS) == 0.0
    for tests in ("", [], "f(2)", "f(2)  # assert"):
        with pytest.raises(RewardError, match="assert nothing: mend the row"):
            score(verifiers.code, GOOD, tests=tests)
    with pytest.raises(RewardError, match=r"assert f\(' are no Python \(.*\): mend the row"):
        score(verifiers.code, GOOD, tests="assert f(")
    for tests in (None, 4, [None], {"assert True": 1}):
        with pytest.raises(RewardError, match="no text and no list of lines: mend the row"):
            score(verifiers.code, GOOD, tests=tests)
    with pytest.raises(ValueError, match=r"the tests are no Python \(.*\): mend the row"):
        sandbox.passes(GOOD, "assert f(")


# by name


@pytest.mark.parametrize("processes", [False, True])
def test_a_built_in_reward_is_named(processes):
    scorer = Scorer("verifiers:number", ScorerConfig(threads=2, processes=processes))
    found = scorer.submit(["p"] * 3, ["4", "5", "4 or 5"], answer=["4", ["4", "5"], "4"])
    assert list(found.parts()["number"]) == [1.0, 1.0, 0.0]
    with pytest.raises(RewardError, match="the reward 'number' asks for the column 'answer'"):
        scorer.check(["p"], [{"target": "4"}])
    with pytest.raises(RewardError, match=r"answer 'x' has no number: mend the row \(on sample 0"):
        scorer.submit(["p"], ["4"], answer=["x"]).result()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("number", {"answer": "#### 4"}, {"answer": "four"}),
        ("rouge", {"answer": ["one", "two"]}, {"answer": {"text": "one"}}),
        ("pattern", {"pattern": "a+"}, {"pattern": "("}),
        ("code", {"tests": TESTS}, {"tests": "assert ("}),
    ],
)
def test_references_that_a_verifier_cannot_read_are_refused_before_a_run(name, good, bad):
    check = verifiers.check_references
    check(f"verifiers:{name}", ["p", "q"], [good, good])
    with pytest.raises(
        ValueError, match=f"^rl.reward = .verifiers:{name}. cannot score all prompts"
    ):
        check(f"verifiers:{name}", ["p", "q"], [good, bad])
    check("rewards.py:right", ["p"], [bad])  # of others nothing is known


def test_a_program_is_judged_in_a_child_process_too():
    scorer = Scorer("verifiers:code", ScorerConfig(threads=1, processes=True))
    assert list(scorer.submit(["p"] * 2, [GOOD, ""], tests=[TESTS] * 2).result()) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["numbers", "", "references", "_best"])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(
        RewardError, match="is none of the library, which has verifiers:number, verif"
    ):
        functions.load(f"verifiers:{name}")


@pytest.mark.parametrize("name", ["number", "exact", "chrf", "rouge", "pattern", "code"])
def test_every_built_in_reward_loads(name):
    assert functions.load(f"verifiers:{name}") is verifiers.REWARDS[name]
