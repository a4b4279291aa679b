"""Rewards in Python: calls in threads, whatever goes wrong in them, sums of rewards, rewards in files."""

import collections
import fractions
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from rlhf_jax.rewards import functions as rewards
from rlhf_jax.rewards.functions import RewardError, RewardTimeoutError
from rlhf_jax.rewards.scorer import Scorer, ScorerConfig

PROMPTS = [f"prompt {i}" for i in range(10)]
RESPONSES = [f"{i} is the response" for i in range(10)]
LAST_RESORT = 60  # seconds until a test that would hang fails instead; none passes by it


def number(prompts, responses):
    """0.1 times the number that a response begins with."""
    return [0.1 * int(response.split()[0]) for response in responses]


EXPECTED = np.float32([0.1 * i for i in range(10)])


def score(reward_fn, prompts=PROMPTS, responses=RESPONSES, columns=None, **settings):
    scorer = Scorer(reward_fn, ScorerConfig(**settings))
    return scorer.submit(prompts, responses, **(columns or {})).result()


# scores


@pytest.mark.parametrize(
    "bad", [1e300, -1e300, 10**400, fractions.Fraction(10) ** 50, -float("inf")]
)
def test_a_score_that_float32_cannot_hold_is_refused(bad):
    with pytest.raises(RewardError, match=r"the reward of sample 1 is .*: give a finite number"):
        rewards.as_scores([0.0, bad], 2)


@pytest.mark.parametrize("bad", [None, 0.7, {0: 1.0, 1: 2.0}, {1.0, 2.0}, iter([1.0, 2.0])])
def test_what_is_no_list_of_scores_is_refused(bad):
    with pytest.raises(RewardError, match=r"gave .* for 2 samples: give a list with a number"):
        rewards.as_scores(bad, 2)


