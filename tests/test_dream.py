"""The dream: its steps, what a person changes in them, and its links, against the model's own functions."""

import json

import numpy as np
import pytest
import torch

from dreamer import Dreamer
from dreams import KINDS, make_agent, random_actions
from play.dream import Dream, _decode, _encode


@pytest.fixture(params=KINDS)
def agent(request) -> Dreamer:
    return make_agent(request.param)


@pytest.fixture
def two_levels() -> Dreamer:
    return make_agent("two levels")


def codes(dream: Dream) -> dict[str, list]:
    return {name: dream.code(name).tolist() for name in dream.levels}


def same_states(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# Steps and changes


@torch.no_grad()
def test_where_all_levels_follow_a_dream_is_the_models_imagination(agent):
    dream, dynamics = Dream(agent), agent._wm.dynamics
    dream.start(dream.state, seed=7)
    state, actions = dream.state, random_actions(agent, 4)
    for number, action in enumerate(actions):
        torch.manual_seed(7 + number)
        imagined = dynamics.imagine_with_action(torch.tensor(action)[None, None], state)
        state = {key: value[:, 0] for key, value in imagined.items()}
        dream.step(action)
        assert same_states(dream.state, state)
    assert dream.steps == 4


def test_a_dream_leaves_the_programs_own_random_numbers_alone(agent):
    dream = Dream(agent)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for action in random_actions(agent, 2):
        dream.step(action)
    dream.redraw(next(iter(dream.levels)))
    dream.policy(sample=True)
    assert torch.equal(torch.rand(4), expected)


def test_a_held_level_keeps_its_code_while_the_rest_goes_on(two_levels):
    dream = Dream(two_levels)
    dream.hold("top")
    seen, actions = [(dream.code("top").tolist(), dream.code("bottom").tolist(), dream.state["deter"])], random_actions(two_levels, 12)
    for action in actions:
        dream.step(action)
        seen.append((dream.code("top").tolist(), dream.code("bottom").tolist(), dream.state["deter"]))
    tops, bottoms, deters = zip(*seen)
    assert all(top == tops[0] for top in tops)
    assert len({tuple(bottom) for bottom in bottoms}) > 1 and not torch.equal(deters[0], deters[-1])
    dream.hold("top", False)
    for action in actions:
        dream.step(action)
    assert dream.code("top").tolist() != tops[0]


def prior_by_hand(agent: Dreamer, dream: Dream, name: str) -> np.ndarray:
    """Probabilities of a level's classes, from its layers."""
    dynamics, state = agent._wm.dynamics, dream.state
    level = dynamics.levels[name]
    with torch.no_grad():
        logits = dynamics.level_logits(name, state.get("stoch_top") if name == "bottom" else None, dynamics._img_out_layers(state["deter"]))
    logits = logits.view(level.stoch, level.discrete).double().numpy()
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return 0.99 * probs / probs.sum(-1, keepdims=True) + 0.01 / level.discrete


@pytest.mark.parametrize("kind", ["flat", "two levels", "2025"])
def test_a_redrawn_level_is_drawn_from_its_prior_and_the_others_stay(kind):
    agent = make_agent(kind)
    dream, sizes = Dream(agent), [level.stoch for level in agent._wm.dynamics.levels.values()]
    for name in dream.levels:
        dream.start(dream.state, seed=11)
        before, prior = codes(dream), dream.prior(name)[0]
        np.testing.assert_allclose(prior, prior_by_hand(agent, dream, name), atol=1e-5)
        torch.manual_seed(11)
        uniform = dict(zip(dream.levels, torch.rand(1, sum(sizes))[0].split(sizes)))[name].numpy()
        dream.redraw(name)
        expected = (prior.cumsum(-1) <= uniform[:, None]).sum(-1)
        assert codes(dream) == {**before, name: expected.tolist()} and expected.tolist() != before[name]
    np.testing.assert_allclose(dream.prior(name)[0], prior_by_hand(agent, dream, name), atol=1e-5)


def test_redrawn_gaussians_have_the_priors_mean_and_deviation():
    dream = Dream(make_agent("gaussian"))
    mean, std = dream.prior("flat")
    drawn = []
    for _ in range(300):
        dream.redraw("flat")
        drawn.append((dream.code("flat") - mean) / std)
    assert abs(np.mean(drawn)) < 0.1 and np.std(drawn) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(dream.prior("flat"), (mean, std))


def test_a_class_that_is_set_changes_nothing_but_its_categorical_and_the_prior_below(two_levels):
    dream = Dream(two_levels)
    before, state, bottom = codes(dream), dream.state, dream.prior("bottom")[0]
    value = (before["top"][2] + 1) % 4
    dream.set_class("top", 2, value)
    expected = list(before["top"])
    expected[2] = value
    assert codes(dream) == {**before, "top": expected}
    assert torch.equal(dream.state["deter"], state["deter"]) and torch.equal(dream.state["logit_top"], state["logit_top"])
    np.testing.assert_allclose(dream.prior("bottom")[0], prior_by_hand(two_levels, dream, "bottom"), atol=1e-5)
    assert not np.allclose(dream.prior("bottom")[0], bottom, atol=1e-3)


@pytest.mark.parametrize("arguments", [("top", 4, 0), ("top", -1, 0), ("top", 0, 4), ("top", 0, 1.0), ("top", True, 0), ("flat", 0, 0)])
def test_classes_that_do_not_exist_are_refused(two_levels, arguments):
    dream = Dream(two_levels)
    before = dream.state
    with pytest.raises(ValueError, match="there is no level 'flat'|4 categoricals of 4 classes"):
        dream.set_class(*arguments)
    assert same_states(before, dream.state)


def test_gaussian_latents_have_no_classes_to_set():
    with pytest.raises(ValueError, match="Gaussian latents"):
        Dream(make_agent("gaussian")).set_class("flat", 0, 0)


def test_levels_are_exchanged_between_moments(two_levels):
    dream = Dream(two_levels)
    states = []
    for seed in range(3):
        dream.start(seed=seed)
        dream.step(random_actions(two_levels, 1, seed)[0])
        states.append(dream.state)
    dream.take("top", states[0])
    dream.take("bottom", states[1])
    mixed = dream.state
    assert torch.equal(mixed["stoch_top"], states[0]["stoch_top"]) and torch.equal(mixed["stoch_bottom"], states[1]["stoch_bottom"])
    assert torch.equal(mixed["deter"], states[2]["deter"])
    feature = torch.cat([mixed["stoch_top"].flatten(1), mixed["stoch_bottom"].flatten(1), mixed["deter"]], -1)
    with torch.no_grad():
        expected = two_levels._wm.heads["decoder"](feature)["image"].mean.numpy()
    np.testing.assert_allclose(dream.view(mean=False).observed["image"], expected, atol=1e-5)


@torch.no_grad()
def test_views_are_decoded_from_the_codes_and_from_the_mean_of_the_last_levels_prior(agent):
    dream = Dream(agent)
    view, state, last = dream.view(), dream.state, list(dream.levels)[-1]
    parts = [state[f"stoch{level.suffix}"].flatten(1) for level in dream.levels.values()]
    average = torch.tensor(dream.prior(last)[0]).flatten()[None]
    feats = [torch.cat([*parts, state["deter"]], -1), torch.cat([*parts[:-1], average, state["deter"]], -1)]
    for index, feat in enumerate(feats):
        decoded = agent._wm.heads["decoder"](feat)
        assert decoded.keys() == view.observed.keys()
        for key, dist in decoded.items():
            np.testing.assert_allclose(view.observed[key][index], dist.mean[0].numpy(), rtol=1e-4, atol=1e-5)
    heads, discount = agent._wm.heads, agent._config.discount if agent._config.cont_head.discounted else 1.0
    assert view.reward == pytest.approx(heads["reward"](feats[0]).mode.item(), abs=1e-4)
    assert view.cont == pytest.approx(min(1.0, heads["cont"](feats[0]).mean.item() / discount), abs=1e-4)
    assert view.value == pytest.approx(agent._task_behavior.value(feats[0]).mode.item(), abs=1e-4)
    alone = dream.view(mean=False)
    np.testing.assert_allclose([len(value) for value in alone.observed.values()], 1)


# Links


def test_a_link_restores_the_identical_state_and_what_comes_after_it(agent):
    dream, other, actions = Dream(agent), Dream(agent), random_actions(agent, 5)
    dream.start(seed=5)
    first = next(iter(dream.levels))
    for action in actions[:2]:
        dream.step(action)
    dream.redraw(first)
    dream.hold(first)
    other.restore(dream.save())
    assert same_states(dream.state, other.state) and dream.held == other.held == {first} and dream.steps == other.steps
    for action in actions[2:]:
        for each in (dream, other):
            each.step(action)
            each.redraw(first)
        assert same_states(dream.state, other.state)
    assert dream.policy(True).tolist() == other.policy(True).tolist()
    assert dream.save() == other.save()


def test_a_link_of_another_agent_is_refused(two_levels):
    with pytest.raises(ValueError, match="of another agent"):
        Dream(make_agent("two levels", seed=1)).restore(Dream(two_levels).save())


def changed_link(link: str, **entries) -> str:
    head, _, tail = link.partition(".")
    return f"{_encode(json.dumps({**json.loads(_decode(head)), **entries}).encode())}.{tail}"


def test_damaged_links_are_refused_and_change_nothing(two_levels):
    dream = Dream(two_levels)
    dream.step(random_actions(two_levels, 1)[0])
    link, before = dream.save(), dream.state
    good = codes(dream)
    wrong = [
        "", ".", "x", "é.", link[:-4], link[5:], link + ".", f"{link.partition('.')[0]}.", link.partition(".")[2],
        changed_link(link, codes={**good, "top": good["top"][:-1]}), changed_link(link, codes={**good, "top": [9] * 4}),
        changed_link(link, codes={**good, "top": [0.0] * 4}), changed_link(link, codes={"top": good["top"]}),
        changed_link(link, held=["middle"]), changed_link(link, steps=-1), changed_link(link, random=[1]), changed_link(link, held=3),
    ]  # fmt: skip
    for text in [*wrong, None, 3, [link]]:
        with pytest.raises(ValueError, match="the link is damaged"):
            dream.restore(text)
    deter = np.full(16, np.nan, "<f4")
    with pytest.raises(ValueError, match="the link is damaged"):
        dream.restore(f"{link.partition('.')[0]}.{_encode(deter.tobytes())}")
    assert same_states(before, dream.state)


def test_a_link_is_made_of_characters_that_need_no_escape_in_an_address(agent):
    assert set(Dream(agent).save()) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
