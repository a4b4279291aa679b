"""tunix's sampler and trainers, a step at a time: a peer's side, on one device.

tunix turns Llama's heads by a base of 1e6 whatever config.json says, so that is what the models have. Its
trainers run loops of their own over batches: the gate stands where they ask for the next one.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models import safetensors_loader
from tunix.models.llama3 import params as llama3_params
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl import common, rl_cluster
from tunix.rl import utils as rl_utils
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig
from tunix.sft.dpo.dpo_trainer import TrainingInput as Pairs
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput

from bench import works
from bench.sides import protocol, words

STEPS = 10**6


class Llama(Llama3):
    """tunix's, and takes what its PPO gives: 0.1.7 hands every model segments, which this does not know."""

    def __call__(self, input_tokens, positions, cache, attention_mask, segment_ids=None):
        """Logits, or scores where the head is a critic's; the attention mask says what segments would."""
        del segment_ids
        return super().__call__(input_tokens, positions, cache, attention_mask)


class Words:
    """A tokenizer as tunix wants one: texts are token numbers; no token of the model is a pad or an end."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str, **_) -> list[int]:
        """Tokens."""
        return [int(x) for x in text.split()]

    def decode(self, ids, **_) -> str:
        """A text."""
        return words.text(ids)

    def bos_id(self) -> int:
        """None is put before a prompt."""
        return 0

    def eos_id(self) -> int:
        """Never said."""
        return self.vocab_size + 1

    def pad_id(self) -> int:
        """Never said."""
        return self.vocab_size


class Tunix:
    """What every work needs."""

    def __init__(self, asked):
        self.name, self.work = asked.name, works.Work(**asked.work)
        self.folder = Path(asked.folder) / "policy"
        c = json.loads((self.folder / "config.json").read_text())
        self.config = ModelConfig(
            num_layers=c["num_hidden_layers"],
            vocab_size=c["vocab_size"],
            embed_dim=c["hidden_size"],
            hidden_dim=c["intermediate_size"],
            num_heads=c["num_attention_heads"],
            head_dim=c["head_dim"],
            num_kv_heads=c["num_key_value_heads"],
            rope_theta=1_000_000,
            norm_eps=c["rms_norm_eps"],
            weight_tying=c["tie_word_embeddings"],
        )
        self.tokens = works.tokens(self.name, self.work, c["vocab_size"])
        self.stops = works.stops(self.name, self.work, c["vocab_size"])
        self.words = Words(c["vocab_size"])

    def model(self):
        """In float32."""
        return safetensors_loader.load_and_create_model(
            file_dir=str(self.folder),
            model_class=Llama,
            config=self.config,
            key_mapping=llama3_params._get_key_and_transform_mapping,
            dtype=jnp.float32,
        )

    def tx(self):
        """Clipped Adam."""
        return optax.chain(optax.clip_by_global_norm(works.CLIP), optax.adam(works.LR, eps=1e-5))


def paced(gate: protocol.Gate, batch, held: SimpleNamespace, said=lambda: None):
    """The same batch for ever, at the gate, where the training of `held.models` has to have ended."""
    gate.wait()
    while True:
        yield batch
        jax.block_until_ready([nnx.state(model) for model in held.models])
        gate.wait(said())


def generating(tunix: Tunix, gate):
    """generate, sample and ragged: the vanilla sampler, a batch at a time."""
    work, config = tunix.work, tunix.config
    cache = CacheConfig(
        cache_size=work.prompt + work.response,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )
    sampler = Sampler(tunix.model(), tunix.words, cache)
    texts = [words.text(row) for row in tunix.tokens]
    parts = [texts[i : i + work.rows] for i in range(0, len(texts), work.rows)]
    draws = {} if tunix.name == "generate" else {"temperature": 1.0, "top_p": 1.0}
    step, said, told = 0, None, {}
    while True:
        gate.wait(said, **told)
        found = []
        for part in parts:
            step += 1
            found += sampler(
                part,
                max_generation_steps=work.response,
                max_prompt_length=work.prompt,
                eos_tokens=tunix.stops or None,
                seed=step,
                **draws,
            ).tokens
        said = [row.tolist() for row in found]
        # it leaves out the token that ended a response
        told = {"units": sum(min(len(row) + 1, work.response) for row in said)}


def settings(kind=TrainingConfig, **more):
    """Of a trainer: nothing but steps."""
    return kind(eval_every_n_steps=STEPS, max_steps=None, **more)


def losses(kind):
    """`kind` of trainer, whose `losses` are those of its steps."""

    class Trainer(kind):
        """Of tunix."""

        losses: list = []  # noqa: RUF012

        def _buffer_metrics(self, buffered, loss, *args, **kinds):
            self.losses.append(loss)
            return super()._buffer_metrics(buffered, loss, *args, **kinds)

    return Trainer


def supervised(tunix: Tunix, gate):
    """The trainer on demonstrations."""
    model = tunix.model()
    trainer = losses(PeftTrainer)(model, tunix.tx(), settings())

    def inputs(x):
        return {
            "input_tokens": x.input_tokens,
            "input_mask": x.input_mask,
            "positions": common.build_positions_from_mask(x.input_mask),
            "attention_mask": common.make_causal_attn_mask(x.input_mask),
        }

    trainer.with_gen_model_input_fn(inputs)
    batch = TrainingInput(tunix.tokens, np.ones(tunix.tokens.shape, bool))
    held = SimpleNamespace(models=[model])
    trainer.train(paced(gate, batch, held, lambda: float(trainer.losses[-1])))


def dpo(tunix: Tunix, gate):
    """The trainer on pairs, with the reference's pass."""
    model, P, tokens = tunix.model(), tunix.work.prompt, tunix.tokens
    config = settings(DPOTrainingConfig, beta=works.BETA)
    trainer = losses(DPOTrainer)(model, tunix.model(), tunix.tx(), config)
    rows = tokens[0, :, :P], tokens[0, :, P:], tokens[1, :, P:]
    names = ("prompt", "chosen", "rejected")
    parts = {f"{name}_ids": x for name, x in zip(names, rows, strict=True)}
    parts |= {f"{name}_mask": np.ones(x.shape, bool) for name, x in zip(names, rows, strict=True)}
    held = SimpleNamespace(models=[model])
    trainer.train(paced(gate, Pairs(**parts), held, lambda: float(trainer.losses[-1])))


