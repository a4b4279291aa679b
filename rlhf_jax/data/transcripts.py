"""Transcripts of a policy and an environment as tokens, and back.

    what size and milk         a turn of the policy, which ends with EOS
    > large oat                a reply
    order large oat latte      a turn

Each line is tokenised alone, as it follows a space, so no token straddles a turn's end, and a transcript that
was read has the tokens of one that was sampled.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from rlhf_jax.data import tokenizer as tokenizers

if TYPE_CHECKING:
    import transformers  # which takes a second


class Turns(NamedTuple):
    """Most tokens of a turn, its end token included, and of a reply."""

    turn: int
    reply: int


def lines_of(transcript: str) -> list[str]:
    """The lines of a transcript: turns of the policy at even places, replies at odd ones."""
    return transcript.split("\n")


def encode_lines(
    tokenizer: "transformers.PreTrainedTokenizerBase", lines: Sequence[str], most: int = 0
) -> list[list[int]]:
    """The ids of single lines, without an end token.

    Raises ValueError for a line that has more than `most` tokens; 0: any number is allowed.
    """
    spaced = [f" {text}" if (text := " ".join(line.split())) else "" for line in lines]
    every = tokenizers.encode_responses(tokenizer, spaced, follows=True)
    for line, ids in zip(lines, every, strict=True):
        if 0 < most < len(ids):
            raise ValueError(
                f"the reply {line!r} has {len(ids)} tokens, and sample.length leaves {most} for a reply: "
                f"multiply it by {-(-len(ids) // most)}"
            )
    return every


def transcript_ids(
    tokenizer: "transformers.PreTrainedTokenizerBase", transcripts: Sequence[str], turns: Turns
) -> list[tuple[list[int], list[bool]]]:
    """The ids of each transcript, and which of them are the policy's own, EOS included.

    A turn that is cut to `turns.turn` tokens has no EOS. Raises ValueError for a longer reply.
    """
    split = [lines_of(text) for text in transcripts]
    sides = [[line for lines in split for line in lines[side::2]] for side in (0, 1)]
    own = iter(encode_lines(tokenizer, sides[0]))
    heard = iter(encode_lines(tokenizer, sides[1], turns.reply))
    eos, rows = cast(int, tokenizer.eos_token_id), []
    for lines in split:
        ids, mask = [], []
        for n in range(len(lines)):
            said = next(heard) if n % 2 else [*next(own), eos][: turns.turn]
            ids += said
            mask += [n % 2 == 0] * len(said)
        rows.append((ids, mask))
    return rows


def decode_lines(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    every: Sequence[Sequence[int]],
    stop: Sequence[int],
) -> list[str]:
    """The lines with these ids, without tokens of `stop`, and with single spaces."""
    kept = [[token for token in ids if token not in stop] for ids in every]
    return [" ".join(text.split()) for text in tokenizer.batch_decode(kept)]


def transcript_of(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    ids: Sequence[int],
    own: Sequence[bool],
    turn: int,
    stop: Sequence[int],
) -> str:
    """The transcript with these ids, `own` those of the policy: a turn ends with a token of `stop`, or
    after `turn` tokens."""
    parts: list[list[int]] = [[]]  # as lines: turns at even places, replies at odd ones
    ends = True
    for token, mine in zip(ids, own, strict=True):
        if mine and len(parts) % 2 and ends and parts[-1]:
            parts += [[], []]  # the reply between two turns is empty
        elif mine != len(parts) % 2:
            parts.append([])
        parts[-1].append(token)
        ends = mine and (token in stop or len(parts[-1]) == turn)
    return "\n".join(decode_lines(tokenizer, parts, stop))
