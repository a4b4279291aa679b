"""Conversations in the terminal: their dialogues, their commands, and what interrupts them."""

import io
import re
from functools import partial

import pytest
import talkers
from rich.console import Console

from rlhf_jax.pipeline import keys, speakers
from rlhf_jax.pipeline.conversation import CONTROLS, Conversation
from rlhf_jax.pipeline.token_stream import Token

USER, ANSWER = "<|user|>{}<eos>\n", "<|assistant|>{}<eos>\n"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = talkers.written(tmp_path_factory.mktemp("chat"), talkers.TEMPLATE)
    return speakers.of_model(folder)._replace(name="chat")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = talkers.written(tmp_path_factory.mktemp("plain"), seed=1)
    return speakers.of_model(folder)._replace(name="plain")


class Spy:
    """A policy that says what it is told to, and keeps the prompts that it read."""

    def __init__(self, speaker, *texts, scores=None):
        self.read, self.texts, self.words = [], [*texts], speaker.words
        self.speaker = speaker._replace(stream=self.stream, scores=scores or {})

    def stream(self, ids, cfg, key, index=0, draw=0, top=0):
        self.read.append(self.words.decode(ids))
        text = self.texts.pop(0) if self.texts else "yes"
        for id in self.words(text.replace("\x03", "?"), add_special_tokens=False)["input_ids"]:
            if self.words.decode([id]) == "?":
                raise KeyboardInterrupt
            yield Token(id, -0.5, (), False)
        yield Token(self.words.eos_token_id, -0.5, (), True)


def talk(*policies, lines, **settings):
    """What a conversation prints, where no terminal is."""
    out = io.StringIO()
    console = Console(file=out, highlight=False, **settings)
    told = {"temperature": None, "length": None, "seed": 0}
    Conversation([*policies], console, **told).run(lines)
    return out.getvalue()


def test_a_dialogue_is_kept_until_it_is_forgotten(chat):
    spy = Spy(chat, "one", "two", "three")
    said = talk(spy.speaker, lines=["a", "b", "", "/reset", "c", "/quit", "d"])
    assert spy.read == [
        "<bos>" + USER.format("a") + "<|assistant|>",
        "<bos>" + USER.format("a") + ANSWER.format("one") + USER.format("b") + "<|assistant|>",
        "<bos>" + USER.format("c") + "<|assistant|>",
    ]
    note = "[4 tokens, log-probability -2.00]"
    assert said.splitlines() == [
        "one",
        note,
        "two",
        note,
        "three",
        note.replace("4", "6").replace("2.00", "3.00"),
    ]


def test_without_a_template_each_prompt_is_alone(plain):
    spy = Spy(plain)
    talk(spy.speaker, lines=["a", "b", "  /c "])
    assert spy.read == ["<bos>a", "<bos>b", "<bos>/c"]


def test_oldest_messages_are_left_out_where_they_do_not_fit(chat):
    spy = Spy(chat)
    said = talk(spy.speaker, lines=["/length 20", "x" * 50, "y" * 50, "z" * 200, "w"])
    first, second, last = spy.read
    assert "x" in first and "x" not in second and "y" in last and "x" not in last
    assert said.count("without the 2 oldest messages") == 1
    assert (
        "error: the prompt has 205 tokens and the answer may have 20, and the model has 128" in said
    )


def test_two_policies_answer_each_in_its_own_dialogue(chat):
    one, two = Spy(chat, "first"), Spy(chat, "second")
    said = talk(one.speaker, two.speaker._replace(name="other"), lines=["a", "b"])
    assert "first" in one.read[1] and "second" in two.read[1] and "first" not in two.read[1]
    lines = said.splitlines()
    assert lines[:2] == ["chat", "first"] and lines[3:5] == ["other", "second"]


def test_side_by_side_they_stand_in_two_columns_of_a_terminal(chat):
    one, two = Spy(chat, "first"), Spy(chat, "second\x1b[2J")
    said = talk(
        one.speaker, two.speaker._replace(name="other"), lines=["a"],
        force_terminal=True, width=100, color_system=None,
    )  # fmt: skip
    last = said[said.rfind("chat") :].splitlines()
    assert last[0].split() == ["chat", "other"]
    assert last[1].split()[0] == "first" and "second\ufffd[2J" in last[1]
    assert said.count("log-probability") == 2
    below = talk(one.speaker, two.speaker, lines=["a"], force_terminal=True, width=50)
    assert "yes" in below and "\x1b[2K\x1b[1A" not in below


