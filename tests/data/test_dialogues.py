"""Dialogues as messages: the text that a chat template makes of them, and the rows that hold them."""

import itertools
import pathlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.methods import reward
from rlhf_jax.data import comparisons, demonstrations, dialogues, prompts, sources, tokenizer
from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.pipeline import pretrained, reading, texts

TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == "system" and not loop.first %}{{
raise_exception("a system message comes first") }}{% endif %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
ASK = [{"role": "user", "content": "hello"}]
LATER = [*ASK, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "how?"}]
END = lambda text: [{"role": "assistant", "content": text}]
HELLO = "<|user|>hello<eos>\n<|assistant|>"
HOW = "<|user|>hello<eos>\n<|assistant|>Hi.<eos>\n<|user|>how?<eos>\n<|assistant|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("chat")
    words = tokenizer.train(["hello how so"] * 9, 300, place)
    words.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    words.chat_template = TEMPLATE
    words.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def chat(folder):
    return dialogues.template(folder)


def rows(tmp_path, *them):
    sources.write_jsonl(tmp_path / "a.jsonl", them)
    return str(tmp_path / "a.jsonl")


LOOP = "{{ bos_token }}{% for m in messages %}"
TURNS = {
    "closed by a token of its own": LOOP
    + """<|{{ m.role }}|>{{ m.content | trim }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "a newline after the header": LOOP
    + """<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}""",
    "spaces on both sides, and EOS": LOOP
    + """{% if m.role == "assistant" %} {{ m.content }} {{ eos_token }}{%
else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}""",
    "thoughts before the answer": LOOP
    + """<|{{ m.role }}|>{% if m.role == "assistant" and loop.last %}<think>

</think>

{% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "no prompt for an answer": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}",
}


@pytest.fixture(scope="module", params=TURNS)
def closing(request, tmp_path_factory):
    """Tokenizers of chat models, whose turns end otherwise than their texts."""
    place = tmp_path_factory.mktemp("turns")
    words = tokenizer.train(["hello how so yes and no"] * 9, 320, place)
    marks = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>", "</think>"]
    words.add_special_tokens({"additional_special_tokens": marks})
    words.chat_template = TURNS[request.param]
    words.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("answer", ["yes and no", "so", "\nyes", "noEND", "no<eos>"])
def test_an_answer_stands_and_ends_as_the_template_writes_it(closing, answer):
    words, chat = tokenizer.load(closing), dialogues.template(closing)
    end = "<eos>" if "[INST]" in words.chat_template else "<|end|>"
    written, answer = answer.removesuffix("END").removesuffix("<eos>"), answer.replace("END", end)
    batch = demonstrations.encode_demonstrations(words, [chat(LATER)], [answer], 40, 24)
    ids = batch.tokens[0][batch.attention_mask[0]].tolist()
    whole = words.apply_chat_template(LATER + END(written), tokenize=False)
    assert words.decode(ids) == whole[: whole.rindex(end)] + end
    assert ids == words(whole, add_special_tokens=False)["input_ids"][: len(ids)]
    asked = batch.tokens[0, :40][batch.attention_mask[0, :40]].tolist()
    prompt = words.apply_chat_template(LATER, tokenize=False, add_generation_prompt=True)
    assert asked == words(prompt, add_special_tokens=False)["input_ids"]
    settings = SimpleNamespace(pretrained="", reference="")
    assert ids[-1] in pretrained.stops(settings, words)


def test_an_answer_that_brings_its_thoughts_is_given_no_empty_ones(tmp_path):
    words = tokenizer.train(["hello"], 300, tmp_path)
    words.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|end|>", "<think>", "</think>"]}
    )
    words.chat_template = TURNS["thoughts before the answer"]
    words.save_pretrained(tmp_path)
    prompt = dialogues.template(str(tmp_path))(ASK)
    answers = ["<think>hm</think>yes", "yes"]
    found = demonstrations.answer_ids(words, [prompt] * 2, answers)
    said = ["<think>hm</think>yes<|end|>", "<think>\n\n</think>\n\nyes<|end|>"]
    assert words.batch_decode(found) == said


