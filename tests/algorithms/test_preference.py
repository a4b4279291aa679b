"""Each loss against its closed form, and at its own optimum on the world of 121 responses."""

from functools import cache, partial

import enumerable
import jax
import jax.numpy as jnp
import layouts
import numpy as np
import optax
import pytest
from compiling import optimised
from enumerable import RESPONSES, distribution, optimum, total_variation
from jax.sharding import PartitionSpec as P
from scipy.special import expit

from rlhf_jax import train_step
from rlhf_jax.algorithms import kto, preference
from rlhf_jax.algorithms.preference import PreferenceConfig
from rlhf_jax.batches import Comparisons, LabelledBatch, PreferenceBatch, Samples, Sequences
from rlhf_jax.models import networks
from rlhf_jax.ops.layout import DATA
from rlhf_jax.ops.reduce import normalise

PAIRS = ["dpo", "ipo", "simpo", "orpo"]
KINDS = [*PAIRS, "kto"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logit(p):
    return np.log(p / (1 - p))


# --- the losses on hand-made numbers


def value_and_slopes(loss, *args, wrt=(0, 1), **settings):
    """The loss, the margin, and the derivatives by the first arguments, of numbers."""
    args = [jnp.asarray(x) for x in args]
    value, margin = loss(*args, **settings)
    return value, margin, jax.grad(lambda *args: loss(*args, **settings)[0], wrt)(*args)


def test_dpo_by_hand():
    # 0.5 ((-1 + 2) - (-3 + 2.5)) = 0.75
    value, margin, (up, down) = value_and_slopes(
        preference.dpo_loss, -1.0, -3.0, -2.0, -2.5, beta=0.5
    )
    np.testing.assert_allclose([value, margin], [np.log1p(np.exp(-0.75)), 0.75], rtol=1e-6)
    np.testing.assert_allclose([up, down], 0.5 * sigmoid(-0.75) * np.array([-1, 1]), rtol=1e-6)


def test_of_a_policy_that_is_its_reference_dpo_is_log_two():
    a, b = jnp.array([-7.3, -0.1]), jnp.array([-2.2, -55.0])
    for e in (0.0, 0.1):
        value, margin = preference.dpo_loss(a, b, a, b, beta=0.3, label_smoothing=e)
        np.testing.assert_allclose(value, np.float32(np.log(2)), rtol=1e-7 if e else 0)
        np.testing.assert_array_equal(margin, 0)


@pytest.mark.parametrize("e, want", [(0.0, 1.386294), (0.1, 1.045969)])
def test_the_best_margin_of_dpo_with_label_smoothing(e, want):
    """Where y_w wins four times of five: logit((1 - e) 0.8 + e 0.2)."""
    np.testing.assert_allclose(want, logit((1 - e) * 0.8 + e * 0.2), atol=1e-6)

    def expected(margin):
        f = lambda m: preference.dpo_loss(m, 0 * m, 0 * m, 0 * m, beta=1.0, label_smoothing=e)[0]
        return 0.8 * f(margin) + 0.2 * f(-margin)

    slope = jax.grad(expected)
    np.testing.assert_allclose(slope(jnp.float32(want)), 0.0, atol=1e-6)
    assert slope(jnp.float32(want - 0.1)) < -1e-2 and slope(jnp.float32(want + 0.1)) > 1e-2


def test_ipo_by_hand():
    # h = (-1 + 2) - (-3 + 2.5) = 1.5, and 1 / (2 tau) = 2
    value, margin, slopes = value_and_slopes(preference.ipo_loss, -1.0, -3.0, -2.0, -2.5, beta=0.25)
    np.testing.assert_allclose([value, margin, *slopes], [0.25, 0.375, -1.0, 1.0], rtol=1e-6)
    *_, slopes = value_and_slopes(preference.ipo_loss, 1.0, -3.0, -2.0, -2.5, beta=0.25)
    assert slopes[0] > 0  # h = 3.5: IPO draws back what went too far, and DPO never does


def test_simpo_by_hand():
    # 2 (-4 / 4 + 6 / 3) = 2: by sums the first would win by as much, and by other lengths lose
    simpo = partial(value_and_slopes, preference.simpo_loss, -4.0, -6.0)
    value, margin, (up, down) = simpo(4, 3, beta=2.0, gamma=0.5)
    np.testing.assert_allclose([value, margin], [np.log1p(np.exp(-1.5)), 2.0], rtol=1e-6)
    np.testing.assert_allclose([up, down], 2 * sigmoid(-1.5) * np.array([-1 / 4, 1 / 3]), rtol=1e-6)
    assert simpo(2, 6, beta=2.0, gamma=0.5)[1] == -2.0


EDGES = np.array([0, 20, -20, 89, -89, 1e3, -1e3], np.float32)


def slopes_of(loss, *args, **settings):
    """The losses of arrays of numbers, and their slopes by the first of them."""
    one = lambda *args: loss(*args, **settings)[0]
    args = np.broadcast_arrays(*args)
    return jax.jit(jax.vmap(jax.value_and_grad(one)))(*map(jnp.asarray, args))


@pytest.mark.parametrize("kind", ["dpo", "ipo", "simpo", "kto"])
def test_losses_and_slopes_at_extreme_log_ratios(kind):
    """In float32, beside the closed forms in float64."""
    x, zero, one = np.float64(EDGES), np.float32(0), np.int32(1)
    if kind == "dpo":
        got = slopes_of(preference.dpo_loss, EDGES, zero, zero, zero, beta=1.0)
        want = np.logaddexp(0, -x), -expit(-x)
    if kind == "ipo":
        got = slopes_of(preference.ipo_loss, EDGES, zero, zero, zero, beta=0.25)
        want = (x - 2) ** 2, 2 * (x - 2)
    if kind == "simpo":
        got = slopes_of(preference.simpo_loss, EDGES, zero, one, one, beta=1.0, gamma=1.0)
        want = np.logaddexp(0, 1 - x), -expit(1 - x)
    if kind == "kto":
        x, sign = np.repeat(x, 2), np.tile([1, -1], len(x))
        scale = dict(beta=1.0, desirable_weight=1.0, undesirable_weight=1.0)
        got = slopes_of(kto.kto_loss, np.float32(x), zero, sign > 0, zero, **scale)
        want = expit(-sign * x), -sign * expit(x) * expit(-x)
    for found, exact in zip(got, want, strict=True):
        np.testing.assert_allclose(found, exact, rtol=3e-6, atol=1e-8)


def test_orpo_and_its_slope_at_extreme_log_probabilities():
    sides = np.array([0, -1e-3, -20, -89, -1e3], np.float32)
    chosen, rejected = (x.reshape(-1) for x in np.meshgrid(sides, sides[1:]))
    one = np.int32(1)
    value, up = slopes_of(preference.orpo_loss, chosen, rejected, one, one, beta=0.5)
    odds = lambda x: x - np.log(-np.expm1(x))
    held = np.minimum(np.float64(chosen), -1e-6)  # the odds of certainty are infinite
    m = odds(held) - odds(np.float64(rejected))
    np.testing.assert_allclose(value, -chosen + 0.5 * np.logaddexp(0, -m), rtol=1e-4, atol=1e-6)
    steep = np.where(chosen > -1e-6, 0, -1 / np.expm1(held))
    np.testing.assert_allclose(up, -1 - 0.5 * expit(-m) * steep, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_best_margin_of_simpo(gamma):
    """Where y_w wins with p = 0.8, x = e^m solves (1 - p) g x^2 - (2 p - 1) x - p g = 0, g = e^-gamma."""
    p, g = 0.8, np.exp(-gamma)
    x = (2 * p - 1 + np.sqrt((2 * p - 1) ** 2 + 4 * p * (1 - p) * g**2)) / (2 * (1 - p) * g)
    if gamma == 0:
        np.testing.assert_allclose(np.log(x), logit(p))

    def expected(margin):
        one = jnp.int32(1)
        f = lambda m: preference.simpo_loss(m, 0 * m, one, one, beta=1.0, gamma=gamma)[0]
        return p * f(margin) + (1 - p) * f(-margin)

    np.testing.assert_allclose(jax.grad(expected)(jnp.float32(np.log(x))), 0.0, atol=1e-6)


def test_orpo_by_hand():
    # a half to a token, odds 1; a fifth, odds 1/4: -log(4 / 5) beside -log(1 / 2)
    chosen, rejected = 3 * np.log(0.5), 2 * np.log(0.2)
    value, margin, (up, down) = value_and_slopes(
        preference.orpo_loss, chosen, rejected, 3, 2, beta=0.5
    )
    np.testing.assert_allclose(margin, np.log(4), rtol=1e-6)
    np.testing.assert_allclose(value, np.log(2) + 0.5 * np.log(5 / 4), rtol=1e-6)
    # d log odds / d log p = 1 / (1 - p)
    np.testing.assert_allclose(up, (-1 - 0.5 * (1 / 5) / 0.5) / 3, rtol=1e-5)
    np.testing.assert_allclose(down, (0.5 * (1 / 5) / 0.8) / 2, rtol=1e-5)


def test_orpo_stays_finite_at_certainty_and_on_empty_responses():
    for chosen, rejected in [(0.0, -3.0), (-3.0, 0.0), (0.0, 0.0), (-1e4, -1e-9)]:
        for length in (0, 2):
            got = value_and_slopes(preference.orpo_loss, chosen, rejected, length, length, beta=0.1)
            assert np.all(np.isfinite(jax.tree.leaves(got)))


def kto_of(r, desirable, z, **settings):
    """KTO's loss, margin and slope of a response whose log-probability rose by `r`."""
    weights = dict(desirable_weight=2.0, undesirable_weight=3.0) | settings
    value, margin, (slope,) = value_and_slopes(
        kto.kto_loss, r - 5.0, -5.0, desirable, z, wrt=(0,), beta=0.5, **weights
    )
    return np.array([value, margin, slope])


def test_kto_by_hand():
    # 0.5 (1.5 - 0.3) = 0.6 above the reference point
    s = sigmoid(0.6)
    np.testing.assert_allclose(
        kto_of(1.5, True, 0.3), [2 * (1 - s), 0.6, -2 * 0.5 * s * (1 - s)], rtol=1e-5
    )
    np.testing.assert_allclose(
        kto_of(1.5, False, 0.3), [3 * s, -0.6, 3 * 0.5 * s * (1 - s)], rtol=1e-5
    )


@pytest.mark.parametrize("desirable", [True, False])
def test_kto_saturates_on_both_sides_of_its_reference_point(desirable):
    slope = lambda r, z=2.0: abs(kto_of(r, desirable, z)[2])
    np.testing.assert_allclose(slope(2.0), (2 if desirable else 3) * 0.5 / 4, rtol=1e-6)
    assert slope(2.0) > slope(6.0) > 50 * slope(30.0)
    assert slope(2.0) > slope(-2.0) > 50 * slope(-26.0)
    np.testing.assert_allclose(kto_of(1.0, desirable, 2.0), kto_of(4.0, desirable, 5.0), rtol=1e-5)


def test_kto_takes_the_side_of_the_majority_by_weight():
    """At any reward: a response that is desirable with q rises iff q lambda_D > (1 - q) lambda_U."""
    for r in (-3.0, 0.0, 4.0):
        for q, weights in [
            (0.7, (1.0, 1.0)),
            (0.3, (1.0, 1.0)),
            (0.3, (3.0, 1.0)),
            (0.7, (1.0, 3.0)),
        ]:
            kinds = dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True))
            slope = (
                q * kto_of(r, True, 1.0, **kinds)[2] + (1 - q) * kto_of(r, False, 1.0, **kinds)[2]
            )
            assert (slope < 0) == (q * weights[0] > (1 - q) * weights[1])


