"""Gemma 2 and 3 (the text model)."""

from functools import partial

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families import llama
from rlhf_jax.models.families.family import Family, known

GELU = {"gelu_pytorch_tanh": "geglu"}


def settings(config: dict, every: int, **own) -> dict:
    """Of config.json: norms on both sides, local layers, caps, and embeddings times sqrt(D).

    Files older than `layer_types` mean that one layer of `every` is not local.
    """
    every = config.get("sliding_window_pattern", every)
    layers = range(config["num_hidden_layers"])
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in layers]
    rest = {"layer_types": kinds, "tie_word_embeddings": True} | config | {"hidden_act": "silu"}
    shared = dict(
        activation=known(config, "hidden_activation", GELU),
        norm_offset=1.0,
        norm_place="both",
        attention_scale=float(config["query_pre_attn_scalar"]) ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping") or 0.0,
        logit_softcap=config.get("final_logit_softcapping") or 0.0,
        embedding_scale=float(config["hidden_size"]) ** 0.5,
    )
    return llama.settings(rest) | shared | own


def gemma3(config: dict) -> dict:
    """Gemma 3 norms queries and keys in the place of capping attention."""
    theta = {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}
    own = dict(qk_norm="head", attention_softcap=0.0)
    return settings(theta | config, every=6, **own)


def config(cfg: ModelConfig) -> dict:
    """Of the settings."""
    scale = cfg.attention_scale or (cfg.head_dim or cfg.d_model // cfg.heads) ** -0.5
    keys = llama.config(
        cfg,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=round(scale**-2),
        attn_logit_softcapping=cfg.attention_softcap or None,
        final_logit_softcapping=cfg.logit_softcap or None,
        sliding_window=cfg.window,
        layer_types=llama.kinds_of(cfg),
    )
    return {key: value for key, value in keys.items() if key != "hidden_act"}


def family(model_type: str, name: str, reward: str, settings) -> Family:
    """Gemma 2, or Gemma 3."""
    return Family(
        model_type=model_type,
        architecture=f"{name}ForCausalLM",
        reward_architecture=reward,
        settings=settings,
        config=config,
        tensors=partial(llama.tensors, mlp_norm="pre_feedforward_layernorm"),
        prefix="model.",
    )


ALL = (
    family("gemma2", "Gemma2", "Gemma2ForSequenceClassification", partial(settings, every=2)),
    family("gemma3_text", "Gemma3", "Gemma3TextForSequenceClassification", gemma3),
)
