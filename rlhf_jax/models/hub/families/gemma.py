"""Gemma 2 and 3 (the text model)."""

from collections.abc import Callable
from functools import partial

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub.families import llama
from rlhf_jax.models.hub.families.family import Family
from rlhf_jax.models.hub.families.keys import POSITIVE, SIZE, Kinds, only, or_null
from rlhf_jax.models.hub.families.rope import KEYS as ROPE
from rlhf_jax.models.hub.families.rope import turned, turned_apart

CAP = or_null(POSITIVE)
KEYS = (
    llama.SHAPE
    | llama.NO_BIAS
    | llama.LAYERS
    | {
        "hidden_activation": only("gelu_pytorch_tanh"),
        "query_pre_attn_scalar": SIZE,
        "final_logit_softcapping": CAP,
        "use_bidirectional_attention": only(False, None),
    }
)


def settings(config: dict, **own) -> dict:
    """Settings shared by Gemma 2 and 3, from a completed config.json: norms on both sides, caps, embeddings
    times sqrt(D)."""
    return llama.settings(
        config,
        norm_offset=1.0,
        norm_place="both",
        attention_scale=float(config["query_pre_attn_scalar"]) ** -0.5,
        logit_softcap=config["final_logit_softcapping"] or 0.0,
        embedding_scale=float(config["hidden_size"]) ** 0.5,
        **llama.local_of(config),
        **own,
    ) | {"activation": "geglu"}


def gemma2(config: dict) -> dict:
    """Settings of Gemma 2, which caps attention logits."""
    cap = config["attn_logit_softcapping"] or 0.0
    return settings(config, attention_softcap=cap, **turned(config, config["rope_parameters"]))


def gemma3(config: dict) -> dict:
    """Settings of Gemma 3, which normalises queries and keys instead of capping attention logits."""
    return settings(config, qk_norm="head", **turned_apart(config))


def config(cfg: ModelConfig) -> dict:
    """The keys of config.json that express the settings."""
    scale = cfg.attention_scale or (cfg.head_dim or cfg.d_model // cfg.heads) ** -0.5
    keys = llama.config(
        cfg,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=round(scale**-2),
        attn_logit_softcapping=cfg.attention_softcap or None,
        final_logit_softcapping=cfg.logit_softcap or None,
        sliding_window=cfg.window or 4096,  # which is asked for where no layer is local, too
        layer_types=llama.kinds_of(cfg),
    )
    return {key: value for key, value in keys.items() if key != "hidden_act"}


def family(model_type: str, name: str, reward: str, keys: Kinds, read: Callable) -> Family:
    """The family of Gemma 2 or Gemma 3."""
    return Family(
        model_type=model_type,
        architecture=f"{name}ForCausalLM",
        reward_architecture=reward,
        keys=KEYS | keys,
        read=read,
        config=config,
        tensors=partial(llama.tensors, mlp_norm="pre_feedforward_layernorm"),
        prefix="model.",
    )


ALL = (
    family(
        "gemma2",
        "Gemma2",
        "Gemma2ForSequenceClassification",
        {"attn_logit_softcapping": CAP},
        gemma2,
    ),
    family(
        "gemma3_text",
        "Gemma3",
        "Gemma3TextForSequenceClassification",
        {"sliding_window_pattern": or_null(SIZE), "rope_local_base_freq": ROPE["rope_theta"]},
        gemma3,
    ),
)