# --- settings


def test_settings_that_are_not_set_are_the_papers():
    assert preference.settings(PreferenceConfig()) == {"beta": 0.1, "label_smoothing": 0.0}
    assert preference.settings(PreferenceConfig(kind="simpo", gamma=0.0)) == {
        "beta": 2.0,
        "gamma": 0.0,
    }


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            dict(gamma=0.5),
            'gamma = 0.5 has no effect with PreferenceConfig.kind = "dpo": .* use simpo',
        ),
        (dict(kind="ipo", label_smoothing=0.1), "label_smoothing = 0.1 has no effect .* use dpo"),
        (dict(beta=0.0), "beta = 0.0: it must be above 0"),
        (dict(beta=float("nan")), "beta = nan: it must be a finite number, above 0"),
        (dict(label_smoothing=0.5), "label_smoothing = 0.5: it must be 0 or more and below 0.5"),
        (dict(kind="simpo", gamma=-1.0), "gamma = -1.0: it must be 0 or more"),
    ],
)
def test_a_setting_that_is_wrong_or_not_read_is_refused(settings, said):
    with pytest.raises(ValueError, match=f"PreferenceConfig.{said}"):
        PreferenceConfig(**settings)


def test_an_unknown_kind_is_refused():
    cfg = PreferenceConfig()
    object.__setattr__(cfg, "kind", "ppo")  # past the tests' type checker
    with pytest.raises(ValueError, match="kind = 'ppo': it must be dpo or ipo or simpo or orpo"):
        cfg.__post_init__()