def test_what_steers_a_terminal_is_not_printed(plain):
    assert talk(Spy(plain, "\n a\x1b[2Jb\rc\td\ne").speaker, lines=["x"]).startswith(
        "a\ufffd[2Jb\ufffdc\td\ne\n["
    )


def test_an_interrupted_answer_is_not_kept_and_the_conversation_goes_on(chat):
    spy = Spy(chat, "ab\x03cd", "yes", scores={"reward": lambda *_: 1.5})
    said = talk(spy.speaker, lines=["one", "two"])
    assert said.splitlines()[:2] == ["ab", "[2 tokens, interrupted, log-probability -1.00]"]
    assert "[4 tokens, log-probability -2.00, reward 1.50]" in said
    assert "one" not in spy.read[1]
    one, two = Spy(chat, "ab"), Spy(chat, "c\x03d")
    terminal = {"force_terminal": True, "width": 100, "color_system": None}
    said = talk(one.speaker, two.speaker, lines=["one", "two"], **terminal)
    assert said.count("interrupted, log-probability") == 2 and said.count("[4 tokens") == 2
    assert "one" not in one.read[1] and "one" not in two.read[1]


def test_scores_see_the_prompt_all_ids_and_the_answer(chat):
    seen = []
    scores = {"reward": lambda *x: seen.append(x), "gold": lambda *x: 2.0}
    said = talk(Spy(chat, " yes ", scores=scores).speaker, lines=["hello"])
    ((prompt, ids, answer),) = seen
    assert (prompt, answer) == ("hello", "yes") and "reward" not in said and "gold 2.00" in said
    text = "<bos>" + USER.format("hello") + "<|assistant|> yes <eos>"
    assert chat.words.decode(ids) == text


def test_commands_change_how_answers_are_drawn(plain):
    ids = plain.ids("x", 16)

    def answer(index, temperature=1.0, seed=0):
        cfg = plain.sample.__class__(length=16, temperature=temperature, stop=plain.sample.stop)
        tokens = plain.stream(ids, cfg, keys.key_of(seed, "people"), index)
        kept = [x.id for x in tokens if not x.stops]
        return plain.words.decode(kept).lstrip().translate(CONTROLS)

    lines = ["/length 16", "x", "x", "/seed 0", "x", "/temperature 0", "x"]
    said = talk(plain, lines=[*lines, "/seed 1", "/temperature 1", "x"])
    *answers, rest = re.split(r"\n\[.*\]\n", said)
    want = [answer(0), answer(1), answer(0), answer(1, temperature=0.0), answer(0, seed=1)]
    assert answers == want and len({*answers}) == 4 and not rest


def test_in_an_episode_of_several_turns_the_lines_are_those_of_a_transcript(plain):
    """Each line follows a space, and a turn of the policy ends with EOS where it is not cut."""
    ids = lambda text: plain.words(text, add_special_tokens=False)["input_ids"]
    bos, eos = [plain.words.bos_token_id], [plain.words.eos_token_id]
    say = lambda role, *said: [{"role": role, "content": x} for x in said]
    messages = [*say("user", "hello"), *say("assistant", "what  milk"), *say("user", "> oat")]
    read = partial(speakers.episode, plain.words, 11)
    want = bos + ids("hello what milk") + eos + ids(" > oat")
    assert read(messages) == want and read(messages[:1]) == bos + ids("hello")
    assert speakers.episode(plain.words, 4, messages) == bos + ids("hello wha") + ids(" > oat")
    with pytest.raises(ValueError, match="must take turns"):
        read([*messages, *say("user", "and")])
    spy = Spy(plain, "one", "two")
    told = spy.speaker._replace(encode=read, forgets=False)
    said = talk(told, lines=["hello", "> oat", "x" * 128])
    assert spy.read == ["<bos>hello", "<bos>hello one<eos> > oat"]
    assert "error: the prompt has" in said and "oldest" not in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/temp 0", "/temp is no command: /help lists them"),
        ("/temperature", "/temperature needs a number"),
        ("/temperature hot", "/temperature needs a number"),
        ("/temperature -1", "/temperature -1: it must be 0 or more"),
        ("/temperature nan", "finite number"),
        ("/length 0", "/length 0: it must be"),
        ("/seed 1 2", "/seed is no command"),
        ("/", "/ is no command"),
        ("/help", "/temperature X"),
    ],
)
def test_a_line_that_means_nothing_is_told_and_the_next_is_answered(plain, line, words):
    said = talk(Spy(plain).speaker, lines=[line, "x"])
    assert words in said and "yes\n[4 tokens" in said
