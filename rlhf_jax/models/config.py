"""Settings of one transformer that cover the decoder-only families."""

import math
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.bounds import Count, Finite, NonNegative, Positive, Settings, Share, Whole


@dataclass(frozen=True)
class RopeScaling(Settings):
    """Stretching of rotary wavelengths for contexts longer than in pretraining."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """Stretching by `factor` of all wavelengths (linear) or of long ones only, with a ramp linear in
    wavelengths per context (llama3) or in the index of the coordinate pair (yarn: Peng et al., 2023, which
    also sharpens attention)."""
    factor: Positive = 1.0
    """Factor that stretches wavelengths."""
    low: Positive = 1.0
    """For llama3 and yarn: wavelengths longer than original_context / low are stretched in full."""
    high: Positive = 4.0
    """For llama3 and yarn: wavelengths shorter than original_context / high are kept (32 in yarn's paper)."""
    original_context: Count = 8192
    """For llama3 and yarn: context length of pretraining."""
    attention_factor: NonNegative = 0.0
    """For yarn: multiplier of rotated queries and keys; 0: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """For yarn: round the ends of the ramp to whole coordinate pairs."""

    @property
    def gain(self) -> float:
        """The multiplier of rotated queries and keys."""
        if self.kind != "yarn":
            return 1.0
        return self.attention_factor or 0.1 * math.log(max(self.factor, 1.0)) + 1.0

    def _conditions(self, at: str):
        if self.kind == "llama3" and self.low >= self.high:
            raise ValueError(
                f"{at}low = {self.low} is not below {at}high = {self.high}: lower it, for the ramp of "
                "wavelengths lies between the two"
            )

    def _unread(self) -> dict[str, str]:
        scaled = ("factor", "low", "high", "original_context")
        reads = {"none": (), "linear": scaled[:1], "llama3": scaled}.get(self.kind, ())
        names = () if self.kind == "yarn" else (*scaled, "attention_factor", "truncate")
        return {x: f'kind = "{self.kind}" does not read it' for x in names if x not in reads}


COMPUTED = ("param_dtype", "dtype", "attention", "remat", "scan_decode")
"""The settings of a model that say how it is computed; no checkpoint holds them."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Architecture of a decoder-only transformer; the defaults are a small GPT-2."""

    _main = ("layers", "d_model", "dtype")
    _hidden = (
        *(
            "vocab_size",
            "rope_theta_local",
            "rope_scaling",
            "rotary_share",
            "window",
            "local_layers",
        ),
        *(
            "norm_eps",
            "norm_offset",
            "norm_place",
            "qk_norm",
            "attention_scale",
            "attention_softcap",
        ),
        *("logit_softcap", "embedding_scale", "qkv_bias", "parallel_residual"),
    )

    vocab_size: Count = 512
    """Number of tokens in the vocabulary (V); an experiment takes it from the tokenizer."""
    context: Count = 512
    """Longest sequence in tokens, prompt and response together; the number of learned positions."""
    layers: Count = 2
    """Number of transformer blocks."""
    d_model: Count = 128
    """Width of the residual stream (D)."""
    heads: Count = 4
    """Number of query heads (H)."""
    kv_heads: Whole = 0
    """Number of key-value heads (K), fewer than `heads` for grouped-query attention; 0: as many as heads."""
    head_dim: Whole = 0
    """Width of a head; 0: d_model / heads."""
    d_mlp: Whole = 0
    """Hidden width of the MLP; 0: 4 d_model."""
    positions: Literal["learned", "rotary"] = "learned"
    """Learned absolute positions, or rotary embedding of queries and keys (Su et al., 2021)."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary wavelengths."""
    rope_theta_local: NonNegative = 0.0
    """Base of the rotary wavelengths of local layers, never scaled (Gemma 3); 0: as in the other layers."""
    rope_scaling: RopeScaling = RopeScaling()
    rotary_share: Share = 1.0
    """Share of each head that rotary positions turn, from its first coordinate on (GPT-NeoX)."""
    window: Whole = 0
    """Attention window of local layers in tokens, the current one included; 0: no layer is local."""
    local_layers: tuple[Whole, ...] = ()
    """Indices (from 0) of the layers with a `window`; empty: all of them (Mistral)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and at the end."""
    norm_eps: Positive = 1e-5
    """Epsilon added to the variance in a norm."""
    norm_offset: Finite = 0.0
    """Constant added to the scale of an RMS norm (Gemma: 1)."""
    norm_place: Literal["before", "after", "both"] = "before"
    """Norms before attention and MLP, after them (OLMo 2), or both (Gemma)."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """Norm of queries and keys: per head (Qwen 3), or of all heads as one vector (OLMo 2)."""
    attention_scale: NonNegative = 0.0
    """Multiplier of query-key products; 0: 1 / sqrt(head_dim)."""
    attention_softcap: NonNegative = 0.0
    """Attention logits x become softcap tanh(x / softcap) (Gemma 2); 0: no cap."""
    logit_softcap: NonNegative = 0.0
    """Vocabulary logits x become softcap tanh(x / softcap) (Gemma 2); 0: no cap."""
    embedding_scale: Positive = 1.0
    """Multiplier of token embeddings (Gemma: sqrt(D))."""
    activation: Literal["gelu", "gelu_exact", "swiglu", "geglu"] = "gelu"
    """Activation of the MLP: GELU (gelu: tanh approximation, gelu_exact), or gated by SiLU (swiglu) or by
    tanh-approximate GELU (geglu: Shazeer, 2020)."""
    bias: bool = True
    """Biases in projections and layer norms."""
    qkv_bias: bool = False
    """Biases in queries, keys and values while the other projections have none (Qwen 2)."""
    tied: bool = True
    """Use the transposed embedding as the unembedding."""
    parallel_residual: bool = False
    """Attention and MLP read the same residual stream, and their outputs are added (GPT-J, GPT-NeoX)."""
    attention: Literal["xla", "cudnn"] = "xla"
    """Attention of full passes: xla holds all [B, H, L, L] logits below 1024 tokens, and blocks of them from
    there on; cudnn holds none (NVIDIA GPUs, dtype bfloat16, no softcap, one window for all
    layers). Prefill and decoding always use XLA."""
    remat: bool = False
    """Recompute each block in the backward pass: activation memory of one block, a third more compute."""
    scan_decode: bool = False
    """Decode through a scan over layers: compile time does not grow with depth, memory holds no second copy
    of the layers, and a token of a wide model takes up to 1.7 times as long. False: unrolled layers."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage type of parameters. bfloat16 loses updates smaller than 1/512 of a parameter: use it for
    frozen weights, as beneath adapters or for sampling."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products and of looked-up embeddings. Logits, norm statistics, softmax, log-softmax,
    and reward and value heads are always float32."""

    @property
    def local(self) -> tuple[int, ...]:
        """The layers (from 0) that see only a window."""
        return (self.local_layers or tuple(range(self.layers))) if self.window else ()

    @property
    def cuts(self) -> dict[str, tuple[int, str]]:
        """{setting: (its value, the mesh axis that must divide it)}."""
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
                f"{at}rotary_share = {self.rotary_share} rotates no pair of a head of width {width}: "
                f"it must be at least {2 / width:.2g}"
            )
        if self.positions == "rotary" and turned % 2:
            raise ValueError(
                f"{at}head_dim = {width} is odd, and rotary positions rotate pairs: choose an even number"
                if self.rotary_share == 1
                else f"{at}rotary_share = {self.rotary_share} of a head of width {width} is {turned}, an "
                "odd number, and rotary positions rotate pairs: choose another share"
            )
        if self.local_layers and not self.window:
            raise ValueError(
                f"{at}local_layers = {self.local_layers} need a window, and {at}window = 0: set the window, "
                "or leave the layers out"
            )
        if not set(self.local_layers) <= set(range(self.layers)):
            raise ValueError(
                f"{at}local_layers = {self.local_layers} exceed {at}layers = {self.layers}: name layers "
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
                        f'{at}{name} = {getattr(self, name)!r} does not work with {at}attention = "cudnn", '
                        f'which needs {want}: change it, or use {at}attention = "xla"'
                    )
        if self.norm_offset and self.norm != "rmsnorm":
            raise ValueError(
                f'{at}norm_offset = {self.norm_offset} needs rmsnorm, and {at}norm = "{self.norm}": '
                'set it to 0, or use norm = "rmsnorm"'
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
            missing = dict.fromkeys(turned, f'positions = "{self.positions}" rotates nothing')
        if not self.window:
            missing["rope_theta_local"] = "window = 0 makes no layer local"
        if self.bias:
            missing["qkv_bias"] = "bias = True gives all projections a bias"
        return missing
