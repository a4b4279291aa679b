"""Agreement of a reward model with people, on held-out pairs and on held-out ratings."""

from typing import TYPE_CHECKING

import numpy as np

from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.data.ratings import scale_of
from rlhf_jax.evaluation import baselines, intervals, ratings, reward_models
from rlhf_jax.evaluation.intervals import Interval
from rlhf_jax.people import annotators
from rlhf_jax.pipeline import generation, lessons, stages, texts
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.pipeline.texts import Feedback
from rlhf_jax.runs import disk

if TYPE_CHECKING:
    from rlhf_jax.pipeline.prepare import Prepared

LENGTH, WORDS = "length alone", "bag of words"
"""Names of the baselines."""


def about_rewards(
    run: "Prepared", reward: Reward | None, feedback: Feedback | None, words: bool = False
) -> dict:
    """Accuracy and calibration of a reward model on held-out feedback, beside length alone and the ceiling.

    With `words` also beside a bag of words. Empty without a reward model or without feedback.
    """
    if reward is None or feedback is None:
        return {}
    if lessons.is_rated(feedback.train):
        return about_ratings(run, reward, feedback, words)
    judged = encode_comparisons(run.tokenizer, feedback.held_out, *run.lengths)
    scored = generation.both_scores(run.devices, reward.fn, reward.params, judged)
    return about_scored(run, scored, feedback, feedback.train, words)


def about_scored(
    run: "Prepared", scored: np.ndarray, pairs: Feedback, taught: list, words: bool = False
) -> dict:
    """Accuracy and calibration from scores [N, 2] of the held-out pairs, chosen and rejected.

    Of simulated people also the accuracy that a perfect reward model can expect.
    """
    held_out, task = pairs.held_out, run.texts.task
    if task is None:
        return about_scores(scored, taught, held_out, words=words)
    by_prompt = {row.prompt: row for row in run.texts.compared}
    known = texts.judged(task, [by_prompt[c.prompt] for c in held_out], *sides(held_out))
    found = about_scores(scored, taught, held_out, np.stack(known[:2], axis=1), words)
    p = annotators.preference_probability(*known, run.cfg.annotators)
    return found | {"reward accuracy ceiling (annotator noise)": annotators.accuracy_ceiling(p)}


def about_scores(scores, train, held_out, gold=None, words: bool = False) -> dict:
    """Held-out accuracy of a reward model beside that of length alone, and its calibration.

    A pair counts once, by its weight, and is right where the likelier response scores higher; calibration is
    to the share of people who chose it. `scores` [N, 2] of the held-out pairs, chosen and rejected; `gold`
    [N, 2] where it is known. With `words` also the accuracy of a bag of words, and whether the reward model
    beats these baselines.
    """
    groups, margins = [c.group for c in held_out], scores[:, 0] - scores[:, 1]
    weights, p = np.array([(c.weight, c.probability) for c in held_out]).T
    weights_train, p_train = np.array([(c.weight, c.probability) for c in train]).T
    accuracy = lambda margins: intervals.accuracy(margins, groups, weights)
    count = lambda pairs, side: np.array([len(getattr(c, side).split()) for c in pairs])
    lengths = np.stack([count(held_out, "chosen"), count(held_out, "rejected")], axis=1)
    length = reward_models.length_baseline(
        count(train, "chosen"), count(train, "rejected"), lengths[:, 0], lengths[:, 1], groups,
        weights_train * (2 * p_train - 1), weights,
    )  # fmt: skip
    taste = reward_models.length_report(scores, lengths, gold, groups, weights=weights)
    where_known = lambda found: {k: x._asdict() for k, x in found.items() if x is not None}
    accuracies = {
        "held-out pairs": accuracy(margins),
        f"{LENGTH}: {length.rule} wins": length.accuracy,
        "where the longer was chosen": taste.accuracy_longer_chosen,
        "where the shorter was chosen": taste.accuracy_shorter_chosen,
    }
    others = {}
    if words:
        others = {LENGTH: (1 if length.rule == "longer" else -1) * (lengths[:, 0] - lengths[:, 1])}
        score = baselines.of_words_in_pairs(
            *sides(train), [c.group for c in train], p_train, weights_train
        )
        others[WORDS] = np.subtract(*map(score, sides(held_out)))
        accuracies |= {WORDS: accuracy(others[WORDS])}
    table = reward_models.calibration_table(margins, probability=p, weights=weights)
    correlations = {"plain": taste.correlation, "given gold": taste.correlation_given_gold}
    return {
        "reward accuracy": where_known(accuracies),
        **beaten("accuracy", {k: gain(margins, x, groups, weights) for k, x in others.items()}),
        "correlation of score and length": where_known(correlations),
        "reward calibration error": reward_models.ece(margins, probability=p, weights=weights),
        "calibration": [row._asdict() for row in table],
    }


