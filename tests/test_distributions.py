"""Distributions against closed forms, float64 and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import distributions as dists


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_symlog_round_trips_over_twelve_orders_of_magnitude():
    x = torch.tensor([0.0, 1e-6, -1e-3, 0.5, -1.0, 37.0, -1e4, 1e6])
    np.testing.assert_allclose(dists.symexp(dists.symlog(x)), x, rtol=1e-5)
    np.testing.assert_allclose(dists.symlog(x), np.sign(x.numpy()) * np.log(1 + np.abs(x.double().numpy())), rtol=1e-5)


def test_unimix_is_one_percent_uniform_in_the_probabilities():
    logits = torch.randn(3, 5, 7) * 4
    expected = 0.99 * softmax(logits.double().numpy()) + 0.01 / 7
    dist = dists.OneHot(logits, 0.01)
    np.testing.assert_allclose(dist.probs, expected, rtol=1e-5)
    np.testing.assert_allclose(dist.entropy(), -(expected * np.log(expected)).sum(-1), rtol=1e-5)


def test_categorical_kl_sums_the_event_and_matches_float64():
    a, b = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    p, q = (0.99 * softmax(x.double().numpy()) + 0.01 / 6 for x in (a, b))
    expected = (p * np.log(p / q)).sum((-1, -2))
    np.testing.assert_allclose(dists.OneHot(a, 0.01, 2).kl(dists.OneHot(b, 0.01, 2)), expected, rtol=1e-4)


def test_sampler_inverts_the_cumulative_distribution():
    probs = torch.tensor([0.2, 0.5, 0.3])
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.9999999])
    np.testing.assert_array_equal(dists.sample_onehot(probs.expand(6, 3), uniform).argmax(-1), [0, 0, 1, 1, 2, 2])


def test_samples_come_as_often_as_their_probabilities_say():
    dist = dists.OneHot(torch.tensor([[2.0, 0.0, -1.0, 0.5]]).expand(40000, 4), 0.01)
    frequency = dist.sample().mean(0).double()
    error = (dist.probs[0] * (1 - dist.probs[0]) / 40000).sqrt()
    assert (abs(frequency - dist.probs[0]) < 5 * error).all()


def test_sampler_never_leaves_the_classes_when_probabilities_sum_below_one():
    sample = dists.sample_onehot(torch.full((1000, 1000), 0.000999), torch.full((1000,), 0.9999999))
    assert (sample.sum(-1) == 1).all()


@pytest.mark.parametrize("name, inner", [("sample", "probs"), ("greedy_sample", "probs"), ("mode", "log_probs")])
def test_one_hot_draws_pass_gradients_straight_through(name, inner):
    logits = torch.randn(5, 4, requires_grad=True)
    weights = torch.randn(5, 4)
    dist = dists.OneHot(logits, 0.01)
    draw = dist.mode if name == "mode" else getattr(dist, name)()
    np.testing.assert_allclose(np.sort(draw.detach(), -1), [[0, 0, 0, 1]] * 5, atol=1e-6)
    (expected,) = torch.autograd.grad((weights * getattr(dist, inner)).sum(), logits, retain_graph=True)
    (actual,) = torch.autograd.grad((weights * draw).sum(), logits)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_two_hot_puts_weight_on_the_two_nearest_bins_by_nearness():
    logits = torch.randn(6, 255)
    x = torch.tensor([0.0, 1.0, -3.3, 250.0, 1e9, -1e9])[:, None]  # the last two lie beyond the bins
    bins = np.linspace(-20, 20, 255)
    log_probs = np.log(softmax(logits.double().numpy()))
    expected = []
    for value, log_prob in zip(x[:, 0].double().numpy(), log_probs):
        target = np.clip(np.sign(value) * np.log1p(abs(value)), -20, 20)
        weights = np.maximum(0.0, 1.0 - abs(bins - target) / (bins[1] - bins[0]))  # a tent around the target
        assert abs(weights.sum() - 1) < 1e-9
        expected.append((weights * log_prob).sum())
    np.testing.assert_allclose(dists.TwoHot(logits, "symlog_disc").log_prob(x), expected, rtol=1e-4)


def test_two_hot_target_is_predicted_back():
    for value in (-120.0, 0.0, 0.3, 7.0):
        target = math.copysign(math.log1p(abs(value)), value)
        position = (target + 20) / 40 * 254
        probs = torch.full((255,), 1e-12)
        probs[math.floor(position)] += 1 - position % 1
        probs[min(math.floor(position) + 1, 254)] += position % 1
        assert dists.TwoHot(probs.log(), "symlog_disc").mode.item() == pytest.approx(value, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("probability, value, read", [(0.1, 2.0, 0.1161), (0.5, 100.0, 9.0499), (0.5, -100.0, -9.0499), (1.0, 2.0, 2.0)])
def test_an_uncertain_scalar_reads_as_less_than_its_expectation(probability, value, read):
    # The expectation is formed in symlog space, where x is ln(1 + |x|): 2 with probability 0.1 and else 0 reads as 3^0.1 - 1.
    assert math.copysign((1.0 + abs(value)) ** probability - 1.0, value) == pytest.approx(read, abs=1e-4)
    bins = torch.linspace(-20, 20, 255, dtype=torch.float64)
    tent = lambda x: (1.0 - (bins - math.copysign(math.log1p(abs(x)), x)).abs() / (bins[1] - bins[0])).clamp(min=0.0)
    probs = probability * tent(value) + (1.0 - probability) * tent(0.0)
    dist = dists.TwoHot(probs.clamp(min=1e-30).log().float(), "symlog_disc")
    assert dist.mean.item() == dist.mode.item() == pytest.approx(read, rel=1e-3)


def test_actions_are_pulled_back_onto_their_bounds_and_keep_their_gradients_direction():
    action = torch.tensor([[3.0, -0.5, -2.0], [1.0, 0.0, -1.0]], requires_grad=True)
    bounded = dists.bounded(action)
    assert bounded.tolist() == [[1.0, -0.5, -1.0], [1.0, 0.0, -1.0]]
    (gradient,) = torch.autograd.grad(bounded.sum(), action)
    np.testing.assert_allclose(gradient, [[1 / 3, 1.0, 0.5], [1.0, 1.0, 1.0]], rtol=1e-6)


def test_normal_agrees_with_torch():
    mean, std = torch.randn(6, 3), torch.rand(6, 3) + 0.1
    x = torch.randn(6, 3)
    other = torch.distributions.Normal(torch.zeros(6, 3), 2.0)
    theirs = torch.distributions.Normal(mean, std)
    ours = dists.Normal(mean, std)
    np.testing.assert_allclose(ours.log_prob(x), theirs.log_prob(x).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy().sum(-1), rtol=1e-4)
    expected = torch.distributions.kl_divergence(theirs, other).sum(-1)
    np.testing.assert_allclose(ours.kl(dists.Normal(torch.zeros(6, 3), 2.0)), expected, rtol=1e-4)
    noise = torch.randn(6, 3)
    torch.testing.assert_close(ours.sample(noise), mean + std * noise)


def test_bernoulli_agrees_with_torch():
    logits, x = torch.randn(9, 1) * 5, torch.rand(9, 1).round()
    theirs = torch.distributions.Bernoulli(logits=logits)
    np.testing.assert_allclose(dists.Bernoulli(logits).log_prob(x), theirs.log_prob(x)[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dists.Bernoulli(logits).entropy(), theirs.entropy()[:, 0], rtol=1e-4, atol=1e-6)


def test_squared_error_is_summed_over_the_event_and_squashed_on_demand():
    x, mode = torch.randn(2, 3, 4, 5, 1) * 10, torch.randn(2, 3, 4, 5, 1)
    np.testing.assert_allclose(dists.MSE(mode, 3).log_prob(x), -((x - mode) ** 2).sum((-1, -2, -3)), rtol=1e-5)
    squashed = x.sign() * (1 + x.abs()).log()
    np.testing.assert_allclose(dists.MSE(mode, 3, squash=True).log_prob(x), -((squashed - mode) ** 2).sum((-1, -2, -3)), rtol=1e-4)
    np.testing.assert_allclose(dists.MSE(dists.symlog(x), 3, squash=True).mode, x, rtol=1e-4)


def test_joint_is_the_product_of_its_parts():
    a, b = dists.OneHot(torch.randn(4, 3)), dists.OneHot(torch.randn(4, 2, 5), event_dims=2)
    joint = dists.Joint([a, b])
    sample = joint.sample()
    assert sample.shape == (4, 13)
    expected = a.log_prob(sample[:, :3]) + b.log_prob(sample[:, 3:].reshape(4, 2, 5))
    np.testing.assert_allclose(joint.log_prob(sample), expected, rtol=1e-5)
    np.testing.assert_allclose(joint.entropy(), a.entropy() + b.entropy(), rtol=1e-5)


@pytest.mark.parametrize(
    "dist",
    [
        dists.OneHot(torch.randn(2, 3, 4)),
        dists.Normal(torch.randn(2, 3, 4), 1.0),
        dists.MSE(torch.randn(2, 3, 4)),
        dists.MSE(torch.randn(2, 3, 4), squash=True),
        dists.Bernoulli(torch.randn(2, 3, 4)),
        dists.TwoHot(torch.randn(2, 3, 255), "symlog_disc"),
        dists.Joint([dists.OneHot(torch.randn(2, 3, 4)), dists.OneHot(torch.randn(2, 3, 2))]),
    ],
    ids=lambda dist: type(dist).__name__,
)
def test_every_distribution_answers_the_same_calls(dist):
    event = dist.mode.shape[2:]
    assert dist.mean.shape == dist.mode.shape == dist.sample().shape == (2, 3, *event)
    assert dist.log_prob(dist.sample()).shape == dist.entropy().shape == (2, 3)


def test_values_of_another_shape_are_refused_rather_than_broadcast():
    for dist in (
        dists.OneHot(torch.randn(4, 3)),
        dists.MSE(torch.randn(4, 1)),
        dists.Bernoulli(torch.randn(4, 1)),
        dists.TwoHot(torch.randn(4, 255), "symlog_disc"),
        dists.Normal(torch.randn(4, 1), 1.0),
    ):
        with pytest.raises(AssertionError):
            dist.log_prob(torch.zeros(4))


def test_scalar_predictions_stay_float32_where_products_are_bfloat16():
    logits = torch.randn(50, 255) * 3
    expected = dists.TwoHot(logits.double().float(), "symlog_disc").mean
    with torch.autocast("cpu", torch.bfloat16):
        actual = dists.TwoHot(logits, "symlog_disc").mean
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    probs = torch.softmax(logits.double(), -1)
    in_symlog = (probs * torch.linspace(-20, 20, 255, dtype=torch.float64)).sum(-1, keepdim=True)
    torch.testing.assert_close(actual.double(), in_symlog.sign() * in_symlog.abs().expm1(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda x: dists.OneHot(x, 0.01), dists.OneHot], ids=["mixed", "plain"])
def test_log_probabilities_keep_their_gradient_whoever_asked_first(make):
    logits = torch.randn(3, 5, requires_grad=True)
    dist = make(logits)
    with torch.no_grad():
        dist.entropy()
    dist.log_prob(torch.eye(5)[:3]).sum().backward()
    assert logits.grad.abs().sum() > 0


# Over examples that are searched for, against float64

LOGITS = st.floats(-15, 15, width=32)
VALUES = st.floats(-1e4, 1e4, width=32)


def grids(elements, shape=st.tuples(st.integers(1, 3), st.integers(2, 6))):
    """Arrays of float32, (N, K)."""
    return shape.flatmap(lambda shape: arrays(np.float32, shape, elements=elements))


@st.composite
def pairs(draw, elements=LOGITS) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays (N, K) of one shape."""
    first = draw(grids(elements))
    return first, draw(arrays(np.float32, first.shape, elements=elements))


