"""Training on stored rows: `fit`, and the two stages that methods share, SFT and reward modelling.

Each stage ends in its run directory; a finished stage is read instead of trained again.
"""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms import sft as sft_step
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.algorithms.reward_model import RewardLossConfig
from rlhf_jax.batches import Sequences
from rlhf_jax.bounds import Count, Positive, Settings, check_divides
from rlhf_jax.data import tokenizer
from rlhf_jax.data.batching import batch_at, padded_batches
from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.data.demonstrations import Answers, encode_demonstrations
from rlhf_jax.data.packing import pack
from rlhf_jax.data.ratings import Rating
from rlhf_jax.devices import memory
from rlhf_jax.devices.parallel import DATA, Devices
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import early_stop, generation, keys, lessons, pretrained, scoring
from rlhf_jax.pipeline.texts import Feedback
from rlhf_jax.runs import disk, loop

if TYPE_CHECKING:
    from rlhf_jax.pipeline.prepare import Prepared

HELD_OUT = "held_out_reward"
"""The stage of the held-out reward model."""
NONE = LoraConfig()  # no adapters
SMALLER = "--model.remat, --lora.rank 8 or --devices mesh:fsdp=-1"
"""Remedies that reduce the memory of any training step."""
CENTRE = "centre.json"
"""The file of a stage with the mean score that was subtracted from its reward model's bias."""


SCALE = "scale.json"
"""The file of a stage with the `Scale` of the rewards of a reward model that learned from ratings."""


class Place(NamedTuple):
    """Folder, devices and seed of a stage."""

    folder: pathlib.Path
    devices: Devices
    seed: int