def test_a_template_without_a_token_at_the_end_leaves_eos_and_both_sides_of_a_pair_have_it(
    tmp_path,
):
    words = tokenizer.train(["hello how"], 300, tmp_path)
    words.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    words.save_pretrained(tmp_path)
    path = rows(tmp_path, {"prompt": ASK, "chosen": END("a"), "rejected": END("b")})
    pairs, _ = comparisons.read_comparisons(path, chat=dialogues.template(str(tmp_path)))
    for side, text in zip(
        comparisons.encode_comparisons(words, pairs, 30, 20).sides, "ab", strict=True
    ):
        ids = side.tokens[0][side.attention_mask[0]]
        assert (
            words.decode(ids) == f"user: hello\n\nassistant: {text}<eos>"
        )  # and no BOS: none is written


def test_comparisons_of_dialogues_end_as_the_template_ends_an_answer(closing, tmp_path):
    words = tokenizer.load(closing)
    shapes = (
        {"prompt": LATER, "chosen": END("so"), "rejected": END("no")},
        {"messages": LATER, "responses": [END("no"), END("so")], "preference": 1},
    )
    pairs, _ = comparisons.read_comparisons(
        rows(tmp_path, *shapes), chat=dialogues.template(closing)
    )
    (end,) = dialogues.ends(words)
    for side in comparisons.encode_comparisons(words, pairs, 40, 20).sides:
        last = side.tokens[np.arange(2), 39 + side.mask.sum(1)]
        np.testing.assert_array_equal(last, end)
        assert np.all(side.attention_mask[:, 39])


RULE = [{"role": "system", "content": "so"}]
LONG = [{"role": "user", "content": "yes and no " * 9}]


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        (RULE + LATER, RULE + LATER),
        (RULE + LATER, RULE + LATER[2:]),
        (LATER + END("Yes.") + LATER, LATER[2:] + END("Yes.") + LATER),
        (RULE + LATER, LATER[2:]),
        (RULE + ASK + END("so") + LONG, [*RULE, LONG[0] | {"content": "yes and no yes and"}]),
    ],
)
def test_a_dialogue_that_is_too_long_loses_whole_messages_and_the_end_of_its_last_question(
    folder, messages, kept
):
    """System messages stay, and what remains is what the template writes of it."""
    words, chat = tokenizer.load(folder), dialogues.template(folder)
    written = words.apply_chat_template(kept, tokenize=False, add_generation_prompt=True)
    ids = words(written, add_special_tokens=False)["input_ids"]
    for length in (len(ids), len(ids) + 1):
        batch = prompts.encode_prompts(words, [chat(messages)], length)
        assert batch.tokens[0][batch.attention_mask[0]].tolist() == ids
    with pytest.raises(ValueError, match=r"data.prompt_length = 5 holds not one word"):
        prompts.encode_prompts(words, [chat(RULE + LATER)], 5)


def test_a_dialogue_travels_to_other_processes_as_its_text(chat):
    assert type(pickle.loads(pickle.dumps(chat(ASK)))) is str and chat(ASK) == HELLO


def test_a_prompt_is_what_the_template_writes_less_bos_and_its_marks_are_tokens(folder, chat):
    assert chat(ASK) == HELLO and chat(LATER) == HOW
    words = tokenizer.load(folder)
    ids = prompts.encode_prompts(words, [chat(ASK)], 16)
    said = words.convert_ids_to_tokens(ids.tokens[0][ids.attention_mask[0]])
    assert (
        said[:2] == ["<bos>", "<|user|>"] and said[-1] == "<|assistant|>"
    )  # one BOS, and no space after


