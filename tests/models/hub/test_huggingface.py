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

from rlhf_jax.models import decoding, networks, transformer
from rlhf_jax.models.attention import rotary_speeds
from rlhf_jax.models.config import ModelConfig, RopeScaling
from rlhf_jax.models.hub import huggingface, peft, streaming, writing
from rlhf_jax.models.hub.families import FAMILIES

GOLDEN = pathlib.Path(__file__).parent.parent.parent / "golden"
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
        prefill = partial(decoding.prefill, model.cfg, room=tokens.shape[1] - start)
        first, cache = prefill(params, tokens[:, :start], mask[:, :start])

        def step(cache, token):
            logits, cache = decoding.decode(model.cfg, params, cache, token)
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


def config_of(case, gone=(), **keys):
    """The config.json of a golden checkpoint without the keys `gone`, and with `keys`; and its family."""
    config = json.loads((GOLDEN / case / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in gone} | keys
    return FAMILIES[config["model_type"]], config


LOCAL, GLOBAL = "sliding_attention", "full_attention"
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
PLAIN = dict(window=0, local_layers=())
MEANINGS = [  # a case, its keys that are gone, those that are given, and fields of ModelConfig
    # keys that the family does not have
    ("llama3", (), dict(sliding_window=4, layer_types=[LOCAL, GLOBAL]), PLAIN),
    ("llama2", (), dict(sliding_window=4, use_sliding_window=True, max_window_layers=0), PLAIN),
    ("olmo2", (), dict(sliding_window=4), PLAIN),
    ("mistral", (), dict(max_window_layers=1, use_sliding_window=False), dict(window=6)),
    ("mistral", (), dict(layer_types=[LOCAL, LOCAL]), dict(window=6, local_layers=())),
    ("gemma2", (), dict(use_sliding_window=False), dict(window=6, local_layers=(0,))),
    ("gemma2", ["layer_types"], dict(sliding_window_pattern=1), dict(local_layers=(0,))),
    ("gemma3", (), dict(attn_logit_softcapping=2.0), dict(attention_softcap=0.0)),
    (
        "gemma3",
        (),
        dict(rope_parameters=dict(rope_type="linear", factor=8.0, rope_theta=7.0)),
        dict(rope_theta=1e6, rope_theta_local=1e4, rope_scaling=RopeScaling()),
    ),
    # keys that are absent, or null
    ("mistral", ["sliding_window"], {}, dict(window=4096, local_layers=())),
    ("mistral", (), dict(sliding_window=None), PLAIN),
    ("mistral", (), dict(head_dim=None, hidden_size=48), dict(head_dim=8)),
    ("llama2", ["num_key_value_heads", "head_dim"], {}, dict(kv_heads=3, head_dim=8)),
    ("qwen2", ["layer_types", "use_sliding_window"], dict(sliding_window=4), PLAIN),
    (
        "qwen3",
        ["max_window_layers"],
        dict(layer_types=None, sliding_window=4, use_sliding_window=True),
        PLAIN,  # for it begins at layer 28
    ),
    (
        "qwen2",
        ["layer_types"],
        dict(sliding_window=4, use_sliding_window=True, max_window_layers=0),
        dict(window=4, local_layers=()),
    ),
    ("qwen3", ["rope_parameters"], {}, dict(rope_theta=1e4)),
    (
        "gemma2",
        ["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"],
        dict(layer_types=None),
        dict(attention_softcap=50.0, logit_softcap=30.0, attention_scale=1 / 16, local_layers=(0,)),
    ),
    (
        "gemma2",
        (),
        dict(attn_logit_softcapping=None, final_logit_softcapping=None),
        dict(attention_softcap=0.0, logit_softcap=0.0),
    ),
    ("gemma3", ["sliding_window", "final_logit_softcapping"], {}, dict(window=4096)),
    (
        "gemma3",
        ["layer_types"],
        {},
        dict(window=6, local_layers=()),
    ),  # fewer than the pattern's six
    (
        "gemma3",
        ["rope_parameters"],
        dict(rope_parameters=None),
        dict(rope_theta=1e6, rope_theta_local=1e4, rope_scaling=RopeScaling()),
    ),
    ("gpt2", ["n_inner", "tie_word_embeddings"], {}, dict(d_mlp=96, tied=True)),
    ("gpt_neox", ["rope_parameters"], {}, dict(rope_theta=1e4, rotary_share=0.25)),
    # an older spelling beside the new one
    (
        "llama3",
        (),
        dict(rope_scaling=dict(type="linear", factor=2.0)),
        dict(rope_theta=1e4, rope_scaling=RopeScaling("linear", 2.0)),
    ),
    (
        "qwen3",
        (),
        dict(rope_scaling=YARN, rope_theta=1e6),
        dict(
            rope_theta=1e6,
            rope_scaling=RopeScaling("yarn", 4.0, 1.0, 32.0, 32, 1.138629436111989),
        ),
    ),
    (
        "gemma3",
        (),
        dict(rope_scaling=dict(rope_type="linear", factor=2.0)),
        dict(rope_theta=1000.0, rope_theta_local=50.0, rope_scaling=RopeScaling("linear", 2.0)),
    ),
    (
        "qwen3",  # whose factor is 64 / 32
        (),
        dict(rope_scaling=YARN | dict(factor=None, attention_factor=1.5, truncate=False)),
        dict(rope_scaling=RopeScaling("yarn", 2.0, 1.0, 32.0, 32, 1.5, truncate=False)),
    ),
    ("gpt2", (), dict(num_attention_heads=4), dict(heads=4)),
]


@pytest.mark.parametrize(("case", "gone", "keys", "fields"), MEANINGS)
def test_a_key_means_what_it_means_to_the_class_of_its_family(case, gone, keys, fields):
    """The fields are those of transformers' models, which `tests/models/hub/test_torch.py` compares."""
    family, config = config_of(case, gone, **keys)
    before = json.dumps(config)
    got = vars(ModelConfig(**family.settings(config)))
    assert {key: got[key] for key in fields} == fields
    assert json.dumps(config) == before


YARNS = [  # entries of rope_parameters, the head's width, some pairs' numbers
    (dict(factor=4.0, original_max_position_embeddings=32768, rope_theta=1e6), 128),
    (
        dict(
            factor=8.0,
            original_max_position_embeddings=64,
            rope_theta=1e4,
            truncate=False,
            beta_fast=4,
            beta_slow=0.5,
            mscale=0.7,
            mscale_all_dim=0.3,
        ),
        16,
    ),
    (dict(factor=8.0, original_max_position_embeddings=64, rope_theta=1e4), 16),
    (dict(factor=4.0, original_max_position_embeddings=4096, rope_theta=100.0), 16),
]
SPEEDS = [  # of `ROPE_INIT_FUNCTIONS["yarn"]` of transformers 5.24: {pair: its speed}, and the gain
    (
        {
            0: 1.0,
            20: 0.01333521,
            24: 0.005375321,
            35: 2.462584e-4,
            40: 4.445699e-5,
            63: 3.102344e-7,
        },
        1.138629436111989,
    ),
    ({0: 1.0, 1: 0.2874086, 2: 0.0424418, 3: 0.003952847, 7: 3.952847e-5}, 1.0782934613857693),
    ({0: 1.0, 1: 0.2239947, 2: 0.04166666, 3: 0.003952847, 7: 3.952847e-5}, 1.2079441541679836),
    ({4: 0.1, 5: 0.05623413, 6: 0.02823462, 7: 0.0139722}, 1.138629436111989),
]


@pytest.mark.parametrize(("case", "want"), list(zip(YARNS, SPEEDS, strict=True)))
def test_yarn_turns_as_transformers_does(case, want):
    rope, width = case
    family, config = config_of("qwen3", rope_parameters=rope | {"rope_type": "yarn"})
    found = family.settings(config | {"head_dim": width})
    speeds = np.asarray(rotary_speeds(width, found["rope_theta"], found["rope_scaling"]))
    np.testing.assert_allclose(speeds[list(want[0])], list(want[0].values()), rtol=2e-6)
    assert found["rope_scaling"].gain == pytest.approx(want[1])


REFUSED = [  # a case, keys of its config.json, and the sentence
    ("llama3", dict(hidden_act="relu"), 'hidden_act = "relu": it must be "silu"'),
    ("llama3", dict(attention_bias=True), "attention_bias = true: it must be false"),
    ("llama3", dict(mlp_bias=True), "mlp_bias = true"),
    ("llama3", dict(num_key_value_heads=4), "kv_heads = 4 does not divide"),
    (
        "llama3",
        dict(num_attention_heads=0),
        "num_attention_heads = 0: it must be a whole number from 1",
    ),
    ("llama3", dict(num_hidden_layers="2"), 'num_hidden_layers = "2": it must be a whole number'),
    ("llama3", dict(intermediate_size=0), "intermediate_size = 0: it must be a whole number"),
    ("llama3", dict(vocab_size=True), "vocab_size = true: it must be a whole number"),
    ("llama3", dict(hidden_size=36.0), r"hidden_size = 36\.0: it must be a whole number"),
    (
        "llama3",
        dict(max_position_embeddings=-1),
        "max_position_embeddings = -1: it must be a whole",
    ),
    ("llama3", dict(rms_norm_eps=float("nan")), "rms_norm_eps = NaN: it must be a positive number"),
    ("llama3", dict(tie_word_embeddings=1), "tie_word_embeddings = 1: it must be true or false"),
    ("llama3", dict(is_causal=False), "is_causal = false: it must be true"),
    ("llama3", dict(quantization_config={"bits": 4}), "quantization_config = .*: it must be null"),
    ("llama3", dict(per_layer_config={"0": {}}), "per_layer_config = .*: it must be null"),
    ("llama3", dict(rope_scaling="yarn"), 'rope_scaling = "yarn": it must be an object with keys'),
    ("llama3", dict(rope_scaling={"type": "dynamic", "factor": 2.0}), 'type = "dynamic": it must'),
    ("llama3", dict(rope_scaling={"type": "linear", "factor": -1}), "rope_scaling.factor = -1: it"),
    ("llama3", dict(rope_scaling={"type": "linear"}), "transformers reads no llama .*factor"),
    (
        "llama3",
        dict(rope_scaling={"type": "linear", "factor": None}),
        "factor = null: it must be a num",
    ),
    (
        "llama3",
        dict(rope_scaling=YARN | {"beta_fast": "a"}),
        'beta_fast = "a": it must be a positive',
    ),
    (
        "llama3",
        dict(rope_scaling=YARN | {"partial_rotary_factor": 0.5}),
        "factor = 0.5: it must be 1",
    ),
    ("qwen2", dict(layer_types=[LOCAL, GLOBAL]), "layer_types has .* sliding_window is null"),
    ("qwen2", dict(layer_types=[GLOBAL]), "transformers reads no qwen2 .*layer_types"),
    (
        "qwen2",
        dict(layer_types=["chunked_attention"] * 2),
        "layer_types = .*: it must be a list of",
    ),
    ("qwen2", dict(head_dim=None), "head_dim = null: it must be a whole number"),
    (
        "mistral",
        dict(layer_types=[LOCAL, GLOBAL]),
        'layer_types = .*: it must be a list of "sliding_a',
    ),
    ("mistral", dict(sliding_window=0), "sliding_window = 0: it must be a whole number .* or null"),
    (
        "gemma2",
        dict(hidden_activation="gelu"),
        'hidden_activation = "gelu": it must be "gelu_pytorch',
    ),
    (
        "gemma2",
        dict(attn_logit_softcapping=0.0),
        r"attn_logit_softcapping = 0\.0: it must be a positive",
    ),
    ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention = true: it"),
    (
        "gemma3",
        dict(rope_parameters={GLOBAL: {}, LOCAL: {"rope_type": "linear", "factor": 2.0}}),
        'rope_parameters.sliding_attention.rope_type = "linear": it must be "default"',
    ),
    (
        "gpt2",
        dict(scale_attn_by_inverse_layer_idx=True),
        "inverse_layer_idx = true: it must be false",
    ),
    ("gpt2", dict(scale_attn_weights=False), "scale_attn_weights = false: it must be true"),
    ("gpt2", dict(n_inner=0), "n_inner = 0: it must be a whole number"),
    ("gpt_neox", dict(rotary_pct=2), "rotary_pct = 2: it must be a number above 0, and at most 1"),
    ("gpt_neox", dict(head_dim=8), "head_dim = 8: it must be 16"),
    ("gpt_neox", dict(attention_bias=False), "attention_bias = false: it must be true"),
]


@pytest.mark.parametrize(("case", "keys", "words"), REFUSED)
def test_a_value_that_means_nothing_here_is_refused_by_key_and_value(case, keys, words):
    family, config = config_of(case, **keys)
    with pytest.raises(ValueError, match=words):
        ModelConfig(**family.settings(config))


WILD = [None, True, 0, -1, 0.5, -0.5, 2**40, 10**400, float("nan"), float("inf"), "x", [], [7], {}]


@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "qwen3", "gemma3"])
def test_any_value_of_any_key_is_read_or_refused_in_one_line(case):
    """Never another exception, whatever stands in config.json, and a model that can be made."""
    family, config = config_of(case)
    rope = config.get("rope_parameters", {})
    inner = {key: rope for key in family.keys.get("rope_parameters", ())}
    for key in [*config, *family.keys, *inner]:
        for value in WILD:
            wild = {"rope_parameters": rope | {key: value}} if key in inner else {key: value}
            if key in ("model_type", "transformers_version"):
                continue
            try:
                cfg = ModelConfig(**family.settings(config | wild))
            except (ValueError, KeyError) as error:
                assert len(str(error)) < 500 and "\n" not in str(error)
            else:
                assert cfg.layers > 0 and np.isfinite(cfg.rope_theta) and 0 < cfg.rotary_share <= 1


