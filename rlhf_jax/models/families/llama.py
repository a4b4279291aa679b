"""Llama 2 and 3, and what keeps its names: Mistral, Qwen 2 and 2.5, Qwen 3, OLMo 2."""

from functools import partial

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families.family import Family, Tensor, known, linear, scale
from rlhf_jax.models.families.rope import rope_of, rope_to


def settings(config: dict, **own) -> dict:
    """Of config.json; `own` are those of the family."""
    for key in ("attention_bias", "mlp_bias"):
        known({key: config.get(key, False)}, key, {False: False})
    heads = config["num_attention_heads"]
    return (
        dict(
            vocab_size=config["vocab_size"],
            context=config["max_position_embeddings"],
            layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            d_mlp=config["intermediate_size"],
            positions="rotary",
            norm="rmsnorm",
            norm_eps=config["rms_norm_eps"],
            activation=known(config, "hidden_act", {"silu": "swiglu"}),
            bias=False,
            tied=config.get("tie_word_embeddings", False),
            **rope_of(config),
            **local_of(config),
        )
        | own
    )


def local_of(config: dict) -> dict:
    """Which layers see a window alone: `layer_types` says it, or all do where a `sliding_window` is set."""
    window, layers = config.get("sliding_window") or 0, range(config["num_hidden_layers"])
    if not window or config.get("use_sliding_window") is False:
        return {}
    kinds, first = config.get("layer_types"), config.get("max_window_layers", 0)
    local = tuple(i for i in layers if (kinds[i] == "sliding_attention" if kinds else i >= first))
    if not local:
        return {}
    return dict(window=window, local_layers=() if len(local) == len(layers) else local)


def kinds_of(cfg: ModelConfig) -> list[str]:
    """`layer_types` of the settings."""
    local = cfg.local_layers or (range(cfg.layers) if cfg.window else ())
    return ["sliding_attention" if i in local else "full_attention" for i in range(cfg.layers)]


def config(cfg: ModelConfig, **own) -> dict:
    """Of the settings; `own` are keys of the family."""
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
    """The keys of families some of whose models have local layers."""
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
    """Everything that the settings ask for; the names of norms differ."""
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


def family(model_type: str, name: str, settings=settings, config=config) -> Family:
    """One that keeps Llama's names."""
    return Family(
        model_type=model_type,
        architecture=f"{name}ForCausalLM",
        reward_architecture=f"{name}ForSequenceClassification",
        settings=settings,
        config=config,
        tensors=tensors,
        prefix="model.",
        ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    )


ALL = (
    family("llama", "Llama"),
    family("mistral", "Mistral", config=lambda cfg: config(cfg, sliding_window=cfg.window or None)),
    family("qwen2", "Qwen2", partial(settings, qkv_bias=True), windowed),
    family("qwen3", "Qwen3", partial(settings, qk_norm="head"), windowed),
    family("olmo2", "Olmo2", partial(settings, qk_norm="all", norm_place="after")),
)