# in threads


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("size", [0, 1, 3, 10, 99])
def test_scores_are_in_order_and_no_sample_is_seen_twice(threads, size):
    calls = collections.deque()

    def reward(prompts, responses, answer, unused=None):
        assert unused is None
        calls.append(list(zip(prompts, responses, answer, strict=True)))
        return number(prompts, responses)

    columns = {"answer": np.arange(10), "subject": list("abcdefghij")}
    scores = score(reward, columns=columns, threads=threads, samples_per_call=size)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, EXPECTED)
    seen = sorted(sample for call in calls for sample in call)
    assert seen == list(zip(PROMPTS, RESPONSES, range(10), strict=True))
    full = min(size or 10, 10)
    assert sorted(map(len, calls)) == sorted([full] * (10 // full) + [10 % full] * (10 % full > 0))


def test_calls_are_at_once_and_beside_the_caller():
    """No call comes back until three are under way and the caller has gone on: in line this would hang."""
    together, went_on = threading.Barrier(3), threading.Event()

    def reward(prompts, responses):
        assert went_on.wait(LAST_RESORT)
        together.wait(LAST_RESORT)
        return number(prompts, responses)

    pending = Scorer(reward, ScorerConfig(threads=3)).submit(PROMPTS[:9], RESPONSES[:9])
    went_on.set()
    np.testing.assert_array_equal(pending.result(), EXPECTED[:9])
    np.testing.assert_array_equal(pending.result(), EXPECTED[:9])  # the same again, uncalled


def test_no_more_calls_are_at_once_than_there_are_threads():
    lock, now, most = threading.Lock(), [0], [0]
    two = threading.Barrier(2)

    def reward(prompts, responses):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        two.wait(LAST_RESORT)  # so that both threads are in a call here
        with lock:
            now[0] -= 1
        two.wait(LAST_RESORT)
        return number(prompts, responses)

    np.testing.assert_array_equal(score(reward, threads=2), EXPECTED)
    assert most == [2]


def test_the_order_in_which_calls_end_changes_nothing():
    """The first sample's call ends last: it waits for all others."""
    others = threading.Semaphore(0)

    def reward(prompts, responses):
        if prompts == ["prompt 0"]:
            assert all(others.acquire(timeout=LAST_RESORT) for _ in range(9))
        else:
            others.release()
        return number(prompts, responses)

    np.testing.assert_array_equal(score(reward, threads=2), EXPECTED)


def test_in_line_the_calls_are_made_by_the_caller_as_it_submits():
    callers = []

    def reward(prompts, responses):
        callers.append(threading.current_thread())
        return number(prompts, responses)

    pending = Scorer(reward, ScorerConfig(threads=0)).submit(PROMPTS, RESPONSES)
    assert callers == [threading.main_thread()] * 10
    np.testing.assert_array_equal(pending.result(), EXPECTED)


def test_a_reward_may_change_the_lists_that_it_gets():
    def reward(prompts, responses, answer):
        prompts.clear(), answer.clear()
        return [float(responses.pop()[0])]

    twice = rewards.weighted({"a": (0.05, reward), "b": (0.05, reward)})
    np.testing.assert_allclose(score(twice, columns={"answer": PROMPTS}), EXPECTED)


@pytest.mark.parametrize("threads", [0, 4])
def test_no_samples_have_no_scores(threads):
    scores = score(lambda prompts, responses: 1 / 0, [], [], threads=threads, samples_per_call=0)
    assert scores.shape == (0,) and scores.dtype == np.float32


# what goes wrong


def fails_on(*indices):
    def reward(prompts, responses):
        for prompt in prompts:
            if int(prompt.split()[1]) in indices:
                raise KeyError("no such\nanswer")
        return number(prompts, responses)

    return reward


@pytest.mark.parametrize("threads", [0, 4])
def test_a_failure_names_its_sample_and_chains_what_was_raised(threads):
    long = [*PROMPTS[:7], PROMPTS[7] + " that goes on " * 20, *PROMPTS[8:]]
    with pytest.raises(RewardError) as caught:
        score(fails_on(7), long, threads=threads)
    said = str(caught.value)
    assert said.startswith(
        "the reward 'reward' failed with KeyError ('no such\\nanswer') on sample 7 "
    )
    assert "(prompt 'prompt 7 that goes on  that goes on  tha'..., response" in said
    assert said.endswith(", response '7 is the response'): mend the function")
    assert len(said) < 250 and "\n" not in said
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_failure_in_a_call_with_several_samples_names_them_and_the_remedy():
    with pytest.raises(RewardError) as caught:
        score(fails_on(7), samples_per_call=4)
    said = str(caught.value)
    assert "on samples 4 to 7, the first being sample 4 (prompt 'prompt 4'" in said
    assert said.endswith("or set scorer.samples_per_call = 1 to see which sample it is")


def test_of_two_failures_the_first_sample_is_named_whichever_failed_first():
    later = threading.Event()

    def reward(prompts, responses):
        if prompts == ["prompt 1"]:
            assert later.wait(LAST_RESORT)
            raise RuntimeError
        if prompts == ["prompt 3"]:
            later.set()
            raise OSError("down")
        return number(prompts, responses)

    pending = Scorer(reward, ScorerConfig(threads=2)).submit(PROMPTS, RESPONSES)
    for _ in range(2):  # and again, when it is asked again
        with pytest.raises(RewardError, match="failed with RuntimeError on sample 1 "):
            pending.result()


def test_after_a_failure_no_call_is_begun():
    calls = []

    def reward(prompts, responses):
        calls.append(prompts)
        return fails_on(2)(prompts, responses)

    for threads in (0, 1):
        calls.clear()
        with pytest.raises(RewardError, match="sample 2"):
            score(reward, threads=threads)
        assert calls == [["prompt 0"], ["prompt 1"], ["prompt 2"]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, float("nan")], "the reward 'reward' of sample 5 (prompt 'prompt 5', response '5 is"),
        (
            [0.5, "high"],
            "of sample 5 (prompt 'prompt 5', response '5 is the response') is 'high': give",
        ),
        ([0.5], "gave 1 scores for samples 4 to 5, the first being sample 4 (prompt 'prompt 4'"),
        (None, "gave None for samples 4 to 5, the first being sample 4"),
    ],
)
def test_what_is_no_score_is_refused_by_its_index_in_the_whole_batch(values, said):
    def reward(prompts, responses):
        return values if "prompt 4" in prompts else number(prompts, responses)

    with pytest.raises(RewardError) as caught:
        score(reward, threads=3, samples_per_call=2)
    assert said in str(caught.value)


def test_a_reward_that_exits_in_a_thread_does_not_leave_its_caller_waiting():
    with pytest.raises(RewardError, match=r"failed with SystemExit \(3\) on sample 0"):
        score(lambda prompts, responses: sys.exit(3))


