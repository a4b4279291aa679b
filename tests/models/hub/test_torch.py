"""Beside transformers in PyTorch, at a larger size than the golden files; skipped where torch is absent.

    pip install torch==2.13.0 && pytest -m torch      # and peft, for the last of them

The models are those of `tests/golden/make.py`, random and far from their initialization, with more layers,
heads, tokens and positions; local layers see a quarter of a sequence.
"""

import copy
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import launch
from rlhf_jax import sampling, train_step
from rlhf_jax.algorithms import reward_model, sft
from rlhf_jax.batches import Prompts, Sequences
from rlhf_jax.data import tokenizer
from rlhf_jax.data.demonstrations import encode_demonstrations
from rlhf_jax.models import lora, networks, transformer
from rlhf_jax.models.hub import huggingface, writing
from rlhf_jax.models.hub.peft import HARMLESS, OFF, PLAIN
from rlhf_jax.models.hub.peft import write as write_adapter
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.pipeline import checkpoints
from rlhf_jax.tasks import reviews

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
tf = pytest.importorskip("transformers")
from tests.golden import make  # noqa: E402

pytestmark = pytest.mark.torch

VOCABULARY, LENGTH, PROMPT, WINDOW = 1000, 96, 56, 24
PADDING = np.array([0, 3, 17, 30])  # columns on the left of each row,
ENDING = np.array([0, 9, 0, 22])  # and on the right, of demonstrations
GPT2 = dict(vocab_size=VOCABULARY, n_embd=128, n_layer=4, n_head=8, n_positions=128)
LARGER = dict(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=4,
    num_attention_heads=8,
    max_position_embeddings=256,
)
GROUPED = LARGER | dict(num_key_value_heads=2)
WIDE = GROUPED | dict(head_dim=24)
SETTINGS = {
    "gpt2": GPT2,
    "gpt_neox": LARGER,
    "llama3": WIDE,
    "mistral": WIDE | dict(sliding_window=WINDOW),
    "qwen2": GROUPED
    | dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),  # the last two
    "qwen3": WIDE,
    "gemma2": WIDE | dict(sliding_window=WINDOW),
    "gemma3": WIDE | dict(sliding_window=WINDOW),
    "olmo2": GROUPED,
    "reward_gpt2": GPT2 | dict(n_inner=320),
    "reward_llama": WIDE,
}
REWARDS = [name for name in SETTINGS if name.startswith("reward")]
POLICIES = [name for name in SETTINGS if name not in REWARDS]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """`both(case)`: transformers' model, and ours, read from what that one saves."""
    torch.set_num_threads(1)
    tf.utils.logging.disable_progress_bar()

    @functools.cache
    def models(name):
        case, folder = make.CASES[name], tmp_path_factory.mktemp(name)
        theirs = make.build(case._replace(settings=case.settings | SETTINGS[name]), {})
        with torch.no_grad():
            for key, x in theirs.named_parameters():
                if "gemma" in name and "post_" in key:  # norms after attention and MLP, or greedy
                    x += 3.0  # decoding only repeats: the embedding outweighs the blocks
        theirs.save_pretrained(folder)
        return theirs, huggingface.load(str(folder))

    return models


def make_batch(ending=0):
    """Tokens and mask [4, LENGTH], padded on the left, and on the right by `ending` columns."""
    columns = np.arange(LENGTH)
    mask = (columns >= PADDING[:, None]) & (columns < LENGTH - np.reshape(ending, (-1, 1)))
    tokens = np.random.default_rng(1).integers(3, VOCABULARY, mask.shape, dtype=np.int32)
    return np.where(mask, tokens, make.PAD), mask


def inputs_of(tokens, mask):
    """What a model of transformers is called with."""
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    names = "input_ids", "attention_mask", "position_ids"
    arrays = tokens.astype(np.int64), mask.astype(np.int64), positions
    return dict(zip(names, map(torch.tensor, arrays), strict=True), use_cache=False)


@torch.no_grad()
def logits_of(theirs, tokens, mask):
    return theirs(**inputs_of(tokens, mask)).logits.numpy()


