"""A generated task and a source, written for any framework: the files and the folders hold the same rows."""

import json

import numpy as np
import pytest
import runs
import tensorflow_datasets as tfds
from runs import parts

import launch
from rlhf_jax.data import comparisons, demonstrations, sources, tokenizer
from rlhf_jax.pipeline import reading, texts
from rlhf_jax.tasks import reviews

SIZES = parts("--data.demonstrations 60 --data.pairs 300 --data.vocab-size 300")
FILES = {
    "corpus": {"train": "corpus.jsonl", "held_out": "corpus_held_out.jsonl"},
    "comparisons": {"train": "comparisons.jsonl"},
    "prompts": {"train": "prompts.jsonl", "held_out": "prompts_held_out.jsonl"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    to = tmp_path_factory.mktemp("prepared") / "new" / "reviews"
    assert launch.main(["prepare", "--task", "reviews", "--to", str(to), *SIZES]) == 0
    return to


def rows(path, split="train"):
    if path.suffix == ".jsonl":
        return sources.read(str(path))
    return sources.read(f"{path}:{split}")


def refused(capsys, *args):
    assert launch.main(["prepare", *map(str, args)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_the_folder_is_whole_and_files_and_data_sets_hold_the_same_rows(folder):
    files = {name for names in FILES.values() for name in names.values()}
    assert {path.name for path in folder.iterdir()} == {
        *files, *FILES, "tokenizer", "tokenizer.manifest.json"
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["reviews"]
    for name, splits in FILES.items():
        assert {*tfds.builder_from_directory(folder / name).info.splits} == {*splits}
        for split, file in splits.items():
            assert rows(folder / name, split) == rows(folder / file)


def test_the_texts_are_those_of_a_run(folder):
    """The same functions of the same seed: prompts, corpus, tokenizer, and who is held out."""
    data = texts.DataConfig(demonstrations=60, pairs=300, vocab_size=300)
    read = texts.generated(data, reviews.TASK, 0, texts.ALL)
    pairs = lambda file: [(row["prompt"], row["response"]) for row in rows(folder / file)]
    assert pairs("corpus.jsonl") == read.corpus
    assert pairs("corpus_held_out.jsonl") == read.corpus_held_out
    asked = lambda file: [row["prompt"] for row in rows(folder / file)]
    assert asked("prompts.jsonl") == [row.prompt for row in read.rows]
    assert asked("prompts_held_out.jsonl") == [row.prompt for row in read.rows_held_out]
    assert {*asked("comparisons.jsonl")} <= {*asked("prompts.jsonl")}
    assert {*asked("prompts.jsonl")}.isdisjoint(asked("prompts_held_out.jsonl"))
    words = tokenizer.load(folder / "tokenizer", bos=True)
    assert 259 < tokenizer.size(words) <= 300
    assert (
        words.decode(words(read.corpus[0][1], add_special_tokens=False)["input_ids"])
        == (read.corpus[0][1])
    )


def test_files_and_data_sets_train_the_same_bits(folder, tmp_path):
    """Corpus, comparisons and prompts by JSONL, and by TFDS: SFT, reward model and PPO end alike."""
    tiny = ["ppo", *runs.LOOP, *runs.PPO, *runs.SFT, *runs.STAGES, *runs.SHAPE]
    for name, source in {"files": "{}.jsonl", "tfds": "{}:train"}.items():
        given = [(f"--data.{x}", source.format(folder / x)) for x in FILES]
        command = [*tiny, *(word for pair in given for word in pair)]
        assert launch.main([*command, "--run", str(tmp_path / name)]) == 0
    for stage in ("sft", "reward", "ppo"):
        ours, theirs = (runs.arrays(tmp_path / name, stage) for name in ("files", "tfds"))
        assert ours.keys() == theirs.keys() and ours
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours), stage


def test_people_prefer_by_gold_between_two_responses_of_the_corpus_law(folder):
    found, ties = comparisons.read_comparisons(str(folder / "comparisons.jsonl"))
    assert not ties and 280 < len(found) <= 300
    assert all(
        reviews.log_prob(c.prompt, x) > -np.inf for c in found for x in (c.chosen, c.rejected)
    )
    gold = lambda side: reviews.golds([c.prompt for c in found], [getattr(c, side) for c in found])
    better = gold("chosen") - gold("rejected")
    # 10 % of the people flip a coin, and the others nearly always see a difference of 0.5
    assert 0.85 < np.mean(better[np.abs(better) > 0.5] > 0) < 1
    said = [row["preference"] for row in rows(folder / "comparisons.jsonl")]
    assert 0.4 < np.mean(said) < 0.6  # no side is the better one
    assert len({c.chosen for c in found}) > 150


def test_the_same_command_writes_the_same_bytes(folder, tmp_path):
    to = tmp_path / "again"
    assert launch.main(["prepare", "--task", "reviews", "--to", str(to), *SIZES]) == 0
    for path in (x for x in folder.rglob("*") if x.is_file() and x.name != "dataset_info.json"):
        assert path.read_bytes() == (to / path.relative_to(folder)).read_bytes(), path
    other = tmp_path / "other"
    assert (
        launch.main(["prepare", "--task", "reviews", "--to", str(other), *SIZES, "--seed", "1"])
        == 0
    )
    for file in ("corpus.jsonl", "comparisons.jsonl", "prompts.jsonl"):
        assert (folder / file).read_bytes() != (other / file).read_bytes()


@pytest.mark.parametrize(
    ("items", "kind", "named"),
    [
        ([{"chosen": "a", "rejected": "b"}], "preferences", False),
        ([{"prompt": "a", "response": "b", "note": 3}], "demonstrations", False),
        ([{"prompt": "a", "answer": "b"}], "prompts", False),
        ([{"prompt": "a", "response": "b"}], "prompts", True),
    ],
)
def test_a_source_becomes_the_kind_that_its_fields_show_or_that_is_named(
    tmp_path, capsys, items, kind, named
):
    source = tmp_path / "rows.jsonl.gz"
    sources.write_jsonl(source, items)
    first = [str(source)] if not named else ["--source", str(source), "--kind", kind]
    assert launch.main(["prepare", *first, "--to", str(tmp_path / "to")]) == 0
    assert capsys.readouterr().out == f"{kind}: 1 rows of train\nwritten: {tmp_path / 'to'}\n"
    assert rows(tmp_path / "to") == items
    assert json.loads((tmp_path / "to" / "dataset_info.json").read_text())["name"] == kind


def test_what_cannot_be_written_is_refused_in_one_sentence_and_leaves_nothing(tmp_path, capsys):
    source, to = tmp_path / "rows.jsonl", tmp_path / "to"
    sources.write_jsonl(source, [{"prompt": "a"}, {"prompt": 1}])
    assert f"{source}:2: field 'prompt' must be" in refused(capsys, source, "--to", to)
    sources.write_jsonl(source, [{"question": "a"}])
    assert f"{source}:1: no kind (preferences, d" in refused(capsys, source, "--to", to)
    assert "prompts need the f" in refused(capsys, source, "--to", to, "--kind", "prompts")
    assert "source and task are empty" in refused(capsys, "--to", to)
    assert "to is empty: name a folder" in refused(capsys, source)
    assert f'to = "{tmp_path}" is there already' in refused(capsys, source, "--to", tmp_path)
    both = refused(capsys, source, "--to", to, "--task", "reviews")
    assert "source = " in both and "has no effect because a task is written" in both
    assert "seed = 3 has no effect" in refused(capsys, source, "--to", to, "--seed", 3)
    assert 'task = "no" is not known' in refused(capsys, "--to", to, "--task", "no")
    assert [*tmp_path.iterdir()] == [source]


@pytest.mark.parametrize("setting", ["bad skip", "turns all", "ratings-fields.score stars"])
def test_a_task_has_no_settings_of_files(tmp_path, setting, capsys):
    own = ["--task", "reviews", "--to", str(tmp_path / "to"), *parts(f"--data.{setting}")]
    with pytest.raises(SystemExit):
        launch.main(["prepare", *own])
    name = f"--data.{setting.partition(' ')[0]}"
    assert f"there is no setting {name} here" in capsys.readouterr().err


def test_a_task_of_one_response_to_each_prompt_is_refused(tmp_path, capsys):
    file = tmp_path / "one.py"
    file.write_text(
        "from rlhf_jax.tasks import reviews\n"
        "one = lambda seed, n, rows: [(rows[i % len(rows)]['prompt'], 'good .') for i in range(n)]\n"
        "TASK = reviews.TASK._replace(corpus=one)\n"
    )
    err = refused(capsys, "--task", file, "--to", tmp_path / "to", *SIZES)
    assert "gives one response to each prompt, and nothing can be compared" in err
    assert [*tmp_path.iterdir()] == [file]


def test_the_files_teach_as_files_do(folder):
    demos = demonstrations.read_demonstrations(str(folder / "corpus.jsonl"))
    data = texts.DataConfig(**{name: str(folder / f"{name}.jsonl") for name in FILES}, held_out=0.2)
    read = reading.from_files(data, 0)
    assert {*read.corpus, *read.corpus_held_out} <= {demo[:2] for demo in demos}
    assert read.pairs and len(read.rows) > 800
