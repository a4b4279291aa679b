"""Tokenizers: trained on a corpus, or loaded; ordinary `transformers` tokenizers either way.

Prompt and response are tokenised separately, so a prompt's tokens never depend on the response. Where
neither side has white space at the seam, the response starts with a space (see `at_seam`). A prompt's ids
are those of `tokenizer(prompt)` in transformers, so BOS follows the tokenizer's own rule.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    import transformers  # which takes a second

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def train(
    texts: Iterable[str], vocab_size: int, directory: str | os.PathLike
) -> "transformers.PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer (Sennrich et al., 2016; Radford et al., 2019) trained on the texts, and
    saved.

    The vocabulary has all 256 bytes, so no text is unknown and decoding inverts encoding, and `<pad>`,
    `<bos>` and `<eos>` as ids 0, 1 and 2; `<bos>` precedes every text. The vocabulary is smaller than
    `vocab_size` where the texts have no more pairs to merge. Equal texts give equal files. Raises
    ValueError where `vocab_size` < 259.
    """
    import transformers

    smallest = 256 + len((PAD, BOS, EOS))
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}: {smallest} is the least, for 256 bytes and 3 marks"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = _beginning(BOS, bpe.token_to_id(BOS))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def load(
    directory_or_name: str | os.PathLike, *, pad: bool = True, bos: bool | None = None
) -> "transformers.PreTrainedTokenizerBase":
    """The tokenizer in a folder (a bare GPT-2 vocab.json and merges.txt will do) or on the Hub.

    `bos` is True or False for BOS before every text; None leaves it to the tokenizer.

    The pad token is never EOS: where it is missing or equal to EOS, `<pad>` is added as a new token, unless
    `pad` is False. Its id may lie outside a model's embedding, so models must not look up tokens that the
    attention mask hides. Code that comes with a tokenizer is never run.

    Raises ValueError where nothing can be loaded, or the tokenizer has no EOS, no ordinary tokens, or no
    BOS although `bos` is True.
    """
    import transformers

    folder = Path(directory_or_name)
    bare = (folder / "merges.txt").is_file() and not any(folder.glob("*token*.json"))
    bare = bare and not (folder / "config.json").is_file()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(directory_or_name),
            trust_remote_code=False,  # never prompt for permission to run code
            **({"tokenizer_type": "gpt2"} if bare else {}),
        )
    except Exception as error:  # damaged files make transformers raise any exception
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no tokenizer could be loaded from {str(directory_or_name)!r} ({reason}): "
            "give a folder that transformers' save_pretrained wrote, or a name on the Hub"
        ) from error
    tokenizer.clean_up_tokenization_spaces = False
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer {str(directory_or_name)!r} has no EOS token, and a policy could never stop: "
            "set eos_token in its tokenizer_config.json"
        )
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ValueError(
            f"the tokenizer {str(directory_or_name)!r} has {', '.join(tokenizer.all_special_tokens)} and no "
            "other token, as where a model's folder lacks tokenizer.json: put the model's tokenizer files "
            "there, or name another folder as tokenizer"
        )
    if pad and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
        if list(tokenizer.get_vocab().values()).count(tokenizer.pad_token_id) > 1:
            raise ValueError(
                f"the tokenizer {str(directory_or_name)!r} has no pad token, and its ids have gaps, so that "
                f"{PAD} would share id {tokenizer.pad_token_id}: set pad_token in its tokenizer_config.json"
            )
    if bos is not None and bos != (start_ids(tokenizer) == [tokenizer.bos_token_id]):
        if bos and tokenizer.bos_token_id is None:
            raise ValueError(
                f"the tokenizer {str(directory_or_name)!r} has no BOS token to begin prompts with: "
                "leave bos at its default"
            )
        token = tokenizer.bos_token if bos else None
        _backend(tokenizer).post_processor = _beginning(token, tokenizer.bos_token_id)
    return tokenizer