@pytest.mark.parametrize("case", ["llama3", "qwen2", "gemma3", "gpt_neox"])
def test_yarn_is_written_as_it_was_read(case):
    family, config = config_of(case)
    cfg = ModelConfig(**family.settings(config))
    scaling = RopeScaling("yarn", 4.0, 2.0, 16.0, 32, 1.25, truncate=case == "gemma3")
    cfg = ModelConfig(**vars(cfg) | {"rope_scaling": scaling})
    assert writing.family_of(cfg, config) is family


def test_a_head_of_its_own_is_read_though_config_json_ties_it(loaded, tmp_path):
    """As transformers 5 does; one that equals the embedding stays tied."""
    embedding = np.asarray(loaded("llama3").params["embedding"]["embedding"])
    name = "lm_head.weight"
    for kind, head in {"same": embedding, "other": embedding[::-1].copy()}.items():
        folder = copy("llama3", tmp_path / kind, tie_word_embeddings=True)
        rewrite(folder, lambda tensors, head=head: tensors.update({name: head}))
        model = huggingface.load(str(folder))
        assert model.cfg.tied is (kind == "same")
    np.testing.assert_array_equal(model.params["unembedding"]["kernel"], head.T)
    writing.save(tmp_path / "saved", model.cfg, model.params, config=model.config)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    np.testing.assert_array_equal(load_file(tmp_path / "saved" / "model.safetensors")[name], head)
    reward = copy("llama3", tmp_path / "reward", architectures=["LlamaForSequenceClassification"])
    rewrite(reward, lambda tensors: tensors.update({name: head}))
    assert huggingface.read_config(reward)[1].tied  # its head is another one


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[1]", r"config\.json holds \[1\]: it must hold an object with keys"),
        (b"{", r"config\.json holds no JSON .*: download it again"),
        (b"\xff\xfe", r"config\.json holds no JSON"),
        (b"[" * 100_000, r"config\.json holds no JSON"),
        (b'{"model_type": ["llama"]}', r"model_type = \['llama'\]: known are gemma2"),
        (b'{"model_type": "llama"}', r"config\.json has no vocab_size, which a llama needs"),
    ],
)
def test_a_config_json_that_is_none_is_refused_by_its_path(tmp_path, text, words):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=words):
        huggingface.read_config(tmp_path)


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
    (folder / streaming.INDEX).write_text(json.dumps({"weight_map": file_of}))
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
        (dict(model_type="mamba"), 'model_type = "mamba": known are gemma2, .*qwen3'),
        (dict(hidden_act="relu"), r'config\.json: hidden_act = "relu": it must be "silu"'),
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
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .* download it again"):
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
    path = tmp_path / streaming.INDEX
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=str(path)):
        streaming.Files(tmp_path, FAMILIES["llama"])


