"""Requests for OpenAI's completions, plain and of chats, read from JSON.

A field that is not supported is refused by its name, unless it is null or has the value that changes nothing.
"""

import secrets
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from rlhf_jax import bounds
from rlhf_jax.bounds import Bound
from rlhf_jax.pipeline import token_stream
from rlhf_jax.pipeline.speakers import Speaker
from rlhf_jax.sampling import SampleConfig

Json = dict[str, Any]
MOST = 20
"""Most likely tokens that a reply tells, and most stop strings and answers to a prompt."""
Few = Annotated[int, Bound(ge=0, le=MOST)]
NUMBERS = {
    "temperature": bounds.NonNegative,
    "top_p": bounds.Share,
    "max_tokens": bounds.Count,
    "max_completion_tokens": bounds.Count,
    "n": Annotated[int, Bound(ge=1, le=MOST)],
    "seed": bounds.Seed,
    "top_logprobs": Few,
}
"""Fields that are numbers, with their bounds."""
BOTH = {"model", "temperature", "top_p", "max_tokens", "n", "seed"}
BOTH |= {"stop", "stream", "stream_options", "logprobs"}
FIELDS = {False: BOTH | {"prompt"}}
FIELDS[True] = BOTH | {"messages", "max_completion_tokens", "top_logprobs"}
"""Fields of completions, and of those of chats."""
NOTHING = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "echo": False}
NOTHING |= {"best_of": 1, "store": False, "tools": [], "suffix": ""}
"""Fields that are not supported, and the values with which they change nothing."""


class RefusedError(ValueError):
    """A request that is refused, with the field at fault."""

    def __init__(
        self, why: str, param: str | None = None, status: int = 400, code: str | None = None
    ):
        super().__init__(why)
        self.param, self.status, self.code = param, status, code

    def reply(self) -> Json:
        """The body of the reply, as OpenAI writes it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        known = {"type": kind, "param": self.param, "code": self.code}
        return {"error": {"message": str(self)} | known}


class Asked(NamedTuple):
    """A request."""

    speaker: Speaker
    is_chat: bool
    prompts: list[list[int]]
    sample: SampleConfig
    seed: int
    draws: int  # answers to each prompt
    stop: tuple[str, ...]
    top: int | None  # likeliest tokens told beside each token; None: no log-probabilities
    streams: bool
    counts: bool  # True for a last chunk with the numbers of tokens


def read(body: Any, speakers: dict[str, Speaker], is_chat: bool) -> Asked:
    """The request of a JSON body. Raises RefusedError, naming the field, for anything that cannot be done."""
    if not isinstance(body, dict):
        raise RefusedError("the body is no JSON object")
    body = {name: x for name, x in body.items() if x is not None}
    body = {name: x for name, x in body.items() if name not in NOTHING or x != NOTHING[name]}
    for name, value in body.items():
        if name not in FIELDS[is_chat]:
            raise RefusedError(f"{name} is not supported here: leave it out", name)
        if name in NUMBERS and (want := bounds.wanted(NUMBERS[name], value)):
            raise RefusedError(f"{name} = {value!r}: {want}", name)
    if {"max_tokens", "max_completion_tokens"} <= body.keys():
        raise RefusedError("max_tokens and max_completion_tokens are both given", "max_tokens")
    streams = flag(body, "stream")
    options = body.get("stream_options", {})
    known = isinstance(options, dict) and options.keys() <= {"include_usage"}
    if "stream_options" in body and not (streams and known):
        raise RefusedError(
            "stream_options has include_usage alone, and needs stream", "stream_options"
        )
    speaker = of_name(body.get("model"), speakers)
    cfg = replace(
        speaker.sample,
        temperature=float(body.get("temperature", speaker.sample.temperature)),
        top_p=float(body.get("top_p", 1.0)),
        length=body.get("max_completion_tokens", body.get("max_tokens", speaker.sample.length)),
    )
    return Asked(
        speaker=speaker,
        is_chat=is_chat,
        prompts=[encoded(speaker, x, cfg.length, is_chat) for x in asked_of(body, is_chat)],
        sample=cfg,
        seed=body.get("seed", secrets.randbelow(2**32)),
        draws=body.get("n", 1),
        stop=stops(body),
        top=top_of(body, is_chat),
        streams=streams,
        counts=flag(options, "include_usage"),
    )


def flag(body: Json, name: str) -> bool:
    """A field that is true or false."""
    if not isinstance(value := body.get(name, False), bool):
        raise RefusedError(f"{name} = {value!r}: it must be true or false", name)
    return value


def of_name(name: Any, speakers: dict[str, Speaker]) -> Speaker:
    """The policy of that name; without a name, the only one."""
    if name is None and len(speakers) == 1:
        return next(iter(speakers.values()))
    if not isinstance(name, str) or name not in speakers:
        status, code = (400, None) if name is None else (404, "model_not_found")
        said = "model is missing" if name is None else f"model = {name!r}"
        why = f"{said}: served are {', '.join(speakers)}"
        raise RefusedError(why, "model", status, code)
    return speakers[name]


def stops(body: Json) -> tuple[str, ...]:
    """The stop strings: a text, or a list of texts."""
    found = body.get("stop", [])
    found = [found] if isinstance(found, str) else found
    texts = isinstance(found, list) and all(isinstance(x, str) and x for x in found)
    if not texts or len(found) > MOST:
        raise RefusedError(f"stop must be a text, or a list of at most {MOST} texts", "stop")
    return tuple(found)


def top_of(body: Json, is_chat: bool) -> int | None:
    """How many likeliest tokens are told: a number in completions; in chats a flag, and the number apart."""
    if not is_chat:
        if "logprobs" in body and (want := bounds.wanted(Few, body["logprobs"])):
            raise RefusedError(f"logprobs = {body['logprobs']!r}: {want}", "logprobs")
        return body.get("logprobs")
    if flag(body, "logprobs"):
        return body.get("top_logprobs", 0)
    if "top_logprobs" in body:
        raise RefusedError("top_logprobs needs logprobs = true", "top_logprobs")
    return None


def asked_of(body: Json, is_chat: bool) -> list[Any]:
    """The prompts: texts, or one list of messages."""
    if is_chat:
        return [messages_of(body.get("messages"))]
    found = body.get("prompt")
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise RefusedError("prompt must be a text, or a list of texts", "prompt")
    return found


def messages_of(found: Any) -> list[Json]:
    """Messages with a role and a text, of which the last is not the assistant's."""
    if not isinstance(found, list) or not found:
        raise RefusedError("messages must be a list with a message", "messages")
    for n, message in enumerate(found):
        if not isinstance(message, dict) or not all(
            isinstance(message.get(x), str) for x in ("role", "content")
        ):
            raise RefusedError(f"messages[{n}] needs a role and a content, both texts", "messages")
        if more := message.keys() - {"role", "content"}:
            raise RefusedError(f"messages[{n}] has {min(more)}, not supported here", "messages")
    if found[-1]["role"] == "assistant":
        raise RefusedError("the last message is the assistant's: nothing is asked", "messages")
    return found


def encoded(speaker: Speaker, asked: Any, length: int, is_chat: bool) -> list[int]:
    """The ids of a prompt or of messages."""
    field = "messages" if is_chat else "prompt"
    try:
        return speaker.ids(asked, length)
    except token_stream.TooLong as error:
        raise RefusedError(str(error), field, code="context_length_exceeded") from None
    except ValueError as error:
        raise RefusedError(str(error), field) from None