def test_an_interruption_in_line_is_one():
    def reward(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scorer(reward, ScorerConfig(threads=0)).submit(PROMPTS, RESPONSES)


def test_a_call_that_hangs_times_out_and_later_batches_are_scored():
    reached, hang, ended = threading.Event(), threading.Event(), threading.Event()

    def reward(prompts, responses):
        if "prompt 3" in prompts:
            reached.set()
            assert hang.wait(LAST_RESORT)
            ended.set()
        return number(prompts, responses)

    scorer = Scorer(reward, ScorerConfig(threads=1, timeout=0.01))
    pending = scorer.submit(PROMPTS, RESPONSES)
    assert reached.wait(
        LAST_RESORT
    )  # so that the calls before it are done, however slow the machine
    for _ in range(2):
        with pytest.raises(RewardTimeoutError) as caught:
            pending.result()
        assert isinstance(caught.value, TimeoutError) and isinstance(caught.value, RewardError)
        assert str(caught.value) == (
            "the reward 'reward' takes more than 0.01 seconds on sample 3 (prompt 'prompt 3', response "
            "'3 is the response'): raise scorer.timeout or mend the function"
        )
    patient = Scorer(reward, ScorerConfig(threads=1, timeout=0.0))
    np.testing.assert_array_equal(patient.submit(PROMPTS[4:], RESPONSES[4:]).result(), EXPECTED[4:])
    hang.set()  # what hung goes on, to no avail
    assert ended.wait(LAST_RESORT)
    with pytest.raises(RewardTimeoutError):
        pending.result()


def test_a_call_that_hangs_does_not_keep_the_interpreter():
    """An executor's threads would be joined at exit, and this program would not end."""
    program = """
import threading
from rlhf_jax.rewards.functions import RewardTimeoutError
from rlhf_jax.rewards.scorer import Scorer, ScorerConfig

def reward(prompts, responses):
    threading.Event().wait()

try:
    Scorer(reward, ScorerConfig(timeout=0.01)).submit(["p"] * 9, ["r"] * 9).result()
except RewardTimeoutError:
    print("timed out")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * LAST_RESORT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "timed out\n", "")


def test_batches_and_settings_that_cannot_be_are_refused():
    scorer = Scorer(lambda prompts, responses, answer: [], ScorerConfig())
    with pytest.raises(RewardError, match="2 responses have 1 'prompts': give one for each"):
        scorer.submit(["a"], ["b", "c"])
    with pytest.raises(RewardError, match="2 responses have 3 'answer': give one for each"):
        scorer.submit(["a", "b"], ["c", "d"], answer=[1, 2, 3])
    with pytest.raises(RewardError, match="asks for the column 'answer', and the columns are 'x'"):
        scorer.submit(["a"], ["b"], x=[1])
    for name, value in [
        ("threads", -1),
        ("samples_per_call", -1),
        ("timeout", -1.0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
    ]:
        with pytest.raises(ValueError, match=f"ScorerConfig.{name} = {value}: it must be"):
            ScorerConfig(**{name: value})


# called by name, awaited, and given columns


def of_trl(completions, answer, **kwargs):
    """As TRL's rewards are written: whatever is not named comes by keyword."""
    assert kwargs["prompts"] and "completions" not in kwargs
    return [a in said for said, a in zip(completions, answer, strict=True)]


def by_name(*, answer, responses):
    return [a in said for said, a in zip(responses, answer, strict=True)]


async def awaited(prompts, responses, answer):
    return by_name(answer=answer, responses=responses)


def in_order(asked, said, /, answer, **columns):
    assert columns.keys() == {"prompts", "completions"}
    return by_name(answer=answer, responses=said)


def by_place(prompts, responses, answer, **columns):
    assert columns.keys() == {"completions"}
    return by_name(answer=answer, responses=responses)


@pytest.mark.parametrize("reward", [of_trl, by_name, awaited, in_order, by_place])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_reward_is_called_by_name_or_in_order_and_awaited(reward, threads):
    """The file's own fields "prompts" and "completions" take no one's place."""
    columns = {"answer": list("0123456789"), "prompts": [0] * 10, "completions": ["x"] * 10}
    got = score(reward, columns=columns, threads=threads, samples_per_call=3)
    np.testing.assert_array_equal(got, np.ones(10))


ROWS = [{"answer": "1", "note": "x"}, {"answer": "2"}]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda p, r, subject: r, "asks for the column 'subject', and the columns are 'answer', 'note'"),
        (lambda p, r, note: r, "asks for the column 'note', and 1 of 2 prompts lack it, the first being 'q'"),
        (lambda p, r, note=None: r, "asks for the column 'note', and 1 of 2 prompts lack it"),
        (lambda p, r, answer, other=3: r, ""),
        (lambda p, r, **columns: r, ""),
    ],
)  # fmt: skip
def test_the_columns_of_a_reward_are_compared_with_rows_before_it_is_called(reward, said):
    scorer = Scorer(reward)
    if not said:
        return scorer.check(["p", "q"], ROWS)
    with pytest.raises(RewardError) as caught:
        scorer.check(["p", "q"], ROWS)
    assert said in str(caught.value)


