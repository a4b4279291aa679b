"""Every answer of a dialogue as something to learn, against rows that end with one answer each."""

import dataclasses
import itertools

import numpy as np
import pytest

from rlhf_jax.data import demonstrations, dialogues, prompts, sources, tokenizer
from rlhf_jax.pipeline import reuse, texts

LOOP = "{{ bos_token }}{% for m in messages %}"
GENERATED = """{% if m.role == "assistant" %}<|assistant|>
{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}<|{{ m.role }}|>
{{ m.content }}<|end|>{% endif %}
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
TEMPLATES = {
    "marks": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "white space is trimmed, BOS is not written": "{% for m in messages %}<|{{ m.role }}|>\n\n"
    "{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}",
    "no prompt for an answer": LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}",
    "EOS after answers alone": LOOP + '{% if m.role == "assistant" %} {{ m.content }}{{ eos_token }}'
    "{% else %}[{{ m.role }}] {{ m.content }} [/]{% endif %}{% endfor %}",
    "a header in words, and text after the answer": LOOP + "{{ m.role }} says: {{ m.content }} (over)"
    "<|end|>\n\n{% endfor %}{% if add_generation_prompt %}assistant says: {% endif %}",
    "empty thoughts in each answer": LOOP + '<|{{ m.role }}|>{% if m.role == "assistant" %}<think>\n\n'
    "</think>\n\n{% endif %}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "answers are named": LOOP + GENERATED,
}  # fmt: skip
LATE = (
    LOOP
    + """<|{{ m.role }}|>{% if m.role == "assistant" and loop.last %}<think></think>{% endif %}{{
m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
)
P, T = 240, 40


def saved(place, template):
    words = tokenizer.train(["hello how so yes and no says over"] * 9, 330, place)
    marks = [f"<|{x}|>" for x in ("user", "assistant", "system", "end")] + ["<think>", "</think>"]
    words.add_special_tokens({"additional_special_tokens": marks})
    words.chat_template = template
    words.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    of = lambda name, text: saved(tmp_path_factory.mktemp("turns"), text)
    return {name: of(name, text) for name, text in [*TEMPLATES.items(), ("late", LATE)]}


def dialogue(seed: int, spaces: bool = True) -> list[dict]:
    """Messages of one to four questions and answers, some with a system message or two questions."""
    rng = np.random.default_rng(seed)
    text = lambda: " ".join(
        rng.choice(["hello", "how", "so", "yes", "and", "no"], rng.integers(1, 4))
    )
    message = lambda role, text: {"role": role, "content": text}
    found = [message("system", text())] if rng.random() < 0.5 else []
    for _ in range(rng.integers(1, 5)):
        found += [message("user", text()) for _ in range(rng.integers(1, 3))]
        space = str(rng.choice(["", "\n", " "])) if spaces else ""
        found.append(message("assistant", space + text() + space))
    return found


def encoded(words, chat, messages, turns, length=P):
    prompt, answer = chat(messages[:-1]), messages[-1]["content"]
    return demonstrations.encode_demonstrations(words, [prompt], [answer], length, T, answers=turns)


def runs(rows):
    """The ids of each run of learned tokens in the first row."""
    learned = np.pad(rows.mask[0], (rows.tokens.shape[1] - rows.mask.shape[1], 0))
    parts = itertools.groupby(zip(learned, rows.tokens[0], strict=True), key=lambda x: x[0])
    return [[int(id) for _, id in part] for is_learned, part in parts if is_learned]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_answer_is_learned_as_in_a_row_that_ends_with_it(folders, name, seed):
    words, chat = tokenizer.load(folders[name]), dialogues.template(folders[name])
    messages = dialogue(seed)
    found = encoded(words, chat, messages, "all")
    assert found.mask.shape == (1, P + T - 1)
    one_each = [  # rendered turn by turn
        runs(encoded(words, chat, messages[: i + 1], "last"))
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    assert runs(found) == [run for row in one_each for run in row]

    last = encoded(words, chat, messages, "last")  # and the text is the template's
    real, same = (x.tokens[0][x.attention_mask[0]] for x in (found, last))
    assert words.decode(real) == words.decode(same)
    assert np.all(np.diff(found.attention_mask[0, :P].astype(int)) >= 0)


@pytest.mark.parametrize("seed", range(6))
def test_answers_that_a_template_names_are_those_that_transformers_finds(folders, seed):
    name = "answers are named"
    words, chat = tokenizer.load(folders[name]), dialogues.template(folders[name])
    messages = dialogue(seed, spaces=False)
    found = encoded(words, chat, messages, "all")
    want = words.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    size = found.attention_mask.sum()
    assert found.tokens[0][found.attention_mask[0]].tolist() == want["input_ids"][:size]
    learned = np.pad(found.mask[0], (1, 0))[found.attention_mask[0]]
    assert learned.astype(int).tolist() == want["assistant_masks"][:size]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_dialogue_that_is_too_long_is_shortened_to_what_fits(folders, name):
    words, chat = tokenizer.load(folders[name]), dialogues.template(folders[name])
    messages = [x for seed in range(3) for x in dialogue(seed) if x["role"] != "system"]
    prompt, sizes = chat(messages[:-1]), set()
    count = lambda rows: rows.attention_mask[0, :-T].sum()
    whole = count(encoded(words, chat, messages, "all"))
    for length in range(whole, whole - 60, -7):
        found = encoded(words, chat, messages, "all", length)
        for room in itertools.count(length, -1):  # the first that fits, answers encoded apart
            kept = prompt if length == whole else prompts.shortened(words, prompt, room)
            want = encoded(words, chat, [*kept.messages, messages[-1]], "all")
            if count(want) <= length:
                break
        assert room > length - 9 and found.tokens.shape == (1, length + T)
        for a, b in zip(found, want, strict=True):
            np.testing.assert_array_equal(a[0, -length - T + 1 :], b[0, -length - T + 1 :])
        sizes.add(len(runs(found)))
    assert len(sizes) > 1


def test_a_greeting_before_the_first_question_and_plain_texts_are_as_they_were(folders):
    words, chat = tokenizer.load(folders["marks"]), dialogues.template(folders["marks"])
    greeting = {"role": "assistant", "content": "hello"}
    messages = [greeting, {"role": "user", "content": "how"}, greeting]
    assert len(runs(encoded(words, chat, messages, "all"))) == 1
    texts = ["how", "", chat(messages[:-1])], ["so", "yes and", "no"]
    both = [
        demonstrations.encode_demonstrations(words, *texts, P, T, answers=x)
        for x in ("last", "all")
    ]
    np.testing.assert_array_equal(both[0].tokens, both[1].tokens)
    np.testing.assert_array_equal(both[0].mask, both[1].mask[:, P - 1 :])
    assert not both[1].mask[:, : P - 1].any()


def test_a_mark_that_an_answer_spells_out_is_no_end(folders):
    words, chat = tokenizer.load(folders["marks"]), dialogues.template(folders["marks"])
    messages = dialogue(3)
    first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    messages[first] = {"role": "assistant", "content": "so<|end|>no"}
    run, *_ = runs(encoded(words, chat, messages, "all"))
    assert run.count(words.convert_tokens_to_ids("<|end|>")) == 1


def corpus(tmp_path, *rows):
    path = tmp_path / "a.jsonl"
    sources.write_jsonl(path, [x if isinstance(x, dict) else {"messages": x} for x in rows])
    return str(path)


ONE, TWO = (
    [{"role": role, "content": x} for x in said for role in ("user", "assistant")]
    for said in (["hello"], ["how", "so"])
)


def test_a_template_that_writes_earlier_answers_otherwise_is_refused_with_the_line(
    folders, tmp_path
):
    path, chat = corpus(tmp_path, ONE, TWO), dialogues.template(folders["late"])
    assert len(demonstrations.read_demonstrations(path, chat)) == 2
    words = r"a.jsonl:2: the chat template writes message 2, an answer, otherwise once another .* data.turns"
    with pytest.raises(ValueError, match=words):
        demonstrations.read_demonstrations(path, chat, answers="all")
    bare = saved(tmp_path / "bare", LOOP + "{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(ValueError, match=r"a.jsonl:2: .* without a token at its end"):
        demonstrations.read_demonstrations(path, dialogues.template(bare), answers="all")


def test_turns_without_dialogues_or_a_corpus_are_refused(folders, tmp_path):
    path = corpus(tmp_path, {"prompt": "p", "response": "r"}, {"text": "t"})
    with pytest.raises(
        ValueError, match=r'data.turns = "all" has no effect because no row is a dia'
    ):
        demonstrations.read_demonstrations(path, answers="all")
    cfg = texts.DataConfig(turns="all", comparisons="c.jsonl")
    with pytest.raises(ValueError, match=r'data.turns = "all" says what is learned'):
        texts.check_files(cfg, texts.ALL)
    assert "turns" in reuse.OF_FILES


def test_no_earlier_answer_of_what_is_held_out_is_learned(folders, tmp_path):
    """Comparisons hold an answer out that a dialogue of the corpus gives early on."""
    chat = dialogues.template(folders["marks"])
    say = lambda *said: [
        {"role": role, "content": x}
        for role, x in zip(itertools.cycle(("user", "assistant")), said, strict=False)
    ]
    rows = [say(f"q{i}", f"a{i}", "so", "yes") for i in range(24)]
    path = corpus(tmp_path, *rows)
    pairs = [{"prompt": f"other{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(24)]
    sources.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    cfg = texts.DataConfig(
        corpus=path, comparisons=str(tmp_path / "pairs.jsonl"), held_out=0.3, turns="all"
    )
    read = texts.from_files(cfg, 0, chat, texts.Needs(("corpus", "comparisons")))
    held_out = {c.chosen for c in read.pairs.held_out}
    learned = {
        answer
        for demo in read.corpus + read.corpus_held_out
        for _, answer in demonstrations.taught(*demo, "all")
    }
    assert held_out and not held_out & learned
    cfg = dataclasses.replace(cfg, turns="last")
    read = texts.from_files(cfg, 0, chat, texts.Needs(("corpus", "comparisons")))
    assert len(read.corpus + read.corpus_held_out) == 24