@dataclass(frozen=True)
class SFTConfig(Settings):
    """Supervised fine-tuning."""

    _main = ("steps", "batch_size")

    steps: Count = 1500
    """Maximum number of gradient steps; the learning rate decays over all of them."""
    batch_size: Count = 32
    """Texts per gradient step; packed rows where `pack` is set."""
    pack: bool = False
    """Pack several training texts into each row of prompt and response columns, by first fit decreasing, so
    that little is padding. Texts do not see each other; the held-out loss stays unpacked."""
    eval_every: Count = 150
    """Steps between evaluations of the held-out loss, each with a checkpoint."""
    patience: Count = 3
    """Evaluations without a new lowest held-out loss before SFT stops; the parameters with the lowest loss
    are kept."""
    microbatches: Count = 1
    """Microbatches per device and gradient step, to save memory."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=4e-3, warmup=50, b2=0.99, eps=1e-8)
    )

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


@dataclass(frozen=True)
class RewardConfig(Settings):
    """Reward modelling."""

    _main = ("epochs",)

    epochs: Positive = 2.0
    """Passes over the comparisons or ratings (1: Stiennon et al., 2020, with larger pretrained models)."""
    batch_size: Count = 16
    """Pairs, rankings or ratings per gradient step."""
    save_every: Count = 200
    """Steps between checkpoints."""
    microbatches: Count = 1
    """Microbatches per device and gradient step, to save memory."""
    loss: RewardLossConfig = RewardLossConfig()
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-3, warmup=20, b2=0.99, eps=1e-8)
    )

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


def check_packing(sft: SFTConfig, model: ModelConfig, at: str = ""):
    """Raises ValueError where packed rows are asked of attention that does not take them."""
    if sft.pack and model.attention == "cudnn":
        raise ValueError(
            f'{at}sft.pack does not work with {at}model.attention = "cudnn", which takes one text a row: '
            f'use {at}model.attention = "xla", or leave {at}sft.pack out'
        )


def parts(name: str, cfg) -> dict[str, int]:
    """Rows of a batch and of a microbatch, by their settings; both must divide over the devices."""
    rows, n = cfg.batch_size, cfg.microbatches
    return {f"{name}.batch_size": rows, f"{name}.batch_size / {name}.microbatches": rows // n}


class Fit(NamedTuple):
    """Training of one stage on stored rows."""

    stage: str
    start: Callable  # start() -> all initial parameters
    make: Callable  # make(fn) -> step(state, frozen, batch) -> (state, metrics)
    fn: Callable  # the network's function of all parameters, for the loss
    batch_at: Callable  # batch_at(i) -> the batch of step i, on the devices
    tx: Any
    steps: int
    save_every: int
    key: jax.Array  # key of the adapters' initial values
    log_every: int = 1
    init: Callable = train_step.init_state
    measure: Callable = lambda params: {}  # measure(all parameters) -> metrics, at each save
    patience: int = 0  # measures without a new lowest one before training stops; 0: never


def fit(run: Place, job: Fit, adapters: LoraConfig = NONE):
    """Trains until `job.steps`; returns (all parameters, all else but the moments), on the devices.

    With `adapters` the returned parameters are the initial ones with trained adapters and heads.
    """
    devices = run.devices
    step = compile_step(devices, job.stage, lora.over_base(job.make, job.fn, adapters))
    base, trained = lora.split(job.key, job.start(), adapters)
    frozen = {"base": devices.share(base)}
    whole = lambda trained: lora.join(frozen["base"], trained, adapters)

    def begun():
        nonlocal trained  # and nothing holds the initial parameters while the state is trained
        first, trained = trained, None
        state = init_state_on(devices, first, job.tx, job.init)
        best = early_stop.begin(devices.share(first)) if job.patience else {}
        return {"state": state} | best if best else state

    def body(carry, i):
        state, metrics = step(carry["state"] if job.patience else carry, frozen, job.batch_at(i))
        carry = carry | {"state": state} if job.patience else state
        if (i + 1) % job.save_every == 0 or i + 1 == job.steps:
            measured = job.measure(whole(params_of(state)))
            metrics |= measured
            if job.patience:
                carry |= early_stop.after(carry, state.params, next(iter(measured.values())))
        return carry, metrics

    carry: Any = loop.iterate(  # which alone holds the state, and forgets the first one
        run.folder, job.stage, begun(), body,
        iterations=job.steps, save_every=job.save_every, log_every=job.log_every, unit="steps",
        until=(lambda carry: carry["since"] >= job.patience) if job.patience else None,
    )  # fmt: skip
    if not job.patience:
        return whole(params_of(carry)), rest_of(carry)
    return whole(carry["best"]), carry | {"state": rest_of(carry["state"]), "best": None}


def params_of(state):
    """The trained parameters of a TrainState, or of a state that holds one as `train`."""
    return getattr(state, "train", state).params


def rest_of(state):
    """The state without parameters and the optimizer's moments."""
    train = getattr(state, "train", state)._replace(params=None, opt_state=None)
    return state._replace(train=train) if hasattr(state, "train") else train


def sft(
    run: Place,
    cfg: SFTConfig,
    lm,
    train: Sequences,
    held_out: Sequences,
    *,
    start=None,
    adapters=NONE,
):
    """The language model's parameters with the lowest held-out loss, on the devices, and that loss (nats
    per token).

    `start()` returns the initial parameters, and `adapters` is the part of them to train; without `start`,
    all parameters are trained from random weights.
    """
    adapters = NONE if start is None else adapters
    if cfg.pack:
        train = disk.mapped(run.folder / "data" / "packed", lambda: packed(train), train)
    tx, loss_of = optimizer.make(cfg.optimizer, cfg.steps), held_out_loss(run.devices, lm, held_out)
    job = Fit(
        stage="sft",
        start=start or (lambda: run.devices.make(lm.init, keys.key_of(run.seed, "sft"))),
        make=lambda policy_fn: sft_step.make_train_step(
            policy_fn, tx, microbatches=cfg.microbatches, axis_name=run.devices.axis_name
        ),
        fn=lm.policy_fn,
        batch_at=lambda i: batch_at(train, cfg.batch_size, run.seed, i, run.devices.take),
        tx=tx,
        steps=cfg.steps,
        save_every=cfg.eval_every,
        key=keys.adapters(run.seed, "sft"),
        log_every=10,
        measure=lambda params: {"sft/held_out_loss": loss_of(params)},
        patience=cfg.patience,
    )
    params, carry = fit(run, job, adapters)
    params = run.devices.make(lora.merge, params) if adapters.rank else params
    return params, float(carry["lowest"])


