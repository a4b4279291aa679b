"""Rotary positions in config.json: `rope_parameters`, and the keys that preceded it."""

from dataclasses import replace
from typing import Any

from rlhf_jax.models.config import ModelConfig, RopeScaling
from rlhf_jax.models.hub.families.keys import (
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SIZE,
    Kind,
    only,
    or_null,
    shown,
)

TYPES = only("default", "linear", "llama3", "yarn")
ONE: dict[str, Any] = {
    "rope_type": TYPES,
    "type": TYPES,
    "rope_theta": Kind("a number above 1", lambda x: type(x) in (int, float) and 1 < x < 1e30),
    "partial_rotary_factor": SHARE,
    "factor": or_null(POSITIVE),
    "original_max_position_embeddings": SIZE,
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "attention_factor": or_null(POSITIVE),
    "beta_fast": or_null(POSITIVE),
    "beta_slow": or_null(POSITIVE),
    "mscale": or_null(NOT_NEGATIVE),
    "mscale_all_dim": or_null(NOT_NEGATIVE),
    "truncate": FLAG,
}
BOTH = {"full_attention": ONE, "sliding_attention": ONE}
KEYS: dict[str, Any] = {
    "max_position_embeddings": SIZE,
    "rope_parameters": ONE | BOTH,
    "rope_scaling": ONE | BOTH,
    "rope_theta": or_null(ONE["rope_theta"]),
    "partial_rotary_factor": or_null(SHARE),
    "original_max_position_embeddings": or_null(SIZE),
}
"""Keys of all families with rotary positions."""


def scaling_of(rope: dict, context: int, truncate: bool) -> RopeScaling:
    """The scaling of wavelengths in `rope`, part of a completed config.json, for a model of `context`
    positions."""
    kind = rope["rope_type"]
    if kind == "default":
        return RopeScaling()
    original = rope.get("original_max_position_embeddings", context)
    factor = rope["factor"] or (context / original if kind == "yarn" else None)
    if factor is None:
        raise ValueError("rope_parameters.factor = null: it must be a number")
    if kind == "linear":
        return RopeScaling("linear", float(factor))
    if kind == "llama3":
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        if high <= low:
            raise ValueError(
                f"rope_parameters.high_freq_factor = {high}: it must be more than low_freq_factor = {low}"
            )
        return RopeScaling("llama3", float(factor), low, high, original)
    low, high = float(rope.get("beta_slow") or 1), float(rope.get("beta_fast") or 32)
    plain = RopeScaling("yarn", float(factor), low, high, original, truncate=truncate)
    gain = rope.get("attention_factor")
    if gain is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        above = lambda scale: scale * (plain.gain - 1) + 1
        gain = above(rope["mscale"]) / above(rope["mscale_all_dim"])
    return replace(plain, attention_factor=float(gain or plain.gain))


def turned(config: dict, rope: dict, shares: bool = False) -> dict:
    """Settings of rotary positions; `rope` is the completed config.json's own, or one of its entries.

    Raises ValueError where only a part of each head is rotated, unless the family allows it (`shares`).
    """
    if "rope_theta" not in rope:
        raise ValueError(f"rope_parameters = {shown(rope)}: it must be an object with rope_theta")
    share = rope.get("partial_rotary_factor", 1.0)
    if share != 1 and not shares:
        raise ValueError(f"partial_rotary_factor = {share}: it must be 1")
    truncate = config["rope_parameters"].get(
        "truncate", True
    )  # not an entry's: as transformers does
    return dict(
        positions="rotary",
        rope_theta=float(rope["rope_theta"]),
        rotary_share=float(share),
        rope_scaling=scaling_of(rope, config["max_position_embeddings"], truncate),
    )


def turned_apart(config: dict) -> dict:
    """Settings of a family whose local layers have their own, never scaled wavelengths."""
    near = turned(config, config["rope_parameters"]["sliding_attention"])
    if near["rope_scaling"] != RopeScaling():
        raise ValueError(
            f'rope_parameters.sliding_attention.rope_type = "{near["rope_scaling"].kind}": it must be '
            '"default"'
        )
    far = turned(config, config["rope_parameters"]["full_attention"])
    return far | {"rope_theta_local": near["rope_theta"]}


def rope_to(cfg: ModelConfig, **more) -> dict:
    """The keys of both generations of transformers."""
    s = cfg.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default" if s.kind == "none" else s.kind}
    if s.kind != "none":
        rope["factor"] = s.factor
    if s.kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = s.original_context
    if s.kind == "llama3":
        rope |= dict(low_freq_factor=s.low, high_freq_factor=s.high)
    if s.kind == "yarn":
        rope |= dict(beta_slow=s.low, beta_fast=s.high, attention_factor=s.gain)
        rope["truncate"] = s.truncate
    old: dict[str, Any] = {} if s.kind == "none" else {"rope_scaling": dict(rope)}
    rope |= {"rope_theta": cfg.rope_theta} | more
    if cfg.rope_theta_local:
        near = {"rope_type": "default", "rope_theta": cfg.rope_theta_local}
        old["rope_local_base_freq"] = cfg.rope_theta_local
        return old | {
            "rope_theta": cfg.rope_theta,
            "rope_parameters": {"full_attention": rope, "sliding_attention": near},
        }
    return old | {"rope_theta": cfg.rope_theta, "rope_parameters": rope}