def test_rows_make_columns():
    want = {"answer": ["1", "2"], "note": ["x", None]}
    assert rewards.columns_of(ROWS) == want and rewards.columns_of([]) == {}


# sums


def short(prompts, responses):
    return [-len(response) for response in responses]


def right(prompts, responses, *, answer):
    return [a in response for response, a in zip(responses, answer, strict=True)]


def every_column(prompts, responses, **columns):
    return [float(len(columns))] * len(responses)


PARTS = {"right": (2.0, right), "short": (0.01, short), "columns": (0.5, every_column)}
COLUMNS = {"answer": ["3"] * 10, "subject": ["x"] * 10}


@pytest.mark.parametrize("threads", [0, 4])
def test_a_weighted_reward_is_the_sum_and_shows_its_parts(threads):
    reward = rewards.weighted(PARTS)
    pending = Scorer(reward, ScorerConfig(threads=threads)).submit(PROMPTS, RESPONSES, **COLUMNS)
    parts = pending.parts()
    assert list(parts) == list(PARTS)
    np.testing.assert_array_equal(parts["right"], np.arange(10) == 3)
    np.testing.assert_array_equal(parts["short"], [-17] * 10)
    np.testing.assert_array_equal(parts["columns"], [2] * 10)
    want = np.float32(2.0 * (np.arange(10) == 3) - 0.17 + 1.0)
    np.testing.assert_array_equal(pending.result(), want)
    np.testing.assert_array_equal(reward(PROMPTS, RESPONSES, **COLUMNS), want)
    nested = rewards.weighted({"all": (-1.0, reward)})
    np.testing.assert_array_equal(nested(PROMPTS, RESPONSES, **COLUMNS), -want)


def test_the_only_part_of_another_reward_has_its_name():
    pending = Scorer(number, ScorerConfig()).submit(PROMPTS, RESPONSES)
    np.testing.assert_array_equal(pending.parts()["number"], EXPECTED)
    assert set(pending.parts()) == {"number"}


def test_each_part_is_called_once_a_sample():
    calls = collections.Counter()

    def counted(prompts, responses):
        calls.update(responses)
        return number(prompts, responses)

    both = rewards.weighted({"a": (1.0, counted), "b": (1.0, counted)})
    pending = Scorer(both, ScorerConfig(threads=3)).submit(PROMPTS, RESPONSES)
    np.testing.assert_array_equal(pending.result(), 2 * EXPECTED)
    pending.parts()
    assert calls == dict.fromkeys(RESPONSES, 2)


def test_what_goes_wrong_in_a_part_names_it():
    nan = lambda prompts, responses: [float("nan")] * len(responses)
    broken = rewards.weighted({"fine": (1.0, number), "not": (1.0, nan)})
    with pytest.raises(RewardError, match=r"the reward 'not' of sample 0 .* is nan"):
        score(broken)
    with pytest.raises(
        RewardError, match="the reward 'right' asks for the column 'answer', and the"
    ):
        score(rewards.weighted(PARTS))
    large = rewards.weighted({"large": (1e38, number)})
    with pytest.raises(RewardError, match=r"of sample 4 is .*4.*e\+38.*: give a finite number"):
        score(rewards.weighted({"large": (1e39, number)}))
    assert np.isfinite(score(large)).all()


def test_sums_of_what_is_no_reward_are_refused():
    with pytest.raises(RewardError, match="a weighted reward of no functions"):
        rewards.weighted({})
    with pytest.raises(RewardError, match="the weight of the reward 'a' is nan"):
        rewards.weighted({"a": (float("nan"), number)})
    with pytest.raises(RewardError, match="the reward 'a' does not take"):
        rewards.weighted({"a": (1.0, lambda prompts: [])})