# --- on the enumerable world, in float64: whole populations, and the optima they have

BETA = enumerable.BETA


def table_policy(table, tokens, attention_mask, *, last):
    """The tabular policy_fn in the precision of its table: the library's would make float32 of it."""
    logits = enumerable.apply(table, tokens, attention_mask)[:, -last - 1 : -1]
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, -last:, None], axis=-1)
    return logprobs[..., 0], jnp.zeros(tokens[:, -last:].shape)


def mean_policy(*args, last, **kinds):
    """A wrong one: responses count by their mean log-probability."""
    logprobs, entropy = table_policy(*args, last=last, **kinds)
    mask = args[2][:, -last:]
    return logprobs / jnp.sum(mask, axis=1, keepdims=True), entropy


def rows(choice) -> Sequences:
    """These of the 121 responses."""
    return jax.tree.map(lambda x: jnp.asarray(x[choice]), enumerable.responses())


def wins(world) -> np.ndarray:
    """p(y > y') [121, 121]."""
    scores = np.asarray(world.scores, float)
    return sigmoid(scores[:, None] - scores[None])


def population(world, drawn=None):
    """All pairs of responses, each as often as two draws meet and people prefer the first."""
    drawn = distribution(world.ref_logits) if drawn is None else drawn
    first, second = np.divmod(np.arange(RESPONSES**2), RESPONSES)
    return pairs_of(world, first, second, drawn[first] * drawn[second])


