"""TFDS data sets that are written and read without TensorFlow give back the rows that went in, in order."""

import functools
import http.server
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rlhf_jax.data import comparisons, demonstrations, sources
from rlhf_jax.data.builders import builder
from rlhf_jax.data.builders.demonstrations import Demonstrations
from rlhf_jax.data.builders.preferences import Preferences
from rlhf_jax.data.builders.prompts import Prompts
from rlhf_jax.data.sources import Row
from rlhf_jax.pipeline import reading, texts

USER, ASSISTANT = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so ♞"}
NO_GCS = {"try_download_gcs": False}


@pytest.fixture(autouse=True)
def without_tensorflow():
    """TFDS imports it wherever it needs it; nothing here does."""
    before = "tensorflow" in sys.modules
    tfds.disable_progress_bar()
    yield
    assert ("tensorflow" in sys.modules) == before


@pytest.fixture
def served(tmp_path):
    """A folder, and the address at which a server of this machine offers its files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def rows_of(items):
    return [Row(item, f"rows:{number}") for number, item in enumerate(items, 1)]


def read(folder, split="train"):
    """The rows of a prepared data set, as a run reads them."""
    return sources.read(f"{folder}:{split}")


def through(kind, items, tmp_path):
    """The rows that come back from a data set of `items`."""
    builder.prepare(kind, {"train": rows_of(items)}, tmp_path / "set")
    return read(tmp_path / "set")


def made_by_name(name, tmp_path, columns, files, **settings):
    """A data set as a user of TFDS makes it: by the builder's name, with a layout of one's own."""
    made = tfds.builder(
        name,
        config=builder.Layout(name="own", columns=columns, files=files),
        data_dir=tmp_path / "data",
        file_format="array_record",
    )
    made.download_and_prepare(
        download_dir=tmp_path / "downloads",
        download_config=tfds.download.DownloadConfig(**settings, **NO_GCS),
    )
    return made


HH = [
    {
        "chosen": f"\n\nHuman: how {n}?\n\nAssistant: so {n}",
        "rejected": f"\n\nHuman: how {n}?\n\nAssistant: no",
    }
    for n in range(3)
]
LAYOUTS = {
    "dialogues": (Preferences, HH),
    "messages": (
        Preferences,
        [{"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT | {"content": "no"}]}] * 2,
    ),
    "pairs": (Preferences, [{"prompt": "a", "chosen": "b", "rejected": ""}]),
    "best of K": (Preferences, [{"prompt": "a", "responses": ["b", "c", "d"], "preference": 2}]),
    "votes": (
        Preferences,
        [{"prompt": "a", "responses": ["b", "c", "d"], "preference": [0, 1, 1]}],
    ),
    "labels": (Preferences, [{"text": "a", "label": 1}, {"text": "b", "label": 0}]),
    "demonstrations": (Demonstrations, [{"prompt": "a\0", "response": " b\n", "rating": 4}]),
    "a dialogue": (
        Demonstrations,
        [{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT, USER, ASSISTANT]}],
    ),
    "conversations": (Demonstrations, [{"conversations": [{"from": "human", "value": "?"}]}]),
    "texts": (Demonstrations, [{"text": "♞ é"}, {"text": "\ufeff b"}]),
    "prompts": (Prompts, [{"prompt": "2 + 2", "answer": "4", "source": "school", "steps": 2}]),
    "references": (
        Prompts,
        [{"prompt": "a", "answer": ["b", "c"]}, {"prompt": "d", "answer": []}],
    ),
    "empty": (Prompts, [{"prompt": "", "x": {}, "y": []}]),
    "prompts of messages": (Prompts, [{"prompt": [USER], "ok": True, "facts": {"x": 1, "y": [2]}}]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_come_back_as_they_were(tmp_path, name):
    kind, items = LAYOUTS[name]
    assert through(kind, items, tmp_path) == items


def test_the_readers_read_what_comes_back_as_they_read_the_file(tmp_path):
    for name, kind, items, reader in (
        ("pairs", Preferences, HH, comparisons.read_comparisons),
        ("demos", Demonstrations, LAYOUTS["demonstrations"][1], demonstrations.read_demonstrations),
        ("asked", Prompts, LAYOUTS["prompts"][1], read_prompts),
    ):
        sources.write_jsonl(tmp_path / f"{name}.jsonl", items)
        builder.prepare(
            kind, {"train": sources.read(str(tmp_path / f"{name}.jsonl"))}, tmp_path / name
        )
        sources.write_jsonl(tmp_path / f"{name}_again.jsonl", read(tmp_path / name))
        first, second = (reader(str(tmp_path / f"{name}{end}.jsonl")) for end in ("", "_again"))
        assert first == second and first


def read_prompts(path):
    return reading.read_prompts(texts.DataConfig(prompts=path), demonstrations.NO_TEMPLATE)


def test_thousands_of_rows_in_several_files_keep_their_order(tmp_path):
    """TFDS shuffles what it writes unless it is told not to."""
    rng = np.random.default_rng(0)
    items = [{"prompt": f"{n} {'x' * k}"} for n, k in enumerate(rng.integers(0, 50, 3000).tolist())]
    sources.write_jsonl(tmp_path / "train.jsonl", items)
    made = made_by_name(
        "prompts",
        tmp_path,
        Prompts.LAYOUTS["texts"],
        {"train": "train.jsonl"},
        manual_dir=tmp_path,
        num_shards=7,
    )
    assert read(made.data_path) == items
    assert len([*made.data_path.glob("*.array_record-*")]) == 7
    part = tfds.builder_from_directory(made.data_path).as_data_source(split="train[50%:90%]")
    assert sources.rows_from_source(part, "part") == items[1500:2700]


def test_numbers_keep_their_values(tmp_path):
    """Whole numbers have 64 bits, and other numbers seven digits."""
    items = [{"prompt": "a", "score": 0.1, "n": 2**62}, {"prompt": "b", "score": 2, "n": -1}]
    back = through(Prompts, items, tmp_path)
    assert [row["n"] for row in back] == [2**62, -1]
    assert [row["score"] for row in back] == [0.1, 2.0]


@pytest.mark.parametrize("score", [0.123456789, 123456789])
def test_a_number_of_more_digits_is_refused(tmp_path, score):
    items = [{"prompt": "a", "score": 0.5}, {"prompt": "b", "score": score}]
    with pytest.raises(ValueError, match=r"'score' is .*123456789, and TFDS keeps seven digits"):
        builder.prepare(Prompts, {"train": rows_of(items)}, tmp_path / "set")


def test_ties_are_left_out_and_counted(tmp_path, capsys):
    items = [{"prompt": "a", "responses": ["b", "c"], "preference": x} for x in (0, "tie", 1)]
    assert [row["preference"] for row in through(Preferences, items, tmp_path)] == [0, 1]
    assert capsys.readouterr().out == "left out: 1 ties of 3 comparisons\n"
    with pytest.raises(ValueError, match="all 1 comparisons are ties: give others"):
        builder.prepare(Preferences, {"train": rows_of(items[1:2])}, tmp_path / "no")


@pytest.mark.parametrize(
    ("kind", "items", "said"),
    [
        (Prompts, [{"prompt": "a"}, {"prompt": 1}], "rows:2: field 'prompt' must be a string, and"),
        (Prompts, [{"prompt": None}, {"prompt": "a"}], "rows:1: field 'prompt' must be a string"),
        (Prompts, [{"prompt": "a", "x": None}], "rows:1: field 'x' is null in every row"),
        (
            Prompts,
            [{"prompt": "a"}, {"prompt": "b", "answer": "c"}],
            "rows:1: field 'answer' is mi",
        ),
        (Prompts, [{"prompt": "a", "answer": ["b", 1]}], "rows:1: field 'answer' must be a string"),
        (Prompts, [{"prompt": "a", "x": [["b"]]}], "rows:1: field 'x' is a list inside a list"),
        (
            Prompts,
            [{"prompt": [USER | {"content": ["b"]}]}],
            "rows:1: field 'content' is a list in",
        ),
        (Prompts, [{"prompt": [USER, {"role": "user"}]}], "rows:1: field 'content' is missing"),
        (
            Prompts,
            [{"prompt": "a", "n": 2**63}],
            "rows:1: field 'n' is 9223372036854775808, beyond",
        ),
        (
            Prompts,
            [{"question": "a"}],
            "prompts need the fields 'prompt', or 'prompt' and 'answer'",
        ),
        (Preferences, [{"chosen": "a"}], "the fields found are 'chosen': rename yours"),
    ],
)
def test_rows_of_no_one_schema_are_refused_and_leave_nothing(tmp_path, kind, items, said):
    with pytest.raises(ValueError) as error:
        builder.prepare(kind, {"train": rows_of(items)}, tmp_path / "set")
    assert str(error.value).startswith(said) or str(error.value).endswith(said)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("place", ["manual_dir", "url"])
def test_a_builder_takes_files_of_manual_dir_and_of_a_server(tmp_path, served, place):
    folder, address = served
    sources.write_jsonl(folder / "train.jsonl.gz", HH)
    sources.write_jsonl(folder / "test.jsonl", HH[:1])
    files = {"train": "train.jsonl.gz", "test": "test.jsonl"}
    if place == "url":
        files = {split: f"{address}/{name}" for split, name in files.items()}
    manual = {"manual_dir": folder} if place == "manual_dir" else {}
    made = made_by_name("preferences", tmp_path, Preferences.LAYOUTS["dialogues"], files, **manual)
    assert made.info.splits["train"].num_examples == 3
    assert read(made.data_path) == HH and read(made.data_path, "test") == HH[:1]


def test_a_builder_without_a_layout_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="prompts have no default config: give config=Layout"):
        tfds.builder("prompts", data_dir=tmp_path)
