"""Tokens one by one are those of the sampler, and their text comes in whole characters."""

import dataclasses
import itertools
import random
from functools import partial

import jax
import numpy as np
import pytest

from rlhf_jax import sampling
from rlhf_jax.batches import Prompts
from rlhf_jax.data import tokenizer
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.pipeline import token_stream
from rlhf_jax.pipeline.token_stream import Token, written
from rlhf_jax.sampling import SampleConfig

MODEL = ModelConfig(vocab_size=11, context=48, layers=2, d_model=16, heads=2, positions="rotary")
LM = networks.language_model(MODEL)
PARAMS = jax.jit(LM.init)(jax.random.key(0))
CFG = SampleConfig(length=9, stop=(1,), pad=0)
KEY = jax.random.key(5)
PROMPTS = [[3], [4, 5, 6, 7, 8], [2, 2, 9, 10, 3, 4], [7] * 6]
STREAM = token_stream.make_stream(LM, PARAMS, MODEL.context)


def sampled(cfg, draw=0):
    """Ids and log-probabilities of the responses of the library's sampler to all prompts in one batch."""
    rows = [token_stream.left_padded(ids, 6) for ids in PROMPTS]
    tokens, mask = (np.concatenate(x) for x in zip(*rows, strict=True))
    index = np.arange(len(PROMPTS), dtype=np.int32)
    prompts = Prompts(tokens, mask, index, np.full_like(index, draw))
    got = jax.jit(sampling.make_sample(LM, cfg))(PARAMS, prompts, KEY)
    said = np.asarray(got.tokens[:, -cfg.length :])
    return [(x[m].tolist(), y[m]) for x, m, y in zip(said, got.mask, got.logprobs, strict=True)]


@pytest.mark.parametrize(
    "law",
    [{}, {"temperature": 0.6}, {"temperature": 0.0}, {"top_p": 0.7}, {"stop": (1, 4)}, {"draw": 3}],
    ids=str,
)
def test_tokens_and_log_probabilities_are_those_of_the_sampler(law):
    draw = law.pop("draw", 0)
    cfg = dataclasses.replace(CFG, **law)
    want = sampled(cfg, draw)
    for index, (ids, logprobs) in enumerate(want):
        got = [*STREAM(PROMPTS[index], cfg, KEY, index, draw)]
        assert [x.id for x in got] == ids
        np.testing.assert_allclose([x.logprob for x in got], logprobs, atol=1e-5)
        assert [x.stops for x in got] == [x in cfg.stop for x in ids]
    assert len({tuple(ids) for ids, _ in want}) > 1
    assert cfg.stop == (1,) or {len(ids) for ids, _ in want} - {cfg.length}  # some were stopped


def test_the_likeliest_tokens_are_those_of_the_law():
    cfg = dataclasses.replace(CFG, top_p=0.6)
    every = [*STREAM(PROMPTS[1], CFG, KEY, top=20)]
    few = [*STREAM(PROMPTS[1], cfg, KEY, top=20)]
    for token in every:
        assert len(token.top) == 11 and dict(token.top)[token.id] == pytest.approx(token.logprob)
        assert sum(np.exp(x) for _, x in token.top) == pytest.approx(1)
    for token in few:
        assert 0 < len(token.top) < 11 and token.id in dict(token.top)
    assert [x.id for x in every] == [x.id for x in STREAM(PROMPTS[1], CFG, KEY)]


def test_few_widths_hold_every_prompt_that_fits():
    context, found = 300, set()
    for prompt, length in itertools.product(range(1, 300), (1, 24, 100, 299)):
        if prompt + length > context:
            with pytest.raises(token_stream.TooLong, match=f"has {prompt} tokens"):
                token_stream.check_fits(prompt, length, context)
            continue
        token_stream.check_fits(prompt, length, context)
        columns, room = token_stream.widths(prompt, length, context)
        assert columns >= prompt and room >= length and columns + room <= context
        found.add((columns, room))
    assert len(found) <= 16


def test_prompts_of_a_width_are_compiled_once():
    traces = []

    def counted(*args):
        traces.append(args)
        return LM.prefill_fn(*args)

    stream = token_stream.make_stream(LM._replace(prefill_fn=counted), PARAMS, MODEL.context)
    for n in range(1, 20):
        next(stream([2] * n, CFG, KEY))
    assert len(traces) == 1


# --- the text of tokens


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer whose tokens are single bytes."""
    return tokenizer.train(["a"], 259, tmp_path_factory.mktemp("bytes"))


def tokens(ids, end=None):
    """Tokens with these ids, then one that stops, where there is an `end`."""
    found = [Token(id, -1.0, (), False) for id in ids]
    return found + [Token(end, -1.0, (), True)] * (end is not None)


def ids_of(words, text):
    return words(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", ["grün 日本 😀!", "", "a\ufffdb", "👩‍👩‍👧 und é"])
def test_pieces_are_whole_characters_and_join_to_the_text(words, text):
    ids = ids_of(words, text)
    assert len(ids) == len(text.encode())
    for end, finish in ((words.eos_token_id, "stop"), (None, "length")):
        pieces = [*written(words, tokens(ids, end))]
        assert "".join(x.text for x in pieces) == text == words.decode(ids)
        assert [x.finish for x in pieces] == [""] * (len(pieces) - 1) + [finish]
        assert [x.id for piece in pieces for x in piece.tokens] == [
            *ids,
            *[end] * (finish == "stop"),
        ]
        assert all(piece.text for piece in pieces[:-1])
        if "\ufffd" not in text:
            assert len(pieces) >= len(text)  # nothing waits longer than it must
            assert not any("\ufffd" in piece.text for piece in pieces)


def test_bytes_that_are_no_character_come_at_the_end(words):
    half = ids_of(words, "é")[:1]
    assert (
        "".join(x.text for x in written(words, tokens([*ids_of(words, "a"), *half]))) == "a\ufffd"
    )


def test_text_ends_before_a_stop_string_of_which_no_piece_shows_a_part(words):
    rng = random.Random(0)
    cut = 0
    for _ in range(300):
        text = "".join(rng.choices("abc", k=rng.randrange(12)))
        stop = ["".join(rng.choices("abc", k=rng.randrange(1, 4))) for _ in range(2)]
        # a stop string that another one holds ends the text as soon as it is whole
        first = min((text.find(x) + len(x) for x in stop if x in text), default=len(text))
        pieces = [*written(words, tokens(ids_of(words, text)), stop)]
        so_far = text[:first]
        want = min((so_far[: so_far.find(x)] for x in stop if x in so_far), key=len, default=text)
        assert "".join(x.text for x in pieces) == want
        assert sum(len(x.tokens) for x in pieces) == first
        assert pieces[-1].finish == ("stop" if want != text else "length")
        cut += want != text
    assert 50 < cut < 290


def test_text_that_only_began_as_a_stop_string_comes_later(words):
    pieces = [*written(words, tokens(ids_of(words, "xenx")), ["end"])]
    assert [x.text for x in pieces] == ["x", "enx", ""]


def test_a_tokenizer_of_marks_keeps_what_it_gave():
    """Bytes of SentencePiece that are not whole turn all their neighbours into unknown characters."""

    class Marks:
        def decode(self, ids):
            try:
                return bytes(ids).decode()
            except UnicodeDecodeError:
                return "\ufffd" * len(ids)

    pieces = [*written(Marks(), tokens("€€".encode()))]
    assert "".join(x.text for x in pieces) == "€€"
    read = partial(next, written(Marks(), tokens("€€".encode())))
    assert read().text == "€"