def mixed(logits: np.ndarray, unimix: float) -> np.ndarray:
    return (1 - unimix) * softmax(logits.astype(np.float64)) + unimix / logits.shape[-1]


EXAMPLES = settings(max_examples=60, deadline=None)
UNIMIX = st.sampled_from([0.0, 0.01, 0.3])


@EXAMPLES
@given(grids(LOGITS), UNIMIX)
def test_categoricals_are_normalised_and_have_their_log_probabilities_mode_and_entropy(logits, unimix):
    dist, p = dists.OneHot(torch.tensor(logits), unimix), mixed(logits, unimix)
    np.testing.assert_allclose(dist.probs.sum(-1), 1.0, rtol=1e-5)
    each = torch.eye(logits.shape[-1])[:, None].expand(-1, len(logits), -1)  # (K, N, K)
    for k, onehot in enumerate(each):
        np.testing.assert_allclose(dist.log_prob(onehot), np.log(p[:, k]), rtol=1e-4, atol=1e-5)
    mode = dist.mode.numpy()
    assert (mode.sum(-1) == 1).all() and ((mode == 0) | (mode == 1)).all()
    np.testing.assert_allclose((mode * p).sum(-1), p.max(-1), rtol=1e-5)
    entropy = dist.entropy().numpy()
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(-1), rtol=1e-4, atol=1e-5)
    assert (entropy >= -1e-6).all() and (entropy <= np.log(logits.shape[-1]) + 1e-5).all()


