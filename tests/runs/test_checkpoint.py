import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.runs import checkpoint, manifest


def tree_of(seed):
    params = {
        "w": jax.random.normal(jax.random.key(seed), (16, 8), jnp.bfloat16),
        "layers/0.b": [jnp.arange(4.0) + seed, None, ()],
        "empty": jnp.zeros((0, 3)),
    }
    return {
        "state": (jnp.int32(seed), params, optax.adamw(1e-3).init(params)),
        "numpy": np.float64(0.1) + np.arange(3),
        "scalar": np.float32(0.3),
        "wide": np.uint64(2**63 + 1),
        "count": seed,
        "rate": 0.1,
        "done": True,
        "nan": jnp.float32(jnp.nan),
    }


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(a) is type(b)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def flip_a_bit(path: pathlib.Path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_bits_types_and_structure_come_back(tmp_path):
    want = tree_of(3)
    checkpoint.save(tmp_path, 7, want)
    assert_same_bits(checkpoint.restore(tmp_path, 7, want), want)
    assert_same_bits(checkpoint.restore(tmp_path, 7, tree_of(4)), want)


def test_a_path_through_a_parent_or_a_link_is_the_folder_that_it_leads_to(tmp_path):
    want = tree_of(3)
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    checkpoint.save(tmp_path / "here" / ".." / "there", 7, want)
    assert_same_bits(checkpoint.restore(tmp_path / "link" / ".." / "there", 7, want), want)


def test_shardings_are_those_of_like_and_unplaced_arrays_stay_unplaced(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x = jnp.arange(16.0)
    checkpoint.save(tmp_path, 1, {"x": jax.device_put(x, rows), "y": x})
    like = {"x": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=whole), "y": x}
    got = checkpoint.restore(tmp_path, 1, like)
    assert got["x"].sharding == whole and not got["y"].committed
    np.testing.assert_array_equal(got["x"], x)
    # what a fresh run may do with an array that nobody placed, a resumed one may do too
    jax.jit(lambda x: x + 1, in_shardings=rows)(got["y"])


def test_a_flipped_bit_in_any_file_is_named_and_the_step_before_is_taken(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path / "good", step, tree_of(step))
    files = sorted(path for path in (tmp_path / "good" / "2").rglob("*") if path.stat().st_size)
    files = [path for path in files if path.is_file()] + [tmp_path / "good" / "2.manifest.json"]
    rng = random.Random(0)
    for trial, path in enumerate([files[-1], *rng.choices(files, k=24)]):
        broken = tmp_path / str(trial)
        shutil.copytree(tmp_path / "good", broken)
        flip_a_bit(broken / path.relative_to(tmp_path / "good"), rng)
        assert checkpoint.latest(broken) == 2
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.restore(broken, 2, tree_of(0))
        step, got = checkpoint.restore_latest(broken, tree_of(0))
        assert step == 1
        assert_same_bits(got, tree_of(1))
        assert f"{broken / '2'} is damaged" in capsys.readouterr().err


def test_what_is_saved_may_be_donated_and_changed_at_once(tmp_path):
    """The disk gets the bits of the moment, though the next steps write into the same memory."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))
    step, rng = jax.jit(lambda x: 1 - x, donate_argnums=0), np.random.default_rng(0)
    drawn = {name: rng.random((512, 1024), np.float32) for name in "ab"}
    mine = {name: 1 - (1 - x) for name, x in drawn.items()}
    want = [{name: np.array(x) for name, x in mine.items()}]
    old = {name: step(jax.device_put(x, rows)) for name, x in drawn.items()}
    placed = jax.tree.map(step, old)
    assert old["a"].is_deleted()  # it does donate; what is on its way to the disk, jax may copy
    with checkpoint.saving(tmp_path) as begin:
        for i in range(3):
            begin(i, {"placed": placed, "mine": mine})
            placed = jax.tree.map(step, placed)
            for x in mine.values():
                np.subtract(1, x, out=x)
            want.append({name: np.array(x) for name, x in mine.items()})
    for i in (1, 2):
        got = checkpoint.read(tmp_path, i)
        for name in "ab":
            np.testing.assert_array_equal(got[f"['placed']['{name}']"], want[i][name])
            np.testing.assert_array_equal(got[f"['mine']['{name}']"], want[i][name])


def test_a_save_that_fails_in_the_background_is_an_error_of_the_next(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "_write_manifest", full)
    with pytest.raises(OSError, match="no space"), checkpoint.saving(tmp_path) as begin:
        begin(1, {"x": np.zeros(3)})
        begin(2, {"x": np.zeros(3)})
    assert checkpoint.latest(tmp_path) is None


def test_all_damaged_is_an_error_and_nothing_at_all_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.restore_latest(tmp_path / "none", tree_of(0)) is None
    checkpoint.save(tmp_path, 1, tree_of(1))
    shutil.rmtree(tmp_path / "1" / "default")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged: delete"):
        checkpoint.restore_latest(tmp_path, tree_of(0))


def test_killed_between_save_and_manifest(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tree_of(step))
    (tmp_path / "2.manifest.json").rename(tmp_path / "2.manifest.json.partial")
    assert checkpoint.latest(tmp_path) == 1
    with pytest.raises(ValueError, match="no manifest"):
        checkpoint.restore(tmp_path, 2, tree_of(0))
    assert checkpoint.restore_latest(tmp_path, tree_of(0))[0] == 1
    checkpoint.save(tmp_path, 2, tree_of(20))
    assert_same_bits(checkpoint.restore(tmp_path, 2, tree_of(0)), tree_of(20))


def test_keep_counts_whole_steps_and_a_rewound_run_forgets_its_future(tmp_path):
    names = lambda: sorted(path.name for path in tmp_path.iterdir())
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, {"x": np.arange(step)}, keep=2)
    assert names() == ["10", "10.manifest.json", "3", "3.manifest.json"]
    checkpoint.save(tmp_path, 4, {"x": np.arange(4)}, keep=2)  # 10 was damaged, say
    assert names() == ["3", "3.manifest.json", "4", "4.manifest.json"]
    checkpoint.save(tmp_path, 4, {"x": np.arange(5)}, keep=1)
    assert names() == ["4", "4.manifest.json"]
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.save(tmp_path, 5, {"x": np.arange(5)}, keep=0)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            {"a": {"w": np.zeros(3, np.float16)}},
            r"\['a'\]\['w'\] as float32\[3\], but float16\[3\]",
        ),
        (
            {"a": {"w": np.zeros(4, np.float32)}},
            r"\['a'\]\['w'\] as float32\[3\], but float32\[4\]",
        ),
        ({"a": {"v": np.zeros(3, np.float32)}}, r"lacks \['a'\]\['v'\], which is in"),
        ({"b": 1}, r"holds \['a'\]\['w'\], which is not in"),
    ],
)
def test_another_tree_is_refused_by_path(tmp_path, like, message):
    checkpoint.save(tmp_path, 1, {"a": {"w": np.zeros(3, np.float32)}})
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path, 1, like)
    with pytest.raises(ValueError, match=message):
        checkpoint.restore_latest(tmp_path, like)  # no damage: not a reason to fall back


@pytest.mark.parametrize("name", ["ppo[kl=0.1]", "a*b", "a?b", "a\\b", "a\udcffb"])
def test_a_path_that_orbax_does_not_find_its_files_below_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="no checkpoint can be written below such a path"):
        checkpoint.save(tmp_path / name, 1, {"x": np.zeros(3)})
    assert not any(tmp_path.iterdir())


def test_a_save_that_lost_its_arrays_gets_no_manifest(tmp_path, monkeypatch):
    """Below a path with [...] Orbax merges nothing into its database, and says that all went well."""
    monkeypatch.setattr(checkpoint, "check_path", lambda directory: None)
    with pytest.raises(OSError, match=r"was written without \['x'\]"):
        checkpoint.save(tmp_path / "ppo[kl=0.1]", 1, {"x": np.zeros(3), "empty": np.zeros(0)})
    assert checkpoint.latest(tmp_path / "ppo[kl=0.1]") is None
    checkpoint.save(tmp_path / "plain %20#\u00e4", 1, {"x": np.zeros(3), "empty": np.zeros(0)})
    assert checkpoint.latest(tmp_path / "plain %20#\u00e4") == 1


def test_strays_and_copies_of_manifests_are_no_steps(tmp_path, capsys):
    for step in (1, 4):
        checkpoint.save(tmp_path, step, tree_of(step))
    for stray in ("._4", "4 copy", "07", "\N{FULLWIDTH DIGIT NINE}", "-1", ""):
        shutil.copy(tmp_path / "4.manifest.json", tmp_path / f"{stray}.manifest.json")
    (tmp_path / "._4").write_text("a stray of copying")
    assert checkpoint.latest(tmp_path) == checkpoint.restore_latest(tmp_path, tree_of(0))[0] == 4
    # a step under another number is not that step
    shutil.copytree(tmp_path / "1", tmp_path / "9")
    shutil.copy(tmp_path / "1.manifest.json", tmp_path / "9.manifest.json")
    with pytest.raises(ValueError, match=r"9 is damaged: it is a copy of step 1"):
        checkpoint.restore(tmp_path, 9, tree_of(0))
    assert checkpoint.restore_latest(tmp_path, tree_of(0))[0] == 4
    # a step whose manifest was deleted is told
    for name in ("9.manifest.json", "4.manifest.json"):
        (tmp_path / name).unlink()
    capsys.readouterr()
    assert checkpoint.restore_latest(tmp_path, tree_of(0))[0] == 1
    assert f"checkpoint {tmp_path / '4'} has no manifest" in capsys.readouterr().err
    # and a manifest of no files vouches for nothing
    content = manifest.read(tmp_path / "1.manifest.json")
    manifest.write(tmp_path / "1.manifest.json", content | {"files": {}})
    with pytest.raises(ValueError, match="vouches for no file"):
        checkpoint.restore(tmp_path, 1, tree_of(0))


def test_what_is_no_array_is_refused(tmp_path):
    for tree, message in [
        ({"x": "text"}, r"\['x'\] is a str"),
        ({"x": jax.random.key(0)}, r"\['x'\] as jax.random.key_data"),
        ({"x": np.zeros(0)}, "got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            checkpoint.save(tmp_path, 1, tree)
    assert not any(tmp_path.iterdir())


def test_the_manifest_names_every_array_and_file(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": jnp.zeros((2, 3), jnp.bfloat16)})
    found = json.loads((tmp_path / "1.manifest.json").read_text())
    assert found["arrays"] == {"['x']": [[2, 3], "bfloat16"]} and found["step"] == 1
    on_disk = {
        str(p.relative_to(tmp_path / "1")) for p in (tmp_path / "1").rglob("*") if p.is_file()
    }
    assert set(found["files"]) == on_disk