def packed(train: Sequences) -> Sequences:
    """The texts in fewer rows of as many columns; prints how many, and how full they are."""
    n, columns = train.tokens.shape
    found = pack(train, columns)
    full = np.mean(found.attention_mask > 0)
    rows = f"{len(found.tokens)} rows of {columns} tokens, {full:.1%} full"
    print(f"packed: {n} texts in {rows}", flush=True)
    return found


def reference(run: "Prepared"):
    """The SFT policy's parameters, trained or read, on the devices, and facts about them."""
    cfg, devices, texts = run.cfg, run.devices, run.texts
    answers = cfg.data.turns
    held_out = demonstrations(run.tokenizer, texts.corpus_held_out, run.lengths, answers)
    start, nats = (lambda: pretrained.start(cfg, devices.places)), np.nan
    if cfg.reference:
        params = start()
        if texts.corpus_held_out:
            nats = float(held_out_loss(devices, run.lm, held_out)(params))
    else:
        encode = lambda: demonstrations(run.tokenizer, texts.corpus, run.lengths, answers)
        train = disk.mapped(run.folder / "data" / "demonstrations", encode, held_out)
        params, nats = sft(
            place(run), cfg.sft, run.lm, train, held_out,
            start=start if pretrained.named(cfg) else None, adapters=cfg.lora,
        )  # fmt: skip
    if not texts.corpus_held_out:
        return params, {}
    whole = "response" if answers == "last" else "row"
    facts = {
        "SFT held-out loss, nats a token": nats,
        f"SFT held-out loss, nats a {whole}": nats * float(held_out.mask.sum(1).mean()),
    }
    return params, facts | (texts.task.facts(texts.corpus_held_out) if texts.task else {})


def place(run: "Prepared") -> "Place":
    """The part of a run that `fit` writes to."""
    return Place(run.folder, run.devices, run.cfg.seed)


def compile_step(devices: Devices, stage: str, step: Callable) -> Callable:
    """Compiles a pure `step(state, frozen, batch)` for the devices, which is donated its state, and prints
    the memory it needs."""
    compiled = devices.compile(step, (P(), P(), P(DATA)), (P(), P()), donate=0)
    return memory.announce_memory(stage, compiled, f"a smaller batch, more microbatches, {SMALLER}")


def compile_learner(devices: Devices, learner: Learner) -> Learner:
    """A learner with its functions compiled; the update is donated its state, and prints the memory it
    needs."""
    annotate = devices.compile(learner.annotate, (P(), P(), P(DATA)), P(DATA))
    specs = (P(), P(), P(), P(DATA), P()), (P(), P())
    update = devices.compile(learner.update, *specs, donate=0)
    remedy = f"a smaller batch, more minibatches or microbatches, {SMALLER}"
    update = memory.announce_memory("update", update, remedy)
    return learner._replace(annotate=annotate, update=update)


def init_state_on(devices: Devices, trained, tx, init: Callable = train_step.init_state):
    """The initial training state `init(trained, tx)` on the devices, in buffers of its own."""
    return devices.make(partial(init, tx=tx), devices.put(trained))


def held_out_loss(devices: Devices, lm, held_out: Sequences) -> Callable:
    """`loss_of(params on the devices)`: mean negative log-likelihood, in nats per token."""
    nats = devices.compile(
        sft_step.make_held_out_loss(lm.policy_fn, axis_name=devices.axis_name),
        (P(), P(DATA), P(DATA)),
        P(),
    )

    def loss_of(params) -> np.float32:
        batches = padded_batches(held_out, generation.rows_of(devices, len(held_out.tokens)))
        sums = [nats(params, *devices.put_batch((batch, real))) for batch, real in batches]
        total, tokens = np.sum(jax.device_get(sums), axis=0)
        return np.float32(total / tokens)

    return loss_of


