import json
from collections import Counter
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_jax.data import batching, comparisons, demonstrations, prompts, splits, tokenizer
from rlhf_jax.data.comparisons import Comparison, ComparisonFields
from rlhf_jax.rewards import functions as rewards
from rlhf_jax.tasks import reviews

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def corpus():
    return reviews.generate(0, 1000, reviews.prompts())


@pytest.fixture(scope="module")
def tok(tmp_path_factory, corpus):
    texts = [f"{review.prompt} {review.response}" for review in corpus]
    return tokenizer.train(texts, 600, tmp_path_factory.mktemp("tokenizer"))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# tokenizer


def test_decoding_inverts_encoding_for_any_text(tok):
    for text in (
        "the plot was , great .",
        " was n't 'm  good .\n\n",
        "žluťoučký 🎬\t\x00",
        "",
        "<eos> a",
    ):
        (ids,) = tokenizer.encode_responses(tok, [text])
        assert tok.decode(ids) == text
        assert not {PAD, BOS, EOS} & set(ids)


def test_a_word_of_the_corpus_is_about_one_token(tok, corpus):
    ids = tokenizer.encode_responses(tok, [" " + review.response for review in corpus])
    words = sum(len(review.response.split()) for review in corpus)
    assert sum(map(len, ids)) == words