# in child processes

WILD = """
import os, re, sys
from rlhf_jax.rewards.functions import weighted


def number(prompts, responses):
    return [0.1 * int(response.split()[0]) for response in responses]


def wild(prompts, responses, what):
    print("a line that is no answer", flush=True)
    if "change directory" in what:
        os.chdir("/")
    if "end the process" in what:
        os._exit(3)
    if "crash" in what:
        os.kill(os.getpid(), 11)
    if "exit" in what:
        sys.exit("bye")
    if "raise" in what:
        raise OSError("the sandbox is gone")
    if "touch" in what:
        open(responses[0], "w").close()
    if "hang" in what:
        re.match("(a+)+$", "a" * 40 + "b")
    if "is jax here?" in what:
        return ["jax" in sys.modules] * len(responses)
    return number(prompts, responses)


def nothing(prompts, responses):
    return [None for _ in responses]


both = weighted({"number": (2.0, number), "wild": (-1.0, wild)})
"""


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """The place of a file whose rewards are not to be trusted."""
    path = tmp_path_factory.mktemp("wild") / "wild.py"
    path.write_text(WILD)
    return path


@pytest.fixture(scope="module")
def apart(wild):
    """One child process, for all tests that can share it."""
    return Scorer(f"{wild}:wild", ScorerConfig(threads=1, processes=True))


def whats(*first):
    return {"what": [*first, *["nothing"] * (10 - len(first))]}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("exit", "failed with SystemExit (bye) on sample 1 (prompt 'prompt 1', response '1 is the "),
        ("raise", "failed with OSError (the sandbox is gone) on sample 1 (prompt 'prompt 1', respo"),
        ("end the process", "ended its process with exit code 3 on sample 1 (prompt 'prompt 1', re"),
        ("crash", "ended its process with signal 11 (Segmentation fault) on sample 1 (prompt 'prompt"),
    ],
)  # fmt: skip
def test_what_a_reward_does_to_its_own_process_names_the_sample(apart, what, said):
    pending = apart.submit(PROMPTS, RESPONSES, **whats("nothing", what))
    with pytest.raises(RewardError) as caught:
        pending.result()
    assert str(caught.value).startswith(f"the reward 'wild' {said}")
    assert str(caught.value).endswith("): mend the function")


def test_a_reward_in_a_process_that_was_lost_before_scores_as_in_a_thread(apart):
    """Its printing is no answer, where it goes is not where this process goes, and it starts without JAX."""
    here = os.getcwd()
    got = apart.submit(PROMPTS, RESPONSES, **whats("change directory")).result()
    np.testing.assert_array_equal(got, EXPECTED)
    assert os.getcwd() == here
    assert apart.submit(["p"], ["r"], what=["is jax here?"]).result() == [0.0]
    assert apart.submit([], [], what=[]).result().shape == (0,)


def test_the_parts_of_a_reward_in_processes_are_those_in_threads(wild):
    columns = whats("nothing") | {"unread": [object()] * 10}
    scorers = [
        Scorer(f"{wild}:both", ScorerConfig(threads=2, samples_per_call=3, processes=processes))
        for processes in (True, False)
    ]
    apart, here = (scorer.submit(PROMPTS, RESPONSES, **columns) for scorer in scorers)
    np.testing.assert_array_equal(apart.result(), here.result())
    for name, scores in here.parts().items():
        np.testing.assert_array_equal(apart.parts()[name], scores)
    for scorer in scorers:
        with pytest.raises(RewardError, match="the reward 'wild' asks for the column 'what'"):
            scorer.check(PROMPTS, [{}] * 10)


def test_a_regular_expression_that_backtracks_for_ever_is_late_and_its_process_ends(wild):
    scorer = Scorer(f"{wild}:wild", ScorerConfig(threads=2, processes=True, timeout=0.3))
    with pytest.raises(RewardTimeoutError) as caught:
        scorer.submit(PROMPTS, RESPONSES, **whats("hang")).result()
    assert "'wild' takes more than 0.3 seconds on sample 0 (prompt 'prompt 0'" in str(caught.value)


def test_what_cannot_be_called_in_a_process_is_refused(tmp_path):
    apart = ScorerConfig(processes=True)
    with pytest.raises(RewardError, match=r"scorer\.processes = True and the reward is a function"):
        Scorer(number, apart)
    (tmp_path / "ends.py").write_text("import os\nos._exit(4)")
    with pytest.raises(RewardError, match=r"ends\.py:f' ended its process with exit code 4 while"):
        Scorer(f"{tmp_path}/ends.py:f", apart)


