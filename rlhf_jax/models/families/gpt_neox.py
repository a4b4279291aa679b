"""GPT-NeoX, of which Pythia is (Black et al., 2022; Biderman et al., 2023)."""

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families.family import Family, Tensor, known, linear, scale
from rlhf_jax.models.families.rope import rope_of, rope_to

GELU = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_fast": "gelu"}


def settings(config: dict) -> dict:
    """Of config.json."""
    rope = rope_of(config, theta_key="rotary_emb_base")
    share = config.get("rope_parameters", {}).get("partial_rotary_factor")
    return dict(
        vocab_size=config["vocab_size"],
        context=config["max_position_embeddings"],
        layers=config["num_hidden_layers"],
        d_model=config["hidden_size"],
        heads=config["num_attention_heads"],
        d_mlp=config["intermediate_size"],
        positions="rotary",
        rotary_share=share or config.get("rotary_pct", 0.25),
        norm_eps=config["layer_norm_eps"],
        activation=known(config, "hidden_act", GELU),
        parallel_residual=config.get("use_parallel_residual", True),
        tied=config.get("tie_word_embeddings", False),
        **rope,
    )


def config(cfg: ModelConfig) -> dict:
    """Of the settings."""
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
    """Queries, keys and values of each head stand together in one tensor."""
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
    settings=settings,
    config=config,
    tensors=tensors,
    prefix="gpt_neox.",
    head="embed_out.weight",
    ignored=(r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",),
)