def star(world):
    """Each response against the one that says nothing, both ways round: every margin has its own pair."""
    first = np.repeat(np.arange(1, RESPONSES), 2)
    second, often = np.zeros_like(first), distribution(world.ref_logits)[first]
    first[1::2], second[1::2] = second[1::2], first[1::2].copy()
    return pairs_of(world, first, second, often / often.sum())


def pairs_of(world, first, second, often):
    ref = jnp.log(distribution(world.ref_logits))
    weight = jnp.asarray(often * wins(world)[first, second])
    pairs = Comparisons(rows(first), rows(second), weight, jnp.ones_like(weight))
    return PreferenceBatch(pairs, ref[first], ref[second])


def loss_of(table, batch, cfg, policy_fn=table_policy):
    return preference.loss(
        table, {}, batch, preference.weights_of(batch), policy_fn=policy_fn, cfg=cfg
    )[0]


@optimised()
def fit(world, batch, cfg, policy_fn=table_policy, iterations=160):
    """What the loss ends at [121]: L-BFGS from the reference, in steps scaled by the reach of a prefix."""
    start = jnp.asarray(world.ref_logits, float)
    scale = jnp.asarray(enumerable.through(distribution(world.ref_logits)) ** -0.5)[:, None]
    opt = optax.lbfgs(memory_size=50)

    @jax.jit
    def run(start, batch):
        value_fn = lambda moved: loss_of(start + scale * moved, batch, cfg, policy_fn)

        def iteration(carry, _):
            moved, state = carry
            value, grad = optax.value_and_grad_from_state(value_fn)(moved, state=state)
            kinds = dict(value=value, grad=grad, value_fn=value_fn)
            updates, state = opt.update(grad, state, moved, **kinds)
            return (optax.apply_updates(moved, updates), state), None

        zero = jnp.zeros_like(start)
        (moved, _), _ = jax.lax.scan(iteration, (zero, opt.init(zero)), None, iterations)
        return start + scale * moved

    return distribution(run(start, batch))


def tilted(world, rewards):
    """pi_ref exp(rewards) / Z."""
    pi = distribution(world.ref_logits) * np.exp(rewards)
    return pi / pi.sum()


def test_dpo_on_the_whole_population_reaches_the_optimum():
    with jax.enable_x64(True):
        world = enumerable.make(0)
        got = fit(world, population(world), PreferenceConfig(beta=BETA))
    assert total_variation(got, optimum(world)[0]) < 1e-7


def test_ipo_on_the_whole_population_reaches_its_own_optimum_which_is_another():
    with jax.enable_x64(True):
        world = enumerable.make(0)
        got = fit(world, population(world), PreferenceConfig(kind="ipo", beta=BETA), iterations=60)
    wins_against = wins(world) @ distribution(world.ref_logits)  # E over the reference's y'
    assert total_variation(got, tilted(world, wins_against / BETA)) < 1e-9
    assert total_variation(got, optimum(world)[0]) > 0.3


@pytest.mark.parametrize("e", [0.0, 0.1])
def test_dpo_with_label_smoothing_reaches_the_margins_of_flipped_labels(e):
    with jax.enable_x64(True):
        world = enumerable.make(1)
        got = fit(world, star(world), PreferenceConfig(beta=BETA, label_smoothing=e))
    p = wins(world)[:, 0]
    assert total_variation(got, tilted(world, logit((1 - e) * p + e * (1 - p)) / BETA)) < 1e-6
    far = total_variation(got, optimum(world)[0])
    assert (far > 0.05) if e else (far < 1e-6)


def without_reference(batch):
    return batch._replace(ref_chosen=0 * batch.ref_chosen, ref_rejected=0 * batch.ref_rejected)


def with_mean_reference(batch):
    """The reference's log-probabilities divided by lengths, to go with `mean_policy`."""
    length = lambda side: jnp.sum(side.mask, axis=1)
    return batch._replace(
        ref_chosen=batch.ref_chosen / length(batch.comparisons.chosen),
        ref_rejected=batch.ref_rejected / length(batch.comparisons.rejected),
    )


def swapped(batch):
    pairs = batch.comparisons
    return batch._replace(
        comparisons=Comparisons(*pairs.sides[::-1], pairs.weight, pairs.probability)
    )


