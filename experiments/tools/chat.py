"""A conversation with trained policies in the terminal, or an endpoint.

    python launch.py chat --run runs/sentiment/1f0c5a77b2
    python launch.py chat --run runs/sentiment/1f0c5a77b2 --against sft
    python launch.py chat --run runs/ppo/1f0c5a77b2 runs/rloo/93ab00c1d2 --temperature 0.7
    python launch.py chat --model Qwen/Qwen3-0.6B
    python launch.py chat --run runs/rloo/93ab00c1d2 --serve

Each answer appears as it is sampled, and below it its length, its log-probability, and its scores under the
reward models of its run and the task's gold. With two policies both answer, side by side. Where the tokenizer
has a chat template, the dialogue goes on; /help lists what else a line can do. Lines may come from a file or
a pipe.

`--serve` gives the policies an OpenAI-compatible endpoint on 127.0.0.1 (completions, chats, streaming,
log-probabilities), for one answer at a time: docs/chat.md.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import Annotated

from rich.console import Console

from rlhf_jax.bounds import Bound, Count, NonNegative, Seed, Settings
from rlhf_jax.pipeline import conversation, endpoint, speakers
from rlhf_jax.pipeline.speakers import Speaker

MOST = 2


@dataclass(frozen=True)
class Config(Settings):
    """Settings of a conversation."""

    _main = ("run", "against", "model", "temperature", "length", "serve", "port")

    run: tuple[str, ...] = ()
    """Run directories whose policies answer, one or two."""
    stage: str = ""
    """Stage of the runs: sft for the SFT policy, or empty for the policy that the method trained."""
    against: str = ""
    """Stage of the same run whose policy answers too, such as sft."""
    model: tuple[str, ...] = ()
    """Folders or hub names of Hugging Face models that answer, alone or beside a run."""
    plain: bool = False
    """Continue each prompt as it stands, without the chat template. Runs of a generated task always do."""
    temperature: NonNegative | None = None
    """Divisor of the logits; 0: always the likeliest token; None: as the run samples, 1 for a model."""
    length: Count | None = None
    """Most tokens of an answer; None: as in the run, or 256 for a model."""
    seed: Seed = 0
    """Seed of the answers in the terminal; requests to the endpoint bring their own."""
    serve: bool = False
    """Serve an OpenAI-compatible endpoint on 127.0.0.1 instead."""
    port: Annotated[int, Bound(ge=0, le=65535)] = 8000
    """Port of the endpoint; 0 takes any free one."""

    def _conditions(self, at: str):
        if self.against and len(self.run) != 1:
            raise ValueError(
                f'{at}against = "{self.against}" is a stage of one run, and {at}run names {len(self.run)}: '
                "name one"
            )
        names = [*self._of_runs(), *self.model]
        if len({*names}) < len(names) or len(names) > MOST:
            raise ValueError(f"{len(names)} policies are named: name one, or two different ones")

    def _unread(self) -> dict[str, str]:
        unread = {} if self.run else {"stage": "no run is given"}
        return unread | (
            {"seed": "a request brings its own"} if self.serve else {"port": "nothing is served"}
        )

    def _of_runs(self) -> list[tuple[str, str]]:
        """(run, stage) of each policy of a run."""
        stages = [self.stage, *[self.against] * bool(self.against)]
        return [(run, stage) for stage in stages for run in self.run]


config = Config()
order = 1


def main(cfg: Config):
    """Loads the policies, then answers line by line, or serves them."""
    if not cfg.run and not cfg.model:
        raise ValueError("no policy is named: give run, the directory of a run, or model")
    found = [speakers.of_run(*x, cfg.plain) for x in cfg._of_runs()]
    found += [speakers.of_model(x, cfg.plain) for x in cfg.model]
    found = [with_settings(x, cfg) for x in found]
    console = Console(highlight=False)
    if cfg.serve:
        serve(endpoint.bound(found, cfg.port), found, console)
        return
    if console.is_terminal:
        greet(found, console)
    settings = {"temperature": None, "length": None, "seed": cfg.seed}
    conversation.Conversation(found, console, **settings).run(conversation.lines(console))


def with_settings(speaker: Speaker, cfg: Config) -> Speaker:
    """The policy at the temperature and length of the settings. Raises ValueError where no prompt fits."""
    given = {"temperature": cfg.temperature, "length": cfg.length}
    sample = replace(
        speaker.sample, **{x: value for x, value in given.items() if value is not None}
    )
    if sample.length >= speaker.context:
        raise ValueError(
            f"length = {sample.length} leaves no room for a prompt in the {speaker.context} positions of "
            f'"{speaker.name}": lower it'
        )
    return speaker._replace(sample=sample)


def greet(found: list[Speaker], console: Console):
    """Says who answers, and how to begin."""
    for x in found:
        law = f"temperature {x.sample.temperature:g}, at most {x.sample.length} tokens"
        kind = "a dialogue" if x.encode else "each prompt alone"
        console.print(f"{x.name}: {kind}, {law}", markup=False)
    examples = dict.fromkeys(x.example for x in found if x.example)
    for example in examples:
        console.print(f"a prompt of the task, for example: {example}", style="dim", markup=False)
    console.print("/help lists commands, /quit or Ctrl-D ends", style="dim", markup=False)


def serve(server, found: list[Speaker], console: Console):
    """Serves until Ctrl-C."""
    host, port = server.server_address
    for x in found:
        kind = (
            "completions and chats" if x.encode else "completions; without a chat template no chats"
        )
        console.print(f"{x.name}: {kind}", markup=False, soft_wrap=True)
    console.print(f"http://{host}:{port}/v1 until Ctrl-C, one answer at a time", soft_wrap=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
