"""Rows of data sets of Hugging Face's `datasets` (an extra), from the Hub or a folder, by place."""

import os
from typing import Any

_TRAIN = "train"


class HubDataset:
    """A split of a data set as a source: its number of rows, and row `i` as a dict.

    `name` is OWNER/NAME[/CONFIG] on the Hub, or a folder that `save_to_disk` wrote. `split` may have
    slices, as "train[:90%]"; it is "train" where it is empty. Raises ValueError, in one sentence, where
    `datasets` is missing, and where there is no such data set or split.
    """

    def __init__(self, name: str, split: str = ""):
        where, split = f"hf:{name}", split or _TRAIN
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f'{where} needs the package datasets: pip install "rlhf_jax[datasets]"'
            ) from error
        try:
            if os.path.isdir(name):
                self._records = _part(datasets, datasets.load_from_disk(name), split)
            else:
                owner, _, rest = name.partition("/")
                name, _, config = rest.partition("/")
                path = f"{owner}/{name}" if name else owner
                self._records = datasets.load_dataset(path, config or None, split=split)
        except Exception as error:  # scripts and damaged files make it raise any exception
            reason = str(error).strip().split("\n")[0] or repr(error)
            raise ValueError(
                f"{where} cannot be read ({reason}): check the name, the split and the network"
            ) from error
        self.files = sorted({file["filename"] for file in self._records.cache_files})

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._records[i]


def _part(datasets: Any, saved: Any, split: str) -> Any:
    """The rows that a split with slices names, of a saved data set that is one split or several."""
    parts = saved if isinstance(saved, dict) else {str(saved.split or _TRAIN): saved}
    sizes = {name: len(part) for name, part in parts.items()}
    chosen = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    return datasets.concatenate_datasets(
        [parts[x.splitname].select(range(x.from_, x.to)) for x in chosen]
    )