def differences(ours, theirs):
    """The norm of each tensor's difference, of each layer's alone, over the norm of `theirs`.

    A norm counts as no less than 1e-3 of the whole tree's: GPT-2's bias of keys has no gradient but rounding,
    because a softmax does not see it.
    """
    least = 1e-3 * optax.tree.norm(theirs)

    def difference(path, x, y):
        axes = tuple(range(int(path[0].key == "blocks"), x.ndim))
        norm = lambda x: np.sqrt(np.sum(np.square(np.asarray(x, np.float64)), axis=axes))
        return np.max(norm(x - y) / np.maximum(norm(y), least))

    return jax.tree.map_with_path(difference, ours, theirs)


@pytest.mark.parametrize("name", POLICIES)
def test_logits_are_those_of_transformers(both, name):
    theirs, ours = both(name)
    tokens, mask = make_batch()

    logits_fn = jax.jit(transformer.Transformer(ours.cfg).apply)
    got, want = logits_fn({"params": ours.params}, tokens, mask), logits_of(theirs, tokens, mask)
    assert want[mask].std() > 1
    np.testing.assert_allclose(got[mask], want[mask], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_cached_decoding_gives_the_same_logits(both, name):
    theirs, ours = both(name)
    tokens, mask = make_batch()

    @jax.jit
    def decode(params, tokens, mask):
        lm, room = networks.language_model(ours.cfg), LENGTH - PROMPT
        first, cache = lm.prefill_fn(params, tokens[:, :PROMPT], mask[:, :PROMPT], room)

        step = lambda cache, token: lm.decode_fn(params, cache, token)[::-1]
        _, rest = jax.lax.scan(step, cache, tokens[:, PROMPT:].T)
        return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

    want = logits_of(theirs, tokens, mask)[:, PROMPT - 1 :]
    np.testing.assert_allclose(decode(ours.params, tokens, mask), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_gradients_of_demonstrations_are_those_of_torch(both, name, tmp_path):
    """A step in two microbatches; torch's gradients are saved, and read, in the place of its parameters."""
    theirs, ours = both(name)
    theirs = copy.deepcopy(theirs)
    tokens, mask = make_batch(ENDING)
    batch = Sequences(*map(jnp.asarray, (tokens, mask, mask[:, PROMPT:])))

    logits = theirs(**inputs_of(tokens, mask)).logits[:, PROMPT - 1 : -1]
    said = torch.tensor(np.where(batch.mask, tokens[:, PROMPT:], -100), dtype=torch.int64)
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), said)  # -100 does not count
    loss.backward()
    for x in theirs.parameters():
        x.data = x.grad
    theirs.save_pretrained(tmp_path)
    want = huggingface.load(str(tmp_path)).params

    tx = optax.trace(decay=0.0)  # its state is the gradient
    policy_fn = networks.language_model(ours.cfg).policy_fn
    step = jax.jit(sft.make_train_step(policy_fn, tx, microbatches=2))
    state, metrics = step(train_step.init_state(ours.params, tx), {}, batch)
    np.testing.assert_allclose(metrics["sft/loss"], loss.item(), rtol=1e-5)
    found = differences(state.opt_state.trace, want)
    assert max(jax.tree.leaves(found)) < 1e-4, found


@pytest.mark.parametrize("name", SETTINGS)
def test_transformers_reads_what_is_written(both, name, tmp_path):
    """Parameters bit for bit, and the same logits or scores: the settings say all that config.json must."""
    theirs, ours = both(name)
    tokens, mask = make_batch()
    keys = {key: ours.config[key] for key in ("model_type", "pad_token_id")}
    writing.save(tmp_path, ours.cfg, ours.params, is_reward=ours.is_reward, config=keys)
    auto = tf.AutoModelForSequenceClassification if ours.is_reward else tf.AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(again) is type(theirs)
    want = dict(theirs.named_parameters())
    assert want.keys() == dict(again.named_parameters()).keys()
    for key, x in again.named_parameters():
        assert torch.equal(x, want[key]), key
    np.testing.assert_array_equal(logits_of(again, tokens, mask), logits_of(theirs, tokens, mask))