def test_demonstrations_end_with_an_answer(tmp_path, chat):
    path = rows(
        tmp_path, {"messages": LATER + END("So.")}, {"prompt": ASK, "response": "Hi."},
        {"prompt": ASK, "response": END("Hi.")}, {"prompt": "p", "response": "r"}, {"text": "t"},
    )  # fmt: skip
    found = demonstrations.read_demonstrations(path, chat)
    groups = ["hello", "hello", "p", "t"]
    texts = [(HOW, "So."), (HELLO, "Hi."), ("p", "r"), ("", "t")]
    assert found == [(*pair, group) for pair, group in zip(texts, groups, strict=True)]


SHAREGPT = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "Hi."}]
PARTS = lambda text: [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]
SYSTEM = {"role": "system", "content": "be short"}
BE_SHORT = "<|system|>be short<eos>\n"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [SYSTEM, *ASK, *END("Hi.")]}, (BE_SHORT + HELLO, "Hi.", "hello")),
        ({"prompt": "hello", "messages": ASK + END("Hi.")}, (HELLO, "Hi.", "hello")),
        ({"prompt": "hello", "response": END("Hi.")}, (HELLO, "Hi.", "hello")),
        ({"prompt": ASK, "response": END("Hi.")[0]}, (HELLO, "Hi.", "hello")),
        ({"prompt": ASK, "response": LATER[1:] + END("So.")}, (HOW, "So.", "hello")),
        ({"conversations": SHAREGPT}, (HELLO, "Hi.", "hello")),
        ({"messages": [*END("Yes?"), *ASK, *END("Hi.")]},
         ("<|assistant|>Yes?<eos>\n" + HELLO, "Hi.", "hello")),
        ({"messages": [{"role": "user", "content": PARTS("hello")},
                       {"role": "model", "content": PARTS("Hi.")}]}, (HELLO, "Hi.", "hello")),
    ],
)  # fmt: skip
def test_a_corpus_of_dialogues_in_every_shape(tmp_path, chat, row, expected):
    assert demonstrations.read_demonstrations(rows(tmp_path, row), chat) == [expected]
    named = demonstrations.CorpusFields(prompt="asked", response="said")
    row = {{"prompt": "asked", "response": "said"}.get(k, k): x for k, x in row.items()}
    assert demonstrations.read_demonstrations(rows(tmp_path, row), chat, named) == [expected]


def test_comparisons_of_answers_in_every_shape_are_grouped_by_the_first_question(tmp_path, chat):
    path = rows(
        tmp_path,
        {"prompt": LATER, "chosen": END("a"), "rejected": END("b")},
        {"chosen": LATER + END("a"), "rejected": LATER + END("b")},
        {"prompt": LATER, "responses": ["b", "a"], "preference": 1},
        {"messages": LATER, "responses": [END("b"), END("a")], "preference": 1},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    )
    found, _ = comparisons.read_comparisons(path, chat=chat)
    assert found == [Comparison(HOW, "a", "b", "hello")] * 4 + [Comparison("p", "a", "b", "p")]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": ASK + END("a"), "rejected": ASK + END("b")},
        {"prompt": "hello", "chosen": ASK + END("a"), "rejected": ASK + END("b"), "score_chosen": 8.0},
        {"prompt": "hello", "prompt_id": "x", "chosen": ASK + END("a"), "rejected": ASK + END("b"),
         "messages": ASK + END("a")},  # UltraFeedback
        {"prompt": "other words", "chosen": ASK + END("a"), "rejected": ASK + END("b")},
        {"prompt": "", "chosen": ASK + END("a"), "rejected": ASK + END("b")},
        {"prompt": None, "chosen": ASK + END("a"), "rejected": "b"},
        {"prompt": ASK, "chosen": END("a"), "rejected": END("b")},
        {"prompt": "hello", "chosen": END("a"), "rejected": END("b")},
        {"prompt": ASK, "chosen": "a", "rejected": "b"},
        {"prompt": ASK, "chosen": ASK + END("a"), "rejected": ASK + END("b")},
        {"conversations": SHAREGPT[:1], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        {"chosen": [{"role": "user", "content": PARTS("hello")}, *END("a")], "rejected": ASK + END("b")},
        {"prompt": "hello", "responses": [ASK + END("b"), ASK + END("a")], "preference": 1},
        {"messages": ASK + END("a"), "responses": ["b", END("a")], "preference": 1.0},
    ],
)  # fmt: skip
def test_the_same_comparison_in_every_shape_of_dialogues(tmp_path, chat, row):
    found, ties = comparisons.read_comparisons(rows(tmp_path, row), chat=chat)
    assert (found, ties) == ([Comparison(HELLO, "a", "b", "hello")], 0)