@pytest.mark.parametrize(
    ("ends", "timeout", "code"),
    [("os.kill(os.getpid(), signal.SIGKILL)", 1.0, -9), ("sys.exit(75)", 0.0, 75)],
)
def test_a_child_that_hangs_does_not_outlive_its_parent(wild, tmp_path, ends, timeout, code):
    """The child holds the standard output of this program, whose end is waited for here."""
    program = f"""
import os, pathlib, signal, sys, time
from rlhf_jax.rewards.scorer import Scorer, ScorerConfig

cfg = ScorerConfig(threads=1, processes=True, samples_per_call=0, timeout={timeout})
busy = Scorer({f"{wild}:wild"!r}, cfg)
touched = pathlib.Path({str(tmp_path)!r}) / "it"
pending = busy.submit(["p"] * 2, [str(touched)] * 2, what=["touch", "hang"])
while not touched.exists():
    time.sleep(0.01)
{ends}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * LAST_RESORT
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "a line that is no answer\n", "")


# in files

FILE = """
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.rewards.functions import weighted


def length(prompts, responses):
    return [len(r) for r in responses]


@dataclass
class Near:
    target: "int"

    def __call__(self, prompts, responses, **columns):
        return [-abs(len(r) - self.target) for r in responses]


near = Near(3)
both = weighted({"length": (1.0, length), "near": (1.0, near)})
nothing = 3


def _hidden(prompts, responses):
    return length(prompts, responses)


def prompts_alone(prompts):
    return prompts


def swapped(answers, prompts):
    return answers
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(FILE)
    return path


def test_rewards_are_loaded_from_files(file):
    for name, want in [("length", [1, 4]), ("near", [-2, -1]), ("both", [-1, 3])]:
        reward = rewards.load(f"{file}:{name}")
        np.testing.assert_array_equal(score(reward, ["p", "q"], ["a", "four"]), want)


def test_the_rewards_of_the_examples():
    said = ["a good film", "so it is 1,042.", "42 or 43"]
    for name, want in [
        ("short_and_kind", [0.85, -0.2, -0.15]),
        ("right", [False, True, False]),
        ("near", [False, True, True]),
    ]:
        reward = rewards.load(
            f"{pathlib.Path(__file__).parent.parent.parent}/examples/rewards.py:{name}"
        )
        columns = {"answer": ["42", "1042", "42"], "tolerance": [9, 0, 1]}
        got = score(reward, ["p"] * 3, said, columns)
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            ":gone",
            "there is no 'gone' in the file, which has 'length', 'Near', 'near', 'both', 'prompts_alone', ",
        ),
        (":nothing", "is 3, which cannot be called: give a function"),
        (":prompts_alone", "does not take (prompts, responses, **columns)"),
        (
            ":swapped",
            "does not take (prompts, responses, **columns), which a reward is called with: 'prompts'",
        ),
        (":", "does not say what to call: write FILE.py:FUNCTION"),
        ("", "does not say what to call: write FILE.py:FUNCTION"),
        ("c:length", "does not say what to call: write FILE.py:FUNCTION"),
    ],
)
def test_what_is_no_reward_in_a_file_is_refused(file, name, said):
    with pytest.raises(RewardError) as caught:
        rewards.load(f"{file}{name}")
    assert str(caught.value).startswith(f"the reward '{file}{name}'")
    assert said in str(caught.value)


def test_files_that_are_not_there_or_fail_are_refused(tmp_path):
    with pytest.raises(RewardError, match=r"there is no file '.*gone\.py', check the path"):
        rewards.load(f"{tmp_path}/gone.py:f")
    for text, said in [
        ("def f(:", "SyntaxError"),
        ("import no_such_module", r"ModuleNotFoundError \(No module named 'no_such_module'\)"),
        ("raise SystemExit(1)", "SystemExit"),
        ("1 / 0", "ZeroDivisionError"),
    ]:
        path = tmp_path / "broken.py"
        path.write_text(text)
        with pytest.raises(RewardError, match=f"the file fails with {said}.* mend it") as caught:
            rewards.load(f"{path}:f")
        assert caught.value.__cause__ is not None
        assert "reward_in_broken" not in sys.modules
