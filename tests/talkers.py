"""Small policies for tests of conversations: random weights in Hugging Face folders."""

import pathlib

import jax

from rlhf_jax.data import tokenizer
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import writing

TEMPLATE = """{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
CONTEXT = 128


def written(place: pathlib.Path, template: str = "", seed: int = 0) -> str:
    """A folder with a model and a tokenizer of single bytes, with a chat template where one is given."""
    words = tokenizer.train(["a"], 259, place)
    if template:
        words.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
        words.chat_template = template
    cfg = ModelConfig(
        vocab_size=tokenizer.size(words), context=CONTEXT, layers=1, d_model=16, heads=2,
        positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, tied=False,
    )  # fmt: skip
    params = jax.jit(networks.language_model(cfg).init)(jax.random.key(seed))
    params = jax.tree.map(lambda x: 3 * x, params)  # so that some answers are likelier than others
    writing.save(place, cfg, params, tokenizer=words, stops=(words.eos_token_id,))
    return str(place)