def test_a_field_map_names_fields_of_dialogues(tmp_path, chat):
    row = {"conversation_a": ASK + END("a"), "conversation_b": ASK + END("b"), "winner": 0}
    fields = comparisons.ComparisonFields(
        responses="conversation_a,conversation_b", preference="winner"
    )
    found, _ = comparisons.read_comparisons(rows(tmp_path, row | {"prompt": ""}), fields, chat=chat)
    assert found == [Comparison(HELLO, "a", "b", "hello")]


def test_prompts_of_a_world_are_dialogues_and_what_answers_a_held_out_one_is_left_out(
    tmp_path, chat, capsys
):
    ask = lambda i: [{"role": "user", "content": f"question {i}"}]
    asked = rows(tmp_path, *({"messages": ask(i) + END("Hi.")} for i in range(40)))
    sources.write_jsonl(
        tmp_path / "b.jsonl",
        [{"prompt": ask(i), "chosen": "x", "rejected": "y"} for i in range(40)],
    )
    cfg = texts.DataConfig(
        corpus=asked, comparisons=str(tmp_path / "b.jsonl"), prompts=asked, held_out=0.25
    )
    read = reading.from_files(cfg, 0, chat)
    held_out, learned = (
        {row.prompt for row in read.rows_held_out},
        {p for p, _ in read.corpus + read.corpus_held_out},
    )
    assert held_out and all(p.startswith("<|user|>question") for p in held_out | learned)
    assert not held_out & learned and learned == {row.prompt for row in read.rows}
    pairs = read.pairs
    assert {c.prompt for c in pairs.held_out} == held_out
    assert {c.prompt for c in pairs.train} == {row.prompt for row in read.rows}
    assert f"left out: {len(held_out)} of 40 rows of data.corpus" in capsys.readouterr().out


WAYS = {  # a dialogue of one question and one answer
    "texts": lambda q, a: {"prompt": q, "response": a},
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, *END(a)]},
    "in a template": lambda q, a: {"text": f"<|user|>{q}<eos>\n<|assistant|> {a}<eos>\n"},
    "HH": lambda q, a: {"text": f"\n\nHuman: {q}\n\nAssistant: {a}"},
    "one text": lambda q, a: {"text": f"{q} {a}"},
    "cut elsewhere": lambda q, a: {"prompt": q[:4], "response": f"{q[5:]} {a}"},
    "other words round the prompt": lambda q, a: {"prompt": f"Question: {q}", "response": a},
    "the answer alone": lambda q, a: {"text": a},
}
PAIRS = {
    "texts": lambda q, a, b: {"prompt": f"{q} ", "chosen": a, "rejected": b},
    "a text and dialogues": lambda q, a, b: {
        "prompt": q,
        "chosen": WAYS["messages"](q, a)["messages"],
        "rejected": WAYS["messages"](q, b)["messages"],
    },
    "messages": lambda q, a, b: {
        "prompt": [{"role": "user", "content": q}], "responses": [a, b], "preference": 0
    },
    "HH": lambda q, a, b: {
        "chosen": WAYS["HH"](q, a)["text"], "rejected": WAYS["HH"](q, b)["text"]
    },
    "no prompt": lambda q, a, b: {"chosen": f"{q} {a}", "rejected": f"{q} {b}"},
}  # fmt: skip
UNKNOWN = [
    *(("in a template", kind) for kind in ("HH", "texts", "no prompt")),
    *((way, "no prompt") for way in ("messages", "HH")),
    *((way, "no prompt") for way in ("other words round the prompt", "the answer alone")),
]
"""Ways that have other words than the pairs, which do not tell where an answer begins."""