def test_the_folder_is_an_ordinary_transformers_tokenizer(tok, corpus, tmp_path):
    texts = [f"{review.prompt} {review.response}" for review in corpus]
    again = tokenizer.train(iter(texts), 600, tmp_path / "a")
    tokenizer.train(texts, 600, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert str(tmp_path) not in file.read_text()
    auto = AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    loaded = tokenizer.load(tmp_path / "a")
    ours = tokenizer.encode_responses(tok, texts)
    for other in (again, auto, loaded):
        assert (other.pad_token_id, other.bos_token_id, other.eos_token_id) == (PAD, BOS, EOS)
        assert len(other) == len(tok) <= 600
        assert tokenizer.encode_responses(other, texts) == ours
        assert not other.clean_up_tokenization_spaces


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 258: 259 is the least"):
        tokenizer.train(["a"], 258, tmp_path)


def bare_bpe(**marks):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<|end|>"])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **marks)


@pytest.mark.parametrize("pad", [{}, {"pad_token": "<|end|>"}])
def test_a_pad_that_is_missing_or_the_eos_becomes_a_new_last_token(tmp_path, pad):
    bare_bpe(eos_token="<|end|>", **pad).save_pretrained(tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (256, 257, 258)


def test_a_bare_gpt2_vocabulary_loads(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "ab", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    loaded = tokenizer.load(tmp_path)
    assert tokenizer.encode_responses(loaded, ["ab"]) == [[256]]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (257, 257, 258)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2", "gemma2", "llama"])
def test_a_models_folder_without_a_tokenizer_gives_none(tmp_path, kind):
    """transformers makes one of the family's marks alone, by which every text is empty."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=r"and no other token|no tokenizer could be loaded"):
        tokenizer.load(tmp_path)


def test_a_tokenizer_that_writes_nothing_of_any_text_is_refused(tmp_path):
    known = Tokenizer(models.BPE({"<eos>": 0, "é": 1}, []))
    words = PreTrainedTokenizerFast(tokenizer_object=known, eos_token="<eos>")
    assert tokenizer.encode_responses(words, ["é", "a", ""])[0] == [1]
    with pytest.raises(ValueError, match="writes no token for any of 2 texts"):
        tokenizer.encode_responses(words, ["a film", "b"])


def with_gap(folder, first: int):
    """Moves eight tokens of the tokenizer in a folder, the last ones but one, to the ids from `first` on."""
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    vocab = spec["model"]["vocab"]
    for n, token in enumerate(sorted(vocab, key=vocab.get)[-9:-1]):
        vocab[token] = first + n
    path.write_text(json.dumps(spec))


def test_a_vocabulary_with_a_gap_is_as_large_as_its_largest_id(tok, tmp_path):
    assert tokenizer.size(tok) == len(tok)
    tok.save_pretrained(tmp_path)
    with_gap(tmp_path, 5000)
    words = tokenizer.load(tmp_path)
    assert len(words) == len(tok) and tokenizer.size(words) == 5008
    bare_bpe(eos_token="<|end|>").save_pretrained(tmp_path / "bare")  # of 257 tokens
    with_gap(tmp_path / "bare", 257)
    with pytest.raises(ValueError, match="<pad> would share id 257"):
        tokenizer.load(tmp_path / "bare")


@pytest.mark.parametrize("own", [True, False], ids=["a known class", "a class of its own"])
def test_no_code_beside_a_tokenizer_is_run_and_nobody_is_asked(tok, tmp_path, monkeypatch, own):
    tok.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    config |= {} if own else {"tokenizer_class": "Mine"}
    path.write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    try:
        assert tokenizer.load(tmp_path).get_vocab() == tok.get_vocab()
    except ValueError as error:
        assert "no tokenizer could be loaded" in str(error) and not own
    assert not ran.exists()


MARKS = {
    "before every piece": lambda: (normalizers.Prepend("▁"), None),
    "first": lambda: (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "always": lambda: (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
}


@pytest.fixture(params=MARKS)
def marked(request, tmp_path):
    """Tokenizers like Llama's: each puts a mark of a space before what it is given."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "▁",
        "y",
        "e",
        "s",
        "▁y",
        "es",
        "yes",
        "▁yes",
        ":",
        "<end>",
    ]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "y"), ("e", "s"), ("y", "es"), ("▁", "yes")]
    bpe = Tokenizer(
        models.BPE(
            {x: i for i, x in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    space = normalizers.Replace(" ", "▁")
    first, bpe.pre_tokenizer = MARKS[request.param]()
    bpe.normalizer = normalizers.Sequence([first, space]) if first else space
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=["<end>"],
    )  # fmt: skip
    made.save_pretrained(tmp_path)
    return tokenizer.load(tmp_path, bos=True)


@pytest.mark.parametrize(
    ("prompt", "response", "whole"),
    [
        ("yes:", "yes", "yes: yes"),
        ("yes:\n", "yes yes", "yes:\nyes yes"),
        ("yes: ", "es", "yes: es"),
        ("yes", " yes", "yes yes"),
        ("yes", "\nyes", "yes\nyes"),
        ("", "yes yes", "yes yes"),
    ],
)
def test_prompt_and_response_decode_to_one_text_where_a_tokenizer_marks_its_beginning(
    marked, prompt, response, whole
):
    batch = demonstrations.encode_demonstrations(marked, [prompt], [response], 16, 16)
    ids = batch.tokens[0][batch.attention_mask[0]].tolist()
    assert (ids[0], ids[-1]) == (marked.bos_token_id, marked.eos_token_id)
    assert marked.decode(ids[1:-1]) == whole
    assert ids == marked(whole + "</s>")["input_ids"]
    before = batch.tokens[0, :16][batch.attention_mask[0, :16]].tolist()
    assert before == marked(prompt)["input_ids"]


RULES = {"nothing": "$A", "BOS": "<s> $A", "both": "<s> $A </s>", "EOS": "$A </s>"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bos", [None, True, False])
def test_prompts_begin_as_the_tokenizer_begins_a_text_or_as_they_are_told_to(
    marked, tmp_path, rule, bos
):
    marks = [("<s>", marked.bos_token_id), ("</s>", marked.eos_token_id)]
    marked.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=RULES[rule], pair="$A $B", special_tokens=marks
    )
    marked.save_pretrained(tmp_path / "rule")
    loaded = tokenizer.load(tmp_path / "rule", bos=bos)
    begins = [1] if (rule in ("BOS", "both") if bos is None else bos) else []
    texts = ["yes yes", "yes:\n", "<s>yes", "yes</s>es", ""]
    found = tokenizer.encode_prompts(loaded, texts)
    plain = [loaded(text)["input_ids"] for text in texts]
    ends = [2] if plain[0][-1] == 2 else []  # that is no part of a prompt
    assert [ids + ends for ids in found[:2]] == plain[:2] and found[0][: len(begins)] == begins
    assert found[2] == loaded(texts[2], add_special_tokens=False)["input_ids"]
    assert (found[2].count(1), found[3].count(2)) == (1, 1)
    assert found[4] == (begins or [2])
    brought = demonstrations.encode_demonstrations(loaded, [""], ["<s>yes"], 2, 8)
    ids = brought.tokens[0][brought.attention_mask[0]].tolist()
    assert ids[0] == 1 and ids.count(1) == 1  # it belongs to the prompt
    loaded.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(str(tmp_path / "again"))
    assert [again(text)["input_ids"] for text in texts] == plain


def test_a_bos_that_is_not_there_is_refused(tmp_path):
    bare_bpe(eos_token="<|end|>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no BOS token to begin prompts with"):
        tokenizer.load(tmp_path, bos=True)


def test_marks_that_a_text_brings_are_not_doubled_and_never_spelt(tok):
    prompt = ["<bos>the plot", "the plot", " <bos>the plot"]
    assert len({tuple(ids) for ids in tokenizer.encode_prompts(tok, prompt)}) == 1
    rows = [
        ("", "<bos>the plot was good .<eos>"),
        ("", "the plot was good ."),
        ("", "the plot was good .<eos>\n"),
    ]
    batch = demonstrations.encode_demonstrations(tok, *zip(*rows, strict=True), 2, 10)
    assert len(np.unique(batch.tokens, axis=0)) == 1
    (row,) = np.unique(batch.tokens, axis=0)
    assert (row == BOS).sum() == (row == EOS).sum() == 1


def test_no_eos_and_no_tokenizer_are_refused_in_one_sentence(tmp_path):
    bare_bpe(pad_token="<|end|>").save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="has no EOS token"):
        tokenizer.load(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        with pytest.raises(ValueError, match="no tokenizer could be loaded") as caught:
            tokenizer.load(tmp_path / folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": '),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 3}}'),
        ("special_tokens_map.json", "3"),
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_refused_in_one_sentence(tok, tmp_path, name, text):
    tok.save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="no tokenizer could be loaded from") as caught:
        tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_seam_has_white_space_on_one_side_at_least():
    assert tokenizer.at_seam("the plot", "was good .") == " was good ."
    assert tokenizer.at_seam("\n\nAssistant:", " Yes.") == " Yes."
    assert tokenizer.at_seam("question\n", "answer") == "answer"
    assert tokenizer.at_seam("", "whole text") == "whole text"


# prompts and demonstrations


def test_prompts_are_left_padded_begin_with_bos_and_keep_their_end(tok):
    texts = ["the plot in this western", "", "in this old drama the music"]
    batch = prompts.encode_prompts(tok, texts, 6)
    ids = tokenizer.encode_prompts(tok, texts)
    assert ids == tok(texts)["input_ids"] and [len(x) for x in ids] == [6, 1, 7]
    np.testing.assert_array_equal(batch.tokens[0], ids[0])
    np.testing.assert_array_equal(batch.tokens[1], [PAD] * 5 + [BOS])
    np.testing.assert_array_equal(batch.tokens[2], [BOS, *ids[2][2:]])
    np.testing.assert_array_equal(batch.attention_mask.sum(1), [6, 1, 6])
    np.testing.assert_array_equal(batch.attention_mask, batch.tokens != PAD)
    np.testing.assert_array_equal(batch.index, [0, 1, 2])
    np.testing.assert_array_equal(batch.draw, 0)
    np.testing.assert_array_equal(prompts.encode_prompts(tok, texts, 1).tokens, [[BOS]] * 3)


def test_without_bos_an_empty_prompt_is_one_eos():
    plain = bare_bpe(eos_token="<|end|>", pad_token="<pad>")
    batch = prompts.encode_prompts(plain, ["ab", "", "abcd"], 3)
    pad, a = plain.pad_token_id, plain.convert_tokens_to_ids("a")
    expected = [[pad, a, a + 1], [pad, pad, plain.eos_token_id], [a + 1, a + 2, a + 3]]
    np.testing.assert_array_equal(batch.tokens, expected)
    np.testing.assert_array_equal(batch.attention_mask.sum(1), [2, 1, 3])


def test_draws_repeat_each_prompt(tok):
    batch = prompts.encode_prompts(tok, ["the plot", "the music"], 4)
    drawn = prompts.repeat_draws(batch, 3)
    np.testing.assert_array_equal(drawn.index, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(drawn.draw, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(drawn.tokens, batch.tokens[[0, 0, 0, 1, 1, 1]])


def test_demonstrations_end_in_eos_unless_they_were_cut(tok):
    ps, rs = ["the plot", "the music in this drama"], ["was good .", "was not a bit good ."]
    batch = demonstrations.encode_demonstrations(tok, ps, rs, 7, 4)
    assert tok.decode(batch.tokens[0, 7:][batch.mask[0]]) == " was good .<eos>"
    assert tok.decode(batch.tokens[1, 7:][batch.mask[1]]) == " was not a bit"
    assert EOS not in batch.tokens[1]
    longer = demonstrations.encode_demonstrations(tok, ps, rs, 9, 9)
    np.testing.assert_array_equal(longer.mask.sum(1), [4, 7])
    assert tok.decode(longer.tokens[1, 9:][longer.mask[1]]) == " was not a bit good .<eos>"
    np.testing.assert_array_equal(longer.attention_mask, longer.tokens != PAD)
    np.testing.assert_array_equal(longer.attention_mask[:, 9:], longer.mask)
    np.testing.assert_array_equal(longer.tokens[:, 2:9], batch.tokens[:, :7])
    assert longer.tokens.dtype == np.int32


def test_a_response_that_fits_exactly_has_no_room_for_eos(tok):
    (three,) = demonstrations.encode_demonstrations(tok, ["the plot"], ["was good ."], 4, 3).mask
    batch = demonstrations.encode_demonstrations(tok, ["the plot"], ["was good ."], 4, 3)
    assert three.all() and EOS not in batch.tokens


def test_a_prompts_tokens_do_not_depend_on_the_response(tok):
    rs = ["was good .", "s are bad", "", "<eos>"]
    batch = demonstrations.encode_demonstrations(tok, ["the plot"] * 4, rs, 5, 12)
    assert len(np.unique(batch.tokens[:, :5], axis=0)) == 1
    assert np.sum(batch.tokens == EOS) == 4  # the one that is written out is plain text


def test_plain_text_is_a_response_to_bos_alone(tok):
    batch = demonstrations.encode_demonstrations(tok, [""], ["the plot was good ."], 1, 8)
    assert batch.tokens[0, 0] == BOS
    assert tok.decode(batch.tokens[0, 1:][batch.mask[0]]) == "the plot was good .<eos>"


def test_lists_of_different_length_are_refused(tok):
    with pytest.raises(ValueError, match="2 prompts have 1 responses"):
        demonstrations.encode_demonstrations(tok, ["a", "b"], ["c"], 4, 4)
    with pytest.raises(ValueError, match="prompt length is 0"):
        prompts.encode_prompts(tok, ["a"], 0)


# comparisons


def test_our_own_shape_gives_the_preferred_response_over_each_other(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "responses": ["a", "b"], "preference": 1, "annotator": "x", "side": 0},
        {"prompt": "p", "responses": ["a", "b"], "preference": "tie"},
        {"prompt": "q", "responses": ["a", "b", "c"], "preference": 2},
    )
    found, ties = comparisons.read_comparisons(path)
    assert ties == 1
    assert found == [
        Comparison("p", "b", "a", "p"),
        Comparison("q", "c", "a", "q"),
        Comparison("q", "c", "b", "q"),
    ]


def test_chosen_and_rejected_with_and_without_a_prompt(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"chosen": "c", "rejected": "d"},
    )
    expected = [Comparison("p", "a", "b", "p"), Comparison("", "c", "d", "c\nd")]
    assert comparisons.read_comparisons(path) == (expected, 0)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "b", "rejected": "a"},
        {"prompt": "", "chosen": "b", "rejected": "a"},
        {"prompt": " \n", "chosen": "b", "rejected": "a"},
        {"prompt": None, "chosen": "b", "rejected": "a"},
        {"prompt": "", "responses": ["a", "b"], "preference": 1},
        {"prompt": "", "responses": ["a", "b"], "preference": 1.0},
        {"prompt": None, "responses": ["b", "a"], "preference": [0.0]},
    ],
)
def test_an_empty_prompt_is_no_prompt(tmp_path, row):
    path = write(tmp_path / "a.jsonl", row)
    assert comparisons.read_comparisons(path)[0] == [Comparison("", "b", "a", "a\nb")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "responses": ["a", "b"], "preference": "tie"}] * 2, "all 2 preferences are ties"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": True}],
         "2 texts with label 1 and 0 with label 0"),
        ([{"prompt": "p", "chosen": "a ", "rejected": "a"}, {"chosen": "", "rejected": " "}],
         "in each of the 2 pairs both responses are the same text"),
        ([{"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"}], "1: .* are dialogues"),
        ([{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: b"}],
         "1: .* they must answer the same dialogue"),
    ],
)  # fmt: skip
def test_files_with_nothing_to_compare_are_refused_by_name(tmp_path, rows, message):
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(ValueError, match=f"a.jsonl:.*{message}") as caught:
        comparisons.read_comparisons(path)
    assert "\n" not in str(caught.value)


