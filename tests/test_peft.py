"""Adapters in PEFT's format: read as PEFT wrote them, and written so that they are read as they were.

The files of `tests/golden/adapter_*` are made by `tests/golden/make.py`, which needs PyTorch and PEFT.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import huggingface, lora, networks, peft
from rlhf_jax.models.lora import LoraConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"
ADAPTERS = sorted(path.name for path in GOLDEN.glob("adapter_*"))


@pytest.fixture
def adapter(request, tmp_path):
    """A folder with the golden adapter, whose base is named where it lies."""
    shutil.copytree(GOLDEN / request.param, tmp_path / "adapter")
    change(tmp_path / "adapter", lambda config: {
        "base_model_name_or_path": str(GOLDEN / config["base_model_name_or_path"])
    })  # fmt: skip
    return tmp_path / "adapter"


def change(folder, keys):
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(config | keys(config)))


def outputs(model: huggingface.Loaded, params, tokens, mask):
    """Logits of the real columns, or scores."""
    lm = networks.language_model(model.cfg)
    if model.is_reward:
        return jax.jit(networks.reward_model(lm).fn)(params, tokens, mask)
    logits = jax.jit(lm.logits_fn, static_argnames="last")
    return logits(params, tokens, mask, last=tokens.shape[1] - 1)[mask[:, :-1]]


@pytest.mark.parametrize("adapter", ADAPTERS, indirect=True)
def test_outputs_with_an_adapter_are_those_of_peft(adapter):
    model = huggingface.load(str(adapter))
    with np.load(adapter / "golden.npz") as want:
        got = outputs(model, model.params, want["tokens"], want["attention_mask"])
        real = want["attention_mask"][:, :-1]
        expected = want["scores"] if model.is_reward else want["logits"][:, :-1][real]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "matrices"),
    [
        ("gpt2", ("query", "value")),
        ("gpt_neox", ("query", "key", "value", "attention_out", "up", "down")),
        ("reward_llama", ("gate", "down")),
    ],
)
def test_what_is_written_is_read_as_it_was(tmp_path, name, matrices):
    model, cfg = huggingface.load(str(GOLDEN / name)), LoraConfig(3, 5.0, matrices)
    base, trained = lora.split(jax.random.key(0), model.params, cfg)
    trained = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), trained
    )
    if model.is_reward:
        trained["bias"] = np.float32(0)  # it has no place in the format
    peft.write(tmp_path, model.family, model.cfg, trained, cfg, str(GOLDEN / name))
    again = huggingface.load(str(tmp_path))
    tokens = np.random.default_rng(0).integers(0, model.cfg.vocab_size, (2, 9), np.int32)
    of = lambda params: outputs(model, params, tokens, np.ones((2, 9), bool))
    want = of(lora.join(base, trained, cfg))
    np.testing.assert_allclose(of(again.params), want, atol=5e-5)
    assert np.max(np.abs(want - of(model.params))) > 0.1


def test_a_reward_models_adapter_may_stand_over_a_policy(tmp_path):
    model, cfg = huggingface.load(str(GOLDEN / "llama2")), LoraConfig(2)
    rm = networks.reward_model(networks.language_model(model.cfg))
    base, trained = lora.split(jax.random.key(0), rm.init(jax.random.key(1), model.params), cfg)
    peft.write(tmp_path, model.family, model.cfg, trained, cfg, str(GOLDEN / "llama2"))
    again = huggingface.load(str(tmp_path))
    assert again.is_reward and huggingface.classifies(again.config)
    tokens, mask = np.arange(12, dtype=np.int32).reshape(2, 6), np.ones((2, 6), bool)
    want = outputs(again, lora.join(base, trained, cfg), tokens, mask)
    np.testing.assert_allclose(outputs(again, again.params, tokens, mask), want, atol=1e-5)


def other_model(folder):
    change(folder, lambda _: {"base_model_name_or_path": str(GOLDEN / "llama2")})


def unknown_tensor(folder):
    arrays = load_file(folder / peft.WEIGHTS)
    arrays["base_model.model.model.layers.0.mlp.extra.lora_A.weight"] = np.zeros((2, 2), np.float32)
    save_file(arrays, folder / peft.WEIGHTS)


def cut_off(folder):
    (folder / peft.WEIGHTS).write_bytes((folder / peft.WEIGHTS).read_bytes()[:-9])


@pytest.mark.parametrize("adapter", ["adapter_qwen3"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_model, r"of query in layer 0 is of a matrix \[28, 72\], and the model's is \[24, 24\]"),
        (unknown_tensor, "holds model.layers.0.mlp.extra.lora_A.weight, which qwen3 has no place for"),
        (cut_off, "cannot be read .*: fetch it again"),
        (lambda folder: change(folder, lambda _: {"use_dora": True}), "use_dora = True: read is False"),
        (lambda folder: change(folder, lambda _: {"peft_type": "IA3"}), "peft_type = 'IA3': read is 'LORA'"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_name(adapter, damage, words):
    damage(adapter)
    with pytest.raises(ValueError, match=words):
        huggingface.load(str(adapter))
