"""A conversation in the terminal: lines in, answers that appear as they are sampled, and their scores."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_jax import bounds
from rlhf_jax.pipeline import keys, token_stream
from rlhf_jax.pipeline.speakers import Message, Speaker
from rlhf_jax.pipeline.token_stream import Piece, Token

HELP = """\
/temperature X   sample at this temperature; 0: always the likeliest token
/length N        at most so many tokens an answer
/seed N          draw anew: the same lines after the same seed get the same answers
/reset           forget the dialogue
/quit            end, like Ctrl-D; Ctrl-C ends an answer"""
KINDS = {"temperature": (float, bounds.NonNegative), "length": (int, bounds.Count)}
KINDS |= {"seed": (int, bounds.Seed)}
"""Settings that a line changes, with their types and bounds."""
CONTROLS = {n: token_stream.UNKNOWN for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}
"""Characters that would steer the terminal, and what is shown in their place."""
NARROW = 60
"""Columns of a terminal in which two answers stand below each other."""


def lines(console: Console) -> Iterator[str]:
    """The lines that a person types, or those of standard input where it is no terminal."""
    if not sys.stdin.isatty():
        for line in map(str.rstrip, sys.stdin):
            console.print(f"> {line}", markup=False, highlight=False, soft_wrap=True)
            yield line
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines and keeps their history
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            console.print("\n/quit or Ctrl-D ends", style="dim")
        except EOFError:
            console.print()
            return


@dataclass
class Answer:
    """An answer as far as it has come."""

    speaker: Speaker
    prompt: str
    messages: list[Message]  # of the dialogue, up to the answer
    ids: list[int]  # of the prompt
    pieces: Iterator[Piece]
    forgotten: int  # oldest messages that did not fit
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str = ""

    def grow(self) -> str:
        """The next text that can be shown; empty at the end."""
        while (piece := next(self.pieces, None)) is not None:
            self.tokens += piece.tokens
            self.finish = piece.finish
            new = piece.text if self.text else piece.text.lstrip()
            self.text += new
            if new:
                return new.translate(CONTROLS)
        return ""

    def note(self) -> str:
        """Length, log-probability and scores, in one line."""
        said = self.text.strip()
        parts = [f"{len(self.tokens)} token{'s' * (len(self.tokens) != 1)}"]
        parts += {"length": ["cut there"], "": ["interrupted"]}.get(self.finish, [])
        parts += [f"log-probability {sum(x.logprob for x in self.tokens):.2f}"]
        read = [*self.ids, *(x.id for x in self.tokens)]
        for name, score in self.speaker.scores.items() if self.finish else ():
            if (value := score(self.prompt, read, said)) is not None:
                parts.append(f"{name} {value:.2f}")
        if self.forgotten:
            parts.append(f"without the {self.forgotten} oldest messages")
        return f"[{', '.join(parts)}]"


class Conversation:
    """One or two policies that answer the same lines, each in a dialogue of its own."""

    def __init__(self, speakers: list[Speaker], console: Console, **settings: Any):
        """`settings` are temperature and length, None for each policy's own, and seed."""
        self.speakers, self.console, self.settings = speakers, console, settings
        self.dialogues: list[list[Message]] = [[] for _ in speakers]
        self.asked = 0

    def run(self, lines: Iterable[str]):
        """Answers line by line until /quit or the end."""
        for line in lines:
            if line.strip() == "/quit":
                return
            try:
                if line.startswith("/"):
                    self.obey(*line[1:].split())
                elif line.strip():
                    self.ask(line.strip())
            except ValueError as error:
                self.console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)

    def obey(self, name: str = "", value: str = "", *more: str):
        """Carries out a line that begins with a slash. Raises ValueError for one that means nothing."""
        if name == "help":
            self.say(HELP)
        elif name == "reset" and not value:
            self.dialogues = [[] for _ in self.speakers]
            self.done("the dialogue is forgotten")
        elif name not in KINDS or more:
            raise ValueError(
                f"/{name} is no command: /help lists them (a space before the slash makes it a prompt)"
            )
        else:
            kind, bound = KINDS[name]
            try:
                number = kind(value)
            except ValueError:
                raise ValueError(f"/{name} needs a number") from None
            if want := bounds.wanted(bound, number):
                raise ValueError(f"/{name} {value}: {want}")
            self.settings[name] = number
            self.asked *= name != "seed"
            self.done(f"{name} {number}")

    def ask(self, prompt: str):
        """Shows the answers to a prompt, and keeps them in the dialogues unless they are interrupted."""
        answers = [*map(self.begun, self.speakers, self.dialogues, [prompt] * len(self.speakers))]
        self.asked += 1
        beside = len(answers) > 1 and self.console.is_terminal and self.console.width >= NARROW
        try:
            (self.show_beside if beside else self.show)(answers)
        except KeyboardInterrupt:
            return
        for answer, dialogue in zip(answers, self.dialogues, strict=True):
            said = {"role": "assistant", "content": answer.text.strip()}
            dialogue[:] = [*answer.messages, said]

    def begun(self, speaker: Speaker, dialogue: list[Message], prompt: str) -> Answer:
        """The answer of a policy, of which nothing is sampled yet; old messages that do not fit are left out.

        Raises ValueError where the prompt alone does not fit.
        """
        law = {x: self.settings[x] for x in ("temperature", "length")}
        cfg = replace(speaker.sample, **{n: x for n, x in law.items() if x is not None})
        old, question = dialogue if speaker.encode else [], {"role": "user", "content": prompt}
        for start in range(0, len(old) + 1, 2):  # a question and its answer at a time
            messages = [*old[start:], question]
            try:
                ids = speaker.ids(messages if speaker.encode else prompt, cfg.length)
                break
            except token_stream.TooLong:
                if start == len(old) or not speaker.forgets:
                    raise
        key = keys.key_of(self.settings["seed"], "people")
        tokens = speaker.stream(ids, cfg, key, self.asked)
        pieces = token_stream.written(speaker.words, tokens)
        return Answer(speaker, prompt, messages, ids, pieces, start)

    def show(self, answers: list[Answer]):
        """Prints the answers one after another."""
        for answer in answers:
            if len(answers) > 1:
                self.console.print(answer.speaker.name, style="bold", markup=False, soft_wrap=True)
            wait = self.console.status("") if self.console.is_terminal else contextlib.nullcontext()
            try:
                with wait:  # programs may have to be compiled
                    new = answer.grow()
                while new:
                    self.console.file.write(new)
                    self.console.file.flush()
                    new = answer.grow()
            finally:
                self.console.print()
                self.say(answer.note())

    def show_beside(self, answers: list[Answer]):
        """Prints the answers side by side, which grow together."""

        def table(notes: bool = False) -> Table:
            found = Table(box=None, expand=True, padding=(0, 2, 0, 0))
            for x in answers:
                found.add_column(Text(x.speaker.name), ratio=1)
            found.add_row(*(Text(x.text.rstrip().translate(CONTROLS)) for x in answers))
            if notes:
                found.add_row(*(Text(x.note(), style="dim") for x in answers))
            return found

        with Live(table(), console=self.console) as live:
            try:
                growing = [*answers]
                while growing:
                    growing = [x for x in growing if x.grow()]
                    live.update(table())
            finally:
                live.update(table(notes=True))

    def done(self, text: str):
        """Tells a person what a line has changed."""
        if self.console.is_terminal:
            self.say(text)

    def say(self, text: str):
        """Prints a grey line."""
        self.console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)