@pytest.fixture
def seen(tmp_path, chat):
    """`seen(way, kind, read)`: question and answers that are learned, and those of held-out comparisons."""

    def numbers(texts):
        return {
            int(word) for text in texts for word in text.replace("<", " ").split() if word.isdigit()
        }

    def of(way, kind, read):
        asked = [f"how{chr(97 + i % 16)} {i} now" for i in range(32)]
        answers = [(f"so {1000 + i} then", f"not {2000 + i} ever") for i in range(32)]
        corpus = [WAYS[way](q, a[0]) for q, a in zip(asked, answers, strict=True)]
        sources.write_jsonl(tmp_path / "corpus", corpus)
        sources.write_jsonl(
            tmp_path / "pairs", [PAIRS[kind](q, *a) for q, a in zip(asked, answers, strict=True)]
        )
        sources.write_jsonl(tmp_path / "prompts", [{"prompt": q} for q in asked])
        learned, held_out = read(str(tmp_path / "corpus"), str(tmp_path / "pairs"))
        return tuple({n % 1000 for n in numbers(texts)} for texts in (learned, held_out))

    return of


def of_reward(corpus, pairs, chat):
    cfg = texts.DataConfig(comparisons=pairs, corpus=corpus, held_out=0.3)
    read = reading.from_files(cfg, 0, chat, reward.config.needs())
    assert read.pairs is not None and read.pairs.halves == (read.pairs.train, [])
    learned = [text for row in read.corpus + read.corpus_held_out for text in row]
    learned += [text for c in read.pairs.train for text in c[:3]]
    return learned, [text for c in read.pairs.held_out for text in c[:3]]


def of_world(corpus, pairs, chat):
    prompts = str(pathlib.Path(pairs).parent / "prompts")
    cfg = texts.DataConfig(corpus=corpus, comparisons=pairs, prompts=prompts, held_out=0.3)
    read = reading.from_files(cfg, 0, chat)
    compared = read.pairs
    assert sorted(compared.train) == sorted([*compared.halves[0], *compared.halves[1]])
    learned = [text for row in read.corpus + read.corpus_held_out for text in row]
    learned += [text for c in compared.train for text in c[:3]]
    return learned, [
        *(row.prompt for row in read.rows_held_out),
        *(text for c in compared.held_out for text in c[:3]),
    ]