@pytest.mark.parametrize("name", POLICIES)
def test_both_say_the_same_greedily(both, name):
    """A batch padded on the left, cached on both sides, beyond the window of local layers.

    The likeliest token leads the second by 8e-4 at least, and the two sides' logits differ by 1e-4 at most.
    """
    theirs, ours = both(name)
    tokens, mask = (x[:, :PROMPT] for x in make_batch())
    cfg = sampling.SampleConfig(length=32, temperature=0.0, stop=(2,), pad=make.PAD)
    sample = jax.jit(sampling.make_sample(networks.language_model(ours.cfg), cfg))
    prompts = Prompts(*map(jnp.asarray, (tokens, mask, *[np.arange(len(tokens))] * 2)))
    said = sample(ours.params, prompts, jax.random.key(0))
    inputs = {key: inputs_of(tokens, mask)[key] for key in ("input_ids", "attention_mask")}
    want = theirs.generate(**inputs, do_sample=False, max_new_tokens=cfg.length).numpy()
    np.testing.assert_array_equal(said.tokens[:, : want.shape[1]], want)
    assert len(np.unique(want[:, PROMPT:])) > 20


@pytest.mark.parametrize("name", REWARDS)
def test_scores_are_those_of_transformers(both, name):
    theirs, ours = both(name)
    assert ours.is_reward
    fn = networks.reward_model(networks.language_model(ours.cfg)).fn
    for ending in 0, ENDING:
        tokens, mask = make_batch(ending)
        want = logits_of(theirs, tokens, mask)[:, 0]
        np.testing.assert_allclose(jax.jit(fn)(ours.params, tokens, mask), want, rtol=0, atol=1e-4)
        assert want.std() > 0.1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "qwen3", "reward_llama"])
def test_peft_reads_the_adapters_that_are_written(both, name, tmp_path):
    """Of matrices that the family's file fuses, and of some that it does not."""
    peft = pytest.importorskip("peft")
    theirs, ours = both(name)
    cfg = LoraConfig(rank=3, alpha=5.0, matrices=("query", "value", "attention_out", "down"))
    base, trained = lora.split(jax.random.key(0), ours.params, cfg)
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape)
    trained = jax.tree.map(noise, trained)
    write_adapter(tmp_path, ours.family, ours.cfg, trained, cfg, "base")
    tokens, mask = make_batch()
    params, lm = lora.join(base, trained, cfg), networks.language_model(ours.cfg)
    before = logits_of(theirs, tokens, mask)
    adapted = peft.PeftModel.from_pretrained(
        copy.deepcopy(theirs), tmp_path
    ).base_model.model.eval()
    want = logits_of(adapted, tokens, mask)
    if ours.is_reward:
        got = jax.jit(networks.reward_model(lm).fn)(params, tokens, mask)[:, None]
        got -= trained["bias"]  # for which PEFT has no place
    else:
        got = jax.jit(transformer.Transformer(ours.cfg).apply)({"params": params}, tokens, mask)[
            mask
        ]
        want, before = want[mask], before[mask]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
    assert np.max(np.abs(want - before)) > 0.1


# --- config.json, a key at a time

