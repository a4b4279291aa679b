"""One string names a source; the same rows come back from every kind, and bad ones are counted or refused."""

import contextlib
import dataclasses
import datetime
import functools
import gzip
import http.server
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from rich.console import Console

from rlhf_jax.data import dialogues, jsonl, sources
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.comparisons import ComparisonFields, read_comparisons
from rlhf_jax.data.demonstrations import CorpusFields, read_demonstrations
from rlhf_jax.data.ratings import RatingFields, read_ratings
from rlhf_jax.pipeline import reading, texts


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_come_back_from_plain_and_compressed_files_in_order(tmp_path):
    rows = [{"text": "été\u2028 line", "n": i} for i in range(5)]
    sources.write_jsonl(tmp_path / "a.jsonl", rows[:2])
    sources.write_jsonl(tmp_path / "b.jsonl.gz", rows[2:])
    assert gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()).count(b"\n") == 3
    by_glob = sources.read(str(tmp_path / "*.jsonl*"), ("text",))
    by_comma = sources.read(f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl.gz,{tmp_path}/a.jsonl")
    by_list = sources.read([str(tmp_path / "a.jsonl"), str(tmp_path / "b*")])
    assert by_glob == by_comma == by_list == rows
    assert by_glob[3].where == f"{tmp_path}/b.jsonl.gz:2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl.gz"]


