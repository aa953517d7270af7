"""What dreamerv3-torch computed, from its own checkpoints: outputs, losses, gradients and imagined returns."""

import numpy as np
import pytest
import torch

import models
from old_files import DATA, NAMES, answers, batch, checkpoint, close, make_agent, recorded


def load(name: str):
    """The agent in a checkpoint."""
    agent = make_agent(name)
    agent.load_state_dict(checkpoint(name)["agent_state_dict"])
    return agent


@pytest.mark.parametrize("name", NAMES)
def test_a_flat_agent_with_the_old_weights_gives_the_old_answers(name):
    found, expected = answers(load(name), name), recorded(name)
    outputs = [key for key in expected if key.startswith("out_")]
    assert len(outputs) > 10
    for key in outputs:
        close(found[key[4:]][:, : expected[key].shape[1]], expected[key], atol=1e-5)


trained = pytest.mark.parametrize("name", ["atari", "dmc", "proprio"])


@trained
def test_world_model_losses_and_gradients_are_the_old_ones(name):
    agent = load(name)
    expected = np.load(DATA / name / "training.npz")
    loss, _, metrics = agent._wm.loss(agent._wm.preprocess(batch(name)), sample=False)
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
    agent = load(name)
    expected = np.load(DATA / name / "training.npz")
    wm, behavior = agent._wm, agent._task_behavior
    _, post, _ = wm.loss(wm.preprocess(batch(name)), sample=False)
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
