"""What decoder-only families differ in, as settings of one transformer."""

import math
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.bounds import Count, Finite, NonNegative, Positive, Settings, Share, Whole


@dataclass(frozen=True)
class RopeScaling(Settings):
    """How rotary wavelengths are stretched for contexts beyond those of pretraining."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """linear: all wavelengths are stretched by `factor`. llama3: the long ones are, the short ones not, with
    a ramp between that is linear in wavelengths per context. yarn: the ramp is linear in the number of the
    pair of coordinates, and attention is sharpened (Peng et al., 2023)."""
    factor: Positive = 1.0
    """How far wavelengths are stretched."""
    low: Positive = 1.0
    """llama3, yarn: wavelengths longer than original_context / low are stretched whole."""
    high: Positive = 4.0
    """llama3, yarn: wavelengths shorter than original_context / high are not stretched (yarn's paper: 32)."""
    original_context: Count = 8192
    """llama3, yarn: positions of pretraining."""
    attention_factor: NonNegative = 0.0
    """yarn: what turned queries and keys are multiplied by; 0 means 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: the ramp begins and ends at whole pairs of coordinates."""

    @property
    def gain(self) -> float:
        """What turned queries and keys are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return self.attention_factor or 0.1 * math.log(max(self.factor, 1.0)) + 1.0

    def _conditions(self, at: str):
        if self.kind == "llama3" and self.low >= self.high:
            raise ValueError(
                f"{at}low = {self.low} is not below {at}high = {self.high}: the ramp lies between"
            )

    def _unread(self) -> dict[str, str]:
        scaled = ("factor", "low", "high", "original_context")
        reads = {"none": (), "linear": scaled[:1], "llama3": scaled}.get(self.kind, ())
        names = () if self.kind == "yarn" else (*scaled, "attention_factor", "truncate")
        return {x: f'kind = "{self.kind}" does not read it' for x in names if x not in reads}


COMPUTED = ("param_dtype", "dtype", "attention", "remat", "logprob_chunk")
"""The settings of a model that no checkpoint has: how it is computed."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Shape and style of a decoder-only transformer. The defaults are a small GPT-2."""

    _main = ("layers", "d_model", "dtype")

    vocab_size: Count = 512
    """Tokens in the vocabulary (V); experiments take it from the tokenizer."""
    context: Count = 512
    """Most positions of a sequence, prompt and response together; what learned positions cover."""
    layers: Count = 2
    """Blocks."""
    d_model: Count = 128
    """Width of the residual stream (D)."""
    heads: Count = 4
    """Query heads (H)."""
    kv_heads: Whole = 0
    """Key-value heads (K), fewer than `heads` for grouped-query attention; 0 means as many as heads."""
    head_dim: Whole = 0
    """Width of a head; 0 means d_model / heads."""
    d_mlp: Whole = 0
    """Width of the hidden layer of the MLP; 0 means 4 d_model."""
    positions: Literal["learned", "rotary"] = "learned"
    """Learned absolute positions, or rotary embedding of queries and keys (Su et al., 2021)."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary wavelengths."""
    rope_theta_local: NonNegative = 0.0
    """Base of the rotary wavelengths of local layers, which are not scaled (Gemma 3); 0: as the others."""
    rope_scaling: RopeScaling = RopeScaling()
    rotary_share: Share = 1.0
    """The share of each head that rotary positions turn: its first coordinates (GPT-NeoX)."""
    window: Whole = 0
    """Columns that a token of a local layer sees, its own among them; 0: no layer is local."""
    local_layers: tuple[Whole, ...] = ()
    """Which layers (from 0) are local where `window` is set; empty means all (Mistral)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and at the end."""
    norm_eps: Positive = 1e-5
    """Added to the variance in a norm."""
    norm_offset: Finite = 0.0
    """Added to the scales of RMS norms (Gemma keeps them less 1)."""
    norm_place: Literal["before", "after", "both"] = "before"
    """Norms stand before attention and MLP, after them (OLMo 2), or both (Gemma)."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """A norm of queries and keys: of each head (Qwen 3), or of all heads as one vector (OLMo 2)."""
    attention_scale: NonNegative = 0.0
    """What query-key products are multiplied by; 0 means 1 / sqrt(head_dim)."""
    attention_softcap: NonNegative = 0.0
    """Attention logits x become softcap tanh(x / softcap); 0: they stay (Gemma 2)."""
    logit_softcap: NonNegative = 0.0
    """The same for the logits of the vocabulary."""
    embedding_scale: Positive = 1.0
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
    logprob_chunk: Whole = 0
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

    def _conditions(self, at: str):
        heads = self.kv_heads or self.heads
        if self.heads % heads:
            raise ValueError(
                f"{at}kv_heads = {self.kv_heads} does not divide {at}heads = {self.heads}: "
                "choose a divisor, or 0 for as many"
            )
        if not self.head_dim and self.d_model % self.heads:
            raise ValueError(
                f"{at}heads = {self.heads} does not divide {at}d_model = {self.d_model}: "
                f"choose a divisor, or set {at}head_dim"
            )
        width = self.head_dim or self.d_model // self.heads
        turned = int(width * self.rotary_share)
        if self.positions == "rotary" and not turned:
            raise ValueError(
                f"{at}rotary_share = {self.rotary_share} of a head of {width} turns nothing: "
                f"at least {2 / width:.2g} of it"
            )
        if self.positions == "rotary" and turned % 2:
            raise ValueError(
                f"{at}head_dim = {width} is odd, and rotary positions turn pairs: choose an even one"
                if self.rotary_share == 1
                else f"{at}rotary_share = {self.rotary_share} of a head of {width} is odd: "
                "rotary positions turn pairs"
            )
        if self.local_layers and not self.window:
            raise ValueError(
                f"{at}local_layers = {self.local_layers} and {at}window = 0: say how far they see"
            )
        if not set(self.local_layers) <= set(range(self.layers)):
            raise ValueError(
                f"{at}local_layers = {self.local_layers} and {at}layers = {self.layers}: name layers "
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
                        f'{at}{name} = {getattr(self, name)!r} and {at}attention = "cudnn", which '
                        f'wants {want}: change it, or take {at}attention = "xla"'
                    )
        if self.norm_offset and self.norm != "rmsnorm":
            raise ValueError(
                f'{at}norm_offset = {self.norm_offset} is of rmsnorm, and {at}norm = "{self.norm}"'
            )

    def _unread(self) -> dict[str, str]:
        missing: dict[str, str] = {}
        if self.positions != "rotary":
            turned: tuple[str, ...] = (
                "rope_theta",
                "rope_theta_local",
                "rope_scaling",
                "rotary_share",
            )
            missing = dict.fromkeys(turned, f'positions = "{self.positions}" turns nothing')
        if not self.window:
            missing["rope_theta_local"] = "window = 0 makes no layer local"
        if self.bias:
            missing["qkv_bias"] = "bias = True gives all projections one"
        return missing
