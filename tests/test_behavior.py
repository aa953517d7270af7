"""Actor and critic: returns, weights, normalisation, and which gradients flow where."""

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

import distributions as dists
import dreamer
import models
import networks
import tools
from dreamer import Dreamer

OBS_SPACE = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (4,), np.float32)})
DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))


GENERATIONS = {"2023": ["debug"], "2025": ["dreamerv3_2025", "debug"]}
both_generations = pytest.mark.parametrize("presets", GENERATIONS.values(), ids=GENERATIONS)


def make_agent(act_space=DISCRETE, presets=("debug",), **settings) -> Dreamer:
    config = tools.load_config(presets, {"task": "gym_CartPole-v1", "device": "cpu", "precision": "32", **settings})
    agent = Dreamer(OBS_SPACE, act_space, config)
    with torch.no_grad():  # heads that start at zero would hide gradients
        for head in (agent._wm.heads["reward"], agent._task_behavior.value):
            head.mean_layer.weight.normal_()
    return agent


def make_batch(agent: Dreamer, batch: int = 3, time: int = 4) -> dict:
    rng = np.random.default_rng(0)
    terminal, last = np.zeros((2, batch, time), bool)
    terminal[1, 2] = last[1, 2] = last[2, 1] = True
    return {
        "vector": rng.normal(size=(batch, time, 4)).astype(np.float32),
        "is_terminal": terminal,
        "is_last": last,
        "action": agent.codec.random(rng, batch * time).reshape(batch, time, -1),
        "reward": rng.normal(size=(batch, time)).astype(np.float32),
        "is_first": np.zeros((batch, time), bool),
    }


def starts(agent: Dreamer) -> dict:
    data = agent._wm.preprocess(make_batch(agent))
    _, post, _ = agent._wm.loss(data)
    return {key: value.flatten(0, 1) for key, value in networks.detach(post).items()}


def test_lambda_return_is_the_weighted_mean_of_n_step_returns():
    horizon, lambda_ = 6, 0.9
    reward, value, discount = (torch.randn(horizon, 2, 1, dtype=torch.float64) for _ in range(3))
    discount = discount.sigmoid()
    actual = models.lambda_return(reward, value, discount, lambda_)
    assert actual.shape == (horizon - 1, 2, 1)
    for t in range(horizon - 1):
        n_step = []
        for n in range(1, horizon - t):
            total, factor = 0.0, 1.0
            for k in range(1, n + 1):
                total = total + factor * reward[t + k]
                factor = factor * discount[t + k]
            n_step.append(total + factor * value[t + n])
        weights = [(1 - lambda_) * lambda_**i for i in range(len(n_step) - 1)] + [lambda_ ** (len(n_step) - 1)]
        torch.testing.assert_close(actual[t], sum(w * r for w, r in zip(weights, n_step)))


def replay_return_by_recursion(reward, boot, last, terminal, t: int) -> float:
    """The return after step t of one sequence, with discount 0.9 and lambda 0.8."""
    if t == len(reward) - 1:
        return boot[t]
    if terminal[t + 1]:
        return reward[t + 1]
    later = replay_return_by_recursion(reward, boot, last, terminal, t + 1)
    return reward[t + 1] + 0.9 * (boot[t + 1] if last[t + 1] else 0.2 * boot[t + 1] + 0.8 * later)


def test_returns_along_replay_end_at_terminal_steps_and_are_imagined_ones_where_an_episode_is_cut():
    rng = np.random.default_rng(0)
    reward, boot = rng.normal(size=(2, 6, 9))
    last = rng.random((6, 9)) < 0.3
    terminal = last & (rng.random((6, 9)) < 0.5)
    assert terminal[:, 1:].any() and (last & ~terminal)[:, 1:].any()
    tensors = [torch.as_tensor(part, dtype=torch.float64) for part in (reward, boot, last, terminal)]
    actual = models.replay_return(*tensors, 0.9, 0.8)
    expected = [[replay_return_by_recursion(*row, t) for t in range(8)] for row in zip(reward, boot, last, terminal)]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_return_range_is_a_running_mean_of_percentiles_and_never_below_one():
    ema, expected = torch.zeros(2), np.zeros(2)
    for _ in range(300):
        returns = torch.randn(10, 20) * 50
        scale = models.update_return_range(ema, returns)
        expected = 0.99 * expected + 0.01 * np.percentile(returns.double().numpy(), [5, 95])
    np.testing.assert_allclose(ema, expected, rtol=1e-4)
    np.testing.assert_allclose(scale, expected[1] - expected[0], rtol=1e-4)
    assert models.update_return_range(torch.zeros(2), torch.randn(100) * 1e-3) == 1.0


