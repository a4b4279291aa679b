"""OpenAI's completions, plain and of chats, as JSON: whole, or in chunks as their tokens are sampled."""

import secrets
import time
from collections.abc import Callable, Iterator

from rlhf_jax.pipeline import keys, token_stream
from rlhf_jax.pipeline.completion_requests import Asked, Json
from rlhf_jax.pipeline.token_stream import Piece, Token


def choices(asked: Asked) -> Iterator[tuple[int, Piece]]:
    """(number of the choice, piece of its text), one choice after another."""
    key, draws = keys.key_of(asked.seed, "people"), range(asked.draws)
    for index, ids in enumerate(asked.prompts):
        for draw in draws:
            tokens = asked.speaker.stream(ids, asked.sample, key, index, draw, asked.top or 0)
            for piece in token_stream.written(asked.speaker.words, tokens, asked.stop):
                yield index * asked.draws + draw, piece


def whole(asked: Asked) -> Json:
    """The reply to a request that does not stream."""
    found: list[list[Piece]] = [[] for _ in range(len(asked.prompts) * asked.draws)]
    for number, piece in choices(asked):
        found[number].append(piece)
    replies = []
    for number, pieces in enumerate(found):
        text = "".join(piece.text for piece in pieces)
        said = (
            {"message": {"role": "assistant", "content": text}} if asked.is_chat else {"text": text}
        )
        told = logprobs(asked, pieces)
        replies.append(
            {"index": number, **said, "logprobs": told, "finish_reason": pieces[-1].finish}
        )
    said = sum(len(piece.tokens) for pieces in found for piece in pieces)
    return head(asked) | {"choices": replies, "usage": usage(asked, said)}


def chunks(asked: Asked) -> Iterator[Json]:
    """The reply to a request that streams, piece by piece."""
    top, said, offsets = head(asked, chunk=True), 0, {}
    for number, piece in choices(asked):
        delta: Json = {"text": piece.text}
        if asked.is_chat:
            role = {} if number in offsets else {"role": "assistant"}
            delta = {"delta": role | {"content": piece.text}}
        told = logprobs(asked, [piece], offsets.get(number, 0))
        offsets[number] = offsets.get(number, 0) + len(piece.text)
        said += len(piece.tokens)
        reply = {"index": number, **delta, "logprobs": told, "finish_reason": piece.finish or None}
        yield top | {"choices": [reply]}
    if asked.counts:
        yield top | {"choices": [], "usage": usage(asked, said)}


def head(asked: Asked, chunk: bool = False) -> Json:
    """The fields with which each reply begins."""
    kind = "chat.completion" if asked.is_chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
        "object": f"{kind}.chunk" if chunk and asked.is_chat else kind,
        "created": int(time.time()),
        "model": asked.speaker.name,
    }


def usage(asked: Asked, said: int) -> Json:
    """Numbers of tokens; end tokens and those of stop strings count."""
    read = sum(map(len, asked.prompts))
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def logprobs(asked: Asked, pieces: list[Piece], offset: int = 0) -> Json | None:
    """Log-probabilities of all sampled tokens, end tokens too, in the form of completions or of chats."""
    if asked.top is None:
        return None
    text = lambda id: asked.speaker.words.decode([id])
    one = lambda id, logprob: {"token": text(id), "logprob": logprob, "bytes": None}
    tokens = [token for piece in pieces for token in piece.tokens]
    if asked.is_chat:
        tops = lambda token: {"top_logprobs": [one(*x) for x in token.top]}
        return {"content": [one(x.id, x.logprob) | tops(x) for x in tokens]}
    offsets, at = [], offset
    for piece in pieces:
        offsets += [at] * len(piece.tokens)
        at += len(piece.text)
    return {
        "tokens": [text(x.id) for x in tokens],
        "token_logprobs": [x.logprob for x in tokens],
        "top_logprobs": [_by_text(x, text) for x in tokens] if asked.top else None,
        "text_offset": offsets,
    }


def _by_text(token: Token, text: Callable[[int], str]) -> dict[str, float]:
    """The likeliest tokens by their text; of those with one text, the likelier."""
    return {text(id): logprob for id, logprob in reversed(token.top)}