@EXAMPLES
@given(pairs(), UNIMIX)
def test_kl_of_categoricals_is_that_of_float64_never_negative_and_nothing_to_itself(both, unimix):
    (a, b), (p, q) = (dists.OneHot(torch.tensor(x), unimix, event_dims=2) for x in both), (mixed(x, unimix) for x in both)
    np.testing.assert_allclose(a.kl(b), (p * np.log(p / q)).sum(), rtol=1e-3, atol=1e-4)
    assert a.kl(b) >= -1e-5 and abs(a.kl(a)) < 1e-6


@EXAMPLES
@given(grids(LOGITS), UNIMIX)
def test_samples_of_evenly_spaced_numbers_have_the_right_frequencies(logits, unimix):
    count, p = 4000, mixed(logits, unimix)
    dist = dists.OneHot(torch.tensor(logits).expand(count, *logits.shape), unimix)
    even = ((torch.arange(count) + 0.5) / count)[:, None].expand(count, len(logits))
    np.testing.assert_allclose(dist.sample(even).mean(0), p, atol=1.5 / count)  # a class has its share of the numbers, to one at each end


@EXAMPLES
@given(pairs(VALUES), st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_gaussians_have_their_log_probabilities_entropy_and_kl(both, std, other_std):
    mean, x = (value.astype(np.float64) for value in both)
    ours, other = dists.Normal(torch.tensor(both[0]), std), dists.Normal(torch.tensor(both[1]), other_std)
    z = (x - mean) / std
    expected = (-0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(ours.log_prob(torch.tensor(both[1])), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ours.entropy(), mean.shape[-1] * (np.log(std) + 0.5 * np.log(2 * np.pi * np.e)), rtol=1e-4, atol=1e-4)
    kl = (np.log(other_std / std) + (std**2 + (mean - x) ** 2) / (2 * other_std**2) - 0.5).sum(-1)
    np.testing.assert_allclose(ours.kl(other), kl, rtol=1e-3, atol=1e-3)
    assert (ours.kl(other) >= -1e-3).all() and (ours.kl(ours) == 0).all()
    assert (ours.log_prob(ours.mode) >= ours.log_prob(torch.tensor(both[1]))).all()


@EXAMPLES
@given(grids(LOGITS))
def test_binary_values_have_their_log_probabilities_mode_and_entropy(logits):
    dist, p = dists.Bernoulli(torch.tensor(logits)), 1 / (1 + np.exp(-logits.astype(np.float64)))
    yes, no = dist.log_prob(torch.ones(logits.shape)), dist.log_prob(torch.zeros(logits.shape))
    np.testing.assert_allclose(yes, np.log(p).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(no, np.log1p(-p).sum(-1), rtol=1e-4, atol=1e-5)
    assert (np.where(dist.mode, p, 1 - p) >= 0.5 - 1e-12).all()
    q = np.clip(1 - p, 1e-300, 1)
    np.testing.assert_allclose(dist.entropy(), -(p * np.log(p) + q * np.log(q)).sum(-1), rtol=1e-3, atol=1e-4)


@EXAMPLES
@given(arrays(np.float32, (2, 255), elements=LOGITS), arrays(np.float32, (2, 1), elements=st.floats(-1e8, 1e8, width=32)))
def test_two_hot_scalars_are_normalised_and_weigh_the_two_nearest_bins(logits, x):
    dist, log_p = dists.TwoHot(torch.tensor(logits), "symlog_disc"), np.log(softmax(logits.astype(np.float64)))
    bins = np.linspace(-20, 20, 255)
    at_bins = [dist.log_prob(torch.full((2, 1), math.copysign(math.expm1(abs(value)), value))).exp() for value in bins]
    np.testing.assert_allclose(torch.stack(at_bins).sum(0), 1.0, rtol=2e-3)  # float32 holds a bin's value to a part of its width
    target = np.sign(x) * np.log1p(np.abs(x.astype(np.float64)))
    weights = np.maximum(0.0, 1.0 - abs(bins - target) / (bins[1] - bins[0]))
    np.testing.assert_allclose(dist.log_prob(torch.tensor(x)), (weights * log_p).sum(-1), rtol=1e-3, atol=1e-3)
    mean = (np.exp(log_p) * bins).sum(-1, keepdims=True)
    np.testing.assert_allclose(dist.mode, np.sign(mean) * np.expm1(np.abs(mean)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(dist.entropy(), -(np.exp(log_p) * log_p).sum(-1), rtol=1e-4, atol=1e-4)


@EXAMPLES
@given(pairs(VALUES), st.booleans())
def test_point_predictions_are_most_likely_where_they_point_and_fall_off_with_the_squared_error(both, squash):
    loc, x = (torch.tensor(value) for value in both)
    loc = dists.symlog(loc) if squash else loc
    dist, wide = dists.MSE(loc, squash=squash), both[1].astype(np.float64)
    error = (np.sign(wide) * np.log1p(np.abs(wide)) if squash else wide) - loc.double().numpy()
    np.testing.assert_allclose(dist.log_prob(x), -(error**2).sum(-1), rtol=1e-3, atol=1e-3)
    assert (dist.log_prob(dist.mode) >= -1e-5).all() and (dist.log_prob(dist.mode) >= dist.log_prob(x) - 1e-5).all()