LOCAL, GLOBAL = "sliding_attention", "full_attention"
ROPES = [
    dict(rope_type="default", rope_theta=30.0),
    dict(rope_type="linear", factor=3.0, rope_theta=30.0),
    dict(type="linear", factor=3.0),
    dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0),
    dict(rope_type="yarn", factor=4.0),
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=30.0),
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
    dict(rope_type="yarn", factor=8.0, mscale=0.7, mscale_all_dim=0.2, beta_fast=3, beta_slow=0.2),
    dict(rope_type="yarn", factor=None, original_max_position_embeddings=8, attention_factor=1.3),
    dict(rope_type="dynamic", factor=2.0),
    dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4),
    dict(rope_type="default", rope_theta=30.0, partial_rotary_factor=0.5),
    {GLOBAL: dict(rope_type="yarn", factor=4.0, truncate=False), LOCAL: dict(rope_theta=20.0)},
    {GLOBAL: dict(rope_theta=20.0), LOCAL: dict(rope_type="linear", factor=4.0)},
]
VALUES = {  # of keys of one family or another: each is given to all families
    "sliding_window": [4, 0],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 1],
    "sliding_window_pattern": [1, 2],
    "layer_types": [[LOCAL, GLOBAL], [LOCAL, LOCAL], [GLOBAL, GLOBAL], [GLOBAL]],
    "attn_logit_softcapping": [2.0, 0.0],
    "final_logit_softcapping": [2.0],
    "query_pre_attn_scalar": [3],
    "use_bidirectional_attention": [True],
    "is_causal": [False],
    "attention_bias": [True, False],
    "mlp_bias": [True],
    "head_dim": [4, 8],
    "num_key_value_heads": [1, 2, 3],
    "num_attention_heads": [3, 6],
    "hidden_act": ["gelu", "gelu_new"],
    "hidden_activation": ["gelu", "silu"],
    "activation_function": ["gelu", "relu"],
    "rms_norm_eps": [0.5],
    "layer_norm_eps": [0.5],
    "layer_norm_epsilon": [0.5],
    "n_inner": [96],
    "n_head": [4],
    "scale_attn_weights": [False],
    "scale_attn_by_inverse_layer_idx": [True],
    "reorder_and_upcast_attn": [True],
    "use_parallel_residual": [True, False],
    "tie_word_embeddings": [True, False],
    "rope_theta": [30.0],
    "rope_local_base_freq": [30.0],
    "rotary_emb_base": [30],
    "rotary_pct": [0.5, 1.0],
    "partial_rotary_factor": [0.5],
    "original_max_position_embeddings": [16],
    "rope_parameters": ROPES,
    "rope_scaling": ROPES,
}
TOGETHER = [  # what counts only beside another key, or in its absence
    dict(sliding_window=4, use_sliding_window=True, max_window_layers=1, layer_types=None),
    dict(sliding_window=4, use_sliding_window=True, max_window_layers=9, layer_types=None),
    dict(sliding_window=4, use_sliding_window=True, layer_types=[GLOBAL, LOCAL]),
    dict(sliding_window=4, use_sliding_window=False, layer_types=[GLOBAL, LOCAL]),
    dict(sliding_window_pattern=2, layer_types=None),
    dict(original_max_position_embeddings=16, rope_scaling=dict(rope_type="yarn", factor=4.0)),
    dict(rope_parameters=None, rope_theta=30.0, rope_local_base_freq=20.0),
    dict(rope_parameters=None, rotary_emb_base=30, rotary_pct=0.5),
    *(dict(rope_parameters=None, rope_scaling=rope, rope_theta=30.0) for rope in ROPES),
]


def variants(config):
    """`config` with each key of `VALUES` absent, null, and at other values; and with some together."""
    for key, values in VALUES.items():
        yield {name: value for name, value in config.items() if name != key}
        for value in [None, *values]:
            layers = config.get("num_hidden_layers")
            if key == "layer_types" and value and len(value) > 1:
                value = (value * layers)[:layers] if layers else value
            yield config | {key: value}
    yield from (config | keys for keys in TOGETHER)


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(cfg, params, tokens, mask):
    if "trunk" in params:
        return networks.reward_model(networks.language_model(cfg)).fn(params, tokens, mask)[:, None]
    return transformer.Transformer(cfg).apply({"params": params}, tokens, mask)


@pytest.mark.parametrize("case", [name for name in make.CASES if name != "gpt_neox_sequential"])
def test_each_variant_of_a_config_json_is_equal_or_refused(case, tmp_path):
    """transformers reads the same folder."""
    config = json.loads((make.FOLDER / case / "config.json").read_text())
    shutil.copy(make.FOLDER / case / "model.safetensors", tmp_path)
    seen = []
    for variant in variants(config):
        if variant not in seen:
            seen.append(variant)
    read = sum(is_equal(tmp_path, variant, config) for variant in seen)
    assert read > len(seen) / 2, f"{read} of {len(seen)} are read"