CONTROLS = {
    "reference left out": dict(change=without_reference),
    "means of log-probabilities": dict(change=with_mean_reference, policy_fn=mean_policy),
    "mean of the policy alone": dict(policy_fn=mean_policy),
    "chosen and rejected swapped": dict(change=swapped),
    "another beta": dict(beta=0.6),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_one_wrong_line_misses_the_optimum(name):
    def distance(change=lambda batch: batch, policy_fn=table_policy, beta=BETA):
        with jax.enable_x64(True):
            world = enumerable.make(1)
            cfg = PreferenceConfig(beta=beta)
            got = fit(world, change(star(world)), cfg, policy_fn, iterations=100)
        return total_variation(got, optimum(world)[0])

    assert distance(**CONTROLS[name]) > 0.1


@pytest.mark.parametrize("drawn", ["reference", "evenly", "optimum"])
def test_at_the_optimum_the_gradient_of_dpo_vanishes_whoever_drew_the_pairs(drawn):
    """So pairs may come from the policy itself, as online; IPO's optimum depends on who drew."""
    with jax.enable_x64(True):
        world = enumerable.make(2)
        ref = distribution(world.ref_logits)
        pi_star, _ = optimum(world)
        drawn = {"reference": ref, "evenly": np.full(RESPONSES, 1 / RESPONSES), "optimum": pi_star}[
            drawn
        ]
        batch = population(world, drawn)
        slope = jax.jit(jax.grad(loss_of), static_argnums=2)
        largest = lambda pi, cfg: np.max(
            np.abs(slope(jnp.asarray(enumerable.logits_of(pi)), batch, cfg))
        )
        assert largest(pi_star, PreferenceConfig(beta=BETA)) < 1e-12
        assert largest(ref, PreferenceConfig(beta=BETA)) > 1e-3
        ipo = tilted(world, wins(world) @ ref / BETA)
        moves = largest(ipo, PreferenceConfig(kind="ipo", beta=BETA))
        assert (moves < 1e-12) if drawn is ref else (moves > 5e-4)


def test_the_expected_gradient_of_kto_is_that_of_its_labels():
    """-sum over y of mu(y) beta s (1 - s) (lambda_D q(y) - lambda_U (1 - q(y))) grad log pi(y)."""
    with jax.enable_x64(True):
        world, rng = enumerable.make(3), np.random.default_rng(3)
        table = jnp.asarray(world.ref_logits, float) + rng.normal(size=world.ref_logits.shape)
        mu, q, z = distribution(world.ref_logits), sigmoid(np.asarray(world.scores, float)), 0.2
        twice, ref = np.tile(np.arange(RESPONSES), 2), np.log(mu)
        desirable = np.arange(2 * RESPONSES) < RESPONSES
        weight = mu[twice] * np.where(desirable, q[twice], 1 - q[twice])
        batch = LabelledBatch(
            responses=rows(twice),
            desirable=jnp.asarray(desirable),
            ref_logprobs=jnp.asarray(ref[twice]),
            mismatched=rows(twice),
            ref_mismatched=jnp.asarray(ref[twice]),
            weight=jnp.asarray(weight),
        )
        weights = kto.weights_of(batch)
        cfg = kto.KTOConfig(beta=BETA, undesirable_weight=1.5)

        def loss(table):
            frozen = {"z_ref": jnp.asarray(z)}
            measure = partial(kto.loss, policy_fn=table_policy, cfg=cfg)
            return measure(table, frozen, batch, weights)

        got, metrics = jax.jit(jax.grad(loss, has_aux=True))(table)
        m = BETA * (np.log(distribution(table)) - ref - z)
        pull = mu * BETA * sigmoid(m) * sigmoid(-m) * (q - 1.5 * (1 - q))
        logprobs = lambda table: preference.response_logprobs(
            table, rows(np.arange(RESPONSES)), policy_fn=table_policy
        )
        want = jax.jit(jax.grad(lambda table: -jnp.vdot(pull, logprobs(table))))(table)
        np.testing.assert_allclose(got, want, atol=1e-12)
        assert np.max(np.abs(want)) > 1e-3
        np.testing.assert_allclose(
            metrics["preference/accuracy"], mu @ np.where(m > 0, q, 1 - q), rtol=1e-6
        )


# --- the steps

B, WIDTH, T, V = 16, 4, 6, 20  # rows, prompt columns, response columns, vocabulary


def bag_of_words(params, tokens, attention_mask):
    """Logits from the sum of what was said: quick to compile, and to write in NumPy."""
    said = jnp.where(attention_mask[..., None], params["w"][tokens], 0.0)
    return jnp.tanh(jnp.cumsum(said, axis=1)) @ params["w"].T


POLICY_FN = networks.from_logits(bag_of_words).policy_fn
REFERENCE = jax.jit(preference.make_reference_logprobs(POLICY_FN))
REFERENCE_POINT = jax.jit(partial(kto.reference_point, policy_fn=POLICY_FN))
LR = dict.fromkeys(KINDS, 0.02) | {"ipo": 1e-3}  # its loss is the steepest
CFG = {kind: PreferenceConfig(kind=kind, beta=0.5) for kind in PAIRS}
CFG |= {"kto": kto.KTOConfig(beta=0.5)}


def sequences(seed, rows=B):
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(1, T + 1, (rows, 1))
    prompt = np.arange(WIDTH) >= rng.integers(0, WIDTH, (rows, 1))
    return Sequences(
        tokens=rng.integers(0, V, (rows, WIDTH + T), np.int32),
        attention_mask=np.concatenate([prompt, mask], axis=1),
        mask=mask,
    )


@pytest.fixture(scope="module")
def models():
    """The reference, and a policy that has left it."""
    rng = np.random.default_rng(0)
    ref, change = rng.normal(size=(2, V, 8)).astype(np.float32)
    return {"w": ref}, {"w": ref + 0.1 * change}


@pytest.fixture(scope="module")
def batches(models):
    """A PreferenceBatch and a LabelledBatch, with uneven weights, one of them zero."""
    ref = lambda side: np.asarray(REFERENCE(models[0], side))
    chosen, rejected = sequences(1), sequences(2)
    weight = np.arange(B, dtype=np.float32) / B
    others = jax.device_get(kto.mismatch(chosen))
    pairs = Comparisons(chosen, rejected, weight, np.linspace(0.5, 1, B, dtype=np.float32))
    pairs = PreferenceBatch(pairs, ref(chosen), ref(rejected))
    desirable = np.arange(B) % 3 > 0
    labelled = LabelledBatch(chosen, desirable, ref(chosen), others, ref(others), weight)
    return {kind: labelled if kind == "kto" else pairs for kind in KINDS}


def weight_of(batch):
    return batch.weight if isinstance(batch, LabelledBatch) else batch.comparisons.weight


def reweighed(batch, weight):
    if isinstance(batch, LabelledBatch):
        return batch._replace(weight=weight)
    return batch._replace(comparisons=batch.comparisons._replace(weight=weight))


def make_train_step(kind, *args, **kinds):
    return (kto if kind == "kto" else preference).make_train_step(*args, **kinds)


@cache
def step_of(kind, microbatches):
    tx = optax.sgd(LR[kind])
    return jax.jit(make_train_step(kind, POLICY_FN, tx, CFG[kind], microbatches=microbatches))


def take_step(params, batch, kind, microbatches=1):
    return step_of(kind, microbatches)(
        train_step.init_state(params, optax.sgd(LR[kind])), {}, batch
    )


def assert_close(got, want, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), got, want)