def test_weights_start_with_the_replayed_continue_flag_and_multiply_discounts():
    discount = torch.rand(5, 2, 1)
    weight = models.imagination_weight(torch.tensor([[1.0], [0.0]]), discount)
    np.testing.assert_allclose(weight[:, 0, 0], np.cumprod([1.0, *discount[1:, 0, 0].tolist()]), rtol=1e-5)
    assert (weight[:, 1] == 0).all()


def actor_terms(dist):
    shape = (4, 3, 1)
    return dict(
        policy=dist,
        returns=torch.randn(shape),
        baseline=torch.randn(shape),
        weight=torch.rand(shape),
        scale=torch.tensor(2.5),
        entropy_scale=0.1,
    )


def test_reinforce_uses_the_normalised_advantage_and_weights_policy_and_entropy_alike():
    policy = dists.OneHot(torch.randn(4, 3, 5), 0.01)
    action, terms = policy.sample(), actor_terms(policy)
    advantage = ((terms["returns"] - terms["baseline"]) / 2.5)[..., 0]
    probs = policy.probs.double().numpy()
    log_prob = (action.double().numpy() * np.log(probs)).sum(-1)
    entropy = -(probs * np.log(probs)).sum(-1)
    expected = -(terms["weight"][..., 0].double().numpy() * (log_prob * advantage.double().numpy() + 0.1 * entropy)).mean()
    actual = models.actor_loss(action=action, gradient="reinforce", **terms)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_reinforce_reaches_the_mean_of_a_continuous_policy():
    mean, std = torch.randn(4, 3, 2, requires_grad=True), torch.rand(4, 3, 2) + 0.5
    policy = dists.Normal(mean, std)
    action, terms = policy.sample(), {**actor_terms(policy), "entropy_scale": 0.0}
    loss = models.actor_loss(action=action, gradient="reinforce", **terms)
    (grad,) = torch.autograd.grad(loss, mean)
    advantage = (terms["returns"] - terms["baseline"]) / 2.5
    expected = -(terms["weight"] * advantage * ((action - mean) / std.square()).detach()) / 12  # d log N / d mean, by hand
    torch.testing.assert_close(grad, expected.detach())


def aim(agent: Dreamer, mean: float) -> None:
    """Sets the mean of the task's continuous policy, whatever the features."""
    with torch.no_grad():
        agent._task_behavior.actor.mean_layer.weight.zero_()
        agent._task_behavior.actor.mean_layer.bias.fill_(math.atanh(mean))


def mean_score_of_clipped_samples(mean: float, std: float) -> float:
    """Expectation of the slope of the log-probability in its mean, at samples cut to [-1, 1]: by numerical integration."""
    x, width = np.linspace(mean - 10 * std, mean + 10 * std, 200_001, retstep=True)
    density = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    return float((density * (x.clip(-1, 1) - mean) / std**2).sum() * width)


def test_reinforce_scores_the_samples_that_the_policy_drew_and_not_what_the_environment_makes_of_them():
    mean, std = 0.9, 0.5
    agent = make_agent(CONTINUOUS, imag_gradient="reinforce", **{"actor.std": str(std)})
    aim(agent, mean)
    start = {key: value.repeat(200, *[1] * (value.ndim - 1)) for key, value in starts(agent).items()}
    _, stats, action = agent._task_behavior.imagine(agent._wm.dynamics, start, 11)
    torch.testing.assert_close(stats["mean"], torch.full_like(stats["mean"], mean))
    center = stats["mean"].detach().requires_grad_()
    policy = agent._task_behavior.actor.dist({**stats, "mean": center})

    def mean_score(sample: torch.Tensor) -> float:
        return torch.autograd.grad(policy.log_prob(sample).sum(), center)[0].mean().item()

    error = 1.0 / std / action.numel() ** 0.5  # a score has the deviation 1 / std
    assert abs(mean_score(action)) < 4 * error
    bias = mean_score_of_clipped_samples(mean, std)
    assert bias == pytest.approx(-0.6138, abs=1e-3)  # policies at a bound would be pushed away from it, whatever the returns
    assert abs(mean_score(action.clamp(-1.0, 1.0)) - bias) < 4 * error