def test_dialogues_share_their_prompt_up_to_the_last_common_answer(tmp_path):
    start = "\n\nHuman: hello\n\nAssistant: Hi\n\nHuman: how?\n\nAssistant:"
    path = write(
        tmp_path / "a.jsonl",
        {"chosen": start + " So.", "rejected": start + " Some other."},
        # they part inside the first answer, though both have a second one
        {
            "chosen": "\n\nHuman: x\n\nAssistant: a\n\nHuman: y\n\nAssistant: b",
            "rejected": "\n\nHuman: x\n\nAssistant: c\n\nHuman: z\n\nAssistant: d",
        },
    )
    (first, second), _ = comparisons.read_comparisons(path)
    assert first == Comparison(start, " So.", " Some other.", "hello")
    assert second.prompt == "\n\nHuman: x\n\nAssistant:"
    assert second.rejected == " c\n\nHuman: z\n\nAssistant: d"
    assert second.group == "x"


def test_labelled_texts_are_matched_once_each_and_by_seed(tmp_path):
    rows = [{"text": f"good {i}", "label": 1} for i in range(20)]
    rows += [{"text": f"bad {i}", "label": 0} for i in range(30)]
    path = write(tmp_path / "a.jsonl", *rows, rows[0])  # one text comes twice
    found, ties = comparisons.read_comparisons(path)
    assert (len(found), ties) == (20, 0)
    assert len({c.chosen for c in found}) == len({c.rejected for c in found}) == 20
    assert len({c.group for c in found}) == 20
    assert all(c.prompt == "" and "good" in c.chosen and "bad" in c.rejected for c in found)
    assert found == comparisons.read_comparisons(path)[0]
    assert found != comparisons.read_comparisons(path, seed=1)[0]


