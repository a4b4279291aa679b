"""The stages that experiments share: supervised fine-tuning and reward modelling, each a short host loop.

Each ends in its run directory; a stage that stands there is read and not trained again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import reward_model, sft
from rlhf_jax.algorithms.reward_model import RewardLossConfig
from rlhf_jax.batches import Comparisons, Sequences
from rlhf_jax.bounds import Count, Positive, Settings, check_divides
from rlhf_jax.data import tokenizer
from rlhf_jax.data.batching import batch_at, padded_batches
from rlhf_jax.data.demonstrations import encode_demonstrations
from rlhf_jax.devices import memory
from rlhf_jax.devices.parallel import DATA, Devices
from rlhf_jax.models import lora, networks
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import inference, pretrained
from rlhf_jax.runs import loop, run

NONE = LoraConfig()  # no adapters
SMALLER = "--model.remat, --model.logprob-chunk 64, --lora.rank 8 or --devices mesh:fsdp=-1"
"""What makes any training step need less memory."""
CENTRE = "centre.json"
"""The file of a stage that holds the mean score which its reward model's bias takes off."""


@dataclass(frozen=True)
class SFTConfig(Settings):
    """Supervised fine-tuning."""

    _main = ("steps", "batch_size")

    steps: Count = 1500
    """Most gradient steps; the learning rate reaches zero there."""
    batch_size: Count = 32
    """Texts a step."""
    eval_every: Count = 150
    """Steps between held-out losses (and checkpoints)."""
    patience: Count = 3
    """Held-out losses without a new lowest one before it stops; the lowest one's parameters are kept."""
    microbatches: Count = 1
    """Parts that a batch is cut into, on each device, to save memory."""
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
    """Passes over the comparisons (1: Stiennon et al., 2020, on models that know more to begin with)."""
    batch_size: Count = 16
    """Pairs a step."""
    save_every: Count = 200
    """Steps between checkpoints."""
    microbatches: Count = 1
    """Parts that a batch is cut into, on each device, to save memory."""
    loss: RewardLossConfig = RewardLossConfig()
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-3, warmup=20, b2=0.99, eps=1e-8)
    )

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