@pytest.mark.parametrize("read", [of_reward, of_world])
@pytest.mark.parametrize(
    ("way", "kind"), [both for both in itertools.product(WAYS, PAIRS) if both not in UNKNOWN]
)
def test_no_text_of_what_is_held_out_teaches_anything(seen, chat, way, kind, read):
    learned, held_out = seen(way, kind, lambda corpus, pairs: read(corpus, pairs, chat))
    assert not learned & held_out
    assert len(held_out) > 3 and learned | held_out == set(range(32))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": LATER + END("a"), "rejected": ASK + END("b")}, "differ before their last message"),
        ({"chosen": [SYSTEM, *ASK, *END("a")], "rejected": ASK + END("b")}, "differ before their last"),
        ({"prompt": LATER, "chosen": ASK + END("a"), "rejected": ASK + END("b")},
         "'chosen' does not begin with the dialogue in the prompt"),
        ({"prompt": ASK + END("a"), "chosen": "a", "rejected": "b"}, "'prompt' ends with the assistant"),
        ({"chosen": ASK, "rejected": ASK}, "'chosen' ends with the role 'user'"),
        ({"chosen": [*ASK, {"role": "assistant", "content": None, "tool_calls": []}], "rejected": "b"},
         "message 2 of 'chosen' needs a role and a text"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"},
         "message 1 of 'prompt' needs a role and a text"),
        ({"prompt": [*ASK, "how?"], "chosen": "a", "rejected": "b"}, "message 2 of 'prompt' needs"),
        ({"prompt": ASK, "chosen": None, "rejected": "b"}, "field 'chosen' must be a string, and is null"),
        ({"prompt": [*ASK, {"role": "system", "content": "x"}], "chosen": "a", "rejected": "b"},
         "this is a dialogue, and the chat template refuses it: a system message comes first"),
    ],
)  # fmt: skip
def test_what_no_template_writes_is_refused_with_its_line(tmp_path, chat, row, words):
    path = rows(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(ValueError, match=f"a.jsonl:2: .*{words}"):
        comparisons.read_comparisons(path, chat=chat)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": LATER}, "the dialogue does not end with an answer of the assistant"),
        (
            {"conversations": SHAREGPT[:1]},
            "the dialogue does not end with an answer of the assistant",
        ),
        (
            {"prompt": ASK, "completion": END("a")},
            "'completion': name yours with data.corpus_fields",
        ),
        ({"prompt": ASK, "response": [*END("a"), *ASK]}, "'response' ends with the role 'user'"),
    ],
)
def test_a_dialogue_without_an_answer_is_no_text_to_learn(tmp_path, chat, row, words):
    with pytest.raises(ValueError, match=f"a.jsonl:1: .*{words}"):
        demonstrations.read_demonstrations(rows(tmp_path, row), chat)


def test_prompts_have_a_field_map_and_keep_their_columns(tmp_path, chat):
    def read(*them, **fields):
        cfg = texts.DataConfig(
            prompts=rows(tmp_path, *them), prompts_fields=texts.PromptFields(**fields)
        )
        return [tuple(asked) for asked in reading.read_prompts(cfg, chat)]

    gsm8k = {"question": "1 + 1?", "answer": "2"}
    assert read(gsm8k, gsm8k, prompt="question") == [("1 + 1?", {"answer": "2"}, "1 + 1?")]
    alpaca = {"instruction": "add", "input": "1, 1", "output": "2"}
    found = read(alpaca, alpaca | {"input": None}, prompt="instruction,input")
    assert found == [("add\n1, 1", {"output": "2"}, "add 1, 1"), ("add", {"output": "2"}, "add")]
    assert read({"article": "a b c d e f", "prompt": "p"}, text="article") == [
        ("a b c d", {"prompt": "p"}, "a b c d")
    ]
    assert read({"text": "a b c d e f"}) == [("a b c d", {}, "a b c d")]
    assert [x[::2] for x in read({"messages": LATER}, {"asked": "p"}, prompt="asked")] == [
        (HOW, "hello"),
        ("p", "p"),
    ]
    for row in ({"prompt": ""}, {"prompt": None}, {"text": " "}):
        with pytest.raises(ValueError, match=r"a.jsonl:1: the prompt is empty"):
            read(row)
    with pytest.raises(ValueError, match=r"a.jsonl:1: field 'prompt' is missing"):
        read(gsm8k)


def test_a_tokenizer_without_a_template_is_named(tmp_path, folder):
    path = rows(tmp_path, {"prompt": ASK, "chosen": "a", "rejected": "b"})
    with pytest.raises(
        ValueError, match=r"a.jsonl:1: .* a tokenizer that is trained here has no chat"
    ):
        comparisons.read_comparisons(path)
    words = tokenizer.load(folder)
    words.chat_template = None
    words.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    plain = dialogues.template(str(tmp_path / "plain"))
    with pytest.raises(ValueError, match=r'the tokenizer ".*plain" has no chat template: name'):
        comparisons.read_comparisons(path, chat=plain)