def test_a_field_map_with_votes_reads_pandalm(tmp_path):
    def row(*votes, given="i"):
        named = {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
        return {"instruction": "do", "input": given, "response1": "a", "response2": "b", **named}

    votes = [(1, 1, 2), (2, 0, 2), (0, 0, 1), (0, 1, 2), (2, 2, 2)]
    path = write(tmp_path / "a.jsonl", *(row(*v) for v in votes), row(1, 1, 1, given=""))
    fields = ComparisonFields(
        prompt="instruction,input",
        responses="response1,response2",
        preference="annotator1, annotator2, annotator3",
        first=1,
    )
    found, ties = comparisons.read_comparisons(path, fields)
    assert [c.chosen for c in found] == ["a", "b", "b", "a"]
    assert ties == 2  # most say so; and one vote for each
    assert [c.prompt for c in found] == ["do\ni"] * 3 + ["do"]
    assert found[0].group == "do i"


def test_a_field_map_with_a_list_over_pairs_reads_qa_feedback(tmp_path):
    row = {"question": "q", "preference": [1, 2, 0, 1, 1, 2]}
    row |= {f"prediction {i}": f"r{i}" for i in (1, 2, 3, 4)}
    names = ",".join(f"prediction {i}" for i in (1, 2, 3, 4))
    fields = ComparisonFields(prompt="question", responses=names, first=1)
    path = write(tmp_path / "a.jsonl", row)
    found, ties = comparisons.read_comparisons(path, fields)
    pairs = [(c.chosen, c.rejected) for c in found]
    assert pairs == [("r1", "r2"), ("r3", "r1"), ("r2", "r3"), ("r2", "r4"), ("r4", "r3")]
    assert ties == 1
    short = write(tmp_path / "b.jsonl", row | {"preference": [1, 2]})
    with pytest.raises(ValueError, match=r"b.jsonl:1: field 'preference' must hold 6 preferences"):
        comparisons.read_comparisons(short, fields)


def test_an_answer_that_was_stored_as_true_or_a_number_is_that_word(tmp_path):
    row = {"prompt": "is it?", "x": True, "y": 0.5, "preference": 0}
    path = write(tmp_path / "a.jsonl", row)
    found, _ = comparisons.read_comparisons(path, ComparisonFields(responses="x,y"))
    assert found == [Comparison("is it?", "true", "0.5", "is it?")]
    with pytest.raises(ValueError, match=r"a.jsonl:1: field 'z' is missing"):
        comparisons.read_comparisons(path, ComparisonFields(responses="x,z"))


def test_the_vote_of_several_lists_is_taken_pair_by_pair(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {
            "prompt": "p",
            "responses": ["a", "b", "c"],
            "x": [0, 0, 1],
            "y": [0, "tie", 1],
            "z": [1, 1, 1],
        },
    )
    found, ties = comparisons.read_comparisons(path, ComparisonFields(preference="x,y,z"))
    assert [(c.chosen, c.rejected) for c in found] == [("a", "b"), ("c", "b")]
    assert ties == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"a": 1},
            "needs the fields 'responses' and 'preference', 'probability' or .* found are 'a': name yours",
        ),
        ({"responses": ["a", "b"], "preference": 0}, "field 'prompt' is missing"),
        ({"prompt": "p", "responses": ["a"], "preference": 0}, "two or more responses"),
        ({"prompt": "p", "responses": ["a", None], "preference": 0}, "all of them texts"),
        ({"prompt": "p", "responses": "ab", "preference": 0}, "'responses' must be a list"),
        ({"prompt": "p", "responses": ["a", "b"], "preference": 2}, "a number from 0 to 1.*is 2"),
        ({"prompt": "p", "responses": ["a", "b"], "preference": -1}, "a number from 0 to 1"),
        ({"prompt": "p", "responses": ["a", "b"], "preference": "b"}, "is 'b'"),
        (
            {"prompt": "p", "responses": ["a", "b"], "preference": True},
            "a whole number, and is true",
        ),
        ({"prompt": "p", "responses": ["a", "b"], "preference": [True]}, "is True"),
        ({"chosen": "a", "rejected": None}, "field 'rejected' must be a string, and is null"),
        ({"text": "a", "label": 2}, "'label' must be 0 or 1, and is 2"),
        ({"text": "a", "label": "1"}, "'label' must be a whole number, and is a string"),
    ],
)
def test_comparisons_of_no_known_shape_are_refused_with_path_and_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", {"chosen": "a", "rejected": "b"}, row)
    with pytest.raises(ValueError, match=f"a.jsonl:2: .*{message}") as caught:
        comparisons.read_comparisons(path)
    assert "\n" not in str(caught.value)


