"""What decoder-only families differ in, as settings of one transformer."""

from dataclasses import dataclass
from typing import Literal


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
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and at the end."""
    norm_eps: float = 1e-5
    """Added to the variance in a norm."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """tanh-approximate GELU, or a gated SiLU (Shazeer, 2020)."""
    bias: bool = True
    """Biases in projections and layer norms."""
    tied: bool = True
    """The unembedding is the embedding, transposed."""
    parallel_residual: bool = False
    """Attention and MLP read the same stream and are added together (GPT-J, GPT-NeoX)."""
    remat: bool = False
    """Recompute each block in the backward pass: memory of one block instead of all, a third more work."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """What parameters are kept in."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products run in; norms' statistics, softmax and log-softmax are float32 always."""
    logprob_chunk: int = 0
    """Columns whose logits are held at once when log-probabilities are taken; 0 means all."""

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
        if self.positions == "rotary" and width % 2:
            raise ValueError(
                f"model.head_dim = {width} is odd, and rotary positions turn pairs: choose an even one"
            )
