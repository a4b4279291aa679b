"""Tokenizers: trained on a corpus, or loaded; ordinary `transformers` tokenizers either way.

Prompt and response are tokenised apart, so a prompt's tokens never depend on what follows it. Where
neither side has white space at the seam, the response starts with a space (see `at_seam`).
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def train(
    texts: Iterable[str], vocab_size: int, directory: str | os.PathLike
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer (Sennrich et al., 2016; Radford et al., 2019) of the texts, also saved.

    It holds all 256 bytes, so no text is unknown and decoding inverts encoding, and <pad>, <bos> and
    <eos>, which are ids 0, 1 and 2. It is smaller than `vocab_size` where the texts have no more pairs to
    merge. Equal texts give equal files. Raises ValueError where `vocab_size` is below 259.
    """
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
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def load(directory_or_name: str | os.PathLike, *, pad: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder (a bare GPT-2 vocab.json and merges.txt will do) or on the Hub.

    Its pad is never its EOS: where it has no pad token, or one that is the EOS, <pad> is added as a new
    token, whose id may lie outside a model's embedding (models must not look up what the attention mask
    hides); not without `pad`. No code that lies beside a tokenizer is run.

    Raises ValueError where nothing can be loaded, or it has no EOS, or no tokens that texts are made of.
    """
    folder = Path(directory_or_name)
    bare = (folder / "merges.txt").is_file() and not any(folder.glob("*token*.json"))
    bare = bare and not (folder / "config.json").is_file()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory_or_name),
            trust_remote_code=False,  # nor is anybody asked whether it may run
            **({"tokenizer_type": "gpt2"} if bare else {}),
        )
    except (OSError, ValueError) as error:
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
    return tokenizer


def size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that embed every id of a tokenizer: the largest id and one, since ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each prompt, with no BOS or EOS added; special tokens written out in it are those."""
    return _ids(tokenizer, texts, split_special_tokens=False)


def encode_responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each response, with no EOS added; what looks like a special token in it is plain text.

    So a text from a file cannot forge an end.
    """
    return _ids(tokenizer, texts, split_special_tokens=True)


def at_seam(prompt: str, response: str) -> str:
    """The response as it follows the prompt: with a space before it where there would be none.

    None is added after an empty prompt, after white space or before it.
    """
    if not prompt or prompt[-1].isspace() or response[:1].isspace():
        return response
    return " " + response


def start_ids(tokenizer: PreTrainedTokenizerBase, empty: bool) -> list[int]:
    """What a prompt begins with: BOS where there is one, else nothing, or EOS before an empty prompt.

    So no prompt is ever without a token.
    """
    if tokenizer.bos_token_id is not None:
        return [cast(int, tokenizer.bos_token_id)]
    return [cast(int, tokenizer.eos_token_id)] if empty else []


def _ids(tokenizer, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
    if not texts:
        return []
    found = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=split_special_tokens,
        return_attention_mask=False,
        verbose=False,  # it warns of long texts; ours are cut afterwards
    )["input_ids"]
    if any(map(str.strip, texts)) and not any(found):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} writes no token for any of {len(texts)} texts: name "
            "another one, which knows their characters"
        )
    return found
