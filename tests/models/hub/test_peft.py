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

from rlhf_jax.models import lora, networks
from rlhf_jax.models.hub import huggingface, peft
from rlhf_jax.models.lora import LoraConfig

GOLDEN = pathlib.Path(__file__).parent.parent.parent / "golden"
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
    peft.write(tmp_path, model.family, model.cfg, trained, cfg, str(GOLDEN / name))
    again = huggingface.load(str(tmp_path))
    tokens = np.random.default_rng(0).integers(0, model.cfg.vocab_size, (2, 9), np.int32)
    of = lambda params: outputs(model, params, tokens, np.ones((2, 9), bool))
    want = of(lora.join(base, trained, cfg))
    np.testing.assert_allclose(of(again.params), want, atol=5e-5)
    if model.is_reward:
        assert again.params["bias"] == trained["bias"] != 0
    assert peft.read_config(tmp_path)["base_model_name_or_path"] == str(GOLDEN / name)
    (tmp_path / "plain").touch()  # has the mode of the umask
    assert (tmp_path / peft.WEIGHTS).stat().st_mode == (tmp_path / "plain").stat().st_mode
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


def rewrite(folder, name, x):
    arrays = load_file(folder / peft.WEIGHTS)
    save_file(arrays | {f"{peft.ROOT}model.layers.0.{name}.weight": x}, folder / peft.WEIGHTS)


def not_finite(folder):
    rewrite(folder, "self_attn.q_proj.lora_A", np.full((4, 24), np.nan, np.float32))


def complex_numbers(folder):
    rewrite(folder, "self_attn.q_proj.lora_A", np.ones((4, 24), np.complex64))


def cut_off(folder):
    (folder / peft.WEIGHTS).write_bytes((folder / peft.WEIGHTS).read_bytes()[:-9])


@pytest.mark.parametrize("adapter", ["adapter_qwen3"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_model, r"of query in layer 0 is of a matrix \[28, 72\], and the model's is \[24, 24\]"),
        (unknown_tensor, "holds model.layers.0.mlp.extra.lora_A.weight, which qwen3 has no place for"),
        (cut_off, "cannot be read .*: download it again"),
        (not_finite, r"layers.0.self_attn.q_proj.lora_A.weight holds NaN or infinity"),
        (complex_numbers, r"layers.0.self_attn.q_proj.lora_A.weight is of type C64: read are F64"),
        (lambda folder: change(folder, lambda _: {"r": 5}), r"lora_A.weight is \[4, \d+\], .* says r = 5"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_name(adapter, damage, words):
    damage(adapter)
    with pytest.raises(ValueError, match=words):
        huggingface.load(str(adapter))


CONFIGS = {
    "peft_type": ["IA3", None],
    "base_model_name_or_path": [None, "", 3],
    "r": [0, -4, 4.0, "4", None, True, [4]],
    "lora_alpha": [0, -1, "3", None, float("nan"), float("inf")],
    "rank_pattern": [3, {"q_proj": 0}, {"q_proj": "4"}, {"(": 4}],
    "alpha_pattern": [["q_proj"], {"q_proj": -1}, {"q_proj": None}, {"[": 4}],
    "use_rslora": ["yes", 2],
    "revision": [4],
    "use_dora": [True],
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "mica"],
    "alora_invocation_tokens": [[3, 4]],
    "a_setting_of_later_versions": [True, 1, "on", {"rank": 2}],
}


@pytest.mark.parametrize("key", CONFIGS)
def test_settings_of_an_adapter_that_mean_nothing_here_are_refused_by_their_names(tmp_path, key):
    original = json.loads((GOLDEN / "adapter_qwen3" / peft.CONFIG).read_text())
    for value in CONFIGS[key]:
        (tmp_path / peft.CONFIG).write_text(json.dumps(original | {key: value}))
        with pytest.raises(ValueError, match=rf"adapter_config\.json has {key} = "):
            peft.read_config(tmp_path)
    later = {
        "a_setting_of_later_versions": False,
        "another": None,
        "r": 3,
        "eva_config": {"rho": 2},
    }
    (tmp_path / peft.CONFIG).write_text(json.dumps(original | later))
    assert peft.read_config(tmp_path)["r"] == 3


def test_every_setting_that_peft_writes_is_harmless_or_refused_where_it_is_not_off(tmp_path):
    original = json.loads((GOLDEN / "adapter_qwen3" / peft.CONFIG).read_text())
    assert original.keys() >= peft.HARMLESS | peft.PLAIN.keys()  # none of them is misspelt
    for key in original.keys() - peft.HARMLESS:
        (tmp_path / peft.CONFIG).write_text(json.dumps(original | {key: ["another"]}))
        with pytest.raises(ValueError, match=f" has {key} = "):
            peft.read_config(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"r": ' + "9" * 5000 + "}", "[" * 100_000])
def test_what_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / peft.CONFIG).write_text(text)
    with pytest.raises(
        ValueError, match=r"adapter_config\.json holds (no JSON|.*object with keys)"
    ):
        huggingface.load(str(tmp_path))


def test_an_adapter_that_adapts_itself_is_refused(tmp_path):
    original = json.loads((GOLDEN / "adapter_qwen3" / peft.CONFIG).read_text())
    for name, base in {"a": "a", "b": "c", "c": "b"}.items():
        (tmp_path / name).mkdir()
        config = original | {"base_model_name_or_path": str(tmp_path / base)}
        (tmp_path / name / peft.CONFIG).write_text(json.dumps(config))
    for name in "abc":
        with pytest.raises(ValueError, match=r"which is an adapter over .* itself: name the model"):
            huggingface.load(str(tmp_path / name))


def test_the_revision_of_a_base_has_a_key_of_its_own_and_is_the_one_that_is_read(
    tmp_path, monkeypatch
):
    model, cfg = huggingface.load(str(GOLDEN / "qwen3")), LoraConfig(2)
    _, trained = lora.split(jax.random.key(0), model.params, cfg)
    peft.write(tmp_path, model.family, model.cfg, trained, cfg, "someone/tiny@small")
    config = peft.read_config(tmp_path)
    assert config["base_model_name_or_path"] == "someone/tiny" and config["revision"] == "small"
    asked = []
    monkeypatch.setattr(huggingface, "resolve", lambda name: asked.append(name) or GOLDEN / "qwen3")
    assert huggingface.base_of(tmp_path) == GOLDEN / "qwen3" and asked == ["someone/tiny@small"]
