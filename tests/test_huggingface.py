"""Checkpoints in the Hugging Face format: logits as transformers', streamed reading, and what is refused.

The files of `tests/golden/` are made by `tests/golden/make.py`, which needs PyTorch; these tests do not.
"""

import json
import pathlib
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import huggingface, networks, peft, streaming, transformer
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families import FAMILIES

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/model.safetensors"))
POLICIES = [name for name in CASES if not name.startswith("reward")]


def golden(name):
    with np.load(GOLDEN / name / "golden.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def loaded():
    """`loaded(case)`: its model, read once."""
    found = {}

    def load(name):
        if name not in found:
            found[name] = huggingface.load(str(GOLDEN / name))
        return found[name]

    return load


@pytest.mark.parametrize("name", POLICIES)
def test_logits_are_those_of_transformers(loaded, name):
    model, want = loaded(name), golden(name)
    tokens, mask = want["tokens"], want["attention_mask"]
    assert mask.sum() < mask.size  # some columns are padding

    @jax.jit
    def both(params, tokens, mask):
        hidden = networks.language_model(model.cfg).hidden_fn(params, tokens, mask)
        return hidden, transformer.unembedding(model.cfg, params)(hidden)

    hidden, logits = both(model.params, tokens, mask)
    np.testing.assert_allclose(hidden[mask], want["hidden"][mask], atol=1e-4)
    np.testing.assert_allclose(logits[mask], want["logits"][mask], atol=1e-4)
    assert want["logits"][mask].std() > 1


@pytest.mark.parametrize("name", POLICIES)
def test_cached_decoding_gives_the_same(loaded, name):
    """The prompt ends before the window of a local layer does, and what is said goes beyond it."""
    model, want, start = loaded(name), golden(name), 9
    tokens, mask = want["tokens"], want["attention_mask"]

    @jax.jit
    def decode(params, tokens, mask):
        prefill = partial(transformer.prefill, model.cfg, room=tokens.shape[1] - start)
        first, cache = prefill(params, tokens[:, :start], mask[:, :start])

        def step(cache, token):
            logits, cache = transformer.decode(model.cfg, params, cache, token)
            return cache, logits

        _, rest = jax.lax.scan(step, cache, tokens[:, start:].T)
        return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

    np.testing.assert_allclose(
        decode(model.params, tokens, mask), want["logits"][:, start - 1 :], atol=1e-4
    )


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("reward")])
def test_scores_of_a_reward_model_are_those_of_transformers(loaded, name):
    model, want = loaded(name), golden(name)
    assert model.is_reward
    fn = networks.reward_model(networks.language_model(model.cfg)).fn
    scores = jax.jit(fn)(model.params, want["tokens"], want["attention_mask"])
    np.testing.assert_allclose(scores, want["scores"], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_settings_survive_the_way_to_config_json_and_back(loaded, name):
    cfg, family = loaded(name).cfg, loaded(name).family
    again = ModelConfig(**family.settings(json.loads(json.dumps(family.config(cfg)))))
    assert again.attention_scale == pytest.approx(cfg.attention_scale)
    assert again == ModelConfig(**vars(cfg) | {"attention_scale": again.attention_scale})


@pytest.mark.parametrize("name", CASES)
def test_each_tensor_is_written_as_it_was_read(loaded, name):
    """`Tensor.write` undoes `read`, for those fused from several too."""
    model = loaded(name)
    there = load_file(GOLDEN / name / "model.safetensors")
    parts = {}
    for tensor in model.family.tensors(model.cfg).values():
        parts.setdefault(tensor.name.replace("*", "0"), []).append(tensor)
    seen = 0
    for short, tensors in parts.items():
        key = model.family.prefix + short
        whole = there.get(key, there.get(short))
        if whole is not None:
            back = tensors[0].write([tensor.read(whole) for tensor in tensors])
            np.testing.assert_array_equal(back, whole)
            seen += 1
    assert seen > 5


OLD = {  # keys as they were before transformers 5 -> the case that they mean
    "gpt_neox": (["rope_parameters"], dict(rotary_pct=0.25, rotary_emb_base=100.0)),
    "llama3": (
        ["rope_parameters"],
        dict(
            rope_theta=100.0,
            rope_scaling=dict(
                type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "gemma2": (["layer_types", "rope_parameters"], dict(rope_theta=200.0)),
    "gemma3": (
        ["rope_parameters"],
        dict(
            rope_theta=1000.0,
            rope_local_base_freq=50.0,
            rope_scaling=dict(rope_type="linear", factor=4.0),
        ),
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_older_files_mean_the_same(loaded, name):
    config = json.loads((GOLDEN / name / "config.json").read_text())
    gone, keys = OLD[name]
    config = {key: value for key, value in config.items() if key not in gone} | keys
    assert ModelConfig(**loaded(name).family.settings(config)) == loaded(name).cfg


def test_local_layers_of_older_files_follow_the_pattern_of_their_family():
    base = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    base = {key: x for key, x in base.items() if key != "layer_types"} | {"num_hidden_layers": 12}
    found = FAMILIES["gemma3_text"].settings(base)
    assert found["local_layers"] == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    qwen = json.loads((GOLDEN / "qwen2" / "config.json").read_text())
    qwen = {key: x for key, x in qwen.items() if key != "layer_types"}
    qwen |= dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert FAMILIES["qwen2"].settings(qwen)["local_layers"] == (1,)


def copy(name, folder, **changes):
    """A golden checkpoint in `folder`, with changes of config.json."""
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_files_without_the_prefix_and_with_masks_for_weights_are_read_too(loaded, tmp_path):
    folder = copy("gpt2", tmp_path / "old")

    def as_it_was(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)

    rewrite(folder, as_it_was)
    got = huggingface.load(str(folder)).params
    jax.tree.map(np.testing.assert_array_equal, got, loaded("gpt2").params)


def test_several_files_with_an_index_are_one_checkpoint(loaded, tmp_path):
    folder = copy("qwen3", tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file_of = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in set(file_of.values()):
        save_file({n: x for n, x in tensors.items() if file_of[n] == file}, folder / file)
    (folder / huggingface.INDEX).write_text(json.dumps({"weight_map": file_of}))
    got = huggingface.load(str(folder)).params
    jax.tree.map(np.testing.assert_array_equal, got, loaded("qwen3").params)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-1\.safetensors cannot be read"):
        huggingface.load(str(folder))


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_each_device_takes_its_slice_some_rows_at_a_time(loaded, name, monkeypatch):
    want = loaded(name).params
    monkeypatch.setattr(streaming, "PART", 600)  # bytes: five rows of the embedding of a device
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    spec = {
        "blocks/up/kernel": (None, "a", "b"),
        "embedding/embedding": (None, "a"),
        "unembedding/kernel": ("a",),  # which qwen3 has, kept [out, in]
    }
    name_of = lambda path: "/".join(k.key for k in path)
    where = lambda path, x: NamedSharding(mesh, PartitionSpec(*spec.get(name_of(path), ())))
    places = partial(jax.tree.map_with_path, where)
    got = huggingface.load(str(GOLDEN / name), places=places).params
    jax.tree.map(np.testing.assert_array_equal, got, want)
    kernel, width = got["blocks"]["up"]["kernel"], loaded(name).cfg.d_model
    assert kernel.sharding.spec == PartitionSpec(None, "a", "b")
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, width // 4, 20)}


def test_parameters_come_in_the_dtype_that_is_asked_for():
    model = huggingface.load(str(GOLDEN / "qwen2"), param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}


def lacking(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def surplus(tensors):
    tensors["model.layers.0.mlp.router.weight"] = np.zeros((2, 2), np.float32)


def not_finite(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan


def whole_numbers(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((40, 36), np.int32)


def misshapen(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((41, 36), np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lacking, r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        (surplus, r"does not explain: model\.layers\.0\.mlp\.router\.weight"),
        (not_finite, r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity in float32"),
        (whole_numbers, r"model\.layers\.1\.mlp\.up_proj\.weight is of type I32: read are F64"),
        (
            misshapen,
            r"model\.layers\.1\.mlp\.up_proj\.weight is \[41, 36\], .* asks for \[40, 36\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    folder = copy("llama3", tmp_path / "wrong")
    rewrite(folder, change)
    with pytest.raises(ValueError, match=words):
        huggingface.load(str(folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model_type="mamba"), "model_type = 'mamba': known are gemma2, .*qwen3"),
        (dict(hidden_act="relu"), "hidden_act = 'relu': known are 'silu'"),
        (dict(attention_bias=True), "attention_bias = True: known are False"),
        (dict(rope_parameters={"rope_type": "yarn"}), "rope type 'yarn'"),
        (dict(num_key_value_heads=4), "kv_heads = 4 does not divide"),
    ],
)
def test_what_config_json_says_and_nobody_knows_is_refused(tmp_path, changes, words):
    folder = copy("llama3", tmp_path / "wrong", **changes)
    with pytest.raises(ValueError, match=words):
        huggingface.load(str(folder))


def test_a_key_that_is_missing_is_named(tmp_path):
    folder = copy("llama3", tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json has no hidden_size, which a llama needs"):
        huggingface.load(str(folder))


def test_a_file_that_is_cut_off_is_named(tmp_path):
    folder = copy("llama3", tmp_path / "wrong")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .* fetch it again"):
        huggingface.load(str(folder))


def test_what_is_no_folder_and_no_model_of_a_hub_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"model 'no/such' is no folder"):
        huggingface.load("no/such")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        huggingface.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_one_number_that_is_not_finite_is_found(kind):
    x = np.asarray(np.linspace(-6e4, 6e4, 99), jnp.dtype(kind))  # what float16 reaches
    streaming.check_finite(x, "x")
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y[50] = bad
        with pytest.raises(ValueError, match=f"the tensor y holds NaN or infinity in {kind}"):
            streaming.check_finite(y, "the tensor y")


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": None},
        {"weight_map": ["norm.weight"]},
        {"weight_map": {"norm.weight": 3}},
        {"weight_map": {"norm.weight": "../model.safetensors"}},
        {"weight_map": {"norm.weight": "/etc/passwd"}},
        {"weight_map": {"norm.weight": "model.bin"}},
    ],
)
def test_an_index_of_what_does_not_lie_beside_it_is_refused(tmp_path, index):
    path = tmp_path / huggingface.INDEX
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=str(path)):
        streaming.Files(tmp_path, FAMILIES["llama"])


def test_a_tensor_that_its_file_lacks_is_named(tmp_path):
    folder = copy("llama3", tmp_path / "model")
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    index = {"weight_map": names | {"model.layers.0.extra.weight": "model.safetensors"}}
    (folder / huggingface.INDEX).write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"the tensor model\.layers\.0\.extra\.weight cannot be read"
    ):
        streaming.Files(folder, FAMILIES["llama"]).shape("layers.0.extra.weight")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_stay_in_their_folder_but_for_those_of_a_hubs_cache(tmp_path, name):
    outside, cache = tmp_path / "outside", tmp_path / "models--someone--tiny"
    folder, blobs = cache / "snapshots" / ("1" * 40), cache / "blobs"
    for place in (tmp_path / "mine", folder, blobs):
        place.mkdir(parents=True)
    outside.write_text("{}")
    (blobs / "5ee").write_text("{}")
    (folder / name).symlink_to("../../blobs/5ee")
    (tmp_path / "link").symlink_to(folder)  # to the whole folder
    assert huggingface.resolve(str(folder)) == folder
    assert huggingface.resolve(str(tmp_path / "link")) == tmp_path / "link"
    (tmp_path / "mine" / "real").write_text("{}")
    (tmp_path / "mine" / name).symlink_to("real")
    assert huggingface.resolve(str(tmp_path / "mine")) == tmp_path / "mine"
    for place in (tmp_path / "mine", folder):
        for end in (outside, "/etc/hostname", name):  # the last one leads to itself
            (place / name).unlink()
            (place / name).symlink_to(end)
            with pytest.raises(ValueError, match=f"{name} is a link that leads out of its folder"):
                huggingface.resolve(str(place))


def test_a_classifier_of_several_labels_is_no_reward_model(tmp_path):
    folder = copy("reward_llama", tmp_path / "wrong")
    rewrite(folder, lambda x: x.update({"score.weight": np.zeros((3, 36), np.float32)}))
    with pytest.raises(ValueError, match=r"score\.weight of \[1, 36\]: a reward model has one"):
        huggingface.load(str(folder))


# --- writing


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_was_read(loaded, tmp_path, name):
    model = loaded(name)
    huggingface.save(
        tmp_path, model.cfg, model.params, is_reward=model.is_reward, config=model.config
    )
    there, here = (load_file(x / "model.safetensors") for x in (GOLDEN / name, tmp_path))
    assert there.keys() == here.keys()
    for key, x in there.items():
        np.testing.assert_array_equal(here[key], x)
    again = huggingface.load(str(tmp_path))
    assert again.cfg == model.cfg and again.is_reward == model.is_reward
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    (tmp_path / "plain").touch()  # has the mode of the umask
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_was_true_of_the_file_that_was_read_is_not_said_of_the_one_that_is_written(
    loaded, tmp_path
):
    model = loaded("llama3")
    stale = {
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8"},
        "auto_map": {"AutoModelForCausalLM": "modeling.Mine"},
        "score_bias": 0.5,
    }
    config = model.config | stale | {"use_cache": False}
    huggingface.save(tmp_path, model.cfg, model.params, config=config)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert not stale.keys() & keys.keys() - {"dtype"} and keys["dtype"] == "float32"
    assert keys["use_cache"] is False  # what does no harm is kept


def test_the_bias_of_a_reward_model_is_in_its_config_json_and_comes_back(loaded, tmp_path):
    model = loaded("reward_gpt2")
    params = model.params | {"bias": np.float32(-0.714)}
    huggingface.save(tmp_path, model.cfg, params, is_reward=True, config=model.config)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["score_bias"] == np.float32(-0.714)
    assert huggingface.load(str(tmp_path)).params["bias"] == np.float32(-0.714)
    for wrong in (None, True, "a", [1], float("inf")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"score_bias": wrong}))
        with pytest.raises(ValueError, match=r"config\.json has score_bias = "):
            huggingface.load(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "generation", "want"),
    [
        (2, None, (2,)),
        (None, None, ()),
        ([2, 320], None, (2, 320)),
        ([2, 320], 7, (2, 7, 320)),
        (2, [320, 7], (7, 320)),  # a number in config.json is what transformers then leaves out
    ],
)
def test_a_response_ends_at_every_id_that_a_model_names_and_the_model_that_it_adapts(
    tmp_path, config, generation, want
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"eos_token_id": config}))
    adapter = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "adapter_qwen3", adapter)
    keys = json.loads((adapter / peft.CONFIG).read_text())
    keys["base_model_name_or_path"] = str(tmp_path / "model")
    (adapter / peft.CONFIG).write_text(json.dumps(keys))
    if generation is not None:
        path = tmp_path / "model" / "generation_config.json"
        path.write_text(json.dumps({"eos_token_id": generation}))
    assert huggingface.stops_of(tmp_path / "model") == want
    assert huggingface.stops_of(adapter) == want
    (adapter / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert huggingface.stops_of(adapter) == tuple(sorted({5, *want}))
    for wrong in (-1, "2", True, [2, None], 2.0):
        (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(ValueError, match=r"generation_config\.json has eos_token_id = "):
            huggingface.stops_of(adapter)


def test_large_ones_are_cut_into_files_with_an_index(loaded, tmp_path):
    model = loaded("mistral")
    huggingface.save(tmp_path, model.cfg, model.params, shard_bytes=30_000)
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 34_000 for file in files)
    assert not (tmp_path / "model.safetensors").exists()
    again = huggingface.load(str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        (dict(positions="rotary"), "gpt_neox"),  # what `sentiment` trains
        (dict(), "gpt2"),
        (
            dict(positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, kv_heads=2),
            "llama",
        ),
    ],
)
def test_a_model_of_our_own_finds_its_family(tmp_path, settings, family):
    cfg = ModelConfig(vocab_size=31, context=16, d_model=16, heads=4, **settings)
    lm = networks.language_model(cfg)
    params = jax.jit(lm.init)(jax.random.key(0))
    assert huggingface.family_of(cfg).model_type == family
    huggingface.save(tmp_path, cfg, params)
    again = huggingface.load(str(tmp_path))
    assert huggingface.explicit(again.cfg) == huggingface.explicit(cfg)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_settings_that_no_family_has_are_refused():
    cfg = ModelConfig(positions="rotary", norm="rmsnorm", parallel_residual=True)
    with pytest.raises(ValueError, match="no family of Hugging Face checkpoints"):
        huggingface.family_of(cfg)
    with pytest.raises(ValueError, match="llama has not this model's settings"):
        huggingface.family_of(cfg, {"model_type": "llama"})


def test_bfloat16_is_written_and_read_as_it_is(tmp_path):
    model = huggingface.load(str(GOLDEN / "qwen2"), param_dtype="bfloat16")
    huggingface.save(tmp_path, model.cfg, model.params)
    assert {str(x.dtype) for x in load_file(tmp_path / "model.safetensors").values()} == {
        "bfloat16"
    }
    again = huggingface.load(str(tmp_path), param_dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
