"""Episodes in the pipeline: transcripts as tokens and back, replies of an environment, and a whole run."""

import json

import jax
import numpy as np
import pytest
import runs

import launch
from rlhf_jax.data import tokenizer, transcripts
from rlhf_jax.data.comparisons import Comparison, encode_comparisons
from rlhf_jax.data.demonstrations import encode_demonstrations
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.data.transcripts import Turns
from rlhf_jax.devices import parallel
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.pipeline import generation, texts, turns
from rlhf_jax.runs import metrics
from rlhf_jax.sampling import SampleConfig
from rlhf_jax.tasks import dialogue
from rlhf_jax.tasks.task import Environment

ROWS = dialogue.all_rows()[::100]
DRAWN = dialogue.corpus(0, 60, ROWS)
SHAPE, P, T = Turns(5, 7), 10, 48


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    pieces = [f" {line}" for _, text in DRAWN for line in text.split("\n")]
    pieces += [row["prompt"] for row in ROWS]
    return tokenizer.train(pieces, 600, tmp_path_factory.mktemp("words"))


def alone(words, text, shape):
    """The twin: ids of a transcript and the policy's own ones, line by line."""
    ids, own = [], []
    for n, line in enumerate(text.split("\n")):
        line_ids = words(f" {line}" if line else "", add_special_tokens=False)["input_ids"]
        line_ids = line_ids if n % 2 else [*line_ids, words.eos_token_id][: shape.turn]
        ids, own = ids + line_ids, own + [n % 2 == 0] * len(line_ids)
    return ids, own


def test_a_transcript_is_encoded_line_by_line_and_its_mask_is_the_policys(words):
    said = [text for _, text in DRAWN]
    said += [
        "",
        "\n",
        "what milk\n\nwhat milk",
        "\n> sorry\n",
        "order order order order order order",
    ]
    prompts = [prompt for prompt, _ in DRAWN] + [ROWS[0]["prompt"]] * 5
    batch = encode_demonstrations(words, prompts, said, P, T, SHAPE)
    for row, text in enumerate(said):
        ids, own = alone(words, text, SHAPE)
        n = len(ids)
        assert batch.tokens[row, P : P + n].tolist() == ids
        assert batch.mask[row].tolist() == own + [False] * (T - n)
        assert batch.attention_mask[row, P:].tolist() == [True] * n + [False] * (T - n)
    shown = words.decode(batch.tokens[0, P:][batch.mask[0]])
    turns_of_it = said[0].split("\n")[::2]
    assert shown.replace("<eos>", "|").split("|") == [*(f" {x}" for x in turns_of_it), ""]

    pair = [Comparison(prompts[0], said[0], said[1], "")]
    for side, row in zip(encode_comparisons(words, pair, P, T, SHAPE).sides, (0, 1), strict=True):
        np.testing.assert_array_equal(side.tokens[0, P:], batch.tokens[row, P:])
        np.testing.assert_array_equal(side.mask[0], batch.mask[row])


def test_decoding_inverts_encoding(words):
    """Also where a turn or a reply says nothing, and where a turn has no room for its end."""
    said = [text for _, text in DRAWN] + ["", "\n> sorry\n", "what milk\n\nwhat size", "a\n\n\n\n"]
    said += ["order order order order order\n> sorry\nwhat", "what\n> no\n\n> no"]
    for text, (ids, own) in zip(said, transcripts.transcript_ids(words, said, SHAPE), strict=True):
        assert transcripts.transcript_of(words, ids, own, 5, [words.eos_token_id]) == text


def test_a_reply_that_is_too_long_is_refused(words):
    with pytest.raises(
        ValueError, match=r"'> small oat' has 3 tokens, and sample.length leaves 2 .*: mu"
    ):
        transcripts.transcript_ids(words, ["what\n> small oat"], Turns(5, 2))


