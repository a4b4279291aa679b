"""GPT-2 (Radford et al., 2019)."""

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub.families.family import Family, Tensor, scale
from rlhf_jax.models.hub.families.keys import NEEDED, POSITIVE, SIZE, only, or_null

GELU = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}
KEYS = {
    "vocab_size": NEEDED,
    "n_positions": NEEDED,
    "n_layer": NEEDED,
    "n_embd": NEEDED,
    "n_head": NEEDED,
    "n_inner": or_null(SIZE),
    "layer_norm_epsilon": POSITIVE,
    "activation_function": only(*GELU),
    "scale_attn_weights": only(True),
    "scale_attn_by_inverse_layer_idx": only(False),
    "add_cross_attention": only(False),
}


def settings(config: dict) -> dict:
    """Settings from a completed config.json."""
    return dict(
        vocab_size=config["vocab_size"],
        context=config["n_positions"],
        layers=config["n_layer"],
        d_model=config["n_embd"],
        heads=config["n_head"],
        d_mlp=config["n_inner"] or 4 * config["n_embd"],
        norm_eps=config["layer_norm_epsilon"],
        activation=GELU[config["activation_function"]],
        tied=config["tie_word_embeddings"],
    )


def config(cfg: ModelConfig) -> dict:
    """The keys of config.json that express the settings."""
    return dict(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.context,
        n_layer=cfg.layers,
        n_embd=cfg.d_model,
        n_head=cfg.heads,
        n_inner=cfg.d_mlp or None,
        layer_norm_epsilon=cfg.norm_eps,
        activation_function={v: k for k, v in reversed(GELU.items())}[cfg.activation],
        tie_word_embeddings=cfg.tied,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def tensors(cfg: ModelConfig) -> dict[str, Tensor]:
    """Tensors of the files: kernels are stored as [in, out]; queries, keys and values are one tensor."""
    del cfg
    both = lambda ours, name, **fused: {
        f"blocks/{ours}/kernel": Tensor(f"h.*.{name}.weight", **fused),
        f"blocks/{ours}/bias": Tensor(f"h.*.{name}.bias", **fused),
    }
    found = {
        "embedding/embedding": Tensor("wte.weight"),
        "position_embedding/embedding": Tensor("wpe.weight"),
        "unembedding/kernel": Tensor("lm_head.weight", linear=True),
    }
    for part, name in enumerate(("query", "key", "value")):
        found |= both(name, "attn.c_attn", part=part, parts=3)
    found |= both("attention_out", "attn.c_proj")
    found |= both("up", "mlp.c_fc") | both("down", "mlp.c_proj")
    found |= scale("blocks/attention_norm", "h.*.ln_1", bias=True)
    found |= scale("blocks/mlp_norm", "h.*.ln_2", bias=True)
    return found | scale("final_norm", "ln_f", bias=True)


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    reward_architecture="GPT2ForSequenceClassification",
    keys=KEYS,
    read=settings,
    config=config,
    tensors=tensors,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
)