def test_equal_rows_make_equal_bytes(tmp_path):
    for name in ("a.gz", "b.gz"):
        sources.write_jsonl(tmp_path / name, [{"x": 1}])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": }\n', r"a.jsonl:3: the line is not JSON \(.* at column 10\)"),
        (b'["text"]\n', "a.jsonl:1: the line must be a JSON object, and is a list"),
        (b"7\n", "a.jsonl:1: the line must be a JSON object, and is a whole number"),
        (b'{"txt": "a", "id": 1}\n', "a.jsonl:1: field 'text' is missing.*found are 'txt', 'id'"),
        (b"{}\n", "a.jsonl:1: field 'text' is missing, and the fields found are none"),
        (b'{"text": 1}\n', "a.jsonl:1: field 'text' must be a string, and is a whole number"),
        (b'{"text": null}\n', "a.jsonl:1: field 'text' must be a string, and is null"),
        (b'{"text": "\xff"}\n', "a.jsonl:1: the line is not UTF-8"),
        (b"\n", "a.jsonl holds no rows"),
        (b'[\n {"text": "a"}\n]\n', "a.jsonl:1: .* write one whole object on each line"),
        (
            b'{"text": "a"}\r{"text": "b"}\r',
            "a.jsonl:1: the line is not JSON .Extra data at column 15",
        ),
        ('{"text": "a"}\n'.encode("utf-16"), "a.jsonl:1: the line is not UTF-8"),
        (
            b'{"text": "a"}\n{"text": "a\\ud83d b"}\n',
            r"a.jsonl:2: the row holds half of a character \(\\ud83d,",
        ),
        (
            b'{"text": "a"}\n{"text": "a", "meta": {"b": ["\\uDE00"]}}\n',
            r"a.jsonl:2: .*half of a character \(\\ude00,",
        ),
        (
            b'{"text": "a", "\\ud83d": 1}\n',
            r"a.jsonl:1: the row holds half of a character \(\\ud83d,",
        ),
        (
            b'{"text": "a", "id": ' + b"9" * 5000 + b"}\n",
            "a.jsonl:1: the line cannot be read .Exceeds",
        ),
        (
            b'{"text": "a", "m": ' + b"[" * 101 + b"]" * 101 + b"}\n",
            "a.jsonl:1: .* more than 100 deep",
        ),
        (
            b'{"text": "a", "m": ' + b"[" * 9999 + b"]" * 9999 + b"}\n",
            "a.jsonl:1: .* more than 100 deep",
        ),
        (
            b'{"text": "a", "m": ' + b'{"a":' * 1000 + b"1" + b"}" * 1001 + b"\n",
            "1: .* more than 100 deep",
        ),
        (b'{"text": "a", "text": "b"}\n', "a.jsonl:1: .*the key 'text' comes twice"),
        (b'{"text": "a", "m": [{"b": 1, "b": 1}]}\n', "a.jsonl:1: .*the key 'b' comes twice"),
    ],
)
def test_malformed_rows_are_refused_with_path_and_line(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        sources.read(str(tmp_path / "a.jsonl"), ("text",))
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no such file: '.*none\.jsonl'"):
        sources.read(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="no such file"):
        sources.read(str(tmp_path / "*.nothing"))
    with pytest.raises(ValueError, match="no such file: ''"):
        sources.read("")
    with pytest.raises(ValueError, match="no such file: '7', check the path"):
        sources.read("7")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe', no file that can be read twice: write its lines"):
        sources.read(str(tmp_path / "pipe"))
    whole = gzip.compress(b'{"text": "a"}\n' * 500, mtime=0)
    (tmp_path / "cut.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=r"cut\.gz is not a whole gzip file"):
        sources.read(str(tmp_path / "cut.gz"))
    with pytest.raises(ValueError, match="a folder: name its files"):
        sources.read(str(tmp_path))


ROWS = [{"text": "été 🎬", "n": 1}, {"text": "a\u2028b\x85c\x00d", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "data", "times"),
    [
        ("mark.jsonl", LINES.encode("utf-8-sig"), 1),
        ("joined.jsonl", LINES.encode("utf-8-sig") * 2, 2),
        ("escaped.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode(), 1),
        ("windows.jsonl", LINES.replace("\n", "\r\n").encode(), 1),
        ("empty lines.jsonl", f"\n\n{LINES}\n \n".encode(), 1),
        ("no last newline.jsonl", LINES[:-1].encode(), 1),
        ("zipped.jsonl", gzip.compress(LINES.encode(), mtime=0), 1),
        ("plain.jsonl.gz", LINES.encode(), 1),
        ("two members.jsonl.gz", gzip.compress(LINES.encode(), mtime=0) * 2, 2),
        ("a,b.jsonl", LINES.encode(), 1),
        ("a[1].jsonl", LINES.encode(), 1),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_files_are_read_as_they_are_found(tmp_path, name, data, times):
    folder = tmp_path / "[team]"
    folder.mkdir()
    (folder / name).write_bytes(data)
    assert sources.read(str(folder / name)) == ROWS * times
    assert sources.read(f"{folder}/*.jsonl*") == ROWS * times


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_long_file_shows_on_a_terminal_how_far_it_is(tmp_path, monkeypatch, pack):
    shown = io.StringIO()
    monkeypatch.setattr(jsonl, "Console", lambda: Console(file=shown, force_terminal=True))
    (tmp_path / "long.jsonl").write_bytes(pack(LINES.encode() * 600))
    assert len(sources.read(str(tmp_path / "long.jsonl"))) == 1200 and not shown.getvalue()
    monkeypatch.setattr(jsonl, "LONG", 1)
    assert len(sources.read(str(tmp_path / "long.jsonl"))) == 1200
    assert "long.jsonl" in shown.getvalue()


def test_a_field_has_its_kind(tmp_path):
    given = {"i": 3, "f": 0.5, "b": True, "pandas": 3.0, "n": float("nan")}
    (row,) = sources.read(write(tmp_path / "a", given))
    assert sources.field(row, "i", int) == 3
    whole = sources.field(row, "pandas", int)
    assert whole == 3 and type(whole) is int
    assert sources.field(row, "i", float) == 3
    assert sources.field(row, "b", bool) is True
    for name, kind in (("b", int), ("f", int), ("n", int), ("b", float), ("i", bool)):
        with pytest.raises(ValueError, match=f"a:1: field '{name}' must be"):
            sources.field(row, name, kind)


class RandomAccess:
    """What TFDS offers: bytes, NumPy scalars and arrays, read by place."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return {
            "text": "größe".encode(),
            "label": np.int64(i),
            "ids": np.arange(2),
            "sub": {"a": b"x"},
        }


def test_a_random_access_source_gives_plain_rows():
    rows = sources.rows_from_source(RandomAccess(), "imdb/train", ("text",))
    assert rows[1] == {"text": "größe", "label": 1, "ids": [0, 1], "sub": {"a": "x"}}
    assert type(rows[1]["label"]) is int
    with pytest.raises(ValueError, match=r"imdb/train\[0\]: field 'review' is missing"):
        sources.rows_from_source(RandomAccess(), "imdb/train", ("review",))


# the same rows, from every kind of source

MESSAGES = [{"role": "user", "content": "größe?"}, {"role": "assistant", "content": "1 m"}]
SAME = [
    {
        "prompt": f"été {n}",
        "response": f"{n} 🎬",
        "votes": [n, n + 1],
        "messages": MESSAGES[: n % 3],
    }
    for n in range(6)
]


class RowsForTests(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The rows SAME as a TFDS builder, in order."""

    VERSION = tfds.core.Version("1.0.0")
    name = "rows_for_tests"

    def _info(self):
        text = tfds.features.Text()
        features = {
            "prompt": text,
            "response": text,
            "votes": tfds.features.Sequence(np.int64),
            "messages": tfds.features.Sequence({"role": text, "content": text}),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(SAME)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of prepared data, FOLDER/NAME/VERSION."""
    folder = tmp_path_factory.mktemp("tfds")
    builder = RowsForTests(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return pathlib.Path(builder.data_dir)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.parquet.gz", "a.data"])
def test_files_of_every_kind_give_the_same_rows(tmp_path, name):
    """The kind of a file is told by its first bytes, whatever its name."""
    place = tmp_path / "split=x" / name  # which a reader of data sets would take for a column
    place.parent.mkdir()
    if "jsonl" in name:
        sources.write_jsonl(place, SAME)
    else:
        pq.write_table(pa.Table.from_pylist(SAME), place)
        if name.endswith(".gz"):
            place.write_bytes(gzip.compress(place.read_bytes()))
    assert sources.read(str(place), ("prompt",)) == SAME
    assert sources.read(f"{tmp_path}/*/a.*") == SAME
    assert sources.files(str(place)) == [str(place)]


def test_a_folder_of_tfds_gives_the_rows_and_a_slice_of_them(prepared):
    data_dir = prepared.parent.parent
    for folder in (prepared, prepared.parent, data_dir):
        assert sources.read(str(folder)) == sources.read(f"{folder}:test") == SAME
    assert sources.read(f"{prepared}:train[:50%]") == SAME[:3]
    assert sources.read(f"{prepared}:train[4:]+test[:1]") == [*SAME[4:], SAME[0]]
    assert {pathlib.Path(file).parent for file in sources.files(str(prepared))} == {prepared}
    assert "dataset_info.json" in {pathlib.Path(x).name for x in sources.files(str(prepared))}
    (row,) = sources.read(f"{prepared}:train[5:]")
    assert row.where == f"{prepared}:train[5:][0]"


def test_data_found_by_name_are_those_in_tfds_data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared.parent.parent))
    assert sources.read("tfds:rows_for_tests:train[:50%]") == SAME[:3]


def test_parts_of_several_kinds_follow_each_other(tmp_path, prepared):
    sources.write_jsonl(tmp_path / "a.jsonl", SAME[:2])
    both = f"{tmp_path}/a.jsonl, {prepared}:train[2:],{tmp_path}/a.jsonl"
    assert sources.read(both) == SAME


def test_a_folder_of_several_data_sets_is_refused(tmp_path, prepared):
    for version in ("1.0.0", "2.0.0"):
        (tmp_path / "one" / version).mkdir(parents=True)
        (tmp_path / "one" / version / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds 2 prepared data sets: name one .*one/1\.0\.0$"):
        sources.read(str(tmp_path))


def test_saved_data_sets_of_hugging_face_give_the_rows_and_a_slice_of_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(SAME)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows.select([5])).save_to_disk(tmp_path / "two")
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert sources.read(str(folder)) == sources.read(f"hf:{folder}:train") == SAME
        assert sources.read(f"hf:{folder}:train[:50%]") == SAME[:3]
    assert sources.read(f"{tmp_path}/two:test+train[:1]") == [SAME[5], SAME[0]]
    (file,) = sources.files(f"{tmp_path}/one:train[:50%]")
    assert file.endswith(".arrow")
    with pytest.raises(ValueError, match=r"hf:.*two cannot be read \(Unknown split .nope."):
        sources.read(f"hf:{tmp_path}/two:nope")


def test_hugging_face_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'^hf:a/b needs .* pip install "rlhf_jax\[datasets\]"$'):
        sources.read("hf:a/b")


@pytest.mark.parametrize(
    ("place", "name", "split"),
    [
        ("gsm8k", "gsm8k", ""),
        ("gsm8k:test", "gsm8k", "test"),
        ("wmt14_translate/de-en:train[:90%]", "wmt14_translate/de-en", "train[:90%]"),
        ("a:train[:1]+test[2:]", "a", "train[:1]+test[2:]"),
        ("/a:b/c", "/a:b/c", ""),
    ],
)
def test_a_split_is_what_follows_the_first_colon_of_a_name(place, name, split):
    assert sources._divided(place) == (name, split)


def test_field_maps_hold_for_every_source(prepared):
    fields = CorpusFields(prompt="response", response="prompt")
    (demo, *_) = read_demonstrations(f"{prepared}:train[:1]", fields=fields)
    assert (demo.prompt, demo.response) == ("0 🎬", "été 0")
    cfg = texts.DataConfig(
        prompts=f"{prepared}:train[:1]+train[3:4]",
        prompts_fields=texts.PromptFields(answer="response"),
    )
    rows = reading.read_prompts(cfg, dialogues.NO_TEMPLATE)
    assert [row.columns["answer"] for row in rows] == ["0 🎬", "3 🎬"]


def test_values_without_a_form_in_json_become_their_text(tmp_path):
    day = datetime.date(2024, 2, 29)
    pq.write_table(pa.table({"text": [b"a"], "day": [day], "none": [None]}), tmp_path / "a.parquet")
    assert sources.read(f"{tmp_path}/a.parquet") == [
        {"text": "a", "day": "2024-02-29", "none": None}
    ]


# TensorFlow Datasets that are prepared here


@pytest.fixture
def served(tmp_path):
    """Address of a server of this machine, whose files are in tmp_path / "served"."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_official_gsm8k_is_prepared_where_it_is_asked_for(tmp_path, served, monkeypatch, capfd):
    from tensorflow_datasets.text.gsm8k import gsm8k

    names = ("train", "test", "train_socratic", "test_socratic")
    for name in names:
        rows = [{"question": f"{n} + {n}?", "answer": f"<<>>\n#### {2 * n}"} for n in range(10)]
        sources.write_jsonl(tmp_path / "served" / f"{name}.jsonl", rows)
    monkeypatch.setattr(gsm8k, "_URLS", {name: f"{served}/{name}.jsonl" for name in names})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    rows = sources.read("tfds:gsm8k:train[:90%]", ("question", "short_answer"))
    assert len(rows) == 9 and all(type(value) is str for value in rows[0].values())
    assert {row["question"] for row in rows} < {f"{n} + {n}?" for n in range(10)}
    assert f"preparing tfds:gsm8k in {tmp_path}/data/gsm8k/1.0.0, once" in capfd.readouterr().out
    assert sources.read(f"{tmp_path}/data/gsm8k:train[:90%]") == rows
    assert sources.read("tfds:gsm8k:train[:90%]") == rows
    assert "preparing" not in capfd.readouterr().out


class NestedForTests(RowsForTests, skip_registration=True):
    """Lists of lists, which TFDS cannot write without TensorFlow."""

    name = "nested_for_tests"

    def _info(self):
        inner = tfds.features.Sequence(tfds.features.Text())
        features = tfds.features.FeaturesDict({"lists": tfds.features.Sequence(inner)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        yield 0, {"lists": [["a"], ["b", "c"]]}


REFUSED = {
    "no such dataset": (
        "tfds:no_such_data",
        r"^tfds:no_such_data cannot be read \(Dataset no_such",
    ),
    "no such split": (
        "tfds:rows_for_tests:dev",
        r"\(Unknown split 'dev'.*check the name, the split",
    ),
    "no slice": ("tfds:rows_for_tests:train[:x]", r"\(Error parsing split 'train\[:x\]'"),
    "an empty slice": ("tfds:rows_for_tests:train[:0]", r"^tfds:rows_for_tests cannot be read"),
    "a slice turned round": ("tfds:rows_for_tests:train[5:2]", r"cannot be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_tfds_does_not_have_is_refused_in_one_sentence(prepared, monkeypatch, kind):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared.parent.parent))
    source, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        sources.read(source)
    assert "\n" not in str(caught.value)


def test_a_dataset_that_needs_tensorflow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds, "builder", lambda name, **settings: NestedForTests(**settings))
    with pytest.raises(ValueError, match=r'pip install "rlhf_jax\[tensorflow\]", once$') as caught:
        sources.read("tfds:nested_for_tests")
    assert "\n" not in str(caught.value)


def test_data_in_another_format_or_damaged_are_refused(tmp_path, prepared):
    folder = tmp_path / "1.0.0"
    folder.mkdir()
    for file in prepared.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (records,) = folder.glob("*train*")
    records.write_bytes(records.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot be read \(Corrupted"):
        sources.read(str(folder))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        ValueError, match="prepared in another format than array_record: prepare it"
    ):
        sources.read(str(folder))


def test_the_start_of_a_run_imports_no_reader_of_data_sets():
    readers = {"tensorflow_datasets", "array_record", "pyarrow", "datasets", "tensorflow"}
    code = f"import sys, rlhf_jax.pipeline.texts\nprint(*sorted({readers!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# bad records

GOOD = b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n'
BAD = b'{"text": 1}\n{"text": "\xff"}\nno\n{"txt": "a"}\n{"text": " "}\n{"text": null}\n[]\n'


def mixed(tmp_path):
    """A file of three good rows, and of one row of each fault."""
    good, bad = GOOD.splitlines(True), BAD.splitlines(True)
    lines = [good[0], *bad[:3], good[1], b"\n", *bad[3:], good[2], b'{"prompt": "x"}\n']
    (tmp_path / "mixed.jsonl").write_bytes(b"".join(lines))
    return f"{tmp_path}/mixed.jsonl"


def test_bad_records_are_skipped_and_counted_by_file_and_line(tmp_path):
    place, bad = mixed(tmp_path), BadRecords(skip=True)
    demos = read_demonstrations(place, bad=bad)
    assert [demo.response for demo in demos] == ["a", "b", "c"]
    assert bad.total == 11 and len(bad.found) == 8
    # those that the lines' reader finds come first, in order
    lines = [int(error.where.removeprefix(f"{place}:")) for error in bad.found]
    assert lines == [3, 4, 10, 2, 7, 8, 9, 12]
    said = str(bad)
    assert said.startswith(
        "8 of 11 records (72.7 %) are bad: 2 where field 'text' must be a string; "
    )
    assert "1 where the line is not UTF-8" in said and "1 where the text is blank" in said
    assert f"({place}:3, {place}:4, {place}:10 and 5 more)" in said
    again = BadRecords(skip=True)
    assert read_demonstrations(place, bad=again) == demos and str(again) == said


def test_the_first_bad_record_is_fatal_without_skipping(tmp_path):
    place = mixed(tmp_path)
    with pytest.raises(BadRecord, match=r"mixed.jsonl:3: the line is not UTF-8, convert the file$"):
        read_demonstrations(place)
    with pytest.raises(BadRecord, match=r"mixed.jsonl:3: "):
        read_demonstrations(place, bad=BadRecords())


@pytest.mark.parametrize(
    ("read", "rows", "kept"),
    [
        (read_demonstrations, [{"text": "a"}, {"text": ""}, {"prompt": "a"}], 1),
        (
            lambda source, bad: read_comparisons(source, bad=bad)[0],
            [
                {"text": "good", "label": 1},
                {"text": "poor", "label": 0},
                {"text": "odd", "label": 2},
                {"text": "odd", "label": None},
                {"prompt": "a", "responses": ["b", "c"], "preference": 0},
                {"prompt": "a", "responses": ["b"], "preference": 0},
                {"prompt": "a", "responses": ["b", "c"], "preference": 2},
                {"prompt": "a", "chosen": "b"},
            ],
            2,
        ),
        (
            lambda source, bad: reading.read_prompts(
                texts.DataConfig(prompts=source), dialogues.NO_TEMPLATE, bad
            ),
            [{"prompt": "a"}, {"prompt": " "}, {"prompt": 1}, {"messages": [{"role": "user"}]}],
            1,
        ),
        (
            lambda source, bad: read_ratings(source, bad=bad),
            [{"text": "a", "score": 1}, {"text": "b", "score": 2}, {"text": "c"}, {"score": 1}],
            2,
        ),
    ],
    ids=["demonstrations", "comparisons", "prompts", "ratings"],
)
def test_every_reader_skips_by_the_same_means(tmp_path, read, rows, kept):
    bad = BadRecords(skip=True)
    place = write(tmp_path / "a", *rows)
    assert len(read(place, bad=bad)) == kept
    lines = {f"{place}:{n}" for n in range(1, len(rows) + 1)}
    assert {*bad.origins.values()} == lines - {error.where for error in bad.found}
    ties_and_labels = sum("label" in row for row in rows[:2])  # two labels make one pair
    assert bad.total == len(rows) == kept + len(bad.found) + (ties_and_labels > 0)
    with pytest.raises(BadRecord):
        read(str(tmp_path / "a"), bad=BadRecords())


@pytest.mark.parametrize("rows", [BAD, b'{"txt": 1}\n' * 9])
def test_a_set_of_bad_records_alone_is_refused_with_the_counts(tmp_path, rows):
    (tmp_path / "a").write_bytes(rows)
    n = rows.count(b"\n")
    message = rf"a: no record is left, because {n} of {n} records \(100.0 %\) are bad: "
    with pytest.raises(ValueError, match=message) as caught:
        read_demonstrations(f"{tmp_path}/a", bad=BadRecords(skip=True))
    assert not isinstance(caught.value, BadRecord)
    (tmp_path / "b").write_bytes(b"no\n[]\n")
    with pytest.raises(ValueError, match=r"b: no record is left, because 2 of 2 records"):
        sources.read(f"{tmp_path}/b", bad=BadRecords(skip=True))


def test_skipping_hides_no_fault_of_settings_or_files(tmp_path):
    """A missing template, file or field of the settings is no record's fault."""
    skipping = lambda: BadRecords(skip=True)
    chat = write(tmp_path / "chat", {"messages": MESSAGES})
    with pytest.raises(ValueError, match="no chat template"):
        read_demonstrations(chat, bad=skipping())
    with pytest.raises(ValueError, match="no such file"):
        read_demonstrations(f"{tmp_path}/none", bad=skipping())
    (tmp_path / "cut.gz").write_bytes(gzip.compress(GOOD)[:-12])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_demonstrations(f"{tmp_path}/cut.gz", bad=skipping())


def test_rows_of_a_table_are_skipped_as_lines_are(tmp_path):
    offsets = pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes())
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffc")])
    pq.write_table(pa.table({"text": column}), tmp_path / "a")
    bad = BadRecords(skip=True)
    assert sources.read(f"{tmp_path}/a", bad=bad) == [{"text": "a"}, {"text": "c"}]
    assert [str(error) for error in bad.found] == [
        f"{tmp_path}/a[1]: a text is not UTF-8, convert it"
    ]
    with pytest.raises(BadRecord, match=r"a\[1\]: a text is not UTF-8"):
        sources.read(f"{tmp_path}/a")


@pytest.mark.parametrize("content", [b"PAR1 and no more", b"PAR1", gzip.compress(b"PAR1", mtime=0)])
def test_a_damaged_table_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"a cannot be read as Parquet \(.*\): write it again$"):
        sources.read(f"{tmp_path}/a")


def test_a_table_with_a_column_twice_or_without_rows_is_refused(tmp_path):
    pq.write_table(pa.table([[1], [2]], ["a", "a"]), tmp_path / "a")
    with pytest.raises(ValueError, match="the column 'a' comes twice"):
        sources.read(f"{tmp_path}/a")
    pq.write_table(pa.table({"a": []}), tmp_path / "b")
    with pytest.raises(ValueError, match="b holds no rows: name a source that has some"):
        sources.read(f"{tmp_path}/b")


# reference answers


def answers(tmp_path, name, *rows, **settings):
    cfg = texts.DataConfig(
        prompts=write(tmp_path / "a", *rows), prompts_fields=texts.PromptFields(answer=name)
    )
    return [x.columns for x in reading.read_prompts(cfg, dialogues.NO_TEMPLATE, **settings)]


def test_the_reference_answer_is_the_column_answer(tmp_path):
    row = {"prompt": "1 + 1?", "answer": "it is\n#### 2", "final": "2"}
    assert answers(tmp_path, "answer", row) == [{"answer": "it is\n#### 2", "final": "2"}]
    assert answers(tmp_path, "final", row) == [{"answer": "2"}]
    assert answers(tmp_path, "final", {"prompt": "a", "final": ["b", "c"]}) == [
        {"answer": ["b", "c"]}
    ]
    assert answers(tmp_path, "answer", {"prompt": "a"}) == [{}]


def test_a_named_answer_that_is_not_there_is_refused(tmp_path):
    rows = {"prompt": "a", "final": "b"}, {"prompt": "c", "fnal": "d"}
    with pytest.raises(
        BadRecord, match=r"a:2: field 'final' is missing, which data.prompts_fields.ans"
    ):
        answers(tmp_path, "final", *rows)
    assert answers(tmp_path, "final", *rows, bad=BadRecords(skip=True)) == [{"answer": "b"}]
    with contextlib.suppress(BadRecord):
        answers(tmp_path, "final", {"prompt": "a", "final": None})
        raise AssertionError("null is no answer")


# fields within fields

SQUAD = {"question": "who?", "context": "Ann and Bo."}
NESTED = [  # as datasets and Parquet have it, and as TFDS
    {**SQUAD, "answers": {"text": ["Ann", "Bo"], "answer_start": [0, 8]}},
    {**SQUAD, "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Bo", "answer_start": 8}]},
]


class SquadForTests(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of SQuAD that matter here, as TFDS declares them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        answers = tfds.features.Sequence({"text": text, "answer_start": np.int32})
        features = {"question": text, "context": text, "answers": answers}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, NESTED[0]


def nested(tmp_path, kind: str) -> str:
    """A source with the row of SQuAD."""
    if kind == "tfds":
        builder = SquadForTests(data_dir=tmp_path, file_format="array_record")
        builder.download_and_prepare(file_format="array_record")
        return str(builder.data_path)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(NESTED[:1]), tmp_path / "a")
        return f"{tmp_path}/a"
    return write(tmp_path / "a", NESTED[kind == "objects"])


@pytest.mark.parametrize("kind", ["lists", "objects", "parquet", "tfds"])
def test_a_dot_leads_into_a_field_of_every_source(tmp_path, kind):
    """A text is the first at the end of a path, and a reference answer all of them."""
    place = nested(tmp_path, kind)
    fields = CorpusFields(prompt="context,question", response="answers.text")
    (demo,) = read_demonstrations(place, fields=fields)
    assert demo[:2] == ("Ann and Bo.\nwho?", "Ann")
    names = texts.PromptFields(prompt="question", answer="answers.text")
    cfg = texts.DataConfig(prompts=place, prompts_fields=names)
    (row,) = reading.read_prompts(cfg, dialogues.NO_TEMPLATE)
    assert row.columns["answer"] == ["Ann", "Bo"] and "answers.text" not in row.columns
    last = "answers.1.text" if kind in ("objects", "tfds") else "answers.text.1"
    (demo,) = read_demonstrations(place, fields=dataclasses.replace(fields, response=last))
    assert demo.response == "Bo"


def test_a_dot_leads_into_the_fields_of_comparisons_and_ratings(tmp_path):
    row = {
        "meta": {"q": "p", "w": 2},
        "out": [{"a": "x"}, {"a": "y"}],
        "best": {"of": 1},
        "s": {"n": 3},
    }
    place = write(tmp_path / "a", row, row | {"s": {"n": 4}})
    names = dict(prompt="meta.q", responses="out.a", preference="best.of", weight="meta.w")
    pair = read_comparisons(place, ComparisonFields(**names))[0][0]
    assert pair[:3] == ("p", "y", "x") and pair.weight == 2
    names = dict(prompt="meta.q", response="out.a", score="s.n", weight="meta.w")
    found = read_ratings(place, RatingFields(**names))
    assert [x[:3] for x in found] == [("p", "x", 3), ("p", "x", 4)] and found[0].weight == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "answers.txt",
            r"a:1: field 'answers.txt' leads nowhere: there is no 'txt' in \{'text': \['Ann'",
        ),
        ("answers.text.2", r"no '2' in \['Ann', 'Bo'\]: name what each row has$"),
        ("question.text", r"no 'text' in 'who\?': name what each row has$"),
        ("none.text", r"field 'none.text' is missing, which data.prompts_fields.answer names, and"),
        ("empty.text", r"field 'empty.text' leads to an empty list: leave the row out$"),
        ("null.text", r"field 'null.text' is missing"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_by_name_and_value(tmp_path, name, said):
    row = NESTED[0] | {"prompt": "a", "empty": [], "null": None}
    with pytest.raises(BadRecord, match=said):
        answers(tmp_path, name, row)
    assert answers(tmp_path, "a.b", row | {"a.b": "7"})[0]["answer"] == "7"


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
ROW = r"^\| `\w+` \| `tfds:([\w/-]+)` \| `([^`]+)` \| `([^`]+)` \|$"
NAMES = re.findall(ROW, PAGE.read_text(), re.MULTILINE)


def example(feature):
    """A value that a feature of TFDS may have, as a row has it."""
    if isinstance(feature, tfds.features.FeaturesDict):
        return {name: example(item) for name, item in feature.items()}
    if isinstance(feature, tfds.features.Sequence):
        return [example(feature.feature) for _ in range(2)]
    return "a word" if feature.np_dtype in (np.str_, np.object_) else 1


@pytest.mark.parametrize(("name", "prompt", "answer"), NAMES, ids=[x[0] for x in NAMES])
def test_the_data_sets_of_tfds_in_the_docs_have_these_fields(tmp_path, name, prompt, answer):
    builder = tfds.builder(name, data_dir=tmp_path, file_format="array_record")
    place = write(tmp_path / "a", example(builder.info.features))
    mapped = prompt != "text"  # which is read without settings
    fields = CorpusFields(prompt=prompt, response=answer) if mapped else CorpusFields()
    (demo,) = read_demonstrations(place, fields=fields)
    assert demo.response == "a word" and bool(demo.prompt) == mapped
    names = texts.PromptFields(prompt=prompt, answer=answer) if mapped else texts.PromptFields()
    cfg = texts.DataConfig(prompts=place, prompts_fields=names)
    (row,) = reading.read_prompts(cfg, dialogues.NO_TEMPLATE)
    assert row.prompt and (not mapped or row.columns["answer"] in ("a word", ["a word"] * 2))


def test_the_docs_name_a_data_set_for_each_application():
    assert len(NAMES) == 7


# a whole set of texts


def test_a_run_learns_from_the_same_texts_whatever_their_source(tmp_path, prepared):
    """All that follows is a function of these texts, so trained models have the same bits."""
    sources.write_jsonl(tmp_path / "a.jsonl.gz", SAME[::3])
    pq.write_table(pa.Table.from_pylist(SAME[::3]), tmp_path / "a.parquet")
    found = []
    for place in (
        f"{tmp_path}/a.jsonl.gz",
        f"{tmp_path}/a.parquet",
        f"{prepared}:train[:1]+train[3:4]",
    ):
        cfg = texts.DataConfig(corpus=place, held_out=0.5)
        read = reading.from_files(cfg, 0, needs=texts.Needs(("corpus",)))
        found.append(read._replace(origins={}))
    assert found[0] == found[1] == found[2] and len(found[0].rows) == 1


def test_from_files_tells_what_it_skips(tmp_path, capsys):
    rows = [{"text": f"word {n}"} for n in range(40)]
    corpus = write(tmp_path / "a", *rows, {"txt": 1}, {"text": ""})
    cfg = texts.DataConfig(corpus=corpus, bad="skip")
    read = reading.from_files(cfg, 0, needs=texts.Needs(("corpus",)))
    assert len(read.corpus) + len(read.corpus_held_out) == 40
    assert {*read.origins} == {"corpus"} and len({*read.origins["corpus"].values()}) == 40
    said = capsys.readouterr().out
    assert said.startswith("left out of data.corpus: 2 of 42 records (4.8 %) are bad: 1 where ")
    assert f"({corpus}:41, {corpus}:42)" in said
    with pytest.raises(BadRecord, match="a:41: a text to learn needs the fields"):
        reading.from_files(texts.DataConfig(corpus=corpus), 0, needs=texts.Needs(("corpus",)))