@pytest.mark.parametrize("explorer", ["greedy", "random", "plan2explore"])
def test_actions_that_reach_the_environment_and_the_next_state_are_within_their_bounds(explorer):
    agent = make_agent(CONTINUOUS, expl_behavior=explorer, **{"actor.std": "0.5"})
    aim(agent, 0.9)
    obs = {"vector": np.zeros((1000, 4), np.float32), "is_first": np.ones(1000, bool)}
    for agent.exploring in (True, False):
        action, state = agent.act(obs, training=True)
        assert state["action"].shape == (1000, 2) and state["action"].abs().max() <= 1.0
        np.testing.assert_allclose(action, state["action"], atol=1e-6)  # the space's own bounds are -1 and 1
    at_the_bound = (state["action"] == 1.0).float().mean().item()
    expected = 0.5 * math.erfc(0.2 / math.sqrt(2.0))  # the share of samples beyond 1
    assert abs(at_the_bound - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5
    mode, _ = agent.act(obs)
    np.testing.assert_allclose(mode, 0.9, atol=1e-6)


def test_stored_actions_are_within_their_bounds(tmp_path):
    flags = {"task": "gym_Pendulum-v1", "device": "cpu", "logdir": tmp_path, "steps": 250, "prefill": 50, "eval_every": 0, "actor.std": 1.0}
    flags |= {"train_ratio": 8, "action_repeat": 1}
    assert dreamer.main(["--configs", "debug", *(str(part) for key, value in flags.items() for part in (f"--{key}", value))]) == 0
    stored = np.concatenate([np.load(path)["action"] for path in sorted(tmp_path.glob("train_eps/*.npz"))])
    assert len(stored) > 200 and np.abs(stored).max() == 1.0
    assert (np.abs(stored) == 1.0).mean() > 0.1  # with a deviation of 1, at least 32% of samples are beyond them


@pytest.mark.parametrize(
    "setting, value, words",
    [
        ("imag_gradient", "both", "auto, reinforce, dynamics"),
        ("imag_horizon", 1, "at least 2"),
        ("act", "Silu", "activation"),
        ("reward_head.dist", "binary", "reward_head.dist"),
        ("critic.dist", "onehot", "critic.dist"),
        ("grad_heads", ["x"], "grad_heads"),
        ("actor.dist", "normal", "actions are discrete"),
        ("dyn_std_act", "relu", "sigmoid2"),
        ("decoder.image_dist", "huber", "image_dist"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_agent_is_built(setting, value, words):
    with pytest.raises(ValueError, match=words):
        make_agent(**{setting: value})


@pytest.mark.parametrize("act_space, gradient", [(DISCRETE, "reinforce"), (CONTINUOUS, "dynamics")])
def test_auto_takes_reinforce_for_discrete_and_dynamics_for_continuous_actions(act_space, gradient):
    assert make_agent(act_space)._task_behavior.gradient == gradient


@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("act_space", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_imagined_features_carry_a_graph_only_for_the_dynamics_gradient(hierarchical, act_space, gradient):
    agent = make_agent(act_space, imag_gradient=gradient, hierarchical_mode=hierarchical)
    behavior = agent._task_behavior
    start = starts(agent)
    feat, stats, action = behavior.imagine(agent._wm.dynamics, start, 6)
    assert feat.shape == (6, 12, agent._wm.dynamics.feat_size) and action.shape == (5, 12, agent.codec.size)
    assert all(value.shape[:2] == (5, 12) and value.requires_grad for value in stats.values())
    assert feat.requires_grad == action.requires_grad == (gradient == "dynamics")
    if gradient == "dynamics":
        # The policy's input is a constant: a feature acts on later ones through the dynamics, not through the policy.
        grads = torch.autograd.grad(feat[1].sum(), list(behavior.actor.parameters()), allow_unused=True)
        assert any(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize(
    "act_space, gradient", [(DISCRETE, "reinforce"), (CONTINUOUS, "reinforce"), (CONTINUOUS, "dynamics"), (DISCRETE, "dynamics")]
)
def test_behavior_update_moves_actor_and_critic_and_nothing_else(act_space, gradient):
    agent = make_agent(act_space, imag_gradient=gradient)
    data = agent._wm.preprocess(make_batch(agent))
    _, post, _ = agent._wm.loss(data)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    agent._task_behavior.update(agent._wm, post, data["cont"], updates=0)
    moved = {name for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("_wm") for name in moved)
    for part in ("actor.", "value."):
        names = [name for name in before if name.startswith("_task_behavior." + part)]
        assert all(name in moved for name in names), part
    assert all(parameter.grad is None for parameter in agent._wm.parameters())


def test_dynamics_gradient_of_the_actor_is_the_slope_of_the_imagined_return():
    # Gaussian latents and most likely draws: nothing is straight-through, so finite differences can follow the gradient.
    agent = make_agent(CONTINUOUS, dyn_discrete=0, imag_horizon=2)
    behavior, wm, start = agent._task_behavior, agent._wm, starts(agent)
    bias = behavior.actor.mean_layer.bias

    def rollout() -> tuple:
        feat, stats, action = behavior.imagine(wm.dynamics, start, 2, sample=False)
        value = behavior.value(feat).mode
        returns = models.lambda_return(wm.heads["reward"](feat).mode, value, 0.997 * wm.heads["cont"](feat).mean, 0.95)
        return stats, action, value, returns

    stats, action, value, returns = rollout()
    loss = models.actor_loss(
        behavior.actor.dist(stats),
        action,
        returns=returns,
        baseline=value[:-1],
        entropy_scale=0.0,
        weight=torch.ones_like(returns),
        scale=torch.tensor(2.0),
        gradient="dynamics",
    )
    (grad,) = torch.autograd.grad(loss, bias)
    for index in range(2):
        slopes = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                bias[index] += sign * 1e-2
                slopes.append(sign * rollout()[-1].mean().item())
                bias[index] -= sign * 1e-2
        assert grad[index].item() == pytest.approx(-sum(slopes) / 2e-2 / 2.0, rel=2e-2)


def test_actions_are_no_function_of_the_features_that_the_policy_sees():
    agent = make_agent(CONTINUOUS)
    start = {key: value.requires_grad_() for key, value in starts(agent).items()}
    feat, _, action = agent._task_behavior.imagine(agent._wm.dynamics, start, 4)
    assert torch.autograd.grad(feat[-1].sum(), start["deter"], retain_graph=True)[0].any()
    assert torch.autograd.grad(action.sum(), start["deter"], allow_unused=True) == (None,)


def test_critic_loss_trains_the_critic_alone_and_pulls_towards_both_targets():
    logits = torch.randn(4, 3, 255, requires_grad=True)
    target, slow = torch.randn(4, 3, 1, requires_grad=True), torch.randn(4, 3, 1, requires_grad=True)
    loss = models.critic_loss(dists.TwoHot(logits, "symlog_disc"), target, slow)
    expected = -dists.TwoHot(logits, "symlog_disc").log_prob(target) - dists.TwoHot(logits, "symlog_disc").log_prob(slow)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss.sum(), [target, slow], allow_unused=True) == (None, None)


@pytest.mark.parametrize("act_space", [DISCRETE, CONTINUOUS])
def test_an_update_descends_the_losses_that_the_formulas_give(act_space):
    settings = {"imag_horizon": 5, "discount": 0.9, "discount_lambda": 0.8, "actor.entropy": 0.3, "critic.slow_target_fraction": 0.5}
    agent = make_agent(act_space, **settings)
    behavior, wm = agent._task_behavior, agent._wm
    data = wm.preprocess(make_batch(agent))
    _, post, _ = wm.loss(data)
    behavior.ema_vals.copy_(torch.tensor([-300.0, 500.0]))
    with torch.no_grad():
        behavior._slow_value.mean_layer.weight.normal_()
    slow_value = copy.deepcopy(behavior._slow_value)

    torch.manual_seed(3)
    with torch.no_grad():
        feat, stats, action = behavior.imagine(wm.dynamics, {key: value.flatten(0, 1) for key, value in post.items()}, 5)
        for slow, fast in zip(slow_value.parameters(), behavior.value.parameters()):
            slow.copy_(0.5 * slow + 0.5 * fast)
        double = lambda x: x.double().numpy()
        reward, value, slow = (double(head(feat).mode[..., 0]) for head in (wm.heads["reward"], behavior.value, slow_value))
        discount = 0.9 * double(wm.heads["cont"](feat).mean[..., 0])
        policy = behavior.actor.dist(stats)
        log_prob, entropy = double(policy.log_prob(action)), double(policy.entropy())
        returns = np.zeros((4, 12))
        following = value[4]
        for t in reversed(range(4)):
            following = returns[t] = reward[t + 1] + discount[t + 1] * (0.2 * value[t + 1] + 0.8 * following)
        weight = np.stack([(1.0 - data["is_terminal"].flatten().numpy()) * discount[1 : t + 1].prod(0) for t in range(4)])
        assert (weight == 0).any(), "one replayed step is terminal"
        low, high = 0.99 * np.array([-300.0, 500.0]) + 0.01 * np.percentile(returns, [5, 95])
        objective = (returns - value[:4]) / (high - low) * (log_prob if act_space is DISCRETE else 1.0)
        actor_loss = -(weight * (objective + 0.3 * entropy)).mean()
        critic = behavior.value(feat[:4])
        targets = [torch.as_tensor(target[:4, :, None]).float() for target in (returns, slow)]
        value_loss = (weight * sum(-double(critic.log_prob(target)) for target in targets)).mean()

    torch.manual_seed(3)
    metrics = behavior.update(wm, post, data["cont"], updates=0)
    np.testing.assert_allclose(metrics["actor_loss"], actor_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["return_scale"], high - low, rtol=1e-4)
    for actual, expected in zip(behavior._slow_value.parameters(), slow_value.parameters()):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("act_space", [DISCRETE, CONTINUOUS])
def test_the_joint_loss_has_the_terms_that_the_formulas_give(act_space):
    settings = {"imag_horizon": 5, "discount": 0.9, "discount_lambda": 0.8, "actor.entropy": 0.3, "critic.replay_scale": 0.7}
    agent = make_agent(act_space, GENERATIONS["2025"], **settings)
    behavior, wm = agent._task_behavior, agent._wm
    data = wm.preprocess(make_batch(agent))
    behavior.ema_vals.copy_(torch.tensor([-300.0, 500.0]))
    with torch.no_grad():
        behavior._slow_value.mean_layer.weight.normal_()
        model_loss, post, _ = wm.loss(data, sample=False)
        feat, stats, action = behavior.imagine(wm.dynamics, {key: value.flatten(0, 1) for key, value in post.items()}, 5, sample=False)
        double = lambda x: x.double().numpy()
        heads = (wm.heads["reward"], behavior.value, behavior._slow_value)
        reward, value, slow = (double(head(feat).mode[..., 0]) for head in heads)
        discount = double(wm.heads["cont"](feat).mean[..., 0])  # the head predicts the discount too
        returns, following = np.zeros((4, 12)), value[4]
        for t in reversed(range(4)):
            following = returns[t] = reward[t + 1] + discount[t + 1] * (0.2 * value[t + 1] + 0.8 * following)
        weight = np.stack([discount[: t + 1].prod(0) for t in range(4)])
        low, high = 0.99 * np.array([-300.0, 500.0]) + 0.01 * np.percentile(returns, [5, 95])
        policy = behavior.actor.dist(stats)
        objective = double(policy.log_prob(action)) * (returns - value[:4]) / (high - low) + 0.3 * double(policy.entropy())
        critic = behavior.value(feat[:4])
        targets = [torch.as_tensor(target[:4, :, None]).float() for target in (returns, slow)]
        critic_loss = weight * sum(-double(critic.log_prob(target)) for target in targets)

        last, terminal = (double(data[key]) for key in ("is_last", "is_terminal"))
        rows = zip(double(data["reward"][..., 0]), returns[0].reshape(3, 4), last, terminal)
        replayed = np.array([[replay_return_by_recursion(*row, t) for t in range(3)] for row in rows])
        critic = behavior.value(wm.dynamics.get_feat(post)[:, :-1])
        targets = [torch.as_tensor(target[..., None]).float() for target in (replayed, slow[0].reshape(3, 4)[:, :-1])]
        replay_loss = (1.0 - last[:, :-1]) * sum(-double(critic.log_prob(target)) for target in targets)
        cont = wm.heads["cont"](wm.dynamics.get_feat(post)).log_prob(0.9 * data["cont"])

    total, _, metrics = agent.joint_loss(data, sample=False)
    expected = {
        "actor_loss": -(weight * objective).mean(),
        "value_loss": critic_loss.mean(),
        "replay_value_loss": replay_loss.mean(),
        "model_loss": model_loss.item(),
        "cont_loss": -cont.mean().item(),
        "return_scale": high - low,
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-4, err_msg=name)
    scales = {"model_loss": 1.0, "actor_loss": 1.0, "value_loss": 1.0, "replay_value_loss": 0.7}
    np.testing.assert_allclose(total.detach(), sum(scale * expected[name] for name, scale in scales.items()), rtol=1e-4)


def test_of_actor_and_critic_only_the_loss_on_replay_trains_the_world_model():
    agent = make_agent(presets=GENERATIONS["2025"])
    behavior, wm = agent._task_behavior, agent._wm
    data = wm.preprocess(make_batch(agent))
    _, post, _ = wm.loss(data)
    losses = behavior.losses(wm, networks.detach(post), data["cont"])
    replay_loss = behavior.replay_loss(wm.dynamics.get_feat(post), data, losses.returns[0].view(3, 4))
    modules = {"model": wm, "encoder": wm.encoder, "heads": wm.heads, "actor": behavior.actor, "critic": behavior.value}

    def reached(loss: torch.Tensor) -> set[str]:
        grads = {
            key: torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True) for key, net in modules.items()
        }
        return {key for key, found in grads.items() if any(grad is not None and grad.any() for grad in found)}

    assert reached(losses.actor) == {"actor"}
    assert reached(losses.critic) == {"critic"}
    assert reached(replay_loss) == {"model", "encoder", "critic"}


@pytest.mark.parametrize("hierarchical", [False, True])
def test_one_step_moves_everything_and_the_slow_critic_follows_the_new_critic(hierarchical):
    agent = make_agent(presets=GENERATIONS["2025"], hierarchical_mode=hierarchical, warmup=0, kl_free=0.0)
    behavior = agent._task_behavior
    agent.update(make_batch(agent))  # the first step moves the zeros that hide other gradients
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    metrics = agent.update(make_batch(agent))
    assert [name for name, value in agent.state_dict().items() if torch.equal(value, before[name])] == []
    slow, value = before["_task_behavior._slow_value.mean_layer.weight"], behavior.value.mean_layer.weight
    torch.testing.assert_close(behavior._slow_value.mean_layer.weight, 0.98 * slow + 0.02 * value)
    assert {"agent_loss", "agent_grad_norm", "agent_skipped", "model_loss", "actor_loss", "value_loss"} <= metrics.keys()


def test_world_model_loss_weighs_its_terms_as_set():
    scales = {"decoder.loss_scale": 2.0, "reward_head.loss_scale": 3.0, "cont_head.loss_scale": 0.5}
    agent = make_agent(**scales, dyn_scale=0.7, rep_scale=0.2, kl_free=0.1)
    loss, _, metrics = agent._wm.loss(agent._wm.preprocess(make_batch(agent)))
    expected = (
        2.0 * metrics["vector_loss"]
        + 3.0 * metrics["reward_loss"]
        + 0.5 * metrics["cont_loss"]
        + 0.7 * metrics["dyn_loss"]
        + 0.2 * metrics["rep_loss"]
    ).mean()
    torch.testing.assert_close(loss.detach(), expected)


def test_evaluation_takes_the_most_likely_action_and_training_samples():
    agent = make_agent()
    obs = {"vector": np.zeros((400, 4)), "is_first": np.ones(400, bool)}  # float64, as NumPy makes them
    with torch.no_grad():
        agent._task_behavior.actor.mean_layer.weight.zero_()
        agent._task_behavior.actor.mean_layer.bias.copy_(torch.tensor([0.0, 0.1, 0.0]))
    assert set(agent.act(obs)[0]) == {1}
    assert set(agent.act(obs, training=True)[0]) == {0, 1, 2}


def test_slow_critic_moves_by_its_fraction_of_the_way():
    agent = make_agent(**{"critic.slow_target_fraction": 0.25})
    behavior = agent._task_behavior
    slow, value = behavior._slow_value.mean_layer.weight.clone(), behavior.value.mean_layer.weight.clone()
    behavior.update_slow_value(updates=0)
    torch.testing.assert_close(behavior._slow_value.mean_layer.weight, 0.75 * slow + 0.25 * value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"imag_gradient": "dynamics"},
        {"hierarchical_mode": True, "expl_behavior": "plan2explore"},
        {"hierarchical_mode": True, "expl_behavior": "plan2explore", "presets": GENERATIONS["2025"]},
    ],
    ids=str,
)
def test_an_update_leaves_no_graph_behind(settings):
    agent = make_agent(**settings)
    for _ in range(2):
        agent.update(make_batch(agent))
    assert not [name for name, tensor in agent.state_dict(keep_vars=True).items() if tensor.grad_fn is not None]


def test_optimizer_is_adam_with_clipping_of_the_whole_gradient():
    parameters = [torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.tensor([[3.0]]))]
    other = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = models.AdamOptimizer("x", parameters, lr=0.1, eps=1e-8, clip=1.0)
    values = np.array([1.0, -2.0, 3.0])
    first, second = np.zeros(3), np.zeros(3)
    for step in range(1, 4):
        metrics = optimizer.step(other * sum((parameter**3).sum() for parameter in parameters))
        grad = 3 * values**2
        norm = np.sqrt((grad**2).sum())
        np.testing.assert_allclose(metrics["x_grad_norm"], norm, rtol=1e-4)
        grad = grad * min(1.0, 1.0 / norm)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        values = values - 0.1 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(torch.cat([parameter.detach().flatten() for parameter in parameters]), values, rtol=1e-4)
    assert other.grad is None


@pytest.mark.parametrize(
    "head, dist",
    [
        ("reward_head", "symlog_mse"),
        ("reward_head", "mse"),
        ("reward_head", "normal"),
        ("critic", "symlog_mse"),
        ("critic", "normal"),
        ("decoder", "mse"),
        ("decoder", "normal"),
    ],
)
def test_every_head_distribution_trains(head, dist):
    key = f"{head}.{'vector_dist' if head == 'decoder' else 'dist'}"
    agent = make_agent(**{key: dist})
    metrics = agent.update(make_batch(agent))
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"dyn_discrete": 0},
        {"dyn_discrete": 0, "dyn_mean_act": "tanh5", "dyn_std_act": "softplus"},
        {"dyn_discrete": 0, "dyn_std_act": "abs"},
        {"dyn_discrete": 0, "dyn_std_act": "sigmoid"},
        {"initial": "zeros"},
        {"dyn_rec_depth": 2},
        {"norm": False, "encoder.norm": False},
        {"actor.std": "0.5"},
        {"critic.slow_target": False},
        {"reward_EMA": False},
        {"unimix_ratio": 0.0},
        {"presets": GENERATIONS["2025"]},
        {"presets": GENERATIONS["2025"], "dyn_discrete": 0, "replay_context": 0},
        {"presets": GENERATIONS["2025"], "norm": "none", "encoder.norm": "layer", "decoder.norm": "none"},
        {"presets": GENERATIONS["2025"], "dyn_rec_depth": 2, "dyn_blocks": 1, "dyn_obs_layers": 3, "initial": "learned"},
        {"presets": GENERATIONS["2025"], "dyn_core": "gru", "reward_EMA": False, "critic.slow_target": False},
        {"presets": GENERATIONS["2025"], "critic.replay_scale": 0.0, "cont_head.discounted": False, "weight_decay": 0.1},
        {"dyn_core": "block_gru", "norm": "rms", "reward_head.dist": "symexp_twohot", "cont_head.discounted": True},
    ],
    ids=str,
)
def test_every_variant_of_the_model_trains(settings):
    agent = make_agent(CONTINUOUS, **settings)
    for _ in range(2):
        assert all(torch.isfinite(value) for value in agent.update(make_batch(agent)).values())


