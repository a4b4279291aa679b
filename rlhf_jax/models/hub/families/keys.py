"""Allowed values of the keys of a config.json, and its completion by the class of transformers."""

import copy
import json
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """The allowed values of a key."""

    wanted: str  # the requirement in words
    fits: Callable[[Any], bool]
    needed: bool = (
        False  # the key must be there: a default of transformers' class would mean nothing
    )


def only(*values) -> Kind:
    """One of a few values; 1 is not true, and 0 not false."""
    fits = lambda x: any(type(x) is type(value) and x == value for value in values)
    return Kind(" or ".join(map(json.dumps, values)), fits)


def or_null(kind: Kind) -> Kind:
    """A value of `kind`, or null for a model without this feature."""
    return kind._replace(wanted=f"{kind.wanted}, or null", fits=lambda x: x is None or kind.fits(x))


def each(*values: str) -> Kind:
    """A list of strings, each one of a few."""
    fits = lambda x: isinstance(x, list) and all(isinstance(y, str) and y in values for y in x)
    return Kind(f"a list of {' and '.join(map(json.dumps, values))}", fits)


SIZE = Kind("a whole number from 1 to 2^31 - 1", lambda x: type(x) is int and 0 < x < 2**31)
COUNT = Kind("0 or a positive whole number", lambda x: type(x) is int and 0 <= x < 2**31)
NEEDED = SIZE._replace(needed=True)
POSITIVE = Kind("a positive number", lambda x: type(x) in (int, float) and 0 < x < 1e30)
NOT_NEGATIVE = Kind("0 or a positive number", lambda x: type(x) in (int, float) and 0 <= x < 1e30)
SHARE = Kind("a number above 0, and at most 1,", lambda x: type(x) in (int, float) and 0 < x <= 1)
FLAG = Kind("true or false", lambda x: type(x) is bool)

Kinds = dict[str, Any]  # key -> Kind, or the Kinds of an object's own keys

COMMON: Kinds = {
    "tie_word_embeddings": FLAG,
    "is_causal": only(True),
    "per_layer_config": only(None),
    "quantization_config": only(None),
}
"""Keys that any family may have; unsupported values of the last three would make another model."""

IDLE: tuple[str, ...] = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that are read elsewhere and affect no arithmetic."""


def shown(value) -> str:
    """A value as in config.json, truncated if it is long."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return (json.dumps(value) if plain else reprlib.repr(value))[:80]


def check(kinds: Kinds, config: dict, nulls: bool, where: str = ""):
    """Raises ValueError for a key of `config` whose value is not allowed; `nulls` allows null everywhere."""
    for key, kind in kinds.items():
        if key not in config or (nulls and config[key] is None):
            continue
        value, fits, wanted = config[key], lambda x: isinstance(x, dict), "an object with keys"
        if isinstance(kind, Kind):
            fits, wanted = kind.fits, kind.wanted
        if not fits(value):
            raise ValueError(f"{where}{key} = {shown(value)}: it must be {wanted}")
        if not isinstance(kind, Kind):
            check(kind, value, nulls, f"{where}{key}.")


def complete(model_type: str, kinds: Kinds, config: dict) -> dict:
    """`config` with the defaults and the current spelling of the family's class in transformers.

    Raises KeyError for a missing key that is required, and ValueError for a value that is not allowed, in
    `config` or in the completed one, and for anything that the class itself refuses.
    """
    check(kinds, config, nulls=True)
    for key, kind in kinds.items():
        if isinstance(kind, Kind) and kind.needed and config.get(key) is None:
            raise KeyError(key)
    from transformers import CONFIG_MAPPING  # imports PyTorch, where it is installed

    given = config | dict.fromkeys(IDLE)
    try:
        theirs = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(given))
        if hasattr(theirs, "rope_parameters"):
            theirs.standardize_rope_params()  # as its models do once more, when all keys are there
        whole = theirs.to_dict()
    except Exception as error:  # a class of transformers meets any value with any exception
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"transformers reads no {model_type} model of it: {why}") from None
    check(kinds, whole, nulls=False)
    return whole
