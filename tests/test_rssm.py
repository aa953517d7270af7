"""Latent dynamics: the formulas of the hierarchical latent, resets and gradients."""

import numpy as np
import pytest
import torch

from layers import Style
from networks import RSSM, HierarchicalRSSM

COMMON = dict(deter=10, hidden=12, num_actions=3, embed=7)
FLAT = dict(stoch=4, discrete=5)
HIER = dict(stoch_top=2, discrete_top=3, stoch_bottom=4, discrete_bottom=5)
NEW = dict(core="block_gru", blocks=5, img_layers=2, style=Style(norm="rms"), initial="zeros")  # as in 2025
SHAPES = {
    "flat": {"deter": (10,), "stoch": (4, 5), "logit": (4, 5)},
    "gaussian": {"deter": (10,), "stoch": (4,), "mean": (4,), "std": (4,)},
    "hierarchical": {"deter": (10,), "stoch_top": (2, 3), "logit_top": (2, 3), "stoch_bottom": (4, 5), "logit_bottom": (4, 5)},
}
SHAPES |= {f"{kind} 2025": shapes for kind, shapes in SHAPES.items()}


def make(kind: str, **changes) -> RSSM:
    """A model of a kind; a hierarchical one has left its neutral start, so that every term of the formulas counts."""
    latent, _, generation = kind.partition(" ")
    settings = {**COMMON, **(NEW if generation else {}), **changes}
    if latent != "hierarchical":
        return RSSM(stoch=4, discrete=5 if latent == "flat" else 0, **settings)
    rssm = HierarchicalRSSM(**HIER, **settings)
    with torch.no_grad():
        for parameter in (rssm._top_to_prior.weight, rssm._top_to_post.weight, rssm._prior_weight, rssm.W):
            if parameter is not None:
                parameter.normal_()
    return rssm


def inputs(batch: int = 6, time: int = 5):
    is_first = torch.zeros(batch, time, dtype=torch.bool)
    is_first[0, 2] = is_first[3, 4] = True
    return torch.randn(batch, time, 7), torch.randn(batch, time, 3).tanh(), is_first


every_kind = pytest.mark.parametrize("kind", list(SHAPES))
hierarchical_kinds = pytest.mark.parametrize("kind", ["hierarchical", "hierarchical 2025"])
discrete_kinds = pytest.mark.parametrize("kind", [kind for kind in SHAPES if not kind.startswith("gaussian")])