def test_heads_outside_grad_heads_leave_the_latent_alone():
    agent = make_agent(grad_heads=["decoder", "cont"], **{"reward_head.loss_scale": 1e6})
    loss, _, _ = agent._wm.loss(agent._wm.preprocess(make_batch(agent)))
    loss.backward()
    assert agent._wm.heads["reward"].mean_layer.weight.grad.norm() > 1e4
    assert agent._wm.encoder._mlp.layers[0].weight.grad.norm() < 1e4


@both_generations
@pytest.mark.parametrize("hierarchical", [False, True])
def test_open_loop_videos_show_truth_prediction_and_error(hierarchical, presets):
    config = tools.load_config(presets, {"device": "cpu", "precision": "32", "hierarchical_mode": hierarchical})
    agent = Dreamer(spaces.Dict({"image": spaces.Box(0, 255, (16, 32, 3), np.uint8)}), DISCRETE, config)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, 8, 16, 32, 3)).astype(np.uint8),
        "is_first": np.zeros((2, 8), bool),
        "action": agent.codec.random(rng, 16).reshape(2, 8, 3),
    }
    video = agent.video_pred(batch)["image"]
    assert video.shape == (8, 64 if hierarchical else 48, 64, 3) and video.min() >= 0.0 and video.max() <= 1.0
    truth, prediction, error = video[:, :16], video[:, 16:32], video[:, 32:48]
    np.testing.assert_allclose(truth[3, :, 32:], batch["image"][1, 3] / 255.0, atol=1e-6)
    np.testing.assert_allclose(error, (prediction - truth + 1) / 2, atol=1e-6)
    # What is seen shapes the prediction; what comes after the context does not.
    changed = {**batch, "image": batch["image"].copy()}
    changed["image"][:, 5:] = 0
    torch.manual_seed(1)
    first = agent.video_pred(batch)["image"]
    torch.manual_seed(1)
    second = agent.video_pred(changed)["image"]
    np.testing.assert_array_equal(first[:, 16:32], second[:, 16:32])


