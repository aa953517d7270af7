"""The parts of the 2025 generation compute their formulas: checked in float64, by plain loops, and by PyTorch's own slower operations."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import encoders
import layers
from distributions import TwoHot
from optim import LaProp, clipping_groups

SYMLOG_BINS = np.linspace(-20.0, 20.0, 255)
BINS = np.sign(SYMLOG_BINS) * np.expm1(np.abs(SYMLOG_BINS))


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def close(found: torch.Tensor, expected, share: float = 1e-6) -> None:
    """Checks that tensors differ by at most a share of the largest expected number."""
    expected = expected.detach().numpy() if torch.is_tensor(expected) else np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=share * max(np.abs(expected).max(), 1e-30))


def gradients(function, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of a weighted sum of a function's output."""
    out = function(*tensors)
    weights = torch.linspace(-1.0, 1.0, out.numel()).view(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), tensors))


# Two-hot


def around_zero(seed: int) -> np.ndarray:
    """Logits (4, 255) of trained heads: bells around some bins, and next to nothing in the far bins."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-3.0, 3.0, (4, 1))
    return (rng.normal(size=(4, 255)) - 2.0 * np.abs(SYMLOG_BINS - centre)).clip(-40.0, None).astype(np.float32)


def test_two_hot_predicts_the_expectation_in_raw_space():
    logits = around_zero(0)
    expected = (softmax(logits.astype(np.float64)) * BINS).sum(-1, keepdims=True)
    np.testing.assert_allclose(TwoHot(torch.tensor(logits), "symexp_twohot").mean, expected, rtol=1e-4)


def test_symmetric_two_hot_logits_predict_exactly_zero():
    half = np.random.default_rng(0).normal(size=(3, 127)).astype(np.float32)
    logits = np.concatenate([half, np.ones((3, 1), np.float32), half[:, ::-1]], -1)
    assert (TwoHot(torch.tensor(logits), "symexp_twohot").mean == 0.0).all()


@pytest.mark.parametrize("target", [0.0, 0.01, -0.5, 1.0, -7.3, 333.0, -1.2e4, 5e8, -1e12])
def test_two_hot_targets_are_weighted_linearly_between_raw_bins(target):
    logits = around_zero(1)
    above = int(np.clip(np.searchsorted(BINS, target), 1, 254))
    weight = np.clip((target - BINS[above - 1]) / (BINS[above] - BINS[above - 1]), 0.0, 1.0)
    log_probs = np.log(softmax(logits.astype(np.float64)))
    expected = (1.0 - weight) * log_probs[:, above - 1] + weight * log_probs[:, above]
    found = TwoHot(torch.tensor(logits), "symexp_twohot").log_prob(torch.full((4, 1), target))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_every_bin_is_its_own_target():
    dist = TwoHot(torch.zeros(1, 255), "symexp_twohot")
    bins = dist._bins()
    close(bins, BINS, share=1e-6)
    assert (bins == -bins.flip(0)).all()
    logits = torch.arange(255.0).expand(255, 255)
    found = TwoHot(logits, "symexp_twohot").log_prob(bins[:, None])
    close(found, torch.log_softmax(logits[0], -1))


# Norm and block layers


def test_rms_norm_divides_by_the_root_mean_square_and_has_no_mean_or_bias():
    torch.manual_seed(0)
    x, weight, eps = torch.randn(5, 7) * torch.logspace(-3, 3, 5)[:, None], torch.randn(7), 1e-4
    norm = layers.Style(norm="rms").norms(7)[0]
    norm.weight.data.copy_(weight)
    assert [name for name, _ in norm.named_parameters()] == ["weight"] and norm.eps == eps

    def formula(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    close(norm(x), formula(x64, weight64))
    x.requires_grad_()
    expected = gradients(lambda *tensors: formula(*tensors).float(), x64, weight64)
    found = gradients(lambda x, _: norm(x), x, norm.weight)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, share=1e-5)


def loop_over_blocks(layer: layers.BlockLinear, x: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
    """A block layer as independent dense layers, one for each block."""
    parts = []
    for index, own in enumerate(x.chunk(layer.blocks, -1)):
        rows = slice(index * layer.out_features // layer.blocks, (index + 1) * layer.out_features // layer.blocks)
        seen = own if shared is None else torch.cat([own, shared], -1)
        parts.append(F.linear(seen, layer.weight[rows], layer.bias[rows]))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("shared", [0, 5])
def test_a_block_layer_is_a_loop_over_its_blocks_in_a_recurrence_too(shared):
    torch.manual_seed(0)
    layer = layers.BlockLinear(12, 12, 3, shared)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x, more = torch.randn(4, 12, requires_grad=True), torch.randn(4, shared, requires_grad=True) if shared else None
    tensors = [x, layer.weight, layer.bias, *([more] if shared else [])]

    def recurrence(step):
        y = x
        for _ in range(3):
            y = torch.tanh(step(y))
        return y

    def ours(*_):
        with layers.weight_gradients_once():
            return recurrence(lambda y: layer(y, more))

    def loop(*_):
        return recurrence(lambda y: loop_over_blocks(layer, y, more))

    close(layer(x, more), loop_over_blocks(layer, x, more))
    close(ours(), loop())
    for found, expected in zip(gradients(ours, *tensors), gradients(loop, *tensors), strict=True):
        close(found, expected, share=1e-5)


def test_the_gates_of_a_block_gru_are_split_within_each_block():
    torch.manual_seed(0)
    cell = layers.BlockGRUCell(5, 12, 4, 3, layers.Style(norm="rms"))
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter)
    x, deter = torch.randn(2, 5), torch.randn(2, 12)
    first = cell.deter_layer(deter)
    hidden = F.silu(cell.hidden_norm(loop_over_blocks(cell.hidden, deter, torch.cat([first, x], -1))))
    new = []
    for index, own in enumerate(hidden.chunk(3, -1)):
        rows = slice(12 * index, 12 * (index + 1))
        reset, candidate, update = F.linear(own, cell.gates.weight[rows], cell.gates.bias[rows]).chunk(3, -1)
        update, candidate = torch.sigmoid(update - 1.0), torch.tanh(torch.sigmoid(reset) * candidate)
        new.append(update * candidate + (1.0 - update) * deter.chunk(3, -1)[index])
    close(cell(x, deter), torch.cat(new, -1))


@pytest.mark.parametrize("layer, fan_in", [(layers.Linear(64, 500), 64), (layers.BlockLinear(64, 4000, 8, 32), 96)])
def test_kernels_begin_with_the_variance_of_one_over_all_their_inputs(layer, fan_in):
    torch.manual_seed(0)
    layers.Style(norm="rms").init_hidden(layer)
    assert layer.weight.std().item() == pytest.approx(1.0 / math.sqrt(fan_in), rel=0.03)
    assert layer.weight.abs().max().item() <= 2.001 * 1.1368 / math.sqrt(fan_in) and not layer.bias.any()


@pytest.mark.parametrize("scale", [1.0, 0.01, 0.0])
def test_output_kernels_are_hidden_ones_times_their_scale(scale):
    torch.manual_seed(0)
    layer = layers.Linear(64, 500)
    layers.Style(norm="rms").init_output(layer, scale)
    assert layer.weight.std().item() == pytest.approx(scale / 8.0, rel=0.03) and not layer.bias.any()


# Images


def test_max_pooling_takes_the_largest_of_each_square():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 3, requires_grad=True)

    def torchs(x):
        return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)

    close(encoders.MaxPool.apply(x), torchs(x))
    close(gradients(encoders.MaxPool.apply, x)[0], gradients(torchs, x)[0])


def test_equal_largest_values_share_the_gradient_equally():
    squares = [[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, 1.0], [3.0, 3.0, 3.0, -1.0], [4.0, 4.0, 4.0, 4.0]]
    shares = [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0], [0.25, 0.25, 0.25, 0.25]]
    x = torch.tensor(squares).view(4, 2, 2, 1).requires_grad_()
    (found,) = torch.autograd.grad(encoders.MaxPool.apply(x).sum(), x)
    close(found, np.array(shares).reshape(4, 2, 2, 1))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_upsampling_is_repeating_pixels_and_convolving(kernel):
    torch.manual_seed(0)
    layer = encoders.Upsample(3, 2, kernel).double()
    x = torch.randn(2, 5, 4, 3, requires_grad=True, dtype=torch.float64)

    def repeated(x, weight, bias):
        large = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return F.conv2d(large.permute(0, 3, 1, 2), weight, bias, padding=kernel // 2).permute(0, 2, 3, 1)

    tensors = (x, layer.weight, layer.bias)
    close(layer(x), repeated(*tensors), share=1e-12)
    for found, expected in zip(gradients(lambda x, *_: layer(x), *tensors), gradients(repeated, *tensors), strict=True):
        close(found, expected, share=1e-12)


# Optimizer


def test_each_gradient_is_clipped_at_a_share_of_its_own_tensors_norm():
    tensors = {  # tensor, gradient, clipped gradient with a share of 0.5
        "large": ([3.0, 4.0], [30.0, 40.0], [1.5, 2.0]),  # norms 5 and 50: to 2.5
        "small": ([3.0, 4.0], [0.3, 0.4], [0.3, 0.4]),  # norm 0.5 is below 2.5
        "zero": ([0.0, 0.0], [0.0, 2.0], [0.0, 0.0005]),  # a tensor's norm counts as at least 0.001
        "still": ([1.0, 1.0], [0.0, 0.0], [0.0, 0.0]),
    }
    params = [torch.tensor(tensor, requires_grad=True) for tensor, _, _ in tensors.values()]
    for param, (_, grad, _) in zip(params, tensors.values()):
        param.grad = torch.tensor(grad)
    LaProp(params, lr=1.0, eps=1e-20, agc=0.5).clip(clipping_groups(params, []))
    for param, (_, _, clipped) in zip(params, tensors.values()):
        np.testing.assert_allclose(param.grad, clipped, rtol=1e-5)


def test_tensors_of_a_group_are_clipped_as_one():
    params = [torch.tensor([value], requires_grad=True) for value in (3.0, 1.0, 4.0)]
    for param, grad in zip(params, (30.0, 100.0, 40.0)):
        param.grad = torch.tensor([grad])
    LaProp(params, lr=1.0, eps=1e-20, agc=0.5).clip(clipping_groups(params, [[params[0], params[2]]]))
    np.testing.assert_allclose(torch.cat([param.grad for param in params]), [1.5, 0.5, 2.0], rtol=1e-5)


def test_laprop_steps_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    lr, eps, warmup, decay, start = 0.01, 1e-20, 4, 0.1, rng.normal(size=3)
    param = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    optimizer = LaProp([param], lr=lr, eps=eps, warmup=warmup, weight_decay=decay)
    weights, nu, mu = start.copy(), np.zeros(3), np.zeros(3)
    for count in range(8):
        grad = rng.normal(size=3) * [1.0, 1e-3, 0.0]  # the last number never gets a gradient
        nu = 0.999 * nu + 0.001 * grad**2
        mu = 0.9 * mu + 0.1 * grad / (np.sqrt(nu / (1.0 - 0.999 ** (count + 1))) + eps)
        rate = lr * min(1.0, count / warmup)
        weights = weights * (1.0 - rate * decay) - rate * mu / (1.0 - 0.9 ** (count + 1))
        param.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
        np.testing.assert_allclose(param.detach(), weights, rtol=0, atol=1e-6)
        if count == 0:
            np.testing.assert_array_equal(param.detach(), start.astype(np.float32))  # the first rate is 0
    state = optimizer.state[param]
    np.testing.assert_allclose(state["exp_avg"], mu, rtol=1e-4)
    np.testing.assert_allclose(state["exp_avg_sq"], nu, rtol=1e-4)
    assert state["step"] == 8 and not torch.equal(param.detach(), torch.tensor(start, dtype=torch.float32))


def test_a_skipped_laprop_step_changes_nothing():
    param = torch.tensor([1.0, 2.0], requires_grad=True)
    optimizer = LaProp([param], lr=0.1, eps=1e-20)
    param.grad = torch.tensor([0.5, -0.5])
    optimizer.step()
    before = copy.deepcopy((param.detach(), optimizer.state_dict()["state"]))
    param.grad = torch.tensor([math.nan, math.inf])
    optimizer.step(skip=torch.tensor(1.0))
    after = param.detach(), optimizer.state_dict()["state"]
    assert torch.equal(before[0], after[0]) and all(torch.equal(before[1][0][key], after[1][0][key]) for key in before[1][0])