def test_a_tensor_that_its_file_lacks_is_named(tmp_path):
    folder = copy("llama3", tmp_path / "model")
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    index = {"weight_map": names | {"model.layers.0.extra.weight": "model.safetensors"}}
    (folder / streaming.INDEX).write_text(json.dumps(index))
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
    writing.save(tmp_path, model.cfg, model.params, is_reward=model.is_reward, config=model.config)
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
    writing.save(tmp_path, model.cfg, model.params, config=config)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert not stale.keys() & keys.keys() - {"dtype"} and keys["dtype"] == "float32"
    assert keys["use_cache"] is False  # what does no harm is kept


def test_the_bias_of_a_reward_model_is_in_its_config_json_and_comes_back(loaded, tmp_path):
    model = loaded("reward_gpt2")
    params = model.params | {"bias": np.float32(-0.714)}
    writing.save(tmp_path, model.cfg, params, is_reward=True, config=model.config)
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
    writing.save(tmp_path, model.cfg, model.params, shard_bytes=30_000)
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
    assert writing.family_of(cfg).model_type == family
    writing.save(tmp_path, cfg, params)
    again = huggingface.load(str(tmp_path))
    assert writing.explicit(again.cfg) == writing.explicit(cfg)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_settings_that_no_family_has_are_refused():
    cfg = ModelConfig(positions="rotary", norm="rmsnorm", parallel_residual=True)
    with pytest.raises(ValueError, match="no family of Hugging Face checkpoints"):
        writing.family_of(cfg)
    with pytest.raises(ValueError, match="llama has not this model's settings"):
        writing.family_of(cfg, {"model_type": "llama"})


def test_bfloat16_is_written_and_read_as_it_is(tmp_path):
    model = huggingface.load(str(GOLDEN / "qwen2"), param_dtype="bfloat16")
    writing.save(tmp_path, model.cfg, model.params)
    assert {str(x.dtype) for x in load_file(tmp_path / "model.safetensors").values()} == {
        "bfloat16"
    }
    again = huggingface.load(str(tmp_path), param_dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
