"""Which stage of a run holds its method's policy."""

import pytest

from rlhf_jax.pipeline import checkpoints
from rlhf_jax.runs import disk, metrics


def run(folder, experiment, *stages):
    """A folder that holds what such a run says of itself."""
    begun = {"experiment": experiment, "settings": {}, "versions": {}}
    disk.write_json(folder / "config.json", begun)
    for stage in stages:
        with metrics.open_writer(folder, stage) as write:
            write(0, {f"{stage}/loss": 1.0})
    return folder


@pytest.mark.parametrize(
    ("experiment", "stages", "own"),
    [
        ("sentiment", ["sft", "reward", "held_out_reward", "ppo"], "ppo"),
        ("ensemble", ["sft", "held_out_reward", "ensemble", "rloo"], "rloo"),
        ("mine", ["first", "second"], "second"),  # shared stages are another run's
        ("sft", ["sft"], "sft"),
        ("reward", ["sft", "held_out_reward", "reward"], "reward"),
    ],
)
def test_the_last_stage_of_a_method_is_its_policy(tmp_path, experiment, stages, own):
    assert checkpoints.own_stage(run(tmp_path, experiment, *stages)) == own


def test_a_run_without_a_method_of_its_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no policy of a method: set stage to sft"):
        checkpoints.own_stage(run(tmp_path, "best_of_n", "sft", "reward", "held_out_reward"))
