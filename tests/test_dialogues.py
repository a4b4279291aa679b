"""Dialogues as messages: the text that a chat template makes of them, and the rows that hold them."""

import pytest

from experiments import worlds
from rlhf_jax.data import comparisons, demonstrations, dialogues, prompts, sources, tokenizer
from rlhf_jax.data.comparisons import Comparison

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


@pytest.fixture
def chat(folder):
    return dialogues.template(folder)


def rows(tmp_path, *them):
    sources.write_jsonl(tmp_path / "a.jsonl", them)
    return str(tmp_path / "a.jsonl")


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
    assert found == [(HOW, "So."), (HELLO, "Hi."), ("p", "r"), ("", "t")]
    with pytest.raises(ValueError, match=r"a.jsonl:1: field 'text' is wanted"):
        demonstrations.read_demonstrations(rows(tmp_path, {"messages": LATER}), chat)


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


def test_prompts_of_a_world_are_dialogues_and_what_answers_a_held_out_one_is_left_out(
    tmp_path, chat, capsys
):
    ask = lambda i: [{"role": "user", "content": f"question {i}"}]
    asked = rows(tmp_path, *({"messages": ask(i) + END("Hi.")} for i in range(40)))
    sources.write_jsonl(
        tmp_path / "b.jsonl",
        [{"prompt": ask(i), "chosen": "x", "rejected": "y"} for i in range(40)],
    )
    cfg = worlds.DataConfig(
        corpus=asked, comparisons=str(tmp_path / "b.jsonl"), prompts=asked, held_out=0.25
    )
    world = worlds.from_files(cfg, 0, chat)
    held_out, learned = (
        set(world.prompts_held_out),
        {p for p, _ in world.corpus + world.corpus_held_out},
    )
    assert held_out and all(p.startswith("<|user|>question") for p in held_out | learned)
    assert not held_out & learned and learned == set(world.prompts)
    assert not held_out & {c.prompt for c in world.comparisons(None, None)}
    assert f"left out: {2 * len(held_out)} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": LATER + END("a"), "rejected": ASK + END("b")}, "differ before their last message"),
        ({"prompt": [*ASK, {"role": "system", "content": "x"}], "chosen": "a", "rejected": "b"},
         "this is a dialogue, and the chat template refuses it: a system message comes first"),
    ],
)  # fmt: skip
def test_what_no_template_writes_is_refused_with_its_line(tmp_path, chat, row, words):
    path = rows(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(ValueError, match=f"a.jsonl:2: .*{words}"):
        comparisons.read_comparisons(path, chat=chat)


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
