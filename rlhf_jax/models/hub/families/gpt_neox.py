"""GPT-NeoX, the family of Pythia (Black et al., 2022; Biderman et al., 2023)."""

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub.families.family import Family, Tensor, linear, scale
from rlhf_jax.models.hub.families.keys import FLAG, NEEDED, POSITIVE, SHARE, SIZE, only, or_null
from rlhf_jax.models.hub.families.rope import KEYS as ROPE
from rlhf_jax.models.hub.families.rope import rope_to, turned

GELU = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_fast": "gelu"}
KEYS = ROPE | {
    "vocab_size": NEEDED,
    "num_hidden_layers": NEEDED,
    "hidden_size": NEEDED,
    "num_attention_heads": NEEDED,
    "intermediate_size": NEEDED,
    "head_dim": or_null(SIZE),
    "rotary_pct": or_null(SHARE),
    "rotary_emb_base": ROPE["rope_theta"],
    "layer_norm_eps": POSITIVE,
    "hidden_act": only(*GELU),
    "use_parallel_residual": FLAG,
    "attention_bias": only(True),
}


def settings(config: dict) -> dict:
    """Settings from a completed config.json."""
    width = config["hidden_size"] // config["num_attention_heads"]
    if (config.get("head_dim") or width) != width:
        raise ValueError(f"head_dim = {config['head_dim']}: it must be {width}")
    return dict(
        vocab_size=config["vocab_size"],
        context=config["max_position_embeddings"],
        layers=config["num_hidden_layers"],
        d_model=config["hidden_size"],
        heads=config["num_attention_heads"],
        d_mlp=config["intermediate_size"],
        norm_eps=config["layer_norm_eps"],
        activation=GELU[config["hidden_act"]],
        parallel_residual=config["use_parallel_residual"],
        tied=config["tie_word_embeddings"],
        **turned(config, config["rope_parameters"], shares=True),
    )


def config(cfg: ModelConfig) -> dict:
    """The keys of config.json that express the settings."""
    return dict(
        vocab_size=cfg.vocab_size,
        max_position_embeddings=cfg.context,
        num_hidden_layers=cfg.layers,
        hidden_size=cfg.d_model,
        num_attention_heads=cfg.heads,
        intermediate_size=cfg.d_mlp or 4 * cfg.d_model,
        rotary_pct=cfg.rotary_share,
        rotary_emb_base=cfg.rope_theta,
        layer_norm_eps=cfg.norm_eps,
        hidden_act={v: k for k, v in reversed(GELU.items())}[cfg.activation],
        use_parallel_residual=cfg.parallel_residual,
        tie_word_embeddings=cfg.tied,
        attention_bias=True,
        **rope_to(cfg, partial_rotary_factor=cfg.rotary_share),
    )


def tensors(cfg: ModelConfig) -> dict[str, Tensor]:
    """Tensors of the files: one tensor holds the queries, keys and values of each head in turn."""
    found = {
        "embedding/embedding": Tensor("embed_in.weight"),
        "unembedding/kernel": Tensor("embed_out.weight", linear=True),
    }
    name = "layers.*.attention.query_key_value"
    for part, ours in enumerate(("query", "key", "value")):
        kernel, bias = Tensor(f"{name}.weight", linear=True), Tensor(f"{name}.bias")
        split = dict(part=part, parts=3, interleaved=cfg.heads)
        found[f"blocks/{ours}/kernel"] = kernel._replace(**split)
        found[f"blocks/{ours}/bias"] = bias._replace(**split)
    for ours, name in (
        ("attention_out", "attention.dense"),
        ("up", "mlp.dense_h_to_4h"),
        ("down", "mlp.dense_4h_to_h"),
    ):
        found |= linear(f"blocks/{ours}", f"layers.*.{name}", bias=True)
    found |= scale("blocks/attention_norm", "layers.*.input_layernorm", bias=True)
    found |= scale("blocks/mlp_norm", "layers.*.post_attention_layernorm", bias=True)
    return found | scale("final_norm", "final_layer_norm", bias=True)


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    reward_architecture="GPTNeoXForSequenceClassification",
    keys=KEYS,
    read=settings,
    config=config,
    tensors=tensors,
    prefix="gpt_neox.",
    head="embed_out.weight",
    ignored=(r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",),
)
