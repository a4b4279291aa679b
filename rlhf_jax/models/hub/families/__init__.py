"""What each family of Hugging Face checkpoints calls things: one file a family, read by `huggingface.py`.

A family says which settings of the one transformer its `config.json` means, and which tensor of its files is
which of our parameters. To add one, write such a file, name it here, and make its golden file
(CONTRIBUTING.md).
"""

from rlhf_jax.models.hub.families import gemma, gpt2, gpt_neox, llama

FAMILIES = {
    family.model_type: family for family in (*llama.ALL, *gemma.ALL, gpt2.GPT2, gpt_neox.GPT_NEOX)
}
