"""What is written for speed equals the plain formulas, values and gradients."""

import contextlib
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

import layers
import networks
import tools
from dreamer import Dreamer
from networks import RSSM, HierarchicalRSSM

SIZES = dict(deter=24, hidden=20, num_actions=3, embed=7)
EPS = 2.0**-24  # the largest relative error of rounding to float32


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 1e-5) -> None:
    """Within this share of each tensor's own norm."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (actual[name] - gradient).norm() < share * gradient.norm(), name


# Products


@pytest.fixture(params=[False, True], ids=["PyTorch", "oneDNN"])
def onednn(request, monkeypatch) -> bool:
    """Both libraries in turn, whichever is faster here; whether it is oneDNN."""
    monkeypatch.setattr(layers, "_onednn", request.param)
    return request.param


def inputs_of(form: str, lead: tuple[int, ...], size: int) -> torch.Tensor:
    """Random numbers (*lead, size) in a layout."""
    if form == "contiguous":
        return torch.randn(*lead, size)
    elif form == "transposed":  # time before batch
        return torch.randn(size, *reversed(lead)).permute(*reversed(range(len(lead) + 1)))
    elif form == "every second":
        return torch.randn(*lead, 2 * size)[..., ::2]
    elif form == "expanded":
        return torch.randn(*lead[:-1], 1, size).expand(*lead, size)
    raise ValueError(form)


LEADS = [(256,), (272,), (257,), (16, 64), (64, 16), (15, 16), (4, 8, 32), (3,), (1, 1)]


@pytest.mark.parametrize("form", ["contiguous", "transposed", "every second", "expanded"])
@pytest.mark.parametrize("lead", LEADS, ids=str)
def test_products_and_their_gradients_are_those_of_float64(form, lead, onednn):
    for size, out, with_bias in ((1, 1, True), (7, 13, True), (33, 1, False), (1, 6, True), (48, 31, False), (64, 64, True)):
        x = inputs_of(form, lead, size).requires_grad_()
        wide = torch.randn(out, size + 5, requires_grad=True)  # its columns are the weight, as of the layer that reads deter and embed
        bias = torch.randn(out, requires_grad=True) if with_bias else None
        upstream = inputs_of(form, lead, out)
        y = layers.linear(x, wide[:, 5:], bias)
        y.backward(upstream)
        assert y.shape == (*lead, out) and y.dtype == torch.float32
        rows, weight, slope = (value.detach().double().reshape(-1, value.shape[-1]) for value in (x, wide[:, 5:], upstream))
        shift = torch.zeros(out, dtype=torch.float64) if bias is None else bias.detach().double()
        # A float32 sum of n products differs by at most n roundings of the sum of magnitudes, in whatever order it is formed.
        cases = {
            "value": (y, rows @ weight.T + shift, rows.abs() @ weight.abs().T + shift.abs(), size + 1),
            "x": (x.grad, slope @ weight, slope.abs() @ weight.abs(), out),
            "weight": (wide.grad[:, 5:], slope.T @ rows, slope.T.abs() @ rows.abs(), len(rows)),
        }
        if with_bias:
            cases["bias"] = (bias.grad, slope.sum(0), slope.abs().sum(0), len(rows))
        for name, (actual, exact, magnitude, count) in cases.items():
            error = (actual.detach().double().reshape(exact.shape) - exact).abs()
            assert (error <= 1.01 * count * EPS * magnitude).all(), (name, size, out)
        assert not wide.grad[:, :5].any()


@pytest.mark.parametrize(
    "lead, dtype, takes",
    [
        ((256,), torch.float32, True),
        ((16, 64), torch.float32, True),
        ((17, 16), torch.float32, True),
        ((240,), torch.float32, False),
        ((257,), torch.float32, False),
        ((2, 129), torch.float32, False),
        ((256,), torch.float64, False),
        ((256,), torch.bfloat16, False),  # by autocast
    ],
)
def test_onednn_forms_large_float32_products_alone(lead, dtype, takes, monkeypatch):
    taken = []
    onednn_linear = layers._onednn_linear
    monkeypatch.setattr(layers, "_onednn", True)
    monkeypatch.setattr(layers, "_onednn_linear", lambda *args: taken.append(1) or onednn_linear(*args))
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight, bias = torch.randn(*lead, 7, dtype=kept), torch.randn(5, 7, dtype=kept), torch.randn(5, dtype=kept)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, plain = layers.linear(x, weight, bias), F.linear(x, weight, bias)
    assert bool(taken) == takes and y.dtype == dtype
    if takes:
        torch.testing.assert_close(y, plain)
    else:
        assert torch.equal(y, plain)


@pytest.mark.parametrize(
    "seconds, deterministic, takes", [(0.5, False, True), (0.9, False, False), (2.0, False, False), (0.5, True, False)]
)
def test_the_library_that_is_clearly_faster_is_taken_unless_operations_must_repeat(seconds, deterministic, takes, monkeypatch):
    now = [0.0]

    def slow(duration):
        def product(x, weight, bias):
            now[0] += duration

        return product

    monkeypatch.setattr(layers, "_onednn", None)
    monkeypatch.setattr(layers.F, "linear", slow(1.0))
    monkeypatch.setattr(layers, "_onednn_linear", slow(seconds))
    monkeypatch.setattr(layers.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    monkeypatch.setattr(layers, "_onednn_is_faster", layers._onednn_is_faster.__wrapped__)  # nothing is remembered
    layers.choose_library()
    assert layers._onednn == takes


def test_the_libraries_are_timed_on_the_cpu_wherever_the_first_agent_is_built(monkeypatch):
    devices = set()
    onednn_linear = layers._onednn_linear
    monkeypatch.setattr(layers, "_onednn", None)
    monkeypatch.setattr(layers, "_onednn_linear", lambda x, *rest: devices.add(x.device.type) or onednn_linear(x, *rest))
    monkeypatch.setattr(layers, "_onednn_is_faster", layers._onednn_is_faster.__wrapped__)
    with torch.device("meta"):  # as `load_agent` does, which first builds one without weights
        layers.choose_library()
    assert devices == {"cpu"}


# Weight gradients of a recurrence


PARTS = ("wide", "bias", "out", "share")


def recurrence_inputs(steps: int = 5, batch: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The state (B, 4) before the first step, and what gradients are formed for."""
    shapes = dict(zip(PARTS, [(4, 6), (4,), (2, 4), (steps, batch, 4)]))
    values = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    return torch.randn(batch, 4, dtype=torch.float64), values


