"""What a pretrained model decides, and what has to fit it."""

from rlhf_jax.models import huggingface


def kept(cfg) -> dict:
    """The settings of the model that no config.json decides."""
    return {x: getattr(cfg.model, x) for x in ("dtype", "param_dtype", "remat", "logprob_chunk")}


def decided(cfg) -> dict:
    """The settings that a pretrained model decides: its shape, and the tokenizer unless one is named."""
    folder = huggingface.resolve(cfg.pretrained)
    _, model, _ = huggingface.read_config(folder, **kept(cfg))
    return {"model": model, "tokenizer": cfg.tokenizer or str(folder)}


def check_context(cfg):
    """Raises ValueError where prompt and response do not fit the model's positions."""
    prompt, response = cfg.data.prompt_length, cfg.sample.length
    if prompt + response > cfg.model.context:
        raise ValueError(
            f"data.prompt_length = {prompt} and sample.length = {response} do not fit the model's "
            f"{cfg.model.context} positions: shorten one"
        )


def check_vocabulary(cfg, words):
    """Raises ValueError where the tokenizer has tokens, other than padding, that the model cannot embed."""
    largest = max(id for token, id in words.get_vocab().items() if token != words.pad_token)
    if largest >= cfg.model.vocab_size:
        raise ValueError(
            f'tokenizer "{cfg.tokenizer}" has token {largest}, and the embedding of '
            f'"{cfg.pretrained}" ends at {cfg.model.vocab_size - 1}: give the model\'s own tokenizer'
        )