@pytest.mark.parametrize("case", ["gpt2", "llama3", "qwen2", "gemma2", "gemma3", "gpt_neox"])
def test_a_head_in_the_file_is_tied_where_transformers_ties_it(case, tmp_path):
    config = json.loads((make.FOLDER / case / "config.json").read_text())
    tensors = load_file(make.FOLDER / case / "model.safetensors")
    embedding, own = {
        "gpt2": ("transformer.wte.weight", "lm_head.weight"),
        "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    }.get(case, ("model.embed_tokens.weight", "lm_head.weight"))
    for head in tensors[embedding], tensors[embedding][::-1].copy():
        save_file(tensors | {own: head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        for tied in True, False:
            assert is_equal(tmp_path, config | {"tie_word_embeddings": tied}, config)


def is_equal(folder, variant, config):
    """Whether the model of `variant` is read; asserts that it is transformers', and that both can read it."""
    (folder / "config.json").write_text(json.dumps(variant))
    changed = {k: variant.get(k, "absent") for k in VALUES if variant.get(k) != config.get(k)}
    try:
        ours = huggingface.load(str(folder))
    except ValueError:
        return False
    auto = tf.AutoModelForSequenceClassification if ours.is_reward else tf.AutoModelForCausalLM
    theirs, info = auto.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], changed
    tokens, mask = (x.numpy() for x in make.make_batch())
    want = logits_of(theirs.eval(), tokens, mask)
    got = outputs_of(ours.cfg, ours.params, tokens, mask)
    at = slice(None) if ours.is_reward else mask
    np.testing.assert_allclose(got[at], want[at], rtol=0, atol=1e-4, err_msg=str(changed))
    return True


INITS = {  # init_lora_weights -> whether the adapter is plain, with the settings that it wants beside
    True: (True, {}),
    False: (True, {}),
    "gaussian": (True, {}),
    "orthogonal": (True, {}),
    "eva": (True, {"eva_config": {"rho": 2.0}}),
    "pissa": (False, {}),
    "pissa_niter_4": (False, {}),
    "olora": (False, {}),
}


@pytest.mark.filterwarnings("ignore")  # PEFT's, of most of these
@pytest.mark.parametrize("init", INITS)
def test_an_adapter_that_rewrites_its_model_is_refused_and_the_others_are_as_pefts(
    both, tmp_path, init
):
    peft = pytest.importorskip("peft")
    theirs, ours = both("qwen3")
    cfg = LoraConfig(rank=4, alpha=8.0, matrices=("query", "down"))
    base, trained = lora.split(jax.random.key(0), ours.params, cfg)
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape)
    trained = jax.tree.map(noise, trained)
    write_adapter(tmp_path, ours.family, ours.cfg, trained, cfg, str(ours.folder))
    path = tmp_path / "adapter_config.json"
    is_plain, beside = INITS[init]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": init} | beside))
    tokens, mask = make_batch()
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path)
    want = logits_of(adapted.base_model.model.eval(), tokens, mask)[mask]
    plain = jax.jit(transformer.Transformer(ours.cfg).apply)(
        {"params": lora.join(base, trained, cfg)}, tokens, mask
    )[mask]
    if is_plain:
        huggingface.load(str(tmp_path))
        np.testing.assert_allclose(plain, want, rtol=0, atol=2e-4)
    else:
        assert np.max(np.abs(plain - want)) > 0.1
        with pytest.raises(ValueError, match="has init_lora_weights = "):
            huggingface.load(str(tmp_path))