def test_a_response_is_the_sum_of_its_own_tokens_and_none_of_its_prompts(models):
    """Against NumPy on one row at a time, without padding; with the prompt it is another number."""
    batch, ref = sequences(1), models[0]
    got, w = REFERENCE(ref, batch), ref["w"].astype(float)
    sums = {"response": [], "all": []}
    for tokens, real, mask in zip(*batch, strict=True):
        said = tokens[real]
        logits = np.tanh(np.cumsum(w[said], axis=0)) @ w.T
        logprobs = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        taken = logprobs[np.arange(len(said) - 1), said[1:]]
        sums["response"].append(taken[-mask.sum() :].sum())
        sums["all"].append(taken.sum())
    np.testing.assert_allclose(got, sums["response"], rtol=1e-5)
    assert np.max(np.abs(got - np.array(sums["all"]))) > 1


def test_log_probabilities_of_the_reference_kept_from_once_are_those_of_the_loop(models):
    """Over the whole data set in one batch, then rows of it; at the start the loss is log 2."""
    ref = models[0]
    ones = np.ones(48, np.float32)
    data = Comparisons(sequences(3, rows=48), sequences(4, rows=48), ones, ones)
    kept = [np.asarray(REFERENCE(ref, side)) for side in data.sides]
    some = np.random.default_rng(0).permutation(48)[:B]
    batch = jax.tree.map(lambda x: x[some], PreferenceBatch(data, *kept))
    in_the_loop = [REFERENCE(ref, side) for side in batch.comparisons.sides]
    np.testing.assert_allclose(batch[1:3], in_the_loop, rtol=1e-5)
    _, metrics = take_step(ref, batch, "dpo")
    np.testing.assert_allclose(metrics["preference/loss"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["preference/margin"], 0, atol=1e-5)
    np.testing.assert_allclose(
        metrics["preference/chosen_logprob"], kept[0][some].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics["preference/rejected_logprob"], kept[1][some].mean(), rtol=1e-5
    )


def moved(a, b):
    return max(np.max(np.abs(x - y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("dpo", "kto") else pytest.param(kind, marks=pytest.mark.more)
        for kind in KINDS
    ],
)
def test_microbatches_and_more_padding_change_nothing(models, batches, kind):
    params, batch = models[1], batches[kind]
    want = take_step(params, batch, kind)
    assert moved(want[0].params, params) > 1e-4
    assert_close(take_step(params, batch, kind, microbatches=4), want)
    with pytest.raises(ValueError, match="microbatches = 3 does not divide the 16 rows"):
        take_step(params, batch, kind, microbatches=3)

    def widen(x):  # two columns more on the left, three on the right
        if not isinstance(x, Sequences):
            return x
        right, both = ((0, 0), (0, 3)), ((0, 0), (2, 3))
        return Sequences(
            tokens=np.pad(x.tokens, both, constant_values=7),
            attention_mask=np.pad(x.attention_mask, both),
            mask=np.pad(x.mask, right),
        )

    wider = jax.tree.map(widen, batch, is_leaf=lambda x: isinstance(x, Sequences))
    assert_close(take_step(params, wider, kind), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_raises_chosen_over_rejected(models, batches, kind):
    params, batch = models[1], batches[kind]
    state, before = take_step(params, batch, kind)
    _, after = take_step(state.params, batch, kind)
    assert after["preference/margin"] > before["preference/margin"]
    assert after["preference/loss"] < before["preference/loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_counts_by_its_weight(models, batches, kind):
    """What has none may be anything; two rows of half the weight are one."""
    params, batch = models[1], batches[kind]
    want = take_step(params, batch, kind)
    assert weight_of(batch)[0] == 0
    copied = jax.tree.map(lambda x: np.concatenate([x[-1:], x[1:]]), batch)
    half = weight_of(batch).copy()
    half[0] = half[-1] = half[-1] / 2
    assert_close(take_step(params, reweighed(copied, half), kind), want)
    assert_close(take_step(params, reweighed(copied, weight_of(batch)), kind), want)
    whole, _ = take_step(params, copied, kind)
    assert moved(whole.params, want[0].params) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_free_kinds_do_not_read_the_reference(models, batches, kind):
    params, batch = models[1], batches[kind]
    shift = np.linspace(0, 3, B, dtype=np.float32)
    if kind == "kto":
        other = batch._replace(ref_logprobs=batch.ref_logprobs + shift)
    else:
        other = batch._replace(ref_chosen=batch.ref_chosen + shift)
    difference = moved(*(take_step(params, x, kind)[0].params for x in (batch, other)))
    assert (difference == 0) if kind in ("simpo", "orpo") else (difference > 1e-4)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_metrics_of_pairs_are_weighted_means(models, batches, kind):
    ref, params = models
    batch, mean = batches[kind], partial(np.average, weights=weight_of(batches[kind]))
    sides, p = batch.comparisons.sides, batch.comparisons.probability
    logprobs = np.array([REFERENCE(params, side) for side in sides])
    ratios = logprobs - [REFERENCE(ref, side) for side in sides]
    by_token = logprobs / [side.mask.sum(axis=1) for side in sides]
    odds = by_token - np.log1p(-np.exp(by_token))
    rewards = {"dpo": 0.5 * ratios, "ipo": 0.5 * ratios, "simpo": 0.5 * by_token, "orpo": odds}
    margin = rewards[kind][0] - rewards[kind][1]
    _, metrics = take_step(params, batch, kind)
    wanted = {
        "accuracy": mean(p * (margin > 0) + (1 - p) * (margin < 0)),
        "margin": mean(margin),
        "chosen_logprob": mean(logprobs[0]),
        "rejected_logprob": mean(logprobs[1]),
    }
    if kind == "orpo":
        wanted["sft_loss"] = mean(-p * by_token[0] - (1 - p) * by_token[1])
    for name, want in wanted.items():
        np.testing.assert_allclose(metrics[f"preference/{name}"], want, rtol=1e-4)
    assert abs(wanted["accuracy"] - 0.5) > 0.02  # so that the other sign would show


# --- KTO's reference point


def test_mismatched_rows_are_each_prompt_with_a_later_response():
    batch = sequences(1)
    for shift in (1, 3):
        got = kto.mismatch(batch, shift)
        for i in range(B):
            j = (i + shift) % B
            for x, y in ((got.tokens, batch.tokens), (got.attention_mask, batch.attention_mask)):
                np.testing.assert_array_equal(x[i], [*y[i, :WIDTH], *y[j, WIDTH:]])
            np.testing.assert_array_equal(got.mask[i], batch.mask[j])


def test_the_reference_point_is_the_mean_of_mismatched_rows_and_never_negative(models, batches):
    ref, params = models
    batch = batches["kto"]
    ratios = np.asarray(REFERENCE(params, batch.mismatched)) - batch.ref_mismatched
    mean = np.average(ratios, weights=batch.weight)
    # on responses that the policy did not draw the mean may well be negative: raise it to 0.7
    higher = batch._replace(ref_mismatched=batch.ref_mismatched + np.float32(mean - 0.7))
    np.testing.assert_allclose(REFERENCE_POINT(params, higher), 0.7, rtol=1e-4)
    lower = batch._replace(ref_mismatched=batch.ref_mismatched + np.float32(mean + 0.7))
    assert REFERENCE_POINT(params, lower) == 0
    np.testing.assert_allclose(REFERENCE_POINT(ref, batch), 0, atol=1e-5)


def test_a_kto_step_takes_its_reference_point_from_the_parameters_of_the_moment_as_a_constant(
    models, batches
):
    params = models[1]
    batch = batches["kto"]._replace(ref_mismatched=batches["kto"].ref_mismatched - 3)
    z_ref = REFERENCE_POINT(params, batch)
    assert z_ref > 1

    @jax.jit
    def slope(params, z_ref, batch):
        weights = normalise(kto.weights_of(batch))
        measure = partial(kto.loss, policy_fn=POLICY_FN, cfg=CFG["kto"])
        return jax.grad(lambda p: measure(p, {"z_ref": z_ref}, batch, weights)[0])(params)

    state, metrics = take_step(params, batch, "kto")
    np.testing.assert_allclose(metrics["preference/z_ref"], z_ref, rtol=1e-5)
    sgd = lambda grads: jax.tree.map(lambda p, g: p - LR["kto"] * g, params, grads)
    assert_close(state.params, sgd(slope(params, z_ref, batch)), atol=1e-6)
    assert moved(state.params, sgd(slope(params, jnp.float32(0), batch))) > 1e-4
    _, later = take_step(state.params, batch, "kto")
    assert later["preference/z_ref"] != metrics["preference/z_ref"]


def test_the_metrics_of_kto_are_means_over_each_label(models, batches):
    batch, params = batches["kto"], models[1]
    logprobs = np.asarray(REFERENCE(params, batch.responses))
    rewards = 0.5 * (logprobs - batch.ref_logprobs)
    over = lambda x, rows: np.average(x[rows], weights=batch.weight[rows])
    _, metrics = take_step(params, batch, "kto")
    good, bad = batch.desirable, ~batch.desirable
    for name, want in [
        ("margin", over(rewards, good) - over(rewards, bad)),
        ("chosen_logprob", over(logprobs, good)),
        ("rejected_logprob", over(logprobs, bad)),
    ]:
        np.testing.assert_allclose(metrics[f"preference/{name}"], want, rtol=1e-4)


# --- devices


OTHER = [pytest.param(kind, marks=pytest.mark.layouts) for kind in ("ipo", "simpo", "orpo")]


@layouts.some
@pytest.mark.parametrize("kind", ["dpo", "kto", *OTHER])
def test_a_step_does_not_depend_on_the_layout(models, batches, kind, names):
    """Nor on microbatches: several devices take two, one device takes one."""
    tx, params = optax.adam(1e-2, eps=1e-3), models[1]
    ref_mismatched = batches["kto"].ref_mismatched - np.linspace(0, 9, B, dtype=np.float32)
    batch = batches[kind]
    if kind == "kto":
        batch = batch._replace(ref_mismatched=ref_mismatched)

    def run(devices):
        step = make_train_step(
            kind,
            POLICY_FN,
            tx,
            CFG[kind],
            microbatches=1 if devices.count == 1 else 2,
            axis_name=devices.axis_name,
        )
        step = devices.compile(step, (P(), P(), P(DATA)), (P(), P()), donate=(0,))
        state = devices.put(jax.device_get(train_step.init_state(params, tx)))
        for _ in range(2):
            state, metrics = step(state, {}, devices.put_batch(batch))
        return jax.device_get((state, metrics))

    want = layouts.compare(run, names, atol=3e-5)
    assert moved(want[0].params, params) > 1e-3
    assert kind != "kto" or want[1]["preference/z_ref"] > 0.5


# --- online: pairs of samples


def samples(seed):
    zeros = np.zeros((B, T), np.float32)
    return Samples(*sequences(seed), logprobs=zeros, ended=zeros[:, 0] > 0)


@pytest.mark.parametrize("k", [2, 4])
def test_the_best_of_each_group_meets_the_worst(k):
    seen, rng = samples(5), np.random.default_rng(5)
    scores = rng.integers(0, 3, B).astype(np.float32)
    scores[:k] = 1.0  # the first group ties
    pairs = jax.jit(preference.pick_pairs, static_argnums=2)(seen, scores, k)
    weight = pairs.weight
    for i in range(B // k):
        group = list(range(k * i, k * i + k))
        best, worst = max(group, key=lambda n: scores[n]), min(group, key=lambda n: scores[n])
        for side, n in zip(pairs.sides, (best, worst), strict=True):
            jax.tree.map(
                lambda got, want, i=i, n=n: np.testing.assert_array_equal(got[i], want[n]),
                side,
                Sequences(seen.tokens, seen.attention_mask, seen.mask),
            )
        assert weight[i] == (scores[best] > scores[worst])
    assert weight[0] == 0 and np.sum(weight) > 0


@pytest.mark.parametrize("k", [1, 3])
def test_groups_that_do_not_fill_the_batch_are_refused(k):
    with pytest.raises(ValueError, match=f"k = {k} draws of a prompt must be 2 or more and divide"):
        preference.pick_pairs(samples(5), np.zeros(B, np.float32), k)


def test_a_batch_of_ties_teaches_nothing(models):
    ref, params = models
    pairs = preference.pick_pairs(samples(6), np.ones(B, np.float32), 2)
    batch = PreferenceBatch(pairs, *(REFERENCE(ref, side) for side in pairs.sides))
    state, metrics = take_step(params, batch, "dpo")
    assert metrics["train/skipped"] == 1 and moved(state.params, params) == 0
