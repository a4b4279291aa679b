"""Llama 2 and 3, and the families with the same names: Mistral, Qwen 2 and 2.5, Qwen 3, OLMo 2."""

from collections.abc import Callable
from functools import partial

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub.families.family import Family, Tensor, linear, scale
from rlhf_jax.models.hub.families.keys import (
    COUNT,
    FLAG,
    NEEDED,
    POSITIVE,
    SIZE,
    Kinds,
    each,
    only,
    or_null,
)
from rlhf_jax.models.hub.families.rope import KEYS as ROPE
from rlhf_jax.models.hub.families.rope import rope_to, turned

LOCAL, GLOBAL = "sliding_attention", "full_attention"
SHAPE = ROPE | {
    "vocab_size": NEEDED,
    "num_hidden_layers": NEEDED,
    "hidden_size": NEEDED,
    "num_attention_heads": NEEDED,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
    "intermediate_size": NEEDED,
    "rms_norm_eps": POSITIVE,
}
SILU = {"hidden_act": only("silu")}
NO_BIAS = {"attention_bias": only(False)}
WINDOW = {"sliding_window": or_null(SIZE)}
ALL_LOCAL = {"layer_types": or_null(each(LOCAL))}
"""Of Mistral, which transformers' AutoModel takes for another family where the list says more than that."""
LAYERS = WINDOW | {"layer_types": each(GLOBAL, LOCAL)}
PATTERN = LAYERS | {"use_sliding_window": FLAG, "max_window_layers": COUNT}


def settings(config: dict, **own) -> dict:
    """Settings from a completed config.json; `own` are those of the family."""
    heads = config["num_attention_heads"]
    return (
        dict(
            vocab_size=config["vocab_size"],
            context=config["max_position_embeddings"],
            layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            d_mlp=config["intermediate_size"],
            norm="rmsnorm",
            norm_eps=config["rms_norm_eps"],
            activation="swiglu",
            bias=False,
            tied=config["tie_word_embeddings"],
        )
        | own
    )


def flat(config: dict, **own) -> dict:
    """Settings of a family in which all layers rotate queries and keys alike."""
    return settings(config, **turned(config, config["rope_parameters"]), **own)


def mistral(config: dict) -> dict:
    """Settings of Mistral: all layers are local where there is a window."""
    return flat(config, window=config["sliding_window"] or 0)


def mixed(config: dict, **own) -> dict:
    """Settings of a family in which some layers may be local."""
    return flat(config, **local_of(config), **own)


def local_of(config: dict) -> dict:
    """Settings of the layers with a window, which `layer_types` names."""
    kinds, window = config["layer_types"], config["sliding_window"]
    local = tuple(i for i, kind in enumerate(kinds) if kind == LOCAL)
    if not local:
        return {}
    if not window:
        raise ValueError(
            f'layer_types has "{LOCAL}", but sliding_window is null (as in a Qwen with use_sliding_window = '
            "false): set a window, or change layer_types"
        )
    return dict(window=window, local_layers=() if len(local) == len(kinds) else local)


def kinds_of(cfg: ModelConfig) -> list[str]:
    """The key `layer_types` from the settings."""
    return [LOCAL if i in cfg.local else GLOBAL for i in range(cfg.layers)]


def config(cfg: ModelConfig, **own) -> dict:
    """The keys of config.json that express the settings; `own` are keys of the family."""
    return (
        dict(
            vocab_size=cfg.vocab_size,
            max_position_embeddings=cfg.context,
            num_hidden_layers=cfg.layers,
            hidden_size=cfg.d_model,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads or cfg.heads,
            head_dim=cfg.head_dim or cfg.d_model // cfg.heads,
            intermediate_size=cfg.d_mlp or 4 * cfg.d_model,
            rms_norm_eps=cfg.norm_eps,
            hidden_act="silu",
            attention_bias=False,
            tie_word_embeddings=cfg.tied,
            **rope_to(cfg),
        )
        | own
    )


def windowed(cfg: ModelConfig) -> dict:
    """Keys of families with local layers in some models."""
    return config(
        cfg,
        sliding_window=cfg.window or None,
        use_sliding_window=bool(cfg.window),
        layer_types=kinds_of(cfg),
    )


def tensors(
    cfg: ModelConfig,
    attention_norm: str = "input_layernorm",
    mlp_norm: str = "post_attention_layernorm",
) -> dict[str, Tensor]:
    """Tensors of the files for all parameters of the settings; families differ in the names of norms."""
    found = {
        "embedding/embedding": Tensor("embed_tokens.weight"),
        "unembedding/kernel": Tensor("lm_head.weight", linear=True),
    }
    for ours, name in (("query", "q"), ("key", "k"), ("value", "v")):
        found |= linear(f"blocks/{ours}", f"layers.*.self_attn.{name}_proj", bias=cfg.qkv_bias)
        if cfg.qk_norm != "none" and name != "v":
            found |= scale(f"blocks/{ours}_norm", f"layers.*.self_attn.{name}_norm")
    found |= linear("blocks/attention_out", "layers.*.self_attn.o_proj", bias=False)
    for name in ("gate", "up", "down"):
        found |= linear(f"blocks/{name}", f"layers.*.mlp.{name}_proj", bias=False)
    found |= scale("final_norm", "norm")
    if cfg.norm_place != "after":
        found |= scale("blocks/attention_norm", f"layers.*.{attention_norm}")
        found |= scale("blocks/mlp_norm", f"layers.*.{mlp_norm}")
    if cfg.norm_place != "before":
        found |= scale("blocks/attention_after_norm", "layers.*.post_attention_layernorm")
        found |= scale("blocks/mlp_after_norm", "layers.*.post_feedforward_layernorm")
    return found


def family(
    model_type: str, name: str, keys: Kinds, read: Callable = flat, config: Callable = config
) -> Family:
    """A family with Llama's tensor names; `keys` are its own in addition to those of the architecture."""
    return Family(
        model_type=model_type,
        architecture=f"{name}ForCausalLM",
        reward_architecture=f"{name}ForSequenceClassification",
        keys=SHAPE | SILU | keys,
        read=read,
        config=config,
        tensors=tensors,
        prefix="model.",
        ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    )


ALL = (
    family("llama", "Llama", NO_BIAS | {"mlp_bias": only(False)}),
    family(
        "mistral",
        "Mistral",
        WINDOW | ALL_LOCAL,
        mistral,
        lambda cfg: config(cfg, sliding_window=cfg.window or None),
    ),
    family("qwen2", "Qwen2", PATTERN, partial(mixed, qkv_bias=True), windowed),
    family("qwen3", "Qwen3", PATTERN | NO_BIAS, partial(mixed, qk_norm="head"), windowed),
    family("olmo2", "Olmo2", NO_BIAS, partial(flat, qk_norm="all", norm_place="after")),
)
