"""Models that experiments read: each device gets its part from the file, and no device the whole."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from experiments.methods import reward
from rlhf_jax import optimizer
from rlhf_jax.devices import parallel
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import huggingface, peft, writing
from rlhf_jax.pipeline import pretrained, stages

MODEL = ModelConfig(
    vocab_size=48, context=16, d_model=32, heads=4, positions="rotary", norm="rmsnorm",
    activation="swiglu", bias=False, tied=False,
)  # fmt: skip
LARGE = 32 * 32  # elements of the smallest matrix
LM = networks.language_model(MODEL)
LORA = lora.LoraConfig(rank=2)
FSDP = {"fsdp=8": lambda: parallel.on_mesh(1, 8)}
LAYOUTS = FSDP | {"device": parallel.on_device, "pmap": parallel.on_pmap}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy, a reward model, and an adapter of each, in the formats of Hugging Face and PEFT."""
    place = tmp_path_factory.mktemp("models")
    params = jax.jit(LM.init)(jax.random.key(0))
    reward = networks.reward_model(LM).init(jax.random.key(1), params)
    writing.save(place / "policy", MODEL, params)
    writing.save(place / "reward", MODEL, reward, is_reward=True)
    family = writing.family_of(MODEL)
    for name, whole in {"policy": params, "reward": reward}.items():
        _, trained = lora.split(jax.random.key(2), whole, LORA)
        trained = jax.tree.map(lambda x: np.asarray(x + 0.1), trained)
        peft.write(place / f"{name}_adapter", family, MODEL, trained, LORA, str(place / name))
    return place


def settings(name):
    return SimpleNamespace(pretrained=str(name), reference="", model=MODEL)


def check_cut(tree):
    """Every matrix of `tree` lies in eighths."""
    large = [x for x in jax.tree.leaves(tree) if x.size >= LARGE]
    assert len(large) >= 8
    for x in large:
        assert {shard.data.size for shard in x.addressable_shards} == {x.size // 8}


@pytest.mark.parametrize("name", ["policy", "reward", "policy_adapter", "reward_adapter"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_lies_where_the_devices_want_it_with_the_bits_of_the_file(
    folder, name, layout
):
    devices = LAYOUTS[layout]()
    start = pretrained.start(settings(folder / name), devices.places)
    lies = lambda x, where: x.sharding.is_equivalent_to(where, x.ndim)
    assert all(jax.tree.leaves(jax.tree.map(lies, start, devices.places(start))))
    plain = huggingface.load(str(folder / name)).params
    same = np.testing.assert_allclose if "adapter" in name else np.testing.assert_array_equal
    jax.tree.map(same, devices.host(start), jax.device_get(plain))
    if layout in FSDP:
        check_cut(start)


@pytest.mark.parametrize("adapters", [0, 2])
def test_training_begins_with_no_array_whole_on_a_device_or_on_the_host(
    folder, adapters, monkeypatch
):
    """What lies right is not fetched; and the model that is read can still be read after donations."""
    devices = parallel.on_mesh(1, 8)
    before = {id(x) for x in jax.live_arrays()}
    read = pretrained.start(settings(folder / "policy"), devices.places)
    base, trained = lora.split(jax.random.key(0), read, lora.LoraConfig(rank=adapters))
    fetched = []
    array = lambda x: fetched.append(x.size) or np.asarray(x).copy()
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "np", SimpleNamespace(array=array))
        shared = devices.share(base)
        state = stages.init_state_on(
            devices, trained, optimizer.make(optimizer.OptimizerConfig(), 10)
        )
    assert all(size < LARGE for size in fetched)
    check_cut(read)
    if adapters:
        check_cut(shared)
    else:
        check_cut(state.params)
        check_cut(state.opt_state)
    for x in jax.live_arrays():
        if id(x) not in before and x.size >= 2 * LARGE:  # a part of the largest is half of that
            assert not x.sharding.is_fully_replicated, x.shape
    step = devices.compile(
        lambda state, rows: jax.tree.map(lambda x: x + x, state),
        (parallel.P(), parallel.P(parallel.DATA)),
        parallel.P(),
        donate=(0,),
    )
    step(state, devices.put_batch(np.zeros(8)))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    check_cut(read)
    jax.tree.map(np.asarray, read)


def test_a_model_from_nothing_is_cut_as_it_is_made_and_is_the_one_of_one_device():
    devices = parallel.on_mesh(1, 8)
    made = devices.make(LM.init, jax.random.key(0))
    check_cut(made)
    one = parallel.on_device().make(LM.init, jax.random.key(0))
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, devices.host(made), jax.device_get(one))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (range(48), ""),
        (range(24), ""),
        (range(49), r'tokenizer "t" has token 48, and the embedding of "m" ends at 47'),
        ([*range(40), 5000], r'tokenizer "t" has token 5000, and the embedding of "m" ends at 47'),
        (range(23), r'tokenizer "t" has 23 tokens, and "m" embeds 48'),
        ([0, 1], r'tokenizer "t" has 2 tokens, and "m" embeds 48'),
    ],
)
def test_a_model_and_its_tokenizer_have_the_same_tokens(ids, words):
    """Padding may lie beyond the embedding, and models have rows to spare; half of them are not to spare."""
    vocabulary = {f"w{i}": i for i in ids} | {"<pad>": 99}
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary, pad_token="<pad>")
    check = partial(pretrained.check_vocabulary, "t", tokenizer, "m", MODEL)
    if not words:
        return check()
    with pytest.raises(ValueError, match=words):
        check()


def test_a_model_that_is_made_here_embeds_every_id_of_a_tokenizer_with_a_gap():
    known = Tokenizer(models.BPE({"<eos>": 0, "b": 70}, []))
    words = PreTrainedTokenizerFast(tokenizer_object=known, eos_token="<eos>")
    fitted, lm = pretrained.fitted(reward.Config(model=MODEL), words)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    assert fitted.model.vocab_size == shapes["embedding"]["embedding"].shape[0] == 71
