"""The command `chat` on a finished run: answers, rewards and gold are those that the run had."""

import io
import json
import re

import pytest
import runs
import talkers

import launch
from rlhf_jax.data import prompts, tokenizer
from rlhf_jax.pipeline import endpoint, finished, keys, speakers
from rlhf_jax.pipeline.conversation import CONTROLS
from rlhf_jax.tasks import reviews

TINY = ["sentiment", *runs.TINY, *runs.PPO]
NUMBER = r" (-?[\d.]+)"
NOTE = rf"\[(\d+) tokens?,.* log-probability{NUMBER}, reward{NUMBER}, .* gold{NUMBER}\]\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch.main([*TINY, "--run", str(folder)]) == 0
    return folder


def chat(monkeypatch, capsys, *settings, lines=()):
    """(exit code, standard output, standard error) of the command, with these lines on standard input."""
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return launch.main(["chat", *settings]), *capsys.readouterr()


@pytest.mark.parametrize("stage", ["", "sft"])
def test_a_policy_says_again_what_its_run_says_and_is_scored_as_there(whole, stage):
    """The same noise gives the responses of samples.jsonl, token by token, and their scores."""
    speaker = speakers.of_run(str(whole), stage)
    side, key = "before" if stage else "after", keys.key_of(0, "results")
    rows = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    length = finished.used(whole).data.prompt_length  # to which the run cuts its prompts
    asked = prompts.encode_prompts(speaker.words, [row["prompt"] for row in rows], length)
    assert len(rows) > 5
    for index, row in enumerate(rows):
        ids = asked.tokens[index][asked.attention_mask[index]].tolist()
        tokens = [*speaker.stream(ids, speaker.sample, key, index)]
        said = speaker.words.decode([x.id for x in tokens if not x.stops]).strip()
        assert said == row[side]
        scores = {
            name: score(row["prompt"], ids + [x.id for x in tokens], said)
            for name, score in speaker.scores.items()
        }
        assert scores.keys() == {"reward", "held-out reward", "gold"}
        assert scores["reward"] == pytest.approx(row[f"{side}_score"], abs=1e-4)
        assert scores["gold"] == pytest.approx(row[f"{side}_gold"], abs=1e-5)


def test_lines_are_answered_as_the_runs_generator_does(whole, monkeypatch, capsys):
    run = finished.opened(whole)
    words, most = tokenizer.load(whole / "tokenizer"), run.cfg.data.prompt_length
    size = lambda row: len(prompts.prompt_ids(words, [row.prompt])[0])
    rows = [row for row in run.texts.rows if size(row) <= most][:3]
    asked = [row.prompt for row in rows]
    code, out, err = chat(monkeypatch, capsys, "--run", str(whole), "--seed", "3", lines=asked)
    assert code == 0 and not err
    said, samples = run.generator.generate(run.policy("ppo"), rows, keys.key_of(3, "people"))
    *texts, rest = re.split(NOTE, out)
    want = [f"> {prompt}\n{x.translate(CONTROLS)}" for prompt, x in zip(asked, said, strict=True)]
    assert [x.strip() for x in texts[::5]] == want and not rest
    notes = zip(*(map(float, texts[n::5]) for n in range(1, 5)), strict=True)
    for row, text, note, mask, logprobs in zip(
        rows, said, notes, samples.mask, samples.logprobs, strict=True
    ):
        gold = reviews.gold(row.prompt, text)
        want = mask.sum(), logprobs[mask].sum(), gold
        assert (note[0], note[1], note[3]) == pytest.approx(want, abs=0.011)


def test_a_prompt_beyond_the_runs_own_length_is_answered_and_one_beyond_the_model_is_told(
    whole, monkeypatch, capsys
):
    cfg = finished.used(whole)
    assert cfg.model.context == 64 and cfg.data.prompt_length + cfg.sample.length < 40
    speaker = speakers.of_run(str(whole))
    long = "in this new western the plot and the acting " * 2
    assert cfg.data.prompt_length < len(speaker.ids(long, cfg.sample.length))
    lines = [long, long * 9, "the acting in this film"]
    code, out, err = chat(monkeypatch, capsys, "--run", str(whole), lines=lines)
    assert code == 0 and not err
    assert len(re.findall(r"error: the prompt has \d+ tokens .* 64 positions", out)) == 1
    assert out.count("log-probability") == 2