def about_ratings(run: "Prepared", reward: Reward, rated: Feedback, words: bool = False) -> dict:
    """Agreement of a reward model with held-out ratings, beside length alone; with `words` also beside a bag
    of words.

    For labels this is the area under the ROC curve, and for a reward model trained here also accuracy and
    calibration; for other scores it is the correlation.
    """
    train, held_out = rated.train, rated.held_out
    kind, groups = scale_of([x.score for x in train]).kind, [x.group for x in held_out]
    counts, weights = np.array([x.weight for x in train]), np.array([x.weight for x in held_out])
    said = stages.demonstrations(run.tokenizer, [x[:2] for x in held_out], run.lengths)
    scores = {"held-out ratings": generation.score(run.devices, reward.fn, reward.params, said)}
    taught = [x.response for x in train], np.array([x.score for x in train])
    scores[LENGTH] = baselines.of_length(*taught, kind, counts)([x.response for x in held_out])
    if words:
        of_words = baselines.of_words(*taught, kind, [x.group for x in train], counts)
        scores[WORDS] = of_words([x.response for x in held_out])
    labels = np.array([x.score for x in held_out])
    name = "AUC" if kind == "binary" else "correlation"
    statistic = ratings.auc if kind == "binary" else ratings.correlation
    own, less = ratings.compared(statistic, scores, labels, groups, counts=weights)
    found = {f"reward {name}": {x: interval._asdict() for x, interval in own.items()}}
    found |= beaten(name, less) if words else {}
    place = run.folder / "stages" / "reward" / stages.SCALE
    if kind == "binary" and not run.load_reward and place.exists():
        scores["held-out ratings"] += disk.read_json(place)["mean"]  # log-odds, as the baselines'
        commoner = np.average(taught[1], weights=counts)
        found |= about_labels(scores, labels, commoner, groups, weights)
    return found


def about_labels(scores: dict, labels, taught: float, groups, weights) -> dict:
    """Accuracy of log-odds [N], by name, beside that of the label that is commoner where the mean of those to
    learn from is `taught`; and the calibration error of the first. Labels of 1/2 are left out."""
    sign = np.sign(labels - 0.5)
    told = sign != 0
    if not told.any():
        return {}
    groups = [group for group, x in zip(groups, told, strict=True) if x]
    common = np.sign(taught - 0.5) * np.ones(len(labels))
    weights = weights[told]
    margins = {name: (sign * x)[told] for name, x in (scores | {"commoner label": common}).items()}
    accuracies = {k: intervals.accuracy(x, groups, weights)._asdict() for k, x in margins.items()}
    error = reward_models.ece(next(iter(margins.values())), weights=weights)
    return {"reward accuracy": accuracies, "reward calibration error": error}


def sides(pairs) -> tuple[list[str], list[str]]:
    """(chosen responses, rejected responses) of comparisons."""
    return [c.chosen for c in pairs], [c.rejected for c in pairs]


def gain(margins, others, groups, weights=None) -> Interval:
    """The accuracy of margins less that of other margins on the same pairs, with its paired interval."""
    right = 0.5 * (np.sign(margins) - np.sign(others))
    return intervals.bootstrap_interval(right, groups, weights=weights)


def beaten(name: str, less: dict[str, Interval]) -> dict:
    """The advantage of the reward model over each baseline, and the verdict; empty without baselines."""
    verdict = lambda x: "yes" if x.low > 0 else "no, it is worse" if x.high < 0 else "not shown"
    if not less:
        return {}
    return {
        f"reward {name} above that of": {other: x._asdict() for other, x in less.items()},
        "the reward model beats": {other: verdict(x) for other, x in less.items()},
    }
