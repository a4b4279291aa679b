"""What decoder-only families differ in, as settings of one transformer."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary wavelengths are stretched for contexts beyond those of pretraining."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """linear: all wavelengths are stretched by `factor`. llama3: the long ones are, the short ones not, with
    a ramp between that is linear in wavelengths per context. yarn: the ramp is linear in the number of the
    pair of coordinates, and attention is sharpened (Peng et al., 2023)."""
    factor: float = 1.0
    """How far wavelengths are stretched."""
    low: float = 1.0
    """llama3, yarn: wavelengths longer than original_context / low are stretched whole."""
    high: float = 4.0
    """llama3, yarn: wavelengths shorter than original_context / high are not stretched (yarn's paper: 32)."""
    original_context: int = 8192
    """llama3, yarn: positions of pretraining."""
    attention_factor: float = 0.0
    """yarn: what turned queries and keys are multiplied by; 0 means 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: the ramp begins and ends at whole pairs of coordinates."""

    @property
    def gain(self) -> float:
        """What turned queries and keys are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return self.attention_factor or 0.1 * math.log(max(self.factor, 1.0)) + 1.0


COMPUTED = ("param_dtype", "dtype", "attention", "remat", "logprob_chunk")
"""The settings of a model that no checkpoint has: how it is computed."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and style of a decoder-only transformer. The defaults are a small GPT-2."""

    vocab_size: int = 512
    """Tokens in the vocabulary (V); experiments take it from the tokenizer."""
    context: int = 512
    """Most positions of a sequence, prompt and response together; what learned positions cover."""
    layers: int = 2
    """Blocks."""
    d_model: int = 128
    """Width of the residual stream (D)."""
    heads: int = 4
    """Query heads (H)."""
    kv_heads: int = 0
    """Key-value heads (K), fewer than `heads` for grouped-query attention; 0 means as many as heads."""
    head_dim: int = 0
    """Width of a head; 0 means d_model / heads."""
    d_mlp: int = 0
    """Width of the hidden layer of the MLP; 0 means 4 d_model."""
    positions: Literal["learned", "rotary"] = "learned"
    """Learned absolute positions, or rotary embedding of queries and keys (Su et al., 2021)."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rope_theta_local: float = 0.0
    """Base of the rotary wavelengths of local layers, which are not scaled (Gemma 3); 0: as the others."""
    rope_scaling: RopeScaling = RopeScaling()
    rotary_share: float = 1.0
    """The share of each head that rotary positions turn: its first coordinates (GPT-NeoX)."""
    window: int = 0
    """Columns that a token of a local layer sees, its own among them; 0: no layer is local."""
    local_layers: tuple[int, ...] = ()
    """Which layers (from 0) are local where `window` is set; empty means all (Mistral)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and at the end."""
    norm_eps: float = 1e-5
    """Added to the variance in a norm."""
    norm_offset: float = 0.0
    """Added to the scales of RMS norms (Gemma keeps them less 1)."""
    norm_place: Literal["before", "after", "both"] = "before"
    """Norms stand before attention and MLP, after them (OLMo 2), or both (Gemma)."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """A norm of queries and keys: of each head (Qwen 3), or of all heads as one vector (OLMo 2)."""
    attention_scale: float = 0.0
    """What query-key products are multiplied by; 0 means 1 / sqrt(head_dim)."""
    attention_softcap: float = 0.0
    """Attention logits x become softcap tanh(x / softcap); 0: they stay (Gemma 2)."""
    logit_softcap: float = 0.0
    """The same for the logits of the vocabulary."""
    embedding_scale: float = 1.0
    """What embeddings of tokens are multiplied by (Gemma: sqrt(D))."""
    activation: Literal["gelu", "gelu_exact", "swiglu", "geglu"] = "gelu"
    """tanh-approximate GELU, GELU, or a gated SiLU or tanh-approximate GELU (Shazeer, 2020)."""
    bias: bool = True
    """Biases in projections and layer norms."""
    qkv_bias: bool = False
    """Biases in queries, keys and values, where the other projections have none (Qwen 2)."""
    tied: bool = True
    """The unembedding is the embedding, transposed."""
    parallel_residual: bool = False
    """Attention and MLP read the same stream and are added together (GPT-J, GPT-NeoX)."""
    attention: Literal["xla", "cudnn"] = "xla"
    """What attends in whole passes: XLA, which holds [B, H, L, L], or cuDNN, which does not (NVIDIA GPUs,
    dtype bfloat16, no softcap, one window for all layers). Prompts and single tokens are XLA's always."""
    remat: bool = False
    """Recompute each block in the backward pass: memory of one block instead of all, a third more work."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """What parameters are kept in. In bfloat16 an update below 1/512 of a parameter is lost: for what
    adapters stand over, and for what is only sampled or read."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is multiplied in matrix products. Logits, norms' statistics, softmax, log-softmax and the heads of
    rewards and values are float32 always; embeddings are rounded to it where they are looked up."""
    logprob_chunk: int = 0
    """Columns whose logits are held at once when log-probabilities are taken; 0 means all."""

    @property
    def local(self) -> tuple[int, ...]:
        """The layers (from 0) that see a window alone."""
        return (self.local_layers or tuple(range(self.layers))) if self.window else ()

    @property
    def cuts(self) -> dict[str, tuple[int, str]]:
        """{setting: (its value, the axis of a mesh that must divide it)}."""
        return {
            "model.d_model": (self.d_model, "fsdp"),
            "model.heads": (self.heads, "tensor"),
            "model.kv_heads": (self.kv_heads or self.heads, "tensor"),
            "model.d_mlp": (self.d_mlp or 4 * self.d_model, "tensor"),
        }

    def __post_init__(self):
        heads = self.kv_heads or self.heads
        if self.heads % heads:
            raise ValueError(
                f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}: "
                "choose a divisor, or 0 for as many"
            )
        if not self.head_dim and self.d_model % self.heads:
            raise ValueError(
                f"model.heads = {self.heads} does not divide model.d_model = {self.d_model}: "
                "choose a divisor, or set model.head_dim"
            )
        width = self.head_dim or self.d_model // self.heads
        if self.positions == "rotary" and int(width * self.rotary_share) % 2:
            raise ValueError(
                f"model.head_dim = {width} is odd, and rotary positions turn pairs: choose an even one"
                if self.rotary_share == 1
                else f"model.rotary_share = {self.rotary_share} of a head of {width} is odd: "
                "rotary positions turn pairs"
            )
        if self.local_layers and not self.window:
            raise ValueError(
                f"model.local_layers = {self.local_layers} and model.window = 0: say how far they see"
            )
        if not set(self.local_layers) <= set(range(self.layers)):
            raise ValueError(
                f"model.local_layers = {self.local_layers} and model.layers = {self.layers}: name layers "
                f"from 0 to {self.layers - 1}"
            )
        if self.attention == "cudnn":
            for name, ok, want in [
                ("dtype", self.dtype == "bfloat16", '"bfloat16"'),
                ("attention_softcap", not self.attention_softcap, "0"),
                (
                    "local_layers",
                    len(set(self.local)) in (0, self.layers),
                    "() (all layers, or none)",
                ),
            ]:
                if not ok:
                    raise ValueError(
                        f'model.{name} = {getattr(self, name)!r} and model.attention = "cudnn", which '
                        f'wants {want}: change it, or take model.attention = "xla"'
                    )
        if self.norm_offset and self.norm != "rmsnorm":
            raise ValueError(
                f'model.norm_offset = {self.norm_offset} is of rmsnorm, and model.norm = "{self.norm}"'
            )