def test_the_environment_hears_turns_and_answers_rows_that_are_not_over(words):
    heard = []

    def reply(row, lines):
        heard.append((row["prompt"], list(lines)))
        return "> yes\n ok", lines[-1] == "order"

    state = [({"prompt": name}, ["x", "y"]) for name in "abcd"]
    eos = words.eos_token_id
    said = ["order", "what\nmilk", "", "order"]
    tokens, mask = np.full((4, 8), 300, np.int32), np.zeros((4, 8), bool)
    for row, text in enumerate(said[:3]):
        ids = [*words(f" {text}" if text else "", add_special_tokens=False)["input_ids"], eos]
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    environment = Environment(4, 5, 7, reply)
    state, answer, real, rewards, done = turns.respond(
        state, tokens, mask, environment=environment, words=words, most=7, stop=(eos,)
    )
    assert heard == [
        (n, ["x", "y", s]) for n, s in zip("abc", ["order", "what milk", ""], strict=True)
    ]
    assert state[1][1] == ["x", "y", "what milk", "> yes ok"] and state[3][1] == ["x", "y"]
    assert done.tolist() == [True, False, False, True] and not rewards.any()
    ids = words(" > yes ok", add_special_tokens=False)["input_ids"]
    assert answer[0][real[0]].tolist() == ids and not real[3].any()


def named(row, lines):
    """A reply that names the row and the turn, and ends some episodes early."""
    return f"> {row['drink']} {row['size']} " + "no " * (len(lines) // 2), len(lines) > 2 * row[
        "at"
    ]


NAMED = Environment(4, 5, 7, named)


@pytest.fixture(scope="module")
def generator(words):
    """A policy of random weights, which says anything."""
    cfg = ModelConfig(vocab_size=tokenizer.size(words), context=P + T, layers=1, d_model=8, heads=2)
    lm, devices = networks.language_model(cfg), parallel.on_device()
    sample = SampleConfig(
        length=T, stop=(words.eos_token_id, 300, 301, 302), pad=words.pad_token_id
    )
    make = lambda rows: generation.make_generator(sample, devices, lm, words, P, rows, NAMED)
    return make, jax.jit(lm.init)(jax.random.key(0))


def test_an_episode_is_what_its_row_and_its_turns_make_it(generator, words):
    """Its replies are the environment's to its turns, and neighbours and batches change nothing."""
    make, params = generator
    rows = [texts.row_of(row) for row in ROWS]
    said = make(8).generate(params, rows, jax.random.key(1))
    assert len({*said.texts}) == len(rows)
    for row, text in zip(ROWS, said.texts, strict=True):
        script = iter(text.split("\n")[::2])
        assert NAMED.play(row, lambda lines, script=script: next(script)) == text
    assert len({text.count("\n") for text in said.texts}) == 3
    samples = said.samples
    assert samples.tokens.shape == (len(rows), P + T)
    heard = samples.attention_mask[:, P:] & ~samples.mask
    for row in range(len(rows)):  # the replies' tokens, whatever the turns were made of
        replies = said.texts[row].split("\n")[1::2]
        ids = [i for line in transcripts.encode_lines(words, replies) for i in line]
        assert samples.tokens[row, P:][heard[row]].tolist() == ids
    other = make(4).generate(params, rows, jax.random.key(1))
    assert other.texts == said.texts
    prompts = encode_prompts(words, [row["prompt"] for row in ROWS], P)
    np.testing.assert_array_equal(samples.tokens[:, :P], prompts.tokens)


def test_a_task_of_several_turns_runs_in_the_ordinary_pipeline(tmp_path):
    """From demonstrations and judgements of whole dialogues to the results of RLOO."""
    own = {"--data.vocab-size": "600", "--rl.iterations": "2"}
    settings = dict(zip(runs.TINY[::2], runs.TINY[1::2], strict=True)) | own
    flat = [word for pair in settings.items() for word in pair]
    folder = tmp_path / "run"
    assert launch.main(["dialogue", *flat, "--run", str(folder)]) == 0
    found = json.loads((folder / "results.json").read_text())
    assert {"gold", "slot success", "turns"} < found.keys()
    assert found["gold of the best responses"] == pytest.approx(0.978, abs=0.01)
    assert 1 <= found["turns"]["after"]["mean"] <= dialogue.TURNS
    rows = metrics.read(folder / "metrics.jsonl")
    own = [row for row in rows if row["stage"] == "rloo"]
    assert len(own) == 2 and all(np.isfinite(row["objective/gold"]) for row in own)
    # an untrained policy ends no dialogue, and each of its turns is answered
    (shown, *_) = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    assert len(shown["after"].split("\n")) % 2 == 0 and "> sorry" in shown["after"]
    compared = map(json.loads, (folder / "comparisons.jsonl").read_text().splitlines())
    assert all("\n> " in text for row in compared for text in row["responses"])
