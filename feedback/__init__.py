"""The page where people compare responses, and the database that keeps what they said.

It never imports JAX nor `rlhf_jax`: comparisons in JSONL files and HTTP are all that passes between them.
"""