def parts(name: str, cfg) -> dict[str, int]:
    """Rows of a batch, and of a microbatch, by the names of their settings: what devices must divide."""
    rows, n = cfg.batch_size, cfg.microbatches
    return {f"{name}.batch_size": rows, f"{name}.batch_size / {name}.microbatches": rows // n}


def reference(folder, cfg, devices: Devices, lm, train: Sequences, held_out: Sequences):
    """The SFT policy's parameters, on the host, and its held-out loss: trained, or read where one is named.

    `cfg` is an experiment's, whose `reference`, `pretrained`, `lora`, `sft`, `seed` and `wandb` are read. The
    loss of a named reference is NaN where there are no texts.
    """
    start = pretrained.start(cfg, devices.places)
    if cfg.reference:
        loss_of = held_out_loss(devices, lm, held_out) if len(held_out.mask) else None
        return devices.host(start), float(loss_of(devices.share(start)) if loss_of else np.nan)
    return train_sft(
        folder, cfg.sft, devices, lm, train, held_out, cfg.seed,
        wandb=cfg.wandb, start=start, adapters=cfg.lora,
    )  # fmt: skip


def train_sft(
    folder, cfg: SFTConfig, devices: Devices, lm, train, held_out, seed, *,
    wandb=False, start=None, adapters: LoraConfig = NONE,
):  # fmt: skip
    """The language model's parameters with the lowest held-out loss, on the host, and that loss.

    `start` are those it begins with, `adapters` what is trained of them; without, all is, from nothing.
    """
    adapters = NONE if start is None else adapters
    tx = optimizer.make(cfg.optimizer, cfg.steps)
    make = lambda policy_fn: sft.make_train_step(
        policy_fn, tx, microbatches=cfg.microbatches, axis_name=devices.axis_name
    )
    step = compile_step(devices, "sft", lora.over_base(make, lm.policy_fn, adapters))
    root, loss_of = jax.random.key(seed), held_out_loss(devices, lm, held_out)
    params = devices.make(lm.init, root) if start is None else start
    base, trained = lora.split(jax.random.fold_in(root, 0), params, adapters)
    frozen = {"base": devices.share(base)}
    whole = lambda trained: lora.join(frozen["base"], trained, adapters)
    carry = {
        "state": begun(devices, trained, tx),
        "best": devices.share(trained),
        "lowest": np.float32(np.inf),
        "since": np.int32(0),
    }

    def body(carry, i):
        batch = batch_at(train, cfg.batch_size, seed, i, devices.take)
        state, metrics = step(carry["state"], frozen, batch)
        carry = carry | {"state": state}
        if (i + 1) % cfg.eval_every == 0 or i + 1 == cfg.steps:
            loss = loss_of(whole(state.params))
            metrics = metrics | {"sft/held_out_loss": loss}
            lower = loss < carry["lowest"]
            carry["since"] = np.int32(0 if lower else carry["since"] + 1)
            if lower:
                carry |= {"best": state.params, "lowest": loss}
        return carry, metrics

    carry = loop.iterate(
        folder, "sft", carry, body,
        iterations=cfg.steps,
        save_every=cfg.eval_every,
        until=lambda carry: carry["since"] >= cfg.patience,
        log_every=10,
        unit="steps",
        wandb=wandb,
    )  # fmt: skip
    return devices.host(lora.merge(whole(carry["best"]))), float(carry["lowest"])


def compile_step(devices: Devices, stage: str, step: Callable) -> Callable:
    """A pure `step(state, frozen, batch)` on the devices; it says what memory it needs."""
    compiled = devices.compile(step, (P(), P(), P(DATA)), (P(), P()))
    return memory.told(stage, compiled, f"a smaller batch, more microbatches, {SMALLER}")


def compile_update(devices: Devices, update: Callable) -> Callable:
    """A pure `update(state, frozen, kl_coef, rollout, rng)`, which is given its state, in the same way."""
    compiled = devices.compile(update, (P(), P(), P(), P(DATA), P()), (P(), P()), donate=0)
    remedy = f"a smaller batch, more minibatches or microbatches, {SMALLER}"
    return memory.told("update", compiled, remedy)


def begun(devices: Devices, trained, tx, init: Callable = train_step.init_state):
    """The state that training starts in, `init(trained, tx)`, on the devices and in buffers of its own."""
    return devices.make(partial(init, tx=tx), devices.put(trained))


def held_out_loss(devices: Devices, lm, held_out: Sequences) -> Callable:
    """`loss_of(params on the devices)`: mean negative log-likelihood, nats a token."""
    nats = devices.compile(
        sft.make_held_out_loss(lm.policy_fn, axis_name=devices.axis_name),
        (P(), P(DATA), P(DATA)),
        P(),
    )

    def loss_of(params) -> np.float32:
        batches = padded_batches(held_out, inference.rows_of(devices, len(held_out.tokens)))
        sums = [nats(params, *devices.put_batch((batch, real))) for batch, real in batches]
        total, tokens = np.sum(jax.device_get(sums), axis=0)
        return np.float32(total / tokens)

    return loss_of


def train_reward(
    folder, stage, cfg: RewardConfig, devices: Devices, lm, trunk,
    train: Comparisons, demonstrations: Sequences, seed, *, wandb=False, adapters: LoraConfig = NONE,
):  # fmt: skip
    """A reward model's parameters, started from `trunk`, its mean score of demonstrations set to zero.

    With `adapters` they are the trunk's own arrays, adapters beside them, and the head.
    """
    rm = networks.reward_model(lm)
    pairs = len(train.chosen.tokens)
    steps = max(1, round(cfg.epochs * pairs / cfg.batch_size))
    tx = optimizer.make(cfg.optimizer, steps)
    make = lambda reward_fn: reward_model.make_train_step(
        reward_fn, tx, cfg.loss, microbatches=cfg.microbatches, axis_name=devices.axis_name
    )
    step = compile_step(devices, stage, lora.over_base(make, rm.fn, adapters))
    root = jax.random.key(seed)
    params = rm.init(jax.random.fold_in(root, 0), trunk)
    base, trained = lora.split(jax.random.fold_in(root, 1), params, adapters)
    frozen = {"base": devices.share(base)}

    def body(state, i):
        batch = batch_at(train, cfg.batch_size, seed, i, devices.take)
        return step(state, frozen, batch)

    state = loop.iterate(
        folder, stage, begun(devices, trained, tx), body,
        iterations=steps,
        save_every=cfg.save_every,
        log_every=5,
        unit="steps",
        wandb=wandb,
    )  # fmt: skip
    params = lora.join(base, devices.host(state.params), adapters)
    score = lambda: {"mean": mean_score(devices, rm.fn, params, demonstrations)}
    mean = run.cached(folder, f"stages/{stage}/{CENTRE}", score)["mean"]
    return reward_model.centre(params, jnp.float32(mean))


def mean_score(devices: Devices, reward_fn, params, demonstrations: Sequences) -> float:
    """The mean score of demonstrations, which `reward_model.centre` sets to zero."""
    return float(inference.score(devices, reward_fn, params, demonstrations).mean())


def read_tokenizer(folder, name, corpus, vocab_size, bos: bool | None = True):
    """The tokenizer called `name`, or one that is trained on the corpus and kept in the run directory.

    `bos` says whether it puts BOS before every prompt; None leaves that to its own rule.
    """
    place = folder / "tokenizer"
    if not name:
        texts = (text for pair in corpus for text in (pair[0], tokenizer.at_seam(*pair)))
        run.kept(place, lambda path: tokenizer.train(texts, vocab_size, path))
    return tokenizer.load(name or place, bos=bos)


def demonstrations(words, texts, lengths: tuple[int, int]) -> Sequences:
    """Pairs of prompt and response as arrays, of `lengths` (prompt, response) in tokens."""
    return encode_demonstrations(words, [p for p, _ in texts], [r for _, r in texts], *lengths)
