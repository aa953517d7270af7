"""Statistics of the latents: against closed forms."""

import math

import pytest
import torch

import networks
from layers import Style
from networks import RSSM, HierarchicalRSSM

COMMON = dict(deter=10, hidden=12, num_actions=3, embed=7)
NEW = dict(core="block_gru", blocks=5, img_layers=2, style=Style(norm="rms"), initial="zeros")  # as in 2025


def onehot_logits(index: torch.Tensor, classes: int) -> torch.Tensor:
    return 50.0 * torch.nn.functional.one_hot(index, classes).float()


def test_statistics_of_known_codes():
    rssm = HierarchicalRSSM(stoch_top=2, discrete_top=4, stoch_bottom=3, discrete_bottom=2, unimix_ratio=0.0, **COMMON)
    batch, time = 8, 4
    # Top: the first categorical runs through its four classes, the second is constant; the prior knows nothing.
    index = torch.arange(batch * time).reshape(batch, time) % 4
    top = torch.stack([onehot_logits(index, 4), onehot_logits(torch.zeros_like(index), 4)], 2)
    # Bottom: posterior and prior are the same fair coins, but for a constant that a softmax does not see.
    coins = torch.zeros(batch, time, 3, 2)
    post = {"logit_top": top, "logit_bottom": coins + 3.0}
    prior = {"logit_top": torch.zeros_like(top), "logit_bottom": coins}
    found = {name: float(value) for name, value in networks.level_statistics(rssm, post, prior).items()}
    assert found.keys() == {f"{name}_{level}" for name in networks.STATISTICS for level in ("top", "bottom")}
    expected = {
        "kl_top": 2 * math.log(4),
        "prior_entropy_top": 2 * math.log(4),
        "post_entropy_top": 0.0,
        "perplexity_top": (4 + 1) / 2,
        "active_top": 1.0,
        "delta_top": 50.0 * math.sqrt(0.25 * 0.75),
        "kl_bottom": 0.0,
        "prior_entropy_bottom": 3 * math.log(2),
        "post_entropy_bottom": 3 * math.log(2),
        "perplexity_bottom": 2.0,
        "active_bottom": 0.0,
        "delta_bottom": 0.0,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


def test_gaussian_latents_have_kl_and_entropies_only():
    rssm = RSSM(stoch=4, discrete=0, **COMMON)
    post, prior = rssm.observe(torch.randn(2, 3, 7), torch.zeros(2, 3, 3), torch.zeros(2, 3))
    found = networks.level_statistics(rssm, post, prior)
    assert found.keys() == {"kl_flat", "prior_entropy_flat", "post_entropy_flat"}
    torch.testing.assert_close(found["kl_flat"], rssm.kl_per_level(post, prior)["flat"].mean())


@pytest.mark.parametrize("settings", [{}, NEW], ids=["2023", "2025"])
def test_observing_with_the_top_alone_hides_the_observation_from_the_bottom(settings):
    rssm = HierarchicalRSSM(stoch_top=2, discrete_top=3, stoch_bottom=4, discrete_bottom=5, **COMMON, **settings)
    with torch.no_grad():
        rssm._top_to_prior.weight.normal_()
        rssm._obs_stat_layer["top"].weight.zero_()  # now the top code does not depend on what is seen either
        rssm._obs_stat_layer["bottom"].weight.mul_(30.0)
    embed, action, is_first = torch.randn(5, 6, 7), torch.randn(5, 6, 3), torch.zeros(5, 6)
    is_first[2, 3] = 1.0
    states = []
    for seen in (embed, -embed):
        torch.manual_seed(0)
        states.append(rssm.observe_top(seen, action, is_first))
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key])
    # The bottom's logits are its prior at the top code that was drawn.
    state = states[0]
    prior = rssm.level_logits("bottom", state["stoch_top"], rssm._img_out_layers(state["deter"]))
    torch.testing.assert_close(state["logit_bottom"].flatten(-2), prior)
    # A reset forgets everything: the recurrent state is that of a first step.
    torch.testing.assert_close(state["deter"][2, 3], state["deter"][0, 0])