def test_named_fields_are_taken_at_their_word(tmp_path):
    path = write(tmp_path / "a.jsonl", {"chosen": "a", "rejected": "b"})
    with pytest.raises(ValueError, match="field 'prompt' is missing"):
        comparisons.read_comparisons(path, ComparisonFields(preference="winner"))


def test_a_group_stays_on_one_side_and_the_side_stays_when_rows_are_added():
    rows = [Comparison("p", f"a{i}", "b", group=f"g{i % 400}") for i in range(1200)]
    train, held_out = splits.split(rows, lambda c: c.group, 0.2, 0)
    assert sorted(train + held_out) == sorted(rows)
    assert not {c.group for c in train} & {c.group for c in held_out}
    assert len({c.group for c in held_out}) == pytest.approx(80, abs=4 * 8)
    fewer = splits.split(rows[:700], lambda c: c.group, 0.2, 0)
    assert set(fewer[0]) <= set(train) and set(fewer[1]) <= set(held_out)
    assert splits.split(rows, lambda c: c.group, 0.2, 1)[1] != held_out
    with pytest.raises(
        ValueError, match="x: all 1200 rows, of 400 different prompts, fall on one side"
    ):
        splits.split(rows, lambda c: c.group, 0.0, 0, "x")


@pytest.mark.parametrize(
    "text",
    ["what now ?", " what  now ?\n", "\n\nHuman: what now ?\n\nAssistant:", "Human: what\nnow ?",
     "\n\nHuman: what now ?\n\nAssistant: This.\n\nHuman: and then?\n\nAssistant: That."],
)  # fmt: skip
def test_one_prompt_has_one_key_however_it_is_written(text):
    assert splits.group_of(text) == "what now ?"