@every_kind
def test_states_have_the_documented_keys_and_shapes(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    post, prior = rssm.observe(embed, action, is_first)
    expected = SHAPES[kind]
    no_draw = {key: shape for key, shape in expected.items() if not key.startswith("stoch")}
    state = {key: value[:, -1] for key, value in post.items()}
    shapes = lambda state: {key: tuple(value.shape) for key, value in state.items()}
    batched = lambda keys, *lead: {key: (*lead, *shape) for key, shape in keys.items()}
    assert shapes(post) == batched(expected, 6, 5)
    assert shapes(prior) == batched(no_draw, 6, 5)
    assert shapes(rssm.initial(6)) == batched(expected, 6)
    assert shapes(rssm.img_step(state, action[:, 0])) == batched(expected, 6)
    assert shapes(rssm.imagine_with_action(action, state)) == batched(expected, 6, 5)
    step_post, step_prior = rssm.obs_step(state, action[:, 0], embed[:, 0], is_first[:, 0])
    assert shapes(step_post) == batched(expected, 6) and shapes(step_prior) == batched(no_draw, 6)
    assert rssm.get_feat(post).shape == (6, 5, rssm.feat_size)
    assert rssm.flat_stoch(post).shape == (6, 5, rssm.stoch_size)
    assert rssm.get_dist(post).log_prob(rssm.get_dist(post).sample()).shape == (6, 5)
    assert rssm.entropy(prior).shape == (6, 5)
    assert all(kl.shape == (6, 5) for kl in rssm.kl_per_level(post, prior).values())
    assert [x.shape for x in rssm.kl_loss(post, prior, 1.0, 0.5, 0.1)] == [(6, 5)] * 4
    assert [x.shape for x in rssm.kl_loss(step_post, step_prior, 1.0, 0.5, 0.1)] == [(6,)] * 4


def test_features_are_top_bottom_deter_in_this_order():
    rssm = make("hierarchical")
    post, _ = rssm.observe(*inputs())
    expected = torch.cat([post["stoch_top"].flatten(2), post["stoch_bottom"].flatten(2), post["deter"]], -1)
    assert torch.equal(rssm.get_feat(post), expected)


@every_kind
def test_single_steps_filter_as_the_whole_sequence_does(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    post, prior = rssm.observe(embed, action, is_first, sample=False)
    state = None
    for t in range(5):
        state, step_prior = rssm.obs_step(state, action[:, t], embed[:, t], is_first[:, t], sample=False)
        for key, value in state.items():
            torch.testing.assert_close(value, post[key][:, t], msg=key)
        for key, value in step_prior.items():
            torch.testing.assert_close(value, prior[key][:, t], msg=key)


@every_kind
def test_a_reset_starts_from_the_initial_state_without_an_action(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    post, _ = rssm.observe(embed, action, is_first, sample=False)
    for row, time in ((0, 2), (3, 4)):
        fresh, _ = rssm.observe(embed[:, time:], torch.zeros_like(action[:, time:]), is_first[:, time:], sample=False)
        torch.testing.assert_close(post["deter"][row, time], fresh["deter"][row, 0])
        others = [other for other in range(6) if other != row]
        assert not torch.isclose(post["deter"][others, time], fresh["deter"][others, 0]).all(-1).any()


@pytest.mark.parametrize("form", [lambda x: x.float(), lambda x: x[..., None], lambda x: x.float()[..., None]])
def test_first_flags_may_be_bool_or_float_with_or_without_a_last_dimension(form):
    rssm = make("flat")
    embed, action, is_first = inputs()
    expected, _ = rssm.observe(embed, action, is_first, sample=False)
    actual, _ = rssm.observe(embed, action, form(is_first), sample=False)
    assert torch.equal(actual["deter"], expected["deter"])
    step, _ = rssm.obs_step(None, action[:, 0], embed[:, 0], form(is_first)[:, 0], sample=False)
    torch.testing.assert_close(step["deter"], expected["deter"][:, 0])


@every_kind
def test_a_sequence_without_a_state_starts_anew_whatever_its_first_flag_and_action(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    flagged = is_first.clone()
    flagged[:, 0] = True
    a, _ = rssm.observe(embed, action, is_first, sample=False)
    b, _ = rssm.observe(embed, action, flagged, rssm.img_step(rssm.initial(6), action[:, 0]), sample=False)
    torch.testing.assert_close(a["deter"], b["deter"])


@every_kind
def test_arguments_are_never_written_to(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    state = {key: value.detach().clone() for key, value in rssm.initial(6).items()}
    given = [embed, action, is_first, *state.values()]
    before = [value.clone() for value in given]
    rssm.observe(embed, action, is_first, state)
    rssm.img_step(state, action[:, 0])
    assert all(torch.equal(a, b) for a, b in zip(given, before))


@hierarchical_kinds
def test_hierarchical_logits_follow_the_formulas_in_float64(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    post, prior = rssm.observe(embed, action, is_first)
    rssm = rssm.double()
    h = post["deter"].double()
    x_p = rssm._img_out_layers(h)
    x_q = rssm._obs_out_layers(torch.cat([h, embed.double()], -1))
    weights = {name: value.detach() for name, value in rssm.named_parameters()}
    linear = lambda name, x: x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0.0)
    silu = lambda x: x / (1 + torch.exp(-x))
    c = silu(linear("_top_summary.0", post["stoch_top"].double().flatten(-2)))
    d = weights["_prior_weight"]
    bottom_prior = linear("_imgs_stat_layer.bottom", x_p) + linear("_top_to_prior", c)
    delta = linear("_obs_stat_layer.bottom", x_q) + linear("_top_to_post", c) + d * bottom_prior
    expected = {
        "top prior": (prior["logit_top"], linear("_imgs_stat_layer.top", x_p)),
        "top posterior": (post["logit_top"], linear("_obs_stat_layer.top", x_q)),
        "bottom prior": (prior["logit_bottom"], bottom_prior),
        "bottom posterior": (post["logit_bottom"], bottom_prior + delta),
    }
    for name, (actual, value) in expected.items():
        np.testing.assert_allclose(actual.detach().flatten(2), value.detach(), atol=1e-5, err_msg=name)


def test_a_weight_of_minus_one_takes_the_prior_out_of_the_posterior_exactly():
    rssm = make("hierarchical")
    x_prior, x_post, top = torch.randn(6, 12), torch.randn(6, 12), torch.eye(3)[torch.randint(3, (6, 2))]
    with torch.no_grad():
        rssm._prior_weight.fill_(-1.0)
        rssm._imgs_stat_layer["bottom"].weight.mul_(1e6)
        large = rssm.level_logits("bottom", top, x_prior, x_post)
        rssm._imgs_stat_layer["bottom"].weight.zero_()
        none = rssm.level_logits("bottom", top, x_prior, x_post)
    assert torch.equal(large, none)


@hierarchical_kinds
def test_only_the_dynamics_loss_trains_the_bottom_prior(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    # The initial latents are the prior's mode; a given state keeps the prior out of what precedes the posterior.
    start = {key: x.detach() for key, x in rssm.initial(6).items()}
    post, prior = rssm.observe(embed, action, torch.zeros_like(is_first), start)
    weights = [rssm._imgs_stat_layer["bottom"].weight, rssm._top_to_prior.weight]
    reaches = lambda loss: [
        bool(grad.any()) for grad in torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
    ]
    _, _, dyn, rep = rssm.kl_loss(post, prior, 0.0, 1.0, 1.0)
    assert reaches(sum(x.square().sum() for key, x in post.items() if key.startswith("logit"))) == [False, False]
    assert reaches(rep.sum()) == [False, False]
    assert reaches(dyn.sum()) == [True, True]


@hierarchical_kinds
def test_the_summary_passes_gradients_back_into_the_top_latent(kind):
    rssm = make(kind)
    _, prior = rssm.observe(*inputs())
    (grad,) = torch.autograd.grad(prior["logit_bottom"].square().sum(), rssm._obs_stat_layer["top"].weight)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("settings", [{}, NEW], ids=["2023", "2025"])
def test_every_parameter_of_a_fresh_hierarchical_model_learns_within_two_steps(settings):
    rssm = HierarchicalRSSM(**HIER, **COMMON, **settings)
    readout = torch.nn.Linear(rssm.feat_size, 5)
    optimizer = torch.optim.SGD([*rssm.parameters(), *readout.parameters()], lr=0.1)
    target = torch.randn(6, 5, 5)
    embed, action, is_first = inputs()
    for _ in range(2):
        optimizer.zero_grad()
        post, prior = rssm.observe(embed, action, is_first)
        loss = rssm.kl_loss(post, prior, 0.0, 0.5, 0.1)[0].mean() + (readout(rssm.get_feat(post)) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert [name for name, p in rssm.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@discrete_kinds
def test_kl_per_level_and_its_clipping_match_float64_by_hand(kind):
    rssm = make(kind)
    post, prior = rssm.observe(*inputs())
    expected = {}
    for name, level in rssm.levels.items():
        p, q = (state["logit" + level.suffix].detach().double().numpy() for state in (post, prior))
        p, q = (0.99 * np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 0.01 / level.discrete for x in (p, q))
        expected[name] = (p * np.log(p / q)).sum((-1, -2))
        np.testing.assert_allclose(rssm.kl_per_level(post, prior)[name].detach(), expected[name], rtol=1e-4)
    free = float(np.median(np.stack(list(expected.values()))))  # so that some steps are clipped and some are not
    loss, value, dyn, rep = rssm.kl_loss(post, prior, free, 0.5, 0.1)
    clipped = sum(np.maximum(kl, free) for kl in expected.values())
    np.testing.assert_allclose(value, sum(expected.values()), rtol=1e-4)
    np.testing.assert_allclose(dyn.detach(), clipped, rtol=1e-4)
    np.testing.assert_allclose(rep.detach(), clipped, rtol=1e-4)
    np.testing.assert_allclose(loss.detach(), 0.6 * clipped, rtol=1e-4)


def test_imagined_bottom_latents_follow_the_imagined_top():
    rssm = make("hierarchical")
    state = rssm.img_step(rssm.initial(500), torch.zeros(500, 3))
    by_top = {}
    for top, logit in zip(state["stoch_top"].detach().flatten(1), state["logit_bottom"].detach()):
        by_top.setdefault(tuple(top.round().int().tolist()), []).append(logit)
    assert len(by_top) == 9
    for logits in by_top.values():
        torch.testing.assert_close(logits[0].expand(len(logits), -1, -1), torch.stack(logits))
    means = torch.stack([logits[0] for logits in by_top.values()])
    assert means.std(0).min() > 1e-3


def test_top_and_bottom_latents_are_drawn_independently_given_their_distributions():
    rssm = HierarchicalRSSM(**HIER, **COMMON)  # Up = 0: the bottom's distribution is the same whatever the top is
    count = 40000
    state = rssm.img_step(rssm.initial(count), torch.zeros(count, 3))
    top, bottom = state["stoch_top"].detach(), state["stoch_bottom"].detach()
    p = rssm.get_dist(state, "top").probs[0].detach()
    q = rssm.get_dist(state, "bottom").probs[0].detach()
    for i in range(2):
        for j in range(4):
            joint = torch.einsum("nk,nl->kl", top[:, i], bottom[:, j]) / count
            expected = p[i][:, None] * q[j][None]
            assert (abs(joint - expected) < 5 * (expected * (1 - expected) / count).sqrt()).all()


@discrete_kinds
def test_draws_of_different_steps_and_sequences_are_independent(kind):
    rssm = make(kind)
    with torch.no_grad():
        for name, parameter in rssm.named_parameters():
            if "obs_stat_layer" in name:
                parameter.zero_()  # the posterior is then nearly the same at every step, so draws differ by their noise alone
        if "top" in rssm.levels:
            rssm._prior_weight.fill_(-1.0)
            rssm._top_to_post.weight.zero_()
    embed, action, is_first = torch.randn(4000, 3, 7), torch.randn(4000, 3, 3).tanh(), torch.zeros(4000, 3, dtype=torch.bool)
    post, _ = rssm.observe(embed, action, is_first)
    for level in rssm.levels.values():
        index = post["stoch" + level.suffix].detach().argmax(-1)  # (4000, 3, S)
        for a, b in ((index[:, 0], index[:, 1]), (index[:, 1], index[:, 2]), (index[:-1, 0], index[1:, 0])):
            same = (a == b).float().mean().item()
            assert abs(same - 1 / level.discrete) < 5 * (0.25 / a.numel()) ** 0.5


@every_kind
def test_zeros_start_with_nothing_but_zeros(kind):
    rssm = make(kind, initial="zeros")
    with torch.no_grad():
        for parameter in rssm.parameters():  # so that a prior's latents and statistics would not be zero
            parameter.add_(torch.randn_like(parameter))
    start = rssm.initial(6)
    assert {key: tuple(value.shape) for key, value in start.items()} == {key: (6, *shape) for key, shape in SHAPES[kind].items()}
    assert not any(value.any() for value in start.values())
    embed, action, is_first = inputs()
    post = rssm.filter(embed, action, is_first, sample=False)
    x = rssm._img_in_layers(torch.zeros(1, rssm.stoch_size), rssm._prepare(torch.zeros(1, 3)))
    expected = rssm._cell(x, torch.zeros(1, 10)).expand(6, 10)
    torch.testing.assert_close(post["deter"][:, 0], expected)
    torch.testing.assert_close(post["deter"][0, 2], expected[0])  # an episode that begins within the sequence


@discrete_kinds
def test_a_packed_state_is_unpacked_as_what_the_recurrence_reads(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    post = rssm.filter(embed, action, is_first)
    for state in (post, rssm.initial(6)):
        packed = rssm.pack(state)
        assert {key: value.dtype.name for key, value in packed.items()} == {
            "deter": "float32",
            **{"stoch" + level.suffix: "uint8" for level in rssm.levels.values()},
        }
        unpacked = rssm.unpack(packed)
        torch.testing.assert_close({key: state[key].detach() for key in unpacked}, unpacked, atol=1e-6, rtol=0.0)
    last = {key: value[:, -1] for key, value in post.items()}
    again = rssm.unpack(rssm.pack(last))
    following = rssm.filter(embed, action, is_first, last, sample=False)
    torch.testing.assert_close(rssm.filter(embed, action, is_first, again, sample=False), following)


def test_codes_of_many_classes_are_stored_in_two_bytes():
    rssm = RSSM(stoch=2, discrete=256, **COMMON)
    state = {"deter": torch.zeros(3, 10), "stoch": torch.eye(256)[torch.tensor([[0, 255], [7, 1], [254, 0]])]}
    packed = rssm.pack(state)
    assert packed["stoch"].dtype == np.uint16 and packed["stoch"].tolist() == [[1, 256], [8, 2], [255, 1]]
    assert torch.equal(rssm.unpack(packed)["stoch"], state["stoch"])


def test_the_three_inputs_of_a_block_gru_are_normalised_apart():
    rssm = make("flat 2025")
    stoch, action = torch.randn(6, 20), torch.randn(6, 3)
    block = rssm._img_in_layers
    x = block(stoch, block.prepare(action))
    silu, rms = torch.nn.functional.silu, lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt()
    parts = [silu(rms(part @ block[key][0].weight.T + block[key][0].bias)) for key, part in (("stoch", stoch), ("action", action))]
    torch.testing.assert_close(x, torch.cat(parts, -1))
    assert block.latent_reader.in_features == rssm.stoch_size


@pytest.mark.parametrize("img_layers, obs_layers", [(1, 1), (2, 1), (3, 2)])
def test_prior_and_posterior_have_as_many_hidden_layers_as_asked_for(img_layers, obs_layers):
    rssm = make("flat 2025", img_layers=img_layers, obs_layers=obs_layers)
    linear = lambda block: [layer.in_features for layer in block if isinstance(layer, torch.nn.Linear)]
    assert linear(rssm._img_out_layers) == [10] + [12] * (img_layers - 1)
    assert linear(rssm._obs_out_layers) == [17] + [12] * (obs_layers - 1)
    embed, action, is_first = inputs()
    post, prior = rssm.observe(embed, action, is_first, sample=False)
    expected = rssm._obs_stat_layer(rssm._obs_out_layers(torch.cat([post["deter"], embed], -1)))
    torch.testing.assert_close(post["logit"].flatten(2), expected)
    torch.testing.assert_close(prior["logit"].flatten(2), rssm._imgs_stat_layer(rssm._img_out_layers(post["deter"])))


def test_a_tensor_that_two_levels_split_is_listed_as_one():
    assert make("flat").split_tensors() == []
    rssm = make("hierarchical")
    names = {id(parameter): name for name, parameter in rssm.named_parameters()}
    found = [[names[id(parameter)] for parameter in group] for group in rssm.split_tensors()]
    layers = [
        [f"{layer}.{level}.{part}" for level in ("top", "bottom")]
        for layer in ("_imgs_stat_layer", "_obs_stat_layer")
        for part in ("weight", "bias")
    ]
    assert found == layers


@every_kind
def test_actions_beyond_their_bounds_are_those_at_the_bounds(kind):
    rssm = make(kind)
    embed, action, is_first = inputs()
    at, beyond = torch.sign(action), 3.0 * torch.sign(action)
    state = rssm.img_step(rssm.initial(6), action[:, 0], sample=False)
    for one, other in (
        (rssm.img_step(state, at[:, 0], sample=False), rssm.img_step(state, beyond[:, 0], sample=False)),
        (rssm.imagine_with_action(at, state, sample=False), rssm.imagine_with_action(beyond, state, sample=False)),
        (rssm.filter(embed, at, is_first, sample=False), rssm.filter(embed, beyond, is_first, sample=False)),
    ):
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    within = rssm.img_step(state, 0.5 * at[:, 0], sample=False)
    assert not torch.isclose(within["deter"], rssm.img_step(state, at[:, 0], sample=False)["deter"]).all(-1).any()


# How likely codes are, given other steps


class Changed(HierarchicalRSSM):
    """A latent whose bottom posterior has another formula: it is sharper, and turned by one class if the top begins with class 0."""

    def level_logits(self, name, above, x_prior, x_post=None):
        logits = super().level_logits(name, above, x_prior, x_post)
        if name == "top" or x_post is None:
            return logits
        logits = 2.0 * logits.unflatten(-1, (4, 5))
        return torch.where(above[..., :1, :1] > 0.5, logits.roll(1, -1), logits).flatten(-2)


def with_all_terms(kind: type) -> HierarchicalRSSM:
    """A latent with two levels, with weights from `make`."""
    rssm = kind(**HIER, **COMMON)
    rssm.load_state_dict(make("hierarchical").state_dict())
    return rssm


def log_prob(logit: torch.Tensor, code: torch.Tensor) -> float:
    """ln of the probability of codes (S, K), with 1% uniform, in float64."""
    probs = 0.99 * torch.softmax(logit.double(), -1) + 0.01 / logit.shape[-1]
    return (probs.log() * code.double().round()).sum().item()


@pytest.mark.parametrize("kind", [RSSM, HierarchicalRSSM, Changed, "flat 2025", "hierarchical 2025"])
@torch.no_grad()
def test_codes_are_as_likely_as_the_posterior_of_another_step_says(kind, monkeypatch):
    rssm = make(kind) if isinstance(kind, str) else make("flat") if kind is RSSM else with_all_terms(kind)
    steps = 5
    embed, action, first = torch.randn(steps, 7), torch.randn(steps, 3).tanh(), torch.zeros(1, dtype=torch.bool)
    states = [rssm.initial(1)]  # before each step
    for t in range(steps):
        states.append(rssm.obs_step(states[t], action[t : t + 1], embed[t : t + 1], first)[0])
    post = {key: torch.cat([state[key] for state in states[1:]]) for key in states[1]}
    found = rssm.code_likelihoods(post, embed)
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(rssm.levels, (steps, steps))

    draw = rssm._draw
    for i in range(steps):  # whose codes are judged
        codes = {name: post["stoch" + level.suffix][i] for name, level in rssm.levels.items()}
        # With the top's code put in place of its draw, a step forms the bottom's posterior given that code.
        monkeypatch.setattr(rssm, "_draw", lambda name, *rest: codes[name][None] if name == "top" else draw(name, *rest))
        for j in range(steps):
            state, _ = rssm.obs_step(states[j], action[j : j + 1], embed[j : j + 1], first)
            torch.testing.assert_close(state["deter"][0], post["deter"][j])
            for name, level in rssm.levels.items():
                expected = log_prob(state["logit" + level.suffix][0], codes[name])
                assert found[name][i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-5), (name, i, j)


@torch.no_grad()
def test_a_latent_with_another_bottom_posterior_has_other_likelihoods_of_its_bottom_alone():
    rssm, changed = (with_all_terms(kind) for kind in (HierarchicalRSSM, Changed))
    changed.load_state_dict(rssm.state_dict())
    embed, action, is_first = inputs()
    post = {key: value[1] for key, value in rssm.filter(embed, action, is_first).items()}
    own, other = (latent.code_likelihoods(post, embed[1]) for latent in (rssm, changed))
    assert torch.equal(own["top"], other["top"])
    assert (own["bottom"] - other["bottom"]).abs().min() > 1e-3


def test_gaussian_latents_have_no_codes():
    rssm = make("gaussian")
    embed, action, is_first = inputs()
    post = {key: value[1] for key, value in rssm.filter(embed, action, is_first).items()}
    assert rssm.code_likelihoods(post, embed[1]) == {}


def test_wrong_sizes_and_keywords_are_refused():
    with pytest.raises(ValueError, match="dyn_discrete_bottom"):
        HierarchicalRSSM(**{**HIER, "discrete_bottom": 1}, **COMMON)
    with pytest.raises(ValueError, match="dyn_stoch"):
        RSSM(stoch=0, discrete=4, **COMMON)
    with pytest.raises(TypeError):
        RSSM(stoch=4, discrete=4, units=3, **COMMON)
    with pytest.raises(ValueError, match="'zeros'"):
        RSSM(**FLAT, **COMMON, initial="zero")
    with pytest.raises(ValueError, match="'gru' and 'block_gru'"):
        RSSM(**FLAT, **COMMON, core="lstm")
    with pytest.raises(ValueError, match="3 blocks do not divide"):
        RSSM(**FLAT, **COMMON, core="block_gru", blocks=3)
    with pytest.raises(ValueError, match="layer, rms, none"):
        RSSM(**FLAT, **COMMON, style=Style(norm="batch"))
    with pytest.raises(ValueError, match="top, bottom"):
        make("hierarchical").get_dist({}, "middle")