def size(tokenizer: "transformers.PreTrainedTokenizerBase") -> int:
    """Number of embedding rows for every id of a tokenizer: the largest id plus one, since ids may have
    gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def encode_prompts(
    tokenizer: "transformers.PreTrainedTokenizerBase", texts: Sequence[str]
) -> list[list[int]]:
    """The ids of each prompt: those of `tokenizer(prompt)` without what it adds at the end.

    Special tokens written out in a prompt are encoded as such, and a BOS at its beginning is not doubled.
    An empty prompt is BOS where the tokenizer adds one, otherwise EOS, so every prompt has a token.
    """
    start, brought = start_ids(tokenizer), [has_bos(tokenizer, text) for text in texts]
    texts = [text.lstrip() if own else text for text, own in zip(texts, brought, strict=True)]
    bare = encode_written(tokenizer, texts)
    whole = [ids if own else start + ids for ids, own in zip(bare, brought, strict=True)]
    return [ids or [cast(int, tokenizer.eos_token_id)] for ids in whole]


def encode_written(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    follows: bool = False,
) -> list[list[int]]:
    """The ids of texts as written, special tokens included, with nothing added.

    A text that `follows` another gets no leading space marker, which SentencePiece tokenizers otherwise
    add, unless it begins with a space.
    """
    return _ids(tokenizer, texts, False, follows)


def encode_responses(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    follows: bool = False,
) -> list[list[int]]:
    """As `encode_written`, except that a written-out special token is plain text.

    A text from a file therefore cannot forge an end.
    """
    return _ids(tokenizer, texts, True, follows)


def has_bos(tokenizer: "transformers.PreTrainedTokenizerBase", text: str) -> bool:
    """True where a text begins with a written-out BOS."""
    return bool(tokenizer.bos_token) and text.lstrip().startswith(str(tokenizer.bos_token))


def at_seam(prompt: str, response: str) -> str:
    """The response as it follows the prompt: with a space before it if there would be no white space.

    No space is added after an empty prompt.
    """
    if not prompt or prompt[-1].isspace() or response[:1].isspace():
        return response
    return " " + response


def start_ids(tokenizer: "transformers.PreTrainedTokenizerBase") -> list[int]:
    """Ids that `tokenizer(text)` in transformers puts before a text: BOS, or nothing."""
    whole = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    places = range(len(whole) - len(bare) + 1)
    return whole[: next(n for n in places if whole[n : n + len(bare)] == bare)]


def _ids(tokenizer, texts: Sequence[str], split_special_tokens: bool, follows: bool):
    if not texts:
        return []
    if follows and (backend := _unmarked(tokenizer)) is not None:
        backend.encode_special_tokens = split_special_tokens
        return [x.ids for x in backend.encode_batch(list(texts), add_special_tokens=False)]
    found = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=split_special_tokens,
        return_attention_mask=False,
        verbose=False,  # no warning for long texts, which are truncated later
    )["input_ids"]
    if any(map(str.strip, texts)) and not any(found):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} writes no token for any of {len(texts)} texts: name "
            "another one, which knows their characters"
        )
    return found


def _backend(tokenizer: "transformers.PreTrainedTokenizerBase") -> Tokenizer:
    """The tokenizer's object in the tokenizers library."""
    return cast("transformers.PreTrainedTokenizerFast", tokenizer).backend_tokenizer


def _beginning(bos: str | None, id: int | None) -> processors.TemplateProcessing:
    """The post-processor that puts BOS before every text, or nothing without a BOS."""
    start, special = (f"{bos} ", [(bos, id)]) if bos else ("", [])
    return processors.TemplateProcessing(
        single=f"{start}$A", pair=f"{start}$A {start}$B:1", special_tokens=special
    )


def _unmarked(tokenizer: "transformers.PreTrainedTokenizerBase") -> Tokenizer | None:
    """A copy of the tokenizer without the leading space marker; None where it adds none.

    Raises ValueError where the marker cannot be removed.
    """
    if not tokenizer.is_fast:
        if tokenizer.tokenize("a") == ["a"]:
            return None
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} is not of the tokenizers library, and a response "
            "cannot be encoded as it follows a prompt: save it with a tokenizer.json"
        )
    backend = _backend(tokenizer)
    steps = [x.__getstate__() for x in (backend.normalizer, backend.pre_tokenizer) if x]
    if not any(re.search(_MARKS, step) for step in steps):
        return None
    settings = json.loads(backend.to_str())
    for part, name in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        whole = settings[part] or {}
        kept = [x for x in whole.get(name, [whole]) if x.get("type") != "Prepend"]
        for step in kept:
            step |= {k: v for k, v in _NEVER.items() if k in step}
        settings[part] = {"type": "Sequence", name: [x for x in kept if x]}
    unmarked = Tokenizer.from_str(json.dumps(settings))
    unmarked.no_padding()
    unmarked.no_truncation()
    return unmarked


_MARKS = rb'"Prepend"|"prepend_scheme": *"(first|always)"|"add_prefix_space": *true'
_NEVER = {"prepend_scheme": "never", "add_prefix_space": False}