def test_what_teaches_nothing_is_found_as_by_looking_at_every_held_out_text():
    rng = np.random.default_rng(0)
    said = lambda least, most: " ".join(rng.choice(["a", "b", "aa"], rng.integers(least, most)))
    prompts = sorted({said(1, 6) for _ in range(30)})
    texts, groups = [said(4, 8) for _ in range(5)], ["b a b"]
    teaches = splits.make_teaches(groups, prompts, texts)

    def slow(group, prompt, response):
        whole = f"{prompt} {response}".strip()
        held_out = [p for p in (*prompts, *groups) if f"{whole} ".startswith(f"{p} ")]
        begins = any(len(p) >= len(prompt) for p in held_out)
        return not (group in groups or begins or whole in texts or response in texts)

    rows = [(said(0, 6), said(0, 6)) for _ in range(600)] + [("", text) for text in texts]
    rows = [(splits.group_of(prompt or response), prompt, response) for prompt, response in rows]
    found = [teaches(group, f" {prompt}\n", f"{response} ") for group, prompt, response in rows]
    assert found == [slow(*row) for row in rows]
    assert 50 < sum(found) < len(found) - 50


@pytest.mark.parametrize(
    ("fields", "row", "expected"),
    [
        ({"prompt": "question", "response": "answer"}, {"question": "1 + 1?", "answer": "2"},
         ("1 + 1?", "2", "1 + 1?")),
        ({"prompt": "instruction,input", "response": "output"},
         {"instruction": "add", "input": "1, 1", "output": "2"}, ("add\n1, 1", "2", "add 1, 1")),
        ({"prompt": "instruction,input", "response": "output"},
         {"instruction": "wave", "input": "", "output": ""}, ("wave", "", "wave")),
        ({"response": "completion"}, {"prompt": "p", "completion": "r", "text": "t"}, ("p", "r", "p")),
        ({"text": "article"}, {"article": "a b", "response": "r"}, ("", "a b", "a b")),
        ({}, {"prompt": None, "response": "r"}, ("", "r", "r")),
        ({}, {"text": "\n\nHuman: q\n\nAssistant: a"}, ("", "\n\nHuman: q\n\nAssistant: a", "q")),
    ],
)  # fmt: skip
def test_a_field_map_reads_a_corpus(tmp_path, fields, row, expected):
    changed = {key: "said" if value == expected[1] else value for key, value in row.items()}
    path = write(tmp_path / "a.jsonl", row, row, {**row, "other": 1}, changed)
    fields = demonstrations.CorpusFields(**fields)
    found = demonstrations.read_demonstrations(path, fields=fields)
    assert found[0] == expected and len(found) == 2  # equal ones are one


