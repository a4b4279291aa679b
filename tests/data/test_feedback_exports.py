"""What people said on the page reaches the readers of rlhf_jax unchanged: every export to learn from."""

import pytest

pytest.importorskip("sqlalchemy")

from feedback import formats
from feedback.formats import export, importing
from feedback.store.database import Database
from rlhf_jax.data import comparisons, demonstrations, ratings, sources
from rlhf_jax.data.builders import builder
from rlhf_jax.data.builders.demonstrations import Demonstrations
from rlhf_jax.data.builders.preferences import Preferences
from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.data.demonstrations import Demonstration
from rlhf_jax.data.ratings import Rating

SAID = [
    {"prompt": "p", "responses": ["x", "y"], "probability": 0.666667, "weight": 3},
    {"prompt": "q", "responses": ["x", "y"], "preference": 1},
    {"prompt": "r", "responses": ["x", "y"], "preference": "tie"},
    {"prompt": "s", "responses": ["x", "y"], "preference": "both_bad"},
    {"prompt": "p", "response": "x", "rating": 4.5, "weight": 2},
    {"prompt": "q", "response": "y", "rating": 1},
    {"prompt": "p", "responses": ["x", "y", "z"], "ranks": [2, 1, 2]},
]


@pytest.fixture
def written(tmp_path):
    """A function of an export's name: the path of its file."""
    db = Database(f"sqlite:///{tmp_path}/feedback.db")
    db.upgrade()
    found = formats.read([(f"row {n}", row) for n, row in enumerate(SAID)])
    pair = found[1]
    better = formats.Said(by="ann", preference="a", better="best")
    with db.write() as c:
        importing.bring(c, [*found, pair._replace(said=[better])])

    def write(name):
        path = tmp_path / f"{name}.jsonl"
        with db.read() as c:
            path.write_text(export.lines(getattr(export, name)(c)), encoding="utf-8")
        return str(path)

    yield write
    db.close()


def test_comparisons_are_shares_with_weights(written):
    found, ties = comparisons.read_comparisons(written("comparisons"))
    assert ties == 0 and sorted(found) == [
        Comparison("p", "x", "y", "p", probability=0.666667, weight=3),
        Comparison("q", "x", "y", "q", probability=0.5, weight=2),  # one vote each
        Comparison("r", "x", "y", "r", probability=0.5),
    ]


def test_trls_shape_is_read_as_chosen_and_rejected(written):
    found, _ = comparisons.read_comparisons(written("trl"))
    assert found == [Comparison("p", "x", "y", "p")]


def test_ratings_have_their_weights_and_demonstrations_are_texts_to_imitate(written):
    found = ratings.read_ratings(written("ratings"))
    assert sorted(found) == [Rating("p", "x", 4.5, "p", 2), Rating("q", "y", 1, "q")]
    said = demonstrations.read_demonstrations(written("demonstrations"))
    assert said == [Demonstration("q", "best", "q")]


def test_rankings_are_ranks(written):
    found, ties = comparisons.read_comparisons(written("rankings"))
    assert ties == 1
    assert {(x.chosen, x.rejected, bool(x.ranking)) for x in found} == {
        ("y", "x", True),
        ("y", "z", True),
    }


@pytest.mark.parametrize(
    ("name", "kind", "read"),
    [
        ("comparisons", Preferences, comparisons.read_comparisons),
        ("trl", Preferences, comparisons.read_comparisons),
        ("ratings", Demonstrations, ratings.read_ratings),
        ("demonstrations", Demonstrations, demonstrations.read_demonstrations),
    ],
)
def test_exports_become_data_sets_of_tfds_with_the_same_rows(written, tmp_path, name, kind, read):
    path = written(name)
    assert kind.fits([*sources.read(path)[0]])
    builder.prepare(kind, {"train": sources.read(path)}, tmp_path / "set")
    assert read(path) == read(str(tmp_path / "set"))
