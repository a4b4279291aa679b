import os

# On import, transformers says that PyTorch is missing: true, and meant to be so.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