def test_gold_is_left_out_where_the_prompt_has_none(whole, monkeypatch, capsys):
    _, out, _ = chat(monkeypatch, capsys, "--run", str(whole), lines=["hello"])
    assert "reward" in out and "gold" not in out


def test_two_policies_of_a_run_answer_with_the_same_noise(whole, monkeypatch, capsys):
    settings = ["--run", str(whole), "--against", "sft", "--temperature", "0"]
    prompt = "the acting in this film"
    _, both, _ = chat(monkeypatch, capsys, *settings, lines=[prompt])
    alone = [
        chat(monkeypatch, capsys, *settings[:2], *settings[4:], *stage, lines=[prompt])[1]
        for stage in ([], ["--stage", "sft"])
    ]
    asked = f"> {prompt}\n"
    first, second = (x.removeprefix(asked) for x in alone)
    assert both == f"{asked}{whole}\n{first}{whole}:sft\n{second}"


def test_a_model_of_a_folder_answers_beside_a_run(whole, tmp_path, monkeypatch, capsys):
    folder = talkers.written(tmp_path / "model")
    code, out, _ = chat(
        monkeypatch,
        capsys,
        "--run",
        str(whole),
        "--model",
        folder,
        "--length",
        "5",
        lines=["the acting"],
    )
    assert code == 0 and out.startswith(f"> the acting\n{whole}\n") and f"\n{folder}\n" in out
    assert out.count("log-probability") == 2 and out.count("reward") == 2


def test_served_are_the_policies_of_the_command_at_its_settings(whole, monkeypatch, capsys):
    asked = []

    def once(server):
        (speaker,) = server.RequestHandlerClass.speakers.values()
        asked.append((speaker.name, speaker.sample.temperature, server.server_address))
        raise KeyboardInterrupt

    monkeypatch.setattr(endpoint.Server, "serve_forever", once)
    settings = ["--run", str(whole), "--serve", "--port", "0", "--temperature", "0.5"]
    code, out, _ = chat(monkeypatch, capsys, *settings)
    ((name, temperature, (host, port)),) = asked
    assert (code, name, temperature, host) == (0, str(whole), 0.5, "127.0.0.1")
    assert f"http://127.0.0.1:{port}/v1 until Ctrl-C" in out and "no chats" in out


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ("", 1, "no policy is named: give run, the directory of a run, or model"),
        ("--run a a", 1, "2 policies are named: name one, or two different ones"),
        ("--run a b --model c", 1, "3 policies are named"),
        ("--run a b --against sft", 1, 'against = "sft" is a stage of one run, and run names 2'),
        ("--run a --stage sft --against sft", 1, "2 policies are named"),
        ("--model a --stage sft", 1, "stage = 'sft' has no effect because no run is given"),
        ("--run a --port 3", 1, "port = 3 has no effect because nothing is served"),
        ("--run a --serve --seed 3", 1, "seed = 3 has no effect because a request brings its own"),
        ("--run nowhere", 1, 'run = "nowhere" holds no config.json'),
        ("--run WHOLE --stage dpo", 1, 'stage = "dpo" is none of those'),
        ("--run WHOLE --stage reward", 1, "is a reward model: name a policy"),
        (
            "--run WHOLE --length 64",
            1,
            "length = 64 leaves no room for a prompt in the 64 positions",
        ),
        ("--run WHOLE --temperature -1", 1, "temperature = -1.0: it must be 0 or more"),
    ],
)
def test_what_cannot_talk_is_refused_in_one_sentence(
    whole, monkeypatch, capsys, settings, code, words
):
    asked = [str(whole) if x == "WHOLE" else x for x in settings.split()]
    got, out, err = chat(monkeypatch, capsys, *asked)
    assert got == code and words in err and err.count("\n") == 1 and not out
