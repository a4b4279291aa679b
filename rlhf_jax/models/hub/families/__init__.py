"""Names in the Hugging Face checkpoints of each family: one file per family, read by `huggingface.py`.

A family maps its `config.json` to settings of the one transformer, and the tensors of its files to our
parameters. To add one, write such a file, name it here, and make its golden file (CONTRIBUTING.md).
"""

from rlhf_jax.models.hub.families import gemma, gpt2, gpt_neox, llama

FAMILIES = {
    family.model_type: family for family in (*llama.ALL, *gemma.ALL, gpt2.GPT2, gpt_neox.GPT_NEOX)
}