@pytest.mark.parametrize(
    ("fields", "row", "message"),
    [
        ({}, {"instruction": "q", "output": "a"}, "1: .*'prompt' and 'response', or 'messages', "
         "or 'text', .* found are 'instruction', 'output': name yours with data.corpus_fields"),
        ({"response": "output"}, {"prompt": "p", "text": "t"}, "1: a text to learn needs .*'output'"),
        ({}, {"response": "r"}, "1: field 'prompt' is missing"),
        ({}, {"prompt": "p", "response": None}, "1: field 'response' must be a string, and is null"),
        ({}, {"text": " \n"}, "1: the text is blank"),
        ({}, {"prompt": "p", "response": " "}, " every response is blank"),
    ],
)  # fmt: skip
def test_what_is_no_text_to_learn_is_refused(tmp_path, fields, row, message):
    fields = demonstrations.CorpusFields(**fields)
    with pytest.raises(ValueError, match=f"a.jsonl:{message}"):
        demonstrations.read_demonstrations(write(tmp_path / "a.jsonl", row), fields=fields)


def test_encoded_comparisons_are_two_demonstrations_of_one_prompt(tok):
    rows = [
        Comparison("the plot", "was good .", "was bad .", "g"),
        Comparison("the plot", "was good and the music was bad .", "was good and slow .", "g"),
        Comparison("the plot", "was good .", "was good .", "g"),
        Comparison("the plot", "was good", "was good .", "g"),
    ]
    encoded = comparisons.encode_comparisons(tok, rows, 4, 4)
    alone = demonstrations.encode_demonstrations(tok, ["the plot"], ["was bad ."], 4, 4)
    np.testing.assert_array_equal(encoded.rejected.tokens[:1], alone.tokens)
    np.testing.assert_array_equal(encoded.rejected.mask[:1], alone.mask)
    np.testing.assert_array_equal(encoded.chosen.tokens[:, :4], encoded.rejected.tokens[:, :4])
    np.testing.assert_array_equal(comparisons.identical(encoded), [False, False, True, False])
    cut = comparisons.encode_comparisons(tok, rows, 4, 2)
    np.testing.assert_array_equal(comparisons.identical(cut), [False, True, True, True])