@pytest.mark.parametrize("steps", [2, 5])
def test_open_loop_videos_of_short_sequences_predict_at_least_one_step(steps):
    agent = Dreamer(
        spaces.Dict({"image": spaces.Box(0, 255, (16, 32, 3), np.uint8)}), DISCRETE, tools.load_config(["debug"], {"device": "cpu"})
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, steps, 16, 32, 3)).astype(np.uint8),
        "is_first": np.zeros((2, steps), bool),
        "action": agent.codec.random(rng, 2 * steps).reshape(2, steps, 3),
    }
    changed = {**batch, "image": batch["image"].copy()}
    changed["image"][:, -1] = 255 - changed["image"][:, -1]  # the one that is predicted
    predictions = []
    for seen in (batch, changed):
        torch.manual_seed(1)
        predictions.append(agent.video_pred(seen)["image"][:, 16:32])
    assert predictions[0].shape == (steps, 16, 64, 3)
    np.testing.assert_array_equal(*predictions)


@both_generations
def test_acting_never_trains_and_resets_where_an_episode_begins(presets):
    agent = make_agent(presets=presets, hierarchical_mode=True)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    rng = np.random.default_rng(0)
    obs = {"vector": rng.normal(size=(2, 4)).astype(np.float32), "is_first": np.array([True, True])}
    _, state = agent.act(obs, training=True)
    later = {**obs, "is_first": np.array([True, False])}
    action, after = agent.act(later, state, training=True)
    assert action.shape == (2,) and action.dtype.kind == "i" and DISCRETE.contains(action[0])
    torch.testing.assert_close(after["deter"][0], state["deter"][0])  # the same initial step again
    assert not torch.allclose(after["deter"][1], state["deter"][1])
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())


def test_update_without_a_dataset_asks_for_a_batch():
    with pytest.raises(ValueError, match="batch"):
        make_agent().update()
