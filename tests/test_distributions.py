"""Distributions against closed forms, float64 and brute force."""

import math

import numpy as np
import pytest
import torch

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
    np.testing.assert_allclose(dists.SymlogDisc(logits).log_prob(x), expected, rtol=1e-4)


def test_two_hot_target_is_predicted_back():
    for value in (-120.0, 0.0, 0.3, 7.0):
        target = math.copysign(math.log1p(abs(value)), value)
        position = (target + 20) / 40 * 254
        probs = torch.full((255,), 1e-12)
        probs[math.floor(position)] += 1 - position % 1
        probs[min(math.floor(position) + 1, 254)] += position % 1
        assert dists.SymlogDisc(probs.log()).mode.item() == pytest.approx(value, rel=1e-3, abs=1e-4)


def test_normal_agrees_with_torch_and_bounds_its_samples():
    mean, std = torch.randn(6, 3), torch.rand(6, 3) + 0.1
    x = torch.randn(6, 3)
    other = torch.distributions.Normal(torch.zeros(6, 3), 2.0)
    theirs = torch.distributions.Normal(mean, std)
    ours = dists.Normal(mean, std, bound=1.0)
    np.testing.assert_allclose(ours.log_prob(x), theirs.log_prob(x).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy().sum(-1), rtol=1e-4)
    expected = torch.distributions.kl_divergence(theirs, other).sum(-1)
    np.testing.assert_allclose(ours.kl(dists.Normal(torch.zeros(6, 3), 2.0)), expected, rtol=1e-4)
    assert dists.Normal(mean * 10, std, bound=1.0).sample().abs().max() <= 1.0 + 1e-6


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
        dists.SymlogDisc(torch.randn(2, 3, 255)),
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
        dists.SymlogDisc(torch.randn(4, 255)),
        dists.Normal(torch.randn(4, 1), 1.0),
    ):
        with pytest.raises(AssertionError):
            dist.log_prob(torch.zeros(4))


def test_scalar_predictions_stay_float32_where_products_are_bfloat16():
    logits = torch.randn(50, 255) * 3
    expected = dists.SymlogDisc(logits.double().float()).mean
    with torch.autocast("cpu", torch.bfloat16):
        actual = dists.SymlogDisc(logits).mean
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