def reward_model_of(
    run: "Prepared", stage: str, items: Sequence[Comparison | Rating], trunk
) -> scoring.Reward:
    """A reward model trained on comparisons or ratings from `trunk`; its mean score on held-out
    demonstrations is zero."""
    cfg, devices, seed = run.cfg.reward, run.devices, run.cfg.seed
    lesson, place_of = lessons.lesson(run, items), run.folder / "stages" / stage
    like = lesson.encode(items[:1])
    train = disk.mapped(run.folder / "data" / stage, lambda: lesson.encode(items), like)
    network = networks.reward_model(run.lm)
    steps = max(1, round(cfg.epochs * len(train.weight) / cfg.batch_size))
    tx = optimizer.make(cfg.optimizer, steps)
    job = Fit(
        stage=stage,
        start=lambda: (
            network.init(jax.random.fold_in(keys.key_of(seed, stage), 0), trunk)
            | {"bias": jnp.float32(lesson.start)}
        ),
        make=lambda reward_fn: lesson.make(
            reward_fn, tx, microbatches=cfg.microbatches, axis_name=devices.axis_name
        ),
        fn=network.fn,
        batch_at=lambda i: batch_at(train, cfg.batch_size, seed, i, devices.take),
        tx=tx,
        steps=steps,
        save_every=cfg.save_every,
        key=keys.adapters(seed, stage),
        log_every=5,
    )
    params, _ = fit(place(run), job, run.cfg.lora)
    found = centred(run, scoring.Reward(network.fn, params), place_of / CENTRE)
    if lesson.scale:
        shift = lesson.start - float(found.params["bias"])  # a centred reward and this are a reward
        scale = lesson.scale._replace(mean=lesson.scale.mean + lesson.scale.deviation * shift)
        disk.cached(place_of, SCALE, scale._asdict)
    return found


def centred(
    run: "Prepared", reward: scoring.Reward, kept: pathlib.Path | None = None
) -> scoring.Reward:
    """The reward, shifted to a mean score of zero on held-out demonstrations if there are any."""
    if not run.texts.corpus_held_out:
        return reward
    texts = demonstrations(run.tokenizer, run.texts.corpus_held_out, run.lengths)
    score = lambda: generation.score(run.devices, reward.fn, reward.params, texts)
    find = lambda: {"mean": float(score().mean())}
    mean = (disk.cached(kept.parent, kept.name, find) if kept else find())["mean"]
    return reward._replace(params=reward_model.centre(reward.params, jnp.float32(mean)))


def reward_models(run: "Prepared", reference, feedback: Feedback | None):
    """(reward model to maximise, held-out reward model), each None where it is not needed.

    The first is loaded where `reward_model` names one; all that are trained start from the reference.
    """
    if run.load_reward:
        first = centred(run, scoring.Reward(*run.load_reward(run.devices.places)))
    else:
        first = reward_model_of(run, "reward", feedback.halves[0], reference) if feedback else None
    if feedback is None or not feedback.halves[1]:
        return first, None
    return first, reward_model_of(run, HELD_OUT, feedback.halves[1], reference)


def read_tokenizer(folder, name, corpus, vocab_size, bos: bool | None = True):
    """The tokenizer called `name`, or one trained on the corpus and kept in the run directory.

    `bos` is True or False for BOS before every prompt; None leaves it to the tokenizer.
    """
    place = folder / "tokenizer"
    if not name:
        texts = (text for pair in corpus for text in (pair[0], tokenizer.at_seam(*pair)))
        disk.kept(place, lambda path: tokenizer.train(texts, vocab_size, path))
    return tokenizer.load(name or place, bos=bos)


def demonstrations(words, texts, lengths: tuple, answers: Answers = "last") -> Sequences:
    """Pairs of prompt and response as arrays, with `lengths` as those of `Prepared`."""
    prompts, responses = [p for p, _ in texts], [r for _, r in texts]
    return encode_demonstrations(words, prompts, responses, *lengths, answers=answers)
