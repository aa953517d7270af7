"""What is written for speed equals the plain formulas, values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import lookup
import tools
from dreamer import Dreamer
from networks import RSSM, HierarchicalRSSM
from recurrence import StepProducts

SIZES = dict(deter=24, hidden=20, num_actions=3, embed=7)


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Within 1e-5 of each tensor's own norm."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (actual[name] - gradient).norm() < 1e-5 * gradient.norm(), name


# Look-ups


def one_hots(*lead: int) -> tuple[torch.Tensor, lookup.Ones]:
    """Vectors (..., 17) of three one-hot vectors of 4 classes and 5 other numbers, and where their ones are."""
    classes = torch.randint(4, (*lead, 3))
    x = torch.cat([F.one_hot(classes, 4).double().flatten(-2), torch.randn(*lead, 5, dtype=torch.float64)], -1)
    return x, lookup.Ones(classes + torch.tensor([0, 4, 8]), 12)


@pytest.mark.parametrize("width", [17, 12], ids=["with other numbers", "one-hot vectors alone"])
def test_a_look_up_is_the_product_and_has_its_gradients(width):
    x, ones = one_hots(2, 3)
    weight = torch.randn(6, width, dtype=torch.float64)
    results = []
    for where in (ones, None):
        inputs = [x[..., :width].clone().requires_grad_(), weight.clone().requires_grad_()]
        y = lookup.linear(*inputs, where)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_look_ups_gradient_for_the_weight_is_the_slope_of_its_value():
    x, ones = one_hots(4)
    weight = torch.randn(6, 17, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda weight: lookup.linear(x, weight, ones), weight)


@pytest.mark.parametrize(
    "sizes", [dict(stoch=4, discrete=5), dict(stoch_top=2, discrete_top=3, stoch_bottom=4, discrete_bottom=5)], ids=["flat", "hierarchical"]
)
def test_ones_are_where_the_latents_have_them(sizes):
    rssm = (RSSM if "stoch" in sizes else HierarchicalRSSM)(**sizes, **SIZES)
    post, _ = rssm.observe(torch.randn(6, 5, 7), torch.randn(6, 5, 3), torch.zeros(6, 5))
    flat, ones = rssm.flat_stoch(post), rssm.ones(post)
    assert ones.size == flat.shape[-1]
    found = torch.zeros_like(flat).scatter_(-1, ones.index, 1.0)
    assert torch.equal(found, flat) and ones.index.shape[-1] == flat.sum(-1).max()


def test_ones_are_exact_where_products_are_bfloat16():
    rssm = RSSM(stoch=2, discrete=300, **SIZES)
    classes = torch.tensor([[259, 7]])
    with torch.autocast("cpu", torch.bfloat16):
        ones = rssm.ones({"stoch": F.one_hot(classes, 300).float(), "deter": torch.zeros(1, 24)})
    assert ones.index.tolist() == [[259, 307]]


def test_gaussian_latents_have_no_ones():
    rssm = RSSM(stoch=4, discrete=0, **SIZES)
    assert rssm.ones(rssm.initial(2)) is None


def test_a_backward_pass_forms_no_gradient_that_is_not_asked_for():
    x, ones = one_hots(4)
    x, weight = x.requires_grad_(), torch.randn(6, 17, dtype=torch.float64, requires_grad=True)
    product = 2 * 4 * 6 * 17
    for inputs in ([x], [weight]):
        value = lookup.linear(x, weight, ones).sum()
        with FlopCounterMode(display=False) as counter:
            value.backward(inputs=inputs)
        assert counter.get_total_flops() == product


# The recurrence


def test_the_weights_of_a_recurrence_get_the_gradients_of_all_its_steps():
    torch.manual_seed(0)
    steps, batch = 5, 3
    parameters = {"weight": torch.randn(4, 4), "bias": torch.randn(4), "out": torch.randn(2, 4), "share": torch.randn(steps, batch, 2)}
    parameters = {name: value.double().requires_grad_() for name, value in parameters.items()}
    start = torch.randn(batch, 4, dtype=torch.float64)

    def by_products(weight, bias, out, share):
        products = StepProducts({"h": weight, "y": out}, {"h": bias, "y": share}, steps, batch)
        h, total = start, 0.0
        for t in range(steps):
            (h_share, h_weight), (y_share, y_weight) = products.at(t).values()
            new = torch.tanh(torch.addmm(h_share, h, h_weight))
            total = total + torch.addmm(y_share, new, y_weight).square().sum()
            products.record({"h": h, "y": new})
            h = new
        return total

    def plainly(weight, bias, out, share):
        h, total = start, 0.0
        for t in range(steps):
            h = torch.tanh(F.linear(h, weight, bias))
            total = total + (F.linear(h, out) + share[t]).square().sum()
        return total

    results = []
    for function in (by_products, plainly):
        value = function(**parameters)
        results.append((value, *torch.autograd.grad(value, list(parameters.values()))))
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *values: by_products(*values), tuple(parameters.values()))


KINDS = {
    "flat": dict(stoch=4, discrete=5),
    "deep": dict(stoch=4, discrete=5, rec_depth=2),
    "gaussian": dict(stoch=4, discrete=0),
    "hierarchical": dict(stoch_top=2, discrete_top=3, stoch_bottom=4, discrete_bottom=5),
}


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
        x = rssm._img_in_layers(torch.cat([stoch, torch.where(reset, 0.0, action[:, t])], -1))
        for _ in range(rssm._rec_depth):
            deter = rssm._cell.finish(F.linear(torch.cat([x, deter], -1), rssm._cell.weight), deter)
        x = rssm._obs_out_layers(torch.cat([deter, embed[:, t]], -1))
        if isinstance(rssm, HierarchicalRSSM):
            top = rssm._obs_stat_layer["top"](x)
            z_top = draw(top.unflatten(-1, (2, 3)), noise[:, t, :2]).flatten(-2)
            summary = rssm._top_summary(z_top)
            prior = rssm._imgs_stat_layer["bottom"](rssm._img_out_layers(deter)) + rssm._top_to_prior(summary)
            bottom = (1 + rssm._prior_weight) * prior.detach() + rssm._obs_stat_layer["bottom"](x) + rssm._top_to_post(summary)
            stoch = torch.cat([z_top, draw(bottom.unflatten(-1, (4, 5)), noise[:, t, 2:]).flatten(-2)], -1)
            out = torch.cat([top, bottom], -1)
        elif rssm.levels["flat"].discrete:
            out = rssm._obs_stat_layer(x)
            stoch = draw(out.unflatten(-1, (4, 5)), noise[:, t]).flatten(-2)
        else:
            mean, raw = rssm._obs_stat_layer(x).chunk(2, -1)
            std = 2.0 * torch.sigmoid(raw / 2.0) + 0.1
            stoch, out = mean + std * noise[:, t], torch.cat([mean, std], -1)
        deters.append(deter), outputs.append(out), samples.append(stoch)
    return [torch.stack(parts, 1) for parts in (deters, outputs, samples)]


@pytest.mark.parametrize("kind", list(KINDS))
def test_filtering_equals_the_formulas_written_out_with_all_gradients(kind, monkeypatch):
    torch.manual_seed(0)
    rssm = (HierarchicalRSSM if kind == "hierarchical" else RSSM)(**KINDS[kind], **SIZES)
    with torch.no_grad():
        for parameter in rssm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and what else starts at zero
    batch, time = 6, 9
    embed, action = torch.randn(batch, time, 7, requires_grad=True), torch.randn(batch, time, 3)
    is_first = torch.rand(batch, time) < 0.2
    noise = rssm._noise(batch, time)
    monkeypatch.setattr(rssm, "_noise", lambda *_: noise)

    def fast():
        post, _ = rssm.observe(embed, action, is_first)
        if kind == "hierarchical":
            out = torch.cat([post["logit_top"].flatten(2), post["logit_bottom"].flatten(2)], -1)
        else:
            out = torch.cat([post["mean"], post["std"]], -1) if kind == "gaussian" else post["logit"].flatten(2)
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


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_a_step_that_starts_anew_takes_nothing_from_before(kind):
    rssm = (HierarchicalRSSM if kind == "hierarchical" else RSSM)(**KINDS[kind], **SIZES)
    embed, action = torch.randn(2, 3, 7), torch.randn(2, 3, 3)
    broken = {key: torch.full_like(value, torch.nan) for key, value in rssm.initial(2).items()}
    from_broken = rssm.filter(embed, action, torch.tensor([[True, False, False]] * 2), broken, sample=False)
    from_none = rssm.filter(embed, action, None, sample=False)
    for key, value in from_none.items():
        assert torch.equal(from_broken[key], value)


# The whole update


def make_agent_and_batch(presets: list[str], act_space: spaces.Space, **settings) -> tuple[Dreamer, dict[str, np.ndarray]]:
    obs_space = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8), "vector": spaces.Box(-9, 9, (4,), np.float32)})
    config = tools.load_config(["defaults", "debug", *presets], {"task": "gym_CartPole-v1", "device": "cpu", **settings})
    torch.manual_seed(0)
    agent = Dreamer(obs_space, act_space, config)
    with torch.no_grad():  # heads that start at zero would hide gradients
        for head in (agent._wm.heads["reward"], agent._task_behavior.value):
            head.mean_layer.weight.normal_(std=0.1)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (3, 5, 16, 16, 3), np.uint8),
        "vector": rng.normal(size=(3, 5, 4)).astype(np.float32),
        "action": agent.codec.random(rng, 15).reshape(3, 5, -1),
        "reward": rng.normal(size=(3, 5)).astype(np.float32),
        "is_first": np.zeros((3, 5), bool),
        "is_terminal": np.zeros((3, 5), bool),
    }
    return agent, batch


@pytest.mark.parametrize("presets", [[], ["hdreamer"]], ids=["flat", "hierarchical"])
@pytest.mark.parametrize("act_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=["reinforce", "dynamics"])
def test_an_update_with_look_ups_has_the_gradients_of_one_without(presets, act_space, monkeypatch):
    agent, batch = make_agent_and_batch(presets, act_space)
    wm, behavior = agent._wm, agent._task_behavior
    used, found = [], []
    linear = lookup.linear
    monkeypatch.setattr(lookup, "linear", lambda x, weight, ones=None: used.append(ones is not None) or linear(x, weight, ones))
    for with_ones in (True, False):
        if not with_ones:
            monkeypatch.setattr(RSSM, "ones", lambda self, state: None)
        torch.manual_seed(1)
        behavior.ema_vals.zero_()
        data = wm.preprocess(batch)
        loss, post, _ = wm.loss(data)
        policy_loss, value_loss, _ = behavior.losses(wm, post, data["cont"])
        gradients = {}
        for part, value, module in (("model", loss, wm), ("actor", policy_loss, behavior.actor), ("value", value_loss, behavior.value)):
            names, tensors = zip(*module.named_parameters())
            values = torch.autograd.grad(value, tensors, retain_graph=True)
            gradients.update({f"{part} {name}": gradient for name, gradient in zip(names, values) if gradient.norm() > 1e-7})
        found.append(gradients)
        assert any(used) == with_ones
        used.clear()
    assert_same_gradients(*found)


class Waits(TorchDispatchMode):
    """Fails at what makes a GPU's queue run empty: reading a tensor's value, or copying numbers to the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh", "masked_select", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.NAMES, name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("presets", [[], ["hdreamer"]], ids=["flat", "hierarchical"])
@pytest.mark.parametrize("act_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=["reinforce", "dynamics"])
@pytest.mark.parametrize("look_ups", [True, False])  # a GPU takes none
def test_an_update_waits_for_no_value(presets, act_space, look_ups, monkeypatch):
    agent, batch = make_agent_and_batch(presets, act_space, expl_behavior="plan2explore")
    if not look_ups:
        monkeypatch.setattr(RSSM, "ones", lambda self, state: None)
    data = agent._wm.preprocess(batch)
    with Waits():
        post, _ = agent._wm.update(data)
        agent._task_behavior.update(agent._wm, post, data["cont"], 0)
        agent._expl_behavior.update(agent._wm, post, data, 0)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Waits():
        data["reward"].sum().item()
