"""Rotary positions in config.json: transformers 5 has `rope_parameters`, what came before it two keys."""

from typing import Any

from rlhf_jax.models.config import ModelConfig, RopeScaling

KINDS = ("default", "linear", "llama3")


def scaling_of(rope: dict, context: int) -> RopeScaling:
    """Of one dictionary, and the model's most positions. Raises ValueError for a kind that is not known."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"config.json has rope type {kind!r}: known are {', '.join(KINDS)}")
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    return RopeScaling(
        "llama3",
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope.get("original_max_position_embeddings") or context),
    )


def rope_of(config: dict, theta_key: str = "rope_theta", theta: float = 10_000.0) -> dict:
    """Settings of rotary positions, local layers' too where they have their own; `theta` if none is said."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local = {}
    if "full_attention" in rope:  # Gemma 3 in transformers 5: one for each kind of layer
        local = rope.get("sliding_attention") or {}
        rope = rope["full_attention"]
    theta = rope.get("rope_theta", config.get(theta_key, theta))
    theta_local = local.get("rope_theta", config.get("rope_local_base_freq", 0.0))
    return dict(
        rope_theta=float(theta),
        rope_theta_local=float(theta_local),
        rope_scaling=scaling_of(rope, config["max_position_embeddings"]),
    )


def rope_to(cfg: ModelConfig, **more) -> dict:
    """The keys of both generations of transformers."""
    s = cfg.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default" if s.kind == "none" else s.kind}
    if s.kind != "none":
        rope["factor"] = s.factor
    if s.kind == "llama3":
        rope |= dict(low_freq_factor=s.low, high_freq_factor=s.high)
        rope["original_max_position_embeddings"] = s.original_context
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
