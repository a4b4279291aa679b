"""Policies to talk to: of finished runs, with the rewards of their answers, and of Hugging Face models."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.data import dialogues, prompts, tokenizer, transcripts
from rlhf_jax.data.transcripts import Turns
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import huggingface
from rlhf_jax.pipeline import checkpoints, finished, pretrained, settings, stages, token_stream
from rlhf_jax.pipeline.token_stream import Token
from rlhf_jax.runs import disk
from rlhf_jax.runs import run as runs
from rlhf_jax.sampling import SampleConfig
from rlhf_jax.tasks.task import one_line

LENGTH = 256
"""Most tokens of an answer of a Hugging Face model, where half of its positions allow so many."""
JUDGES = {"reward": "reward", stages.HELD_OUT: "held-out reward"}
"""Stages of a run whose models score its answers, and the names of their scores."""
Message = dict[str, Any]
Score = Callable[[str, Sequence[int], str], float | None]
"""A score of (prompt, ids of prompt and answer, answer); None where there is none."""


class Speaker(NamedTuple):
    """A policy that answers, with its tokenizer, its own settings of sampling, and what scores it."""

    name: str
    words: Any  # tokenizer
    stream: Callable[..., Iterator[Token]]
    sample: SampleConfig
    context: int
    encode: Callable[[list[Message]], list[int]] | None  # ids of a dialogue; None: it keeps none
    scores: dict[str, Score]
    example: str = ""  # a prompt of the run's task
    forgets: bool = True  # True where a dialogue goes on without its oldest messages

    def ids(self, asked: str | list[Message], length: int) -> list[int]:
        """The ids of a prompt that is continued as it stands, or of a dialogue.

        Raises ValueError where they and `length` more do not fit into the model's positions, where the
        template refuses the messages, where the policy keeps no dialogue, and for a text that is none.
        """
        try:
            (asked if isinstance(asked, str) else "".join(x["content"] for x in asked)).encode()
        except UnicodeEncodeError:
            raise ValueError("the text holds half of a character (a lone surrogate)") from None
        if isinstance(asked, str):
            (ids,) = prompts.prompt_ids(self.words, [asked])
        elif self.encode:
            ids = self.encode(asked)
        else:
            raise ValueError(
                f'"{self.name}" answers prompts without a chat template, and keeps no dialogue'
            )
        token_stream.check_fits(len(ids), length, self.context)
        return ids


def of_run(folder: str, stage: str = "", plain: bool = False) -> Speaker:
    """The policy of a finished run at the end of `stage`; empty: of its method.

    With `plain`, or where the run learned a generated task, its prompts have no chat template. Raises
    ValueError for a folder without a run that has finished the stage.
    """
    place = pathlib.Path(folder)
    cfg = finished.used(place)
    words = tokenizer.load(cfg.tokenizer or place / "tokenizer", bos=pretrained.begins(cfg))
    params = finished.policy(place, stage or checkpoints.own_stage(place))
    name, task = f"{folder}:{stage}" if stage else folder, settings.task_of(cfg)
    if task is None:
        encode = None if plain else templated(cfg.tokenizer, words)
        return speaker(name, cfg, words, params, encode)._replace(scores=judges(place, cfg))
    train, held_out = task.prompts(cfg.data.held_out, cfg.seed)
    example = held_out[0]["prompt"]
    if task.environment:
        turn, _ = task.environment.columns(cfg.sample.length)
        cfg = replace(cfg, sample=replace(cfg.sample, length=turn))
        found = speaker(name, cfg, words, params, partial(episode, words, turn))
        return found._replace(example=example, forgets=False)
    scores = judges(place, cfg) | {"gold": gold(task, [*train, *held_out])}
    return speaker(name, cfg, words, params, None)._replace(scores=scores, example=example)


def of_model(name: str, plain: bool = False) -> Speaker:
    """A language model in the Hugging Face format. Raises ValueError for anything else."""
    cfg = settings.RunConfig(pretrained=name)
    cfg = replace(cfg, **pretrained.decided(cfg))
    words = tokenizer.load(cfg.tokenizer, bos=pretrained.begins(cfg))
    sample = SampleConfig(
        length=min(LENGTH, cfg.model.context // 2), stop=pretrained.stops(cfg, words)
    )
    encode = None if plain else templated(cfg.tokenizer, words)
    return speaker(name, replace(cfg, sample=sample), words, pretrained.start(cfg), encode)


def speaker(name: str, cfg, words, params, encode: Callable | None) -> Speaker:
    """A speaker without scores."""
    lm, context = networks.language_model(cfg.model), cfg.model.context
    stream = token_stream.make_stream(lm, params, context)
    return Speaker(name, words, stream, cfg.sample, context, encode, {})


def templated(name: str, words) -> Callable[[list[Message]], list[int]] | None:
    """The ids of messages in the chat template of the tokenizer `words`, called `name`; None without one."""
    if not words.chat_template:
        return None
    chat = dialogues.template(name)
    return lambda messages: prompts.prompt_ids(words, [chat(messages)])[0]


def episode(words, turn: int, messages: list[Message]) -> list[int]:
    """The ids of an episode of several turns, of at most `turn` tokens: its prompt, then turns and replies.

    Raises ValueError where user and assistant do not take turns.
    """
    if [x["role"] for x in messages] != [*islice(cycle(("user", "assistant")), len(messages))]:
        raise ValueError("user and assistant must take turns, and the user begins")
    (ids,) = prompts.prompt_ids(words, [messages[0]["content"]])
    lines = [one_line(x["content"]) for x in messages[1:]]
    if not lines:
        return ids
    ((said, _),) = transcripts.transcript_ids(words, ["\n".join(lines)], Turns(turn, 0))
    return ids + said


def judges(folder: pathlib.Path, cfg) -> dict[str, Score]:
    """The reward models that a run was given or has trained, as scores."""
    found = {}
    for stage, name in JUDGES.items():
        if stage == "reward" and cfg.reward_model:
            loaded = huggingface.load(cfg.reward_model, **pretrained.kept(cfg))
            found[name] = judge(loaded.cfg, loaded.params)
        elif runs.finished(folder, stage):
            found[name] = judge(cfg.model, trained_judge(folder, stage))
    return found


def trained_judge(folder: pathlib.Path, stage: str):
    """Parameters of a reward model that a run has trained, centred as it was there."""
    of, trained = checkpoints.settings_of(folder), checkpoints.arrays(folder, stage)
    if (centre := folder / "stages" / stage / stages.CENTRE).exists():
        trained = reward_model.centre(trained, np.float32(disk.read_json(centre)["mean"]))
    return checkpoints.whole(folder, of, stage, trained)


def judge(model: ModelConfig, params) -> Score:
    """The score of a reward model; None for texts beyond its positions."""
    fn = jax.jit(networks.reward_model(networks.language_model(model)).fn)
    params = jax.device_put(params)

    def score(prompt: str, ids: Sequence[int], answer: str) -> float | None:
        if len(ids) > model.context:
            return None
        columns, _ = token_stream.widths(len(ids), 0, model.context)
        return float(fn(params, *token_stream.left_padded(ids, columns))[0])

    return score


def gold(task, rows: Sequence[dict[str, Any]]) -> Score:
    """The task's gold; None for a prompt to which it gives none, or whose columns are not known."""
    known = {row["prompt"]: row for row in rows}
    columns = {name for row in rows for name in row} != {"prompt"}

    def score(prompt: str, ids: Sequence[int], answer: str) -> float | None:
        if columns and prompt not in known:
            return None
        try:
            return float(task.gold([known.get(prompt, {"prompt": prompt})], [answer])[0])
        except ValueError:
            return None

    return score
