"""Writes the checkpoints and outputs that `rlhf_jax` is compared with: transformers', in PyTorch.

    pip install torch==2.13.0 transformers==5.24.0 safetensors numpy psutil accelerate
    pip install --no-deps peft==0.21.2
    python tests/golden/make.py

No test runs it, and but for `tests/models/hub/test_torch.py`, which builds larger models with `build`,
none needs PyTorch. For each case of the table below it writes beside itself `CASE/config.json` and
`CASE/model.safetensors`, as `save_pretrained` leaves them, and `CASE/golden.npz`:

    tokens          int32 [3, L]       row 0 is full, rows 1 and 2 have 2 and 7 columns of padding
                                       on the left
    attention_mask  bool [3, L]        False in padding; real positions count from 0 in every row
    hidden          float32 [3, L, D]  after the final norm; 0 in padding
    logits          float32 [3, L, V]  0 in padding; or, for a reward model,
    scores          float32 [3]        of the last column
    transformers, torch                their versions

and for each adapter of the second table `CASE/adapter_config.json` and `CASE/adapter_model.safetensors`, as
PEFT leaves them, beside the same `golden.npz` of the model with the adapter, and PEFT's version in it.

The models are tiny, random and far from their initialization, so that every number in a checkpoint
and the settings of its config show in the outputs. The script fails if padding shows in them, or if
a change of config that a case lists under `matters` does not. It prints a table of what it wrote:
parameters, bytes, and the standard deviation of the logits (or of the three scores).
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as tf

FOLDER = pathlib.Path(__file__).parent
VOCABULARY, LENGTH, PAD = 61, 20, 0
PADDING = (0, 2, 7)  # columns on the left of each row
GAIN = 1.5  # of a matrix: enough that attention is not uniform
WIDE = 10 * LENGTH  # a window that hides nothing
COMMON = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


class Case(NamedTuple):
    """A model, its config, and changes of that config that must change the outputs."""

    model: type
    config: type
    settings: dict[str, Any]
    matters: tuple[dict[str, Any], ...] = ()


def gpt2(**more) -> dict[str, Any]:
    return dict(n_embd=24, n_layer=2, n_head=3, n_positions=32, layer_norm_epsilon=0.01) | more


def neox(**more) -> dict[str, Any]:
    return (
        dict(
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=64,
            layer_norm_eps=0.01,  # here and below: large enough that a wrong one shows
        )
        | more
    )


def gated(**more) -> dict[str, Any]:
    return (
        dict(
            intermediate_size=40,
            num_hidden_layers=2,
            max_position_embeddings=64,
            rms_norm_eps=0.01,
        )
        | more
    )


def rope(theta: float, kind: str = "default", **more) -> dict[str, Any]:
    return dict(rope_type=kind, rope_theta=theta, **more)


LLAMA3 = gated(
    hidden_size=36,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
    max_position_embeddings=256,
    # wavelengths 6, 20, 63 and 199: one below 32 / 4, one between, two above 32 / 1
    rope_parameters=rope(
        100.0,
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
)
GEMMA2 = gated(
    hidden_size=30,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    query_pre_attn_scalar=12,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=3.0,
    sliding_window=6,
    rope_parameters=rope(200.0),
)
LOCAL, GLOBAL = "sliding_attention", "full_attention"
GEMMA3 = gated(
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    query_pre_attn_scalar=5,
    sliding_window=6,
    layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL],
    rope_parameters={LOCAL: rope(50.0), GLOBAL: rope(1000.0, "linear", factor=4.0)},
)
CASES = {
    "gpt2": Case(tf.GPT2LMHeadModel, tf.GPT2Config, gpt2()),
    "gpt_neox": Case(
        tf.GPTNeoXForCausalLM,
        tf.GPTNeoXConfig,
        neox(
            hidden_size=48,
            intermediate_size=80,
            rope_parameters=rope(100.0, partial_rotary_factor=0.25),
        ),
        (
            {"use_parallel_residual": False},
            {"rope_parameters": rope(100.0, partial_rotary_factor=0.5)},
            {"rope_parameters": rope(10000.0, partial_rotary_factor=0.25)},
        ),
    ),
    "gpt_neox_sequential": Case(
        tf.GPTNeoXForCausalLM,
        tf.GPTNeoXConfig,
        neox(
            hidden_size=24,
            intermediate_size=96,
            use_parallel_residual=False,
            rope_parameters=rope(100.0, partial_rotary_factor=0.25),
        ),
        ({"use_parallel_residual": True},),
    ),
    "llama2": Case(
        tf.LlamaForCausalLM,
        tf.LlamaConfig,
        gated(hidden_size=24, num_attention_heads=3, rope_parameters=rope(300.0)),
        ({"rope_parameters": rope(10000.0)}, {"rms_norm_eps": 1e-6}),
    ),
    "llama3": Case(
        tf.LlamaForCausalLM,
        tf.LlamaConfig,
        LLAMA3,
        ({"rope_parameters": rope(100.0)}, {"rope_parameters": rope(100.0, "linear", factor=8.0)}),
    ),
    "llama_linear": Case(
        tf.LlamaForCausalLM,
        tf.LlamaConfig,
        gated(
            hidden_size=30,
            num_attention_heads=5,
            num_key_value_heads=1,
            rope_parameters=rope(100.0, "linear", factor=2.0),
        ),
        ({"rope_parameters": rope(100.0)},),
    ),
    "mistral": Case(
        tf.MistralForCausalLM,
        tf.MistralConfig,
        gated(
            hidden_size=32,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=6,
            rope_parameters=rope(100.0),
        ),
        ({"sliding_window": WIDE}, {"sliding_window": 5}, {"sliding_window": 7}),
    ),
    "qwen2": Case(
        tf.Qwen2ForCausalLM,
        tf.Qwen2Config,
        gated(
            hidden_size=36,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            rope_parameters=rope(100.0),
        ),
    ),
    "qwen3": Case(
        tf.Qwen3ForCausalLM,
        tf.Qwen3Config,
        gated(
            hidden_size=28,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=8,
            rope_parameters=rope(100.0),
        ),
    ),
    "gemma2": Case(
        tf.Gemma2ForCausalLM,
        tf.Gemma2Config,
        GEMMA2,
        (
            {"sliding_window": WIDE},
            {"layer_types": [GLOBAL, LOCAL]},
            {"query_pre_attn_scalar": 8},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
        ),
    ),
    "gemma3": Case(
        tf.Gemma3ForCausalLM,
        tf.Gemma3TextConfig,
        GEMMA3,
        (
            {"sliding_window": WIDE},
            {"layer_types": [LOCAL, GLOBAL, LOCAL, LOCAL]},
            {"query_pre_attn_scalar": 8},
            {"rope_parameters": {LOCAL: rope(50.0), GLOBAL: rope(1000.0)}},
            {"rope_parameters": {LOCAL: rope(1000.0), GLOBAL: rope(1000.0, "linear", factor=4.0)}},
        ),
    ),
    "olmo2": Case(
        tf.Olmo2ForCausalLM,
        tf.Olmo2Config,
        gated(
            hidden_size=36,
            num_attention_heads=9,
            num_key_value_heads=3,
            rope_parameters=rope(100.0),
        ),
    ),
    "reward_llama": Case(
        tf.LlamaForSequenceClassification,
        tf.LlamaConfig,
        gated(
            hidden_size=36,
            num_attention_heads=6,
            num_key_value_heads=2,
            num_labels=1,
            rope_parameters=rope(100.0),
        ),
    ),
    "reward_gpt2": Case(
        tf.GPT2ForSequenceClassification,
        tf.GPT2Config,
        gpt2(n_inner=40, num_labels=1),
    ),
}


ADAPTERS = {
    "adapter_gpt2": ("gpt2", "CAUSAL_LM", {
        "r": 2, "lora_alpha": 3, "target_modules": ["attn.c_attn", "mlp.c_proj"],
        "rank_pattern": {"c_attn": 3}, "alpha_pattern": {"c_attn": 5}, "fan_in_fan_out": True,
    }),
    "adapter_neox": ("gpt_neox", "CAUSAL_LM", {
        "r": 2, "lora_alpha": 3, "target_modules": ["query_key_value"], "layers_to_transform": [1],
    }),
    "adapter_qwen3": ("qwen3", "CAUSAL_LM", {
        "r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "o_proj", "gate_proj"],
        "use_rslora": True,
    }),
    "adapter_reward": ("reward_llama", "SEQ_CLS", {
        "r": 2, "lora_alpha": 3, "target_modules": ["v_proj", "up_proj"],
    }),
}  # name: the case that is adapted, and PEFT's settings  # fmt: skip


def build(case: Case, change: dict[str, Any]) -> torch.nn.Module:
    """The same weights whatever the change, if it leaves their shapes alone."""
    torch.manual_seed(0)
    model = case.model(case.config(**COMMON | case.settings | change)).eval()
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        for parameter in model.parameters():  # one that is tied comes once
            # a vector is a norm's scale, from 1 (Gemma's: from 0), or a bias, from 0
            scale = 0.1 if parameter.ndim == 1 else GAIN / model.config.hidden_size**0.5
            parameter += scale * torch.randn(parameter.shape)
    return model


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, which are PAD in padding and nowhere else, and the mask."""
    mask = torch.arange(LENGTH) >= torch.tensor(PADDING)[:, None]
    tokens = torch.randint(1, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(mask, tokens, PAD), mask


@torch.no_grad()
def outputs_of(model, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    inputs = {
        "input_ids": tokens,
        "attention_mask": mask.long(),
        "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0),
        "use_cache": False,
    }
    hidden = model.base_model(**inputs).last_hidden_state
    logits = model(**inputs).logits
    if logits.ndim == 2:
        return {"hidden": hidden * mask[..., None], "scores": logits[:, 0]}
    return {"hidden": hidden * mask[..., None], "logits": logits * mask[..., None]}


def check_padding(model, tokens, mask, outputs) -> None:
    for row, pad in enumerate(PADDING):
        alone = outputs_of(model, tokens[row : row + 1, pad:], mask[row : row + 1, pad:])
        for name, value in outputs.items():
            here = value[row] if name == "scores" else value[row, pad:]
            torch.testing.assert_close(here, alone[name][0], atol=1e-5, rtol=0.0)


def check_that_it_matters(name: str, tokens, mask, outputs) -> None:
    """Each change must move the outputs by more than 1e-3."""
    for change in CASES[name].matters:
        changed = outputs_of(build(CASES[name], change), tokens, mask)
        distance = (changed["logits"] - outputs["logits"]).abs().max().item()
        assert distance > 1e-3, f"{name}: {change} moves the logits by {distance:.1e} only"


def write_golden(folder: pathlib.Path, tokens, mask, outputs, **more: np.ndarray) -> None:
    np.savez(
        folder / "golden.npz",
        tokens=tokens.numpy().astype(np.int32),
        attention_mask=mask.numpy(),
        **{key: value.numpy() for key, value in outputs.items()},
        transformers=np.array(tf.__version__),
        torch=np.array(str(torch.__version__)),
        **more,
    )


def write(name: str) -> str:
    """Writes one case and returns its line of the table."""
    model = build(CASES[name], {})
    tokens, mask = make_batch()
    outputs = outputs_of(model, tokens, mask)
    check_padding(model, tokens, mask, outputs)
    check_that_it_matters(name, tokens, mask, outputs)

    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_golden(folder, tokens, mask, outputs)
    count = sum(parameter.numel() for parameter in model.parameters())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 300_000, f"{name} takes {size} bytes"
    real = outputs["scores"] if "scores" in outputs else outputs["logits"][mask]
    return f"{name:20} {count:10} {size:8} {real.std().item():10.2f}"


def write_adapter(name: str) -> str:
    """Writes one adapter, random and not zero, and returns its line of the table."""
    import peft  # not needed by who imports the cases

    base, kind, settings = ADAPTERS[name]
    model = build(CASES[base], {})
    tokens, mask = make_batch()
    before = outputs_of(model, tokens, mask)
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type=kind, init_lora_weights=False, **settings)
    model = peft.get_peft_model(model, config).eval()
    outputs = outputs_of(model.base_model.model, tokens, mask)
    key = "scores" if "scores" in outputs else "logits"
    distance = (outputs[key] - before[key]).abs().max().item()
    assert distance > 0.1, f"{name} moves the outputs by {distance:.1e} only"
    folder = FOLDER / name
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    outputs.pop("hidden")
    write_golden(folder, tokens, mask, outputs, peft=np.array(peft.__version__))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{name:20} {'':10} {size:8} {distance:10.2f} (moved)"


def main() -> None:
    torch.set_num_threads(1)
    tf.utils.logging.disable_progress_bar()
    print(f"{'case':20} {'parameters':>10} {'bytes':>8} {'deviation':>10}")
    for name in CASES:
        print(write(name), flush=True)
    for name in ADAPTERS:
        print(write_adapter(name), flush=True)


if __name__ == "__main__":
    main()
