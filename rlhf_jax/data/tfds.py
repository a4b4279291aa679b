"""Rows of TensorFlow Datasets in the array_record format, by place, without TensorFlow."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_FORMAT = "array_record"
_TRAIN = "train"


class TFDS:
    """A split of a dataset as a source: its number of rows, and row `i` as a dict.

    `name` is NAME[/CONFIG] of a registered builder, which is prepared first where TFDS_DATA_DIR does not
    hold it; or the folder of one prepared dataset. `split` may have slices, as "train[:90%]"; it is "train"
    where it is empty. A `Sequence` of objects, which TFDS gives as an object of lists, becomes a list of
    objects. Raises ValueError, in one sentence, where there is no such dataset or split, where its
    preparation fails, and where it needs TensorFlow.
    """

    def __init__(self, name: str, split: str = ""):
        self._where = f"tfds:{name}"
        with self._told():
            builder: Any = (
                tfds.builder_from_directory(name) if os.path.isdir(name) else _prepared(name)
            )
            self._features = builder.info.features
            self._records: Any = builder.as_data_source(split=split or _TRAIN)
            self._size = len(self._records)
        self.files = sorted(
            str(path) for path in Path(builder.data_dir).iterdir() if path.is_file()
        )

    def __len__(self):
        return self._size

    def __getitem__(self, i: int) -> dict[str, Any]:
        with self._told():
            return _objects(self._features, self._records[i])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raises anything that TFDS raises as one sentence."""
        try:
            yield
        except Exception as error:  # builders and damaged files make it raise any exception
            if isinstance(error, ImportError) and "tensorflow" in str(error):
                raise ValueError(
                    f"{self._where} needs TensorFlow to be prepared: "
                    'pip install "rlhf_jax[tensorflow]", once'
                ) from error
            reason = str(error).strip().split("\n")[0] or repr(error)
            remedy = "check the name, the split, the folder and the network"
            if isinstance(error, NotImplementedError) or "File format is already" in reason:
                remedy = (
                    f"it was prepared in another format than {_FORMAT}: prepare it again in another folder, "
                    "which the environment's TFDS_DATA_DIR names"
                )
            raise ValueError(f"{self._where} cannot be read ({reason}): {remedy}") from error


def _prepared(name: str) -> Any:
    """The builder of a registered dataset, whose data are on disk."""
    builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"), file_format=_FORMAT)
    if not os.path.isdir(builder.data_dir):
        print(f"preparing tfds:{name} in {builder.data_dir}, once", flush=True)
        builder.download_and_prepare(
            file_format=_FORMAT,
            # that bucket holds other formats
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    return builder


def _objects(feature: Any, value: Any) -> Any:
    """The value of a feature, with lists of objects in place of objects of lists."""
    kinds = tfds.features
    if isinstance(feature, kinds.FeaturesDict):
        return {name: _objects(feature[name], item) for name, item in value.items()}
    if not isinstance(feature, kinds.Sequence):
        short = isinstance(value, float) and feature.np_dtype == np.float32
        return float(str(np.float32(value))) if short else value  # 0.1, and not 0.10000000149
    inner = feature.feature
    if isinstance(feature, kinds.Dataset):
        value = list(value)
    elif isinstance(inner, kinds.FeaturesDict):
        items = zip(*value.values(), strict=True)
        value = [dict(zip(value, item, strict=True)) for item in items]
    return [_objects(inner, item) for item in value] if _nested(inner) else value


def _nested(feature: Any) -> bool:
    return isinstance(feature, tfds.features.FeaturesDict | tfds.features.Sequence)
