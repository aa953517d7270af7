"""What dreamerv3-torch computed, from its own checkpoints: outputs, losses, gradients and imagined returns."""

import json
import pathlib

import numpy as np
import pytest
import torch
from gymnasium import spaces

import models
import settings
import tools
from dreamer import Dreamer

DATA = pathlib.Path(__file__).parent / "data" / "dreamerv3_torch"
NOT_OBSERVED = {"reward", "discount", "is_first", "is_terminal", "action"}


def load(name: str) -> tuple[Dreamer, dict]:
    """The agent in a checkpoint, and its recorded batch and answers."""
    stored = json.loads((DATA / name / "config.json").read_text())
    recorded = dict(np.load(DATA / name / "recorded.npz"))
    skipped = {"task", "logdir", "device", "actor.dist"} | ({"actor.std"} if stored["actor"]["std"] == "none" else set())
    known = settings.flatten(tools.load_config()).keys() - skipped
    chosen = {key: value for key, value in settings.flatten(stored).items() if key in known}
    config = tools.load_config([], {**chosen, "device": "cpu"})
    obs = {key[3:]: value for key, value in recorded.items() if key.startswith("in_") and key[3:] not in NOT_OBSERVED}
    obs_space = spaces.Dict({key: spaces.Box(0, 255, value.shape[2:], np.uint8) if value.dtype == np.uint8
                             else spaces.Box(-np.inf, np.inf, value.shape[2:], np.float32) for key, value in obs.items()})
    count = stored["num_actions"]
    discrete = stored["actor"]["dist"] == "onehot"
    agent = Dreamer(obs_space, spaces.Discrete(count) if discrete else spaces.Box(-1.0, 1.0, (count,)), config)
    state = torch.load(DATA / name / "latest.pt", weights_only=True)["agent_state_dict"]
    agent.load_state_dict({key: value for key, value in state.items()
                           if not key.startswith("_expl_behavior") and "_world_model" not in key})
    return agent, recorded


def batch(recorded: dict) -> dict:
    return {key[3:]: value for key, value in recorded.items() if key.startswith("in_")}


def close(actual: torch.Tensor, expected: np.ndarray, atol: float, rtol: float = 0.0) -> None:
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    np.testing.assert_allclose(actual.detach(), expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", ["atari", "dmc", "proprio", "gaussian"])
def test_a_flat_agent_with_the_old_weights_gives_the_old_answers(name):
    agent, recorded = load(name)
    wm, behavior = agent._wm, agent._task_behavior
    data = wm.preprocess(batch(recorded))
    with torch.no_grad():
        embed = wm.encoder(data)
        post, prior = wm.dynamics.observe(embed, data["action"], data["is_first"], sample=False)
        feat = wm.dynamics.get_feat(post)
        last = {key: value[:, -1] for key, value in post.items()}
        opened = wm.dynamics.imagine_with_action(data["action"][:, :3], last, sample=False)
        answers = {
            "embed": embed, "deter": post["deter"], "feat": feat, "reward": wm.heads["reward"](feat).mode,
            "cont": wm.heads["cont"](feat).mean, "action_mode": behavior.actor(feat).mode, "value": behavior.value(feat).mode,
            "slow_value": behavior._slow_value(feat).mode, "open_deter": opened["deter"], "open_feat": wm.dynamics.get_feat(opened),
            **{f"post_{key}": post[key] for key in ("logit", "mean", "std") if key in post},
            **{f"prior_{key}": prior[key] for key in ("logit", "mean", "std") if key in prior},
            **{f"dec_{key}": dist.mode for key, dist in wm.heads["decoder"](feat).items()},
        }
    for key, expected in recorded.items():
        if key.startswith("out_") and key != "out_policy_logits":
            answer = answers[key[4:]]
            close(answer[:, :expected.shape[1]], expected, atol=1e-5)


trained = pytest.mark.parametrize("name", ["atari", "dmc", "proprio"])


@trained
def test_world_model_losses_and_gradients_are_the_old_ones(name):
    agent, recorded = load(name)
    expected = np.load(DATA / name / "training.npz")
    loss, _, metrics = agent._wm.loss(agent._wm.preprocess(batch(recorded)), sample=False)
    close(loss, expected["wm_total"], atol=0, rtol=1e-5)
    for key in expected.files:
        if key.startswith("wm_loss_"):
            close(metrics[key[8:] + "_loss"], expected[key], atol=0, rtol=1e-4)
    for ours, theirs in (("kl", "wm_kl_value"), ("dyn_loss", "wm_dyn"), ("rep_loss", "wm_rep")):
        close(metrics[ours], expected[theirs], atol=0, rtol=1e-4)
    loss.backward()
    for key, parameter in agent._wm.named_parameters():
        close(parameter.grad.norm(), expected[f"wm_grad_norm/{key}"], atol=0, rtol=1e-4)


@trained
def test_imagined_returns_and_critic_terms_are_the_old_ones(name):
    agent, recorded = load(name)
    expected = np.load(DATA / name / "training.npz")
    wm, behavior = agent._wm, agent._task_behavior
    _, post, _ = wm.loss(wm.preprocess(batch(recorded)), sample=False)
    start = {key: value.flatten(0, 1) for key, value in post.items()}
    feat, stats, action = behavior.imagine(wm.dynamics, start, 4, sample=False)
    # The recorded program formed symexp as exp(x) - 1, so its values near zero are multiples of 1.2e-7.
    rounding = 5e-7
    close(feat, expected["imag_feat"], atol=1e-5)
    close(action, expected["imag_action"][:-1], atol=1e-5)
    reward, value = wm.heads["reward"](feat).mode, behavior.value(feat).mode
    discount = 0.997 * wm.heads["cont"](feat).mean
    returns = models.lambda_return(reward, value, discount, 0.95)
    close(reward, expected["imag_reward"], rounding, 1e-4)
    close(value[:-1], expected["imag_value"], rounding, 1e-4)
    close(returns, expected["imag_lambda_return"], rounding, 1e-4)
    policy = behavior.actor.dist(stats)
    close(policy.entropy(), expected["actor_entropy"][:-1], 0, 1e-4)
    close(policy.log_prob(action), expected["actor_logprob"][:-1], 1e-5, 1e-4)

    critic = behavior.value(feat[:-1].detach())
    loss = models.critic_loss(critic, returns, behavior._slow_value(feat[:-1]).mode)
    close(loss, expected["critic_loss_unweighted"], 0, 1e-4)
    (torch.as_tensor(expected["imag_weight"][:-1, :, 0]) * loss).mean().backward()
    for key, parameter in behavior.value.named_parameters():
        close(parameter.grad.norm(), expected[f"critic_grad_norm/{key}"], 0, 1e-4)

    # The old weights lag by one step: they start at 1 and never ask whether the replayed step was terminal.
    old = torch.as_tensor(expected["imag_weight"])
    start_cont = torch.tensor([[1.0]] * 6 + [[0.0]] * 6)  # half of the 12 replayed steps terminal
    weight = models.imagination_weight(start_cont, discount)
    close(weight[:-1], (start_cont * old[1:] / old[1]).numpy(), 1e-6)