def cluster(tunix: Tunix, **models):
    """Everything on one device, in one mesh."""
    work = tunix.work
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=tunix.tx(),
        critic_optimizer=tunix.tx() if "critic" in models else None,
        eval_every_n_steps=STEPS,
        max_steps=STEPS,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=work.response,
        max_prompt_length=work.prompt,
        kv_cache_size=work.prompt + work.response,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
    )
    return rl_cluster.RLCluster(
        actor=tunix.model(),
        reference=tunix.model(),
        tokenizer=tunix.words,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
            training_config=training,
            rollout_config=rollout,
        ),
        **models,
    )


def grpo(tunix: Tunix, gate):
    """The learner that samples, judged by Python."""
    work = tunix.work

    def even(prompts, completions, **_):
        del prompts
        return [float(works.score(np.array([tunix.words.encode(x)]))[0]) for x in completions]

    found = cluster(tunix)
    config = GRPOConfig(num_generations=work.group, num_iterations=1, beta=works.KL, epsilon=0.2)
    learner = GRPOLearner(found, algo_config=config, reward_fns=even)
    texts = {"prompts": np.array([words.text(row) for row in tunix.tokens[:: work.group]])}
    learner.train(paced(gate, texts, SimpleNamespace(models=[found.actor_trainer.model])))


def ppo(tunix: Tunix, gate):
    """The learner with a critic and a reward model, which has the policy's trunk here."""
    found = cluster(
        tunix,
        critic=rl_utils.create_critic_model(tunix.model(), seed=1),
        reward=rl_utils.create_critic_model(tunix.model(), seed=2),
    )
    config = PPOConfig(num_iterations=tunix.work.epochs, beta=works.KL)
    learner = PPOLearner(found, ppo_config=config)
    texts = {"prompts": np.array([words.text(row) for row in tunix.tokens])}
    trained = [found.actor_trainer.model, found.critic_trainer.model]
    learner.train(paced(gate, texts, SimpleNamespace(models=trained)))


MAKE = dict(
    generate=generating, sample=generating, ragged=generating, sft=supervised, dpo=dpo, grpo=grpo,
    ppo=ppo,
)  # fmt: skip


def main():
    """Serves what the parent asks for."""
    asked, gate = protocol.settings(), protocol.Gate()
    MAKE[asked.name](Tunix(asked), gate)


if __name__ == "__main__":
    main()