def by_linear(start: torch.Tensor, wide: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Steps that use a part of a weight twice, once with a bias, the whole of it too, and another weight once."""
    h, total, part = start, 0.0, wide[:, :4]
    with layers.weight_gradients_once():
        for t in range(len(share)):
            h = torch.tanh(layers.linear(h, part, bias) + share[t])
            h = torch.tanh(layers.linear(torch.cat([h, share[t, :, :2]], -1), wide))
            h = torch.tanh(layers.linear(h, part))
            total = total + layers.linear(h, out).square().sum()
    return total


def plainly(start: torch.Tensor, wide: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The same with PyTorch's own operations."""
    h, total = start, 0.0
    for t in range(len(share)):
        h = torch.tanh(h @ wide[:, :4].T + bias + share[t])
        h = torch.tanh(torch.cat([h, share[t, :, :2]], -1) @ wide.T)
        h = torch.tanh(h @ wide[:, :4].T)
        total = total + (h @ out.T).square().sum()
    return total


def test_weight_gradients_formed_once_are_those_of_all_steps():
    start, parts = recurrence_inputs()
    results = []
    for function in (by_linear, plainly):
        value = function(start, **parts)
        results.append((value, *torch.autograd.grad(value, list(parts.values()))))
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_weight_gradients_formed_once_are_the_slopes_of_the_value():
    start, parts = recurrence_inputs()
    assert torch.autograd.gradcheck(lambda start, *values: by_linear(start, *values), (start.requires_grad_(), *parts.values()))


class Products(TorchDispatchMode):
    """Counts the products of matrices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("mm", "addmm", "bmm")
        return function(*args, **(kwargs or {}))


def test_each_weight_gets_its_gradient_by_one_product():
    start, parts = recurrence_inputs(steps=5)
    start.requires_grad_()  # so that every product has a gradient for its input
    counts = []
    for function in (by_linear, plainly):
        value = function(start, **parts)
        with Products() as products:
            value.backward()
        counts.append(products.count)
    assert counts[1] - counts[0] == 4 * 5 - 4  # four products in each of five steps, three weights, one with a bias and without


def test_two_backward_passes_through_one_graph_give_the_gradient_twice():
    start, parts = recurrence_inputs()
    expected = torch.autograd.grad(plainly(start, **parts), list(parts.values()))
    value = by_linear(start, **parts)
    for passes in (1, 2):
        value.backward(retain_graph=True)
        for actual, gradient in zip(parts.values(), expected):
            torch.testing.assert_close(actual.grad, passes * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "first, second", [("out", "wide"), ("wide", "wide"), ("share", "bias"), ("wide", "out"), ("share", "wide"), ("bias", "out")]
)
def test_a_backward_pass_for_some_tensors_has_their_gradients_alone(first, second):
    start, parts = recurrence_inputs()
    expected = dict(zip(PARTS, torch.autograd.grad(plainly(start, **parts), list(parts.values()))))
    value = by_linear(start, **parts)
    for name in (first, second):
        for part in parts.values():
            part.grad = None
        value.backward(inputs=[parts[name]], retain_graph=True)
        torch.testing.assert_close(parts[name].grad, expected[name], rtol=1e-12, atol=1e-12)
        assert all(part.grad is None for other, part in parts.items() if other != name)


def test_weight_gradients_of_bfloat16_products_add_up_in_float32():
    # The same step 1024 times, so the sum is known. A bfloat16 sum has 8 digits: a small term beside a large sum changes nothing.
    steps, x, upstream = 1024, torch.randn(4, 24).bfloat16().float(), torch.randn(4, 16).bfloat16().float()
    weight = torch.randn(16, 24, requires_grad=True)
    exact = steps * upstream.double().T @ x.double()
    errors = []
    for context in (layers.weight_gradients_once(), contextlib.nullcontext()):
        with torch.autocast("cpu", torch.bfloat16), context:
            value = sum((layers.linear(x, weight).float() * upstream).sum() for _ in range(steps))
        (gradient,) = torch.autograd.grad(value, weight)
        assert gradient.dtype == torch.float32
        errors.append(((gradient.double() - exact).norm() / exact.norm()).item())
    assert errors[0] < 2.0**-8  # the result is rounded to bfloat16 once
    assert errors[1] > 0.3


def test_products_without_a_gradient_take_no_part():
    weight, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    with layers.weight_gradients_once():
        with torch.no_grad():
            constant = layers.linear(x, weight)
        y = layers.linear(2.0 * x, weight)
    assert not constant.requires_grad
    (gradient,) = torch.autograd.grad((constant * y).sum(), weight)
    torch.testing.assert_close(gradient, constant.T @ (2.0 * x))


def test_a_recurrence_that_raises_leaves_nothing_behind():
    weight, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), layers.weight_gradients_once():
        layers.linear(x, weight)
        layers.linear(x[:, :3], weight)
    assert layers._active.weights is None
    y = layers.linear(x, weight)
    assert type(y.grad_fn) is type(F.linear(x, weight).grad_fn)
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(gradient, x.sum(0).expand(3, 4))


def test_a_recurrence_of_another_thread_takes_no_part():
    """Of two that overlap, each has its own state, and none is left when both have ended."""
    weight, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    inside, outside = threading.Event(), threading.Event()

    def other() -> None:
        with layers.weight_gradients_once():
            inside.set()
            outside.wait(60.0)

    with layers.weight_gradients_once():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(60.0)
        y = layers.linear(x, weight)
        assert "_StepProduct" in type(y.grad_fn).__name__
    plain = layers.linear(x, weight)  # while the other one goes on
    outside.set()
    thread.join()
    assert type(plain.grad_fn) is type(layers.linear(x, weight).grad_fn) is type(F.linear(x, weight).grad_fn)
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(gradient, x.sum(0).expand(3, 4))


# The recurrence


KINDS = {
    "flat": dict(stoch=4, discrete=5),
    "deep": dict(stoch=4, discrete=5, rec_depth=2),
    "gaussian": dict(stoch=4, discrete=0),
    "hierarchical": dict(stoch_top=2, discrete_top=3, stoch_bottom=4, discrete_bottom=5),
}
NEW = dict(core="block_gru", blocks=3, img_layers=2, obs_layers=2, style=layers.Style(norm="rms"), initial="zeros")  # as in 2025
KINDS |= {f"{kind} 2025": {**settings, **NEW} for kind, settings in KINDS.items()}


def make(kind: str, **changes) -> RSSM:
    return (HierarchicalRSSM if kind.startswith("hierarchical") else RSSM)(**{**KINDS[kind], **SIZES, **changes})


def plain_gru(cell: layers.GRUCell, x: torch.Tensor, deter: torch.Tensor) -> torch.Tensor:
    """A step of the recurrent core, written out."""
    if isinstance(cell, layers.BlockGRUCell):
        reset, candidate, update = plain_block_gates(cell, x, deter)
    else:
        linear, norm = cell.layers
        gates = F.layer_norm(torch.cat([x, deter], -1) @ linear.weight.T, norm.normalized_shape, norm.weight, norm.bias, 1e-3)
        reset, candidate, update = gates.chunk(3, -1)
    update = torch.sigmoid(update - 1.0)
    return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1.0 - update) * deter


def plain_block_gates(cell: layers.BlockGRUCell, x: torch.Tensor, deter: torch.Tensor) -> list[torch.Tensor]:
    """The gates of a block GRU, one block after the other."""
    linear, norm = cell.deter_layer[0], cell.deter_layer[1]
    shared = torch.cat([F.silu(plain_rms(deter @ linear.weight.T + linear.bias, norm)), x], -1)
    hidden = []
    for part, weight, bias in zip(deter.chunk(3, -1), cell.hidden.weight.chunk(3), cell.hidden.bias.chunk(3)):
        hidden.append(torch.cat([part, shared], -1) @ weight.T + bias)
    hidden = F.silu(plain_rms(torch.cat(hidden, -1), cell.hidden_norm))
    rows = zip(hidden.chunk(3, -1), cell.gates.weight.chunk(3), cell.gates.bias.chunk(3))
    parts = [(part @ weight.T + bias).chunk(3, -1) for part, weight, bias in rows]
    return [torch.cat(gate, -1) for gate in zip(*parts)]


def plain_input(rssm: RSSM, stoch: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """What the recurrent core reads: one layer on latents and action (2023), or one on each of them (2025)."""
    block = rssm._img_in_layers
    if isinstance(block, layers.BlockGRUInput):
        return torch.cat([block["stoch"](stoch), block["action"](action)], -1)
    return torch.nn.Sequential(*block)(torch.cat([stoch, action], -1))


def plain_rms(x: torch.Tensor, norm: layers.RMSNorm) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * norm.weight


def plain_observe(rssm: RSSM, embed, action, is_first, noise) -> tuple[list, list, list]:
    """`RSSM.observe` written out with whole products, one step after the other: deters, raw posterior outputs and samples."""

    def draw(logits, uniform):
        probs = 0.99 * torch.softmax(logits, -1) + 0.01 / logits.shape[-1]
        below = (probs.cumsum(-1)[..., :-1] <= uniform.unsqueeze(-1)).sum(-1)
        return F.one_hot(below, logits.shape[-1]).float() + (probs - probs.detach())

    first = rssm.initial(len(embed))
    deter, stoch = first["deter"], rssm.flat_stoch(first)
    deters, outputs, samples = [], [], []
    for t in range(embed.shape[1]):
        reset = is_first[:, t, None] | (t == 0)
        deter, stoch = torch.where(reset, first["deter"], deter), torch.where(reset, rssm.flat_stoch(first), stoch)
        x = plain_input(rssm, stoch, torch.where(reset, 0.0, action[:, t].clamp(-1.0, 1.0)))
        for _ in range(rssm._rec_depth):
            deter = plain_gru(rssm._cell, x, deter)
        x = rssm._obs_out_layers(torch.cat([deter, embed[:, t]], -1))
        if isinstance(rssm, HierarchicalRSSM):
            top = rssm._obs_stat_layer["top"](x)
            z_top = draw(top.unflatten(-1, (2, 3)), noise["top"][:, t]).flatten(-2)
            summary = rssm._top_summary(z_top)
            prior = rssm._imgs_stat_layer["bottom"](rssm._img_out_layers(deter)) + rssm._top_to_prior(summary)
            bottom = (1 + rssm._prior_weight) * prior.detach() + rssm._obs_stat_layer["bottom"](x) + rssm._top_to_post(summary)
            stoch = torch.cat([z_top, draw(bottom.unflatten(-1, (4, 5)), noise["bottom"][:, t]).flatten(-2)], -1)
            out = torch.cat([top, bottom], -1)
        elif rssm.levels["flat"].discrete:
            out = rssm._obs_stat_layer(x)
            stoch = draw(out.unflatten(-1, (4, 5)), noise["flat"][:, t]).flatten(-2)
        else:
            mean, raw = rssm._obs_stat_layer(x).chunk(2, -1)
            std = 2.0 * torch.sigmoid(raw / 2.0) + 0.1
            stoch, out = mean + std * noise["flat"][:, t], torch.cat([mean, std], -1)
        deters.append(deter), outputs.append(out), samples.append(stoch)
    return [torch.stack(parts, 1) for parts in (deters, outputs, samples)]


@pytest.mark.parametrize("kind", list(KINDS))
def test_filtering_equals_the_formulas_written_out_with_all_gradients(kind, monkeypatch):
    torch.manual_seed(0)
    rssm = make(kind)
    with torch.no_grad():
        for parameter in rssm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and what else starts at zero
    batch, time = 6, 9
    embed, action = torch.randn(batch, time, 7, requires_grad=True), 2.0 * torch.randn(batch, time, 3)  # some beyond 1
    is_first = torch.rand(batch, time) < 0.2
    noise = rssm._noise(True, batch, time)
    monkeypatch.setattr(rssm, "_noise", lambda *_: noise)

    def fast():
        post, _ = rssm.observe(embed, action, is_first)
        if "top" in rssm.levels:
            out = torch.cat([post["logit_top"].flatten(2), post["logit_bottom"].flatten(2)], -1)
        else:
            out = torch.cat([post["mean"], post["std"]], -1) if "mean" in post else post["logit"].flatten(2)
        return post["deter"], out, rssm.flat_stoch(post)

    weights, results = None, []
    for values in (fast(), plain_observe(rssm, embed, action, is_first, noise)):
        weights = weights or [torch.randn_like(value) for value in values]
        loss = sum((weight * value).sum() for weight, value in zip(weights, values))
        names, tensors = zip(*[("embed", embed), *rssm.named_parameters()])
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        results.append((values, {name: gradient for name, gradient in zip(names, gradients) if gradient is not None}))
    for actual, expected in zip(results[0][0], results[1][0]):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(results[0][1], results[1][1])


# By kind: products of weights in a step, and those of them that the second application of a deep core adds.
PRODUCTS = {"flat": (4, 0), "deep": (4, 1), "gaussian": (4, 0), "hierarchical": (7, 0)}
# A block GRU reads latents and action apart, all actions at once. It has a layer on deter, and two block layers, of which one is dense
# in a part of its input. The posterior has two hidden layers here.
PRODUCTS |= {"flat 2025": (8, 0), "deep 2025": (8, 4), "gaussian 2025": (8, 0), "hierarchical 2025": (11, 0)}


@pytest.mark.parametrize("kind", list(PRODUCTS))
def test_the_weights_of_the_recurrence_get_their_gradients_once(kind, monkeypatch):
    rssm, (weights, again) = make(kind, initial="learned"), PRODUCTS[kind]
    steps, counts = 5, []
    for context in (networks.weight_gradients_once, contextlib.nullcontext):
        monkeypatch.setattr(networks, "weight_gradients_once", context)
        post = rssm.filter(torch.randn(6, steps, 7), torch.randn(6, steps, 3), torch.zeros(6, steps))
        loss = sum(value.square().sum() for value in post.values())
        with Products() as products:
            loss.backward()
        counts.append(products.count)
    # A step forms a product for latents and action, for the gates (two if deep), for deter, and for each of the posterior's own layers.
    assert counts[1] - counts[0] == (weights + again) * steps - weights


@pytest.mark.parametrize("settings", [{}, NEW], ids=["2023", "2025"])
def test_a_latent_that_uses_a_layer_twice_has_the_gradients_of_both(settings, monkeypatch):
    class Twice(HierarchicalRSSM):
        def level_logits(self, name, above, x_prior, x_post=None):
            return super().level_logits(name, above, x_prior, x_post) + super().level_logits(name, above, x_prior, x_post).tanh()

    rssm = Twice(**KINDS["hierarchical"], **SIZES, **settings)
    embed, action, is_first = torch.randn(6, 4, 7), torch.randn(6, 4, 3), torch.zeros(6, 4)
    results = []
    for context in (networks.weight_gradients_once, contextlib.nullcontext):
        monkeypatch.setattr(networks, "weight_gradients_once", context)
        post = rssm.filter(embed, action, is_first, sample=False)
        loss = sum(value.square().sum() for value in post.values())
        names, parameters = zip(*rssm.named_parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        # What starts at zero has a gradient of zero in what it multiplies.
        results.append({name: gradient for name, gradient in zip(names, gradients) if gradient is not None and gradient.any()})
    assert {f"_obs_stat_layer.{level}.weight" for level in rssm.levels} <= results[0].keys()
    assert_same_gradients(*results)


@pytest.mark.parametrize("kind", ["flat", "hierarchical", "flat 2025", "hierarchical 2025"])
def test_a_step_that_starts_anew_takes_nothing_from_before(kind):
    rssm = make(kind)
    embed, action = torch.randn(2, 3, 7), torch.randn(2, 3, 3)
    broken = {key: torch.full_like(value, torch.nan) for key, value in rssm.initial(2).items()}
    from_broken = rssm.filter(embed, action, torch.tensor([[True, False, False]] * 2), broken, sample=False)
    from_none = rssm.filter(embed, action, None, sample=False)
    for key, value in from_none.items():
        assert torch.equal(from_broken[key], value)


# The whole update


def make_agent_and_batch(
    presets: list[str], act_space: spaces.Space, shape: tuple[int, int] = (3, 5), **settings
) -> tuple[Dreamer, dict[str, np.ndarray]]:
    """A small agent, and a batch of this shape (B, T)."""
    obs_space = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8), "vector": spaces.Box(-9, 9, (4,), np.float32)})
    config = tools.load_config([*presets, "debug"], {"task": "gym_CartPole-v1", "device": "cpu", "precision": "32", **settings})
    torch.manual_seed(0)
    agent = Dreamer(obs_space, act_space, config)
    with torch.no_grad():  # heads that start at zero would hide gradients
        for head in (agent._wm.heads["reward"], agent._task_behavior.value):
            head.mean_layer.weight.normal_(std=0.1)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (*shape, 16, 16, 3), np.uint8),
        "vector": rng.normal(size=(*shape, 4)).astype(np.float32),
        "action": agent.codec.random(rng, shape[0] * shape[1]).reshape(*shape, -1),
        "reward": rng.normal(size=shape).astype(np.float32),
        "is_first": np.zeros(shape, bool),
        "is_last": np.zeros(shape, bool),
        "is_terminal": np.zeros(shape, bool),
    }
    return agent, batch


PRESETS = {"flat": [], "hierarchical": ["hdreamer"]}
PRESETS |= {f"{name} 2025": ["dreamerv3_2025", *presets] for name, presets in PRESETS.items()}
every_preset = pytest.mark.parametrize("presets", PRESETS.values(), ids=PRESETS)
both_actions = pytest.mark.parametrize("act_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=["discrete", "continuous"])


def losses_of(agent: Dreamer, data: dict) -> list[tuple[str, torch.Tensor, torch.nn.Module]]:
    """Every loss that an optimizer descends, with its name and the module that it trains."""
    wm, behavior = agent._wm, agent._task_behavior
    if agent._opt is not None:
        return [("agent", agent.joint_loss(data)[0], torch.nn.ModuleList([wm, behavior.actor, behavior.value]))]
    loss, post, _ = wm.loss(data)
    losses = behavior.losses(wm, networks.detach(post), data["cont"])
    return [("model", loss, wm), ("actor", losses.actor, behavior.actor), ("value", losses.critic, behavior.value)]


@every_preset
@both_actions
def test_an_update_has_the_same_gradients_with_both_libraries(presets, act_space, monkeypatch):
    agent, batch = make_agent_and_batch(presets, act_space, shape=(16, 16))
    found, taken = [], []
    onednn_linear = layers._onednn_linear
    monkeypatch.setattr(layers, "_onednn_linear", lambda *args: taken.append(1) or onednn_linear(*args))
    for onednn in (False, True):
        monkeypatch.setattr(layers, "_onednn", onednn)
        torch.manual_seed(1)
        agent._task_behavior.ema_vals.zero_()
        gradients = {}
        for part, value, module in losses_of(agent, agent._wm.preprocess(batch)):
            names, tensors = zip(*module.named_parameters())
            values = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
            gradients.update({f"{part} {name}": gradient for name, gradient in zip(names, values) if gradient.norm() > 1e-7})
        found.append(gradients)
        assert bool(taken) == onednn
    assert_same_gradients(*found, share=1e-4)


class Waits(TorchDispatchMode):
    """Fails at what makes a GPU's queue run empty: reading a tensor's value, or copying numbers to the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh", "masked_select", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.NAMES, name
        return function(*args, **(kwargs or {}))


@every_preset
@both_actions
def test_an_update_waits_for_no_value(presets, act_space):
    agent, batch = make_agent_and_batch(presets, act_space, expl_behavior="plan2explore")
    data = agent._wm.preprocess(batch)
    with Waits():
        post, _ = agent._update_apart(data) if agent._opt is None else agent._update_together(data)
        agent._expl_behavior.update(agent._wm, post, data, 0)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Waits():
        data["reward"].sum().item()