# batching


class Record(NamedTuple):
    a: np.ndarray
    b: dict


def record(n):
    return Record(a=np.arange(n), b={"c": np.arange(2 * n).reshape(n, 2)})


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 10), (10, 25), (7, 1), (1, 4)])
def test_batches_are_slices_of_fresh_permutations_one_after_the_other(n, size):
    stream = np.concatenate([batching.rows_at(n, size, 5, i) for i in range(3 * n)])
    assert all(len(batching.rows_at(n, size, 5, i)) == size for i in range(5))
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (len(epochs), 1)))
    if n > 1:
        assert len(np.unique(epochs, axis=0)) > 1
        np.testing.assert_array_equal(epochs[1], np.random.default_rng((5, 1)).permutation(n))


def test_a_batch_is_a_function_of_seed_and_place_alone():
    late = batching.rows_at(50, 8, 0, 1000)
    for i in (3, 999, 1001):
        batching.rows_at(50, 8, 0, i)
    np.testing.assert_array_equal(late, batching.rows_at(50, 8, 0, 1000))
    assert np.any(late != batching.rows_at(50, 8, 1, 1000))


def test_every_array_of_a_record_gives_the_same_rows():
    batch = batching.batch_at(record(20), 6, 0, 2)
    rows = batching.rows_at(20, 6, 0, 2)
    assert isinstance(batch, Record)
    np.testing.assert_array_equal(batch.a, rows)
    np.testing.assert_array_equal(batch.b["c"][:, 0], 2 * rows)


@pytest.mark.parametrize("n", [1, 4, 8, 10])
def test_padded_batches_hold_every_row_once_and_say_which_are_real(n):
    seen = []
    for batch, real in batching.padded_batches(record(n), 4):
        assert len(batch.a) == len(real) == 4
        seen += list(batch.a[real])
        assert np.all(batch.a[~real] == 0)
        np.testing.assert_array_equal(batch.b["c"][:, 0], 2 * batch.a)
    assert seen == list(range(n))


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="there are no rows"):
        batching.batch_at(record(0), 2, 0, 0)
    with pytest.raises(ValueError, match="there are no rows"):
        next(batching.padded_batches(record(0), 2))
    with pytest.raises(ValueError, match="batch_size is 0"):
        batching.rows_at(3, 0, 0, 0)
    with pytest.raises(ValueError, match=r"\[2, 3\] rows"):
        batching.batch_at((np.zeros(2), np.zeros(3)), 2, 0, 0)


# rewards


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.7, -1.6], [0.7, -1.6]),
        ([1, 0, 7], [1, 0, 7]),
        ([True, False], [1, 0]),
        (np.array([1, 2], np.int64), [1, 2]),
        (np.array([True, False]), [1, 0]),
        (jnp.array([0.7, 1.0]), [0.7, 1.0]),
        ([np.float32(0.7), jnp.float32(0.25), 3], [0.7, 0.25, 3]),
        ([], []),
    ],
)
def test_scores_are_float32_whatever_came(values, expected):
    scores = rewards.as_scores(values, len(expected))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.array(expected, np.float32))


@pytest.mark.parametrize(
    "bad", [None, float("nan"), float("inf"), "0.7", [0.7], np.array([1.0]), 1j]
)
def test_what_is_no_finite_number_is_refused_by_its_index(bad):
    with pytest.raises(ValueError, match="the reward of sample 2 is"):
        rewards.as_scores([0.1, 1, bad, None], 4)


def test_the_wrong_number_of_scores_is_refused():
    with pytest.raises(ValueError, match="the reward gave 2 scores for 3 samples"):
        rewards.as_scores([1.0, 2.0], 3)


def test_the_world_and_the_tokenizer_fit_the_lengths_of_the_default_run(tok, corpus):
    """A BOS and nine words before, 22 words and an EOS after."""
    every = prompts.encode_prompts(tok, reviews.prompts(), 10)
    lengths = every.attention_mask.sum(1)
    assert lengths.max() <= 10
    assert np.all(every.tokens[np.arange(len(lengths)), 10 - lengths] == BOS)
    ps, rs = zip(*corpus, strict=True)
    batch = demonstrations.encode_demonstrations(tok, ps, rs, 10, 23)
    ends = Counter(batch.tokens[np.arange(len(ps)), 9 + batch.mask.sum(1)])
    assert ends == {EOS: len(ps)}