def test_the_settings_of_adapters_that_are_known_are_those_of_peft():
    theirs = pytest.importorskip("peft").LoraConfig(peft_type="LORA").to_dict()
    own = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    for key, value in (theirs | own).items():
        assert key in HARMLESS or value in PLAIN.get(key, OFF), key
    assert HARMLESS | PLAIN.keys() <= theirs.keys()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of `reward`, what it exports as "sft" and "reward", and texts."""
    place = tmp_path_factory.mktemp("exported")
    texts = [f"{p} {r}" for p, r in reviews.generate(0, 160, reviews.prompts())]
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"""reward --data.comparisons {place}/a.jsonl --sample.length 24 --data.prompt-length 8
        --data.vocab-size 400 --model.d-model 16 --model.heads 2 --sft.steps 40 --sft.batch-size 8
        --reward.batch-size 8 --devices device --run {place}/run"""
    assert launch.main(command.split()) == 0
    for stage in ("sft", "reward"):
        export = f"export --run {place}/run --stage {stage} --to {place}/{stage}"
        assert launch.main(export.split()) == 0
    return place, texts[:24]


def test_an_exported_policy_and_reward_model_say_in_transformers_what_they_say_here(exported):
    """Of our ids: log-probabilities of responses, and scores less the constant of config.json."""
    place, texts = exported
    words = tokenizer.load(place / "sft")
    rows = encode_demonstrations(words, [t[:12] for t in texts], [t[12:] for t in texts], 8, 32)
    inputs = rows.tokens, rows.attention_mask
    assert rows.attention_mask.sum() < rows.attention_mask.size

    ours = huggingface.load(str(place / "sft"))
    lm = networks.language_model(ours.cfg)
    got, _ = jax.jit(functools.partial(lm.policy_fn, last=32, temperature=1.0))(
        ours.params, *inputs
    )
    theirs = tf.AutoModelForCausalLM.from_pretrained(place / "sft").eval()
    logits = torch.tensor(logits_of(theirs, *inputs))[:, -33:-1]
    said = torch.tensor(rows.tokens[:, -32:], dtype=torch.int64)[..., None]
    want = torch.log_softmax(logits, -1).gather(-1, said)[..., 0].numpy()
    np.testing.assert_allclose(got[rows.mask], want[rows.mask], rtol=0, atol=1e-4)
    assert theirs.generation_config.eos_token_id == words.eos_token_id

    ours = huggingface.load(str(place / "reward"))
    trained = checkpoints.arrays(place / "run", "reward")
    mean = json.loads((place / "run" / "stages" / "reward" / "centre.json").read_text())["mean"]
    centred = reward_model.centre(trained, np.float32(mean))
    jax.tree.map(np.testing.assert_array_equal, ours.params, centred)
    got = jax.jit(networks.reward_model(networks.language_model(ours.cfg)).fn)(ours.params, *inputs)
    theirs = tf.AutoModelForSequenceClassification.from_pretrained(place / "reward").eval()
    want = logits_of(theirs, *inputs)[:, 0]
    np.testing.assert_allclose(got, want + theirs.config.score_bias, rtol=0, atol=1e-4)
    assert abs(theirs.config.score_bias) > 0.01 and want.std() > 0.01


@pytest.mark.parametrize("bos", ["tokenizer", "never"])
def test_an_export_gives_our_numbers_for_a_text_that_its_tokenizer_encodes(tmp_path, bos):
    """`tokenizer(prompt response EOS)`, with no word on BOS: our ids, log-probabilities and scores."""
    asked = [f"is film {n} good" for n in range(60)]
    pairs = [
        {"prompt": x, "chosen": f"it is good {n}", "rejected": f"bad , {n} times"}
        for n, x in enumerate(asked)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    run = [
        "reward",
        "--data.comparisons",
        str(tmp_path / "a.jsonl"),
        "--run",
        str(tmp_path / "run"),
    ]
    small = "--bos BOS --model.d-model 16 --model.layers 1 --model.heads 2 --sft.steps 8 --sft.eval-every 4"
    small += " --sft.batch-size 8 --reward.batch-size 8 --data.vocab-size 300 --devices device"
    assert launch.main([*run, *small.replace("BOS", bos).split()]) == 0
    for stage in ("sft", "reward"):
        to = ["--stage", stage, "--to", str(tmp_path / stage)]
        assert launch.main(["export", "--run", str(tmp_path / "run"), *to]) == 0
    read = {stage: huggingface.load(str(tmp_path / stage)) for stage in ("sft", "reward")}
    words = tokenizer.load(tmp_path / "run" / "tokenizer", bos={"never": False}.get(bos))
    lengths = json.loads((tmp_path / "run" / "lengths.json").read_text())["lengths"]
    sides = encode_demonstrations(words, asked, [row["chosen"] for row in pairs], *lengths)
    lm, arrays = networks.language_model(read["sft"].cfg), (sides.tokens, sides.attention_mask)
    nats = jax.jit(lambda *x: lm.policy_fn(*x, last=lengths[1], temperature=1.0)[0])
    ours = np.asarray(nats(read["sft"].params, *arrays))
    scores = np.asarray(jax.jit(networks.reward_model(lm).fn)(read["reward"].params, *arrays))

    policy = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "sft").eval()
    judge = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    plain = tf.AutoTokenizer.from_pretrained(str(tmp_path / "sft"))
    gaps = []
    for n, row in enumerate(pairs):
        text = f"{row['prompt']} {row['chosen']}{plain.eos_token}"
        ids, start = plain(text)["input_ids"], len(plain(row["prompt"])["input_ids"])
        assert ids == sides.tokens[n][sides.attention_mask[n]].tolist()
        assert (ids[0] == plain.bos_token_id) == (bos == "tokenizer")
        with torch.no_grad():
            logits = policy(torch.tensor([ids])).logits[0].log_softmax(-1)
            want = logits[range(start - 1, len(ids) - 1), ids[start:]].numpy()
            gaps.append(float(judge(torch.tensor([ids])).logits[0, 0]) - float(scores[n]))
        np.testing.assert_allclose(ours[n][sides.mask[n]], want, rtol=0, atol=1e-4)
    assert np.std(scores) > 1e-3
    np.testing.assert_allclose(gaps, -judge.config.score_bias, rtol=0, atol=1e-4)
