"""Behaviors that explore: what Plan2Explore's ensemble learns, its reward, and when who acts."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

import dreamer
import exploration
import tools
from benchmarks import exploring
from benchmarks.synthetic import Grid
from dreamer import Dreamer
from envs.spaces import ActionCodec
from models import Rollout
from training import run

OBS_SPACE = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (4,), np.float32)})
MIXED = spaces.Dict({"force": spaces.Box(-1.0, 1.0, (2,)), "grip": spaces.MultiDiscrete([2, 3])})


GENERATIONS = {"2023": ["debug"], "2025": ["dreamerv3_2025", "debug"]}
both_generations = pytest.mark.parametrize("presets", GENERATIONS.values(), ids=GENERATIONS)


def make_agent(act_space=spaces.Discrete(3), presets=("debug",), **settings) -> Dreamer:
    config = tools.load_config(
        presets,
        {
            "task": "gym_CartPole-v1",
            "device": "cpu",
            "precision": "32",
            "expl_behavior": "plan2explore",
            "disag_models": 3,
            "disag_layers": 1,
            "disag_units": 8,
            **settings,
        },
    )
    return Dreamer(OBS_SPACE, act_space, config)


def make_batch(agent: Dreamer, batch: int = 3, time: int = 6) -> dict:
    rng = np.random.default_rng(0)
    first = np.zeros((batch, time), bool)
    first[1, 3] = True
    return {
        "vector": rng.normal(size=(batch, time, 4)).astype(np.float32),
        "is_terminal": np.zeros((batch, time), bool),
        "is_last": np.zeros((batch, time), bool),
        "action": agent.codec.random(rng, batch * time).reshape(batch, time, -1),
        "reward": rng.normal(size=(batch, time)).astype(np.float32),
        "is_first": first,
    }


both_levels = pytest.mark.parametrize("hierarchical", [False, True], ids=["flat", "hierarchical"])


@pytest.mark.parametrize(
    "hierarchical, target",
    [
        *((levels, target) for levels in (False, True) for target in ("stoch", "deter", "feat", "embed")),
        (True, "stoch_top"),
        (True, "stoch_bottom"),
    ],
)
@pytest.mark.parametrize("offset, action_cond, generation", [(1, False, "2023"), (1, True, "2023"), (2, True, "2023"), (2, True, "2025")])
def test_the_ensemble_predicts_what_comes_later_in_the_same_episode(hierarchical, target, offset, action_cond, generation):
    settings = {"disag_target": target, "disag_offset": offset, "disag_action_cond": action_cond}
    agent = make_agent(presets=GENERATIONS[generation], hierarchical_mode=hierarchical, **settings)
    wm, explorer = agent._wm, agent._expl_behavior
    data = wm.preprocess(make_batch(agent))
    with torch.no_grad():
        _, post, _ = wm.loss(data)
        actual = explorer.ensemble_loss(wm, post, data)
        feat = wm.dynamics.get_feat(post)
        targets = {
            "stoch": wm.dynamics.flat_stoch(post),
            "deter": post["deter"],
            "feat": feat,
            "embed": wm.encoder(data),
            **{key: post[key].reshape(3, 6, -1) for key in ("stoch_top", "stoch_bottom") if hierarchical},
        }[target]
        terms = []
        for row in range(3):
            for t in range(6 - offset):
                if row == 1 and t < 3 <= t + offset:
                    continue  # a new episode begins between the two
                inputs = torch.cat([feat[row, t], data["action"][row, t + 1]]) if action_cond else feat[row, t]
                for network in explorer._networks:
                    error = (network.mean_layer(network.hidden(inputs)) - targets[row, t + offset]).double()
                    terms.append((0.5 * error**2 + 0.5 * math.log(2 * math.pi)).sum().item())
    np.testing.assert_allclose(actual, np.mean(terms), rtol=1e-5)


@both_levels
@pytest.mark.parametrize("log, extr, action_cond", [(True, 0.0, False), (False, 0.5, False), (True, 0.5, True)])
def test_the_explorers_reward_is_the_ensembles_disagreement(hierarchical, log, extr, action_cond):
    agent = make_agent(
        hierarchical_mode=hierarchical, disag_log=log, expl_extr_scale=extr, expl_intr_scale=2.0, disag_action_cond=action_cond
    )
    explorer, wm = agent._expl_behavior, agent._wm
    with torch.no_grad():
        wm.heads["reward"].mean_layer.weight.normal_()
        feat, action = torch.randn(4, 5, wm.dynamics.feat_size), torch.eye(3)[torch.randint(3, (3, 5))]
        actual = explorer.reward(wm, Rollout(feat, {}, action))
        assert actual.shape == (4, 5, 1)
        inputs = torch.cat([feat[:-1], action], -1) if action_cond else feat[1:]
        outputs = np.stack([network.mean_layer(network.hidden(inputs)).double().numpy() for network in explorer._networks])
        spread = np.sqrt(((outputs - outputs.mean(0)) ** 2).sum(0) / 2).mean(-1, keepdims=True)
        expected = 2.0 * (np.log(spread) if log else spread) + extr * wm.heads["reward"](feat[1:]).mode.double().numpy()
    np.testing.assert_allclose(actual[1:], expected, rtol=1e-4, atol=1e-5)


def test_by_default_the_explorer_is_not_paid_to_end_an_episode():
    agent = make_agent()
    with torch.no_grad():
        rollout = agent._expl_behavior._behavior.imagine(agent._wm.dynamics, agent._wm.dynamics.initial(5), 4)
        assert (agent._expl_behavior.reward(agent._wm, rollout) > 0.0).all()  # after an end there is no reward at all


@torch.no_grad()
def test_the_explorers_reward_is_about_actions_as_the_environment_takes_them():
    agent = make_agent(spaces.Box(-1.0, 1.0, (2,)), disag_action_cond=True)
    feat, action = torch.randn(4, 5, agent._wm.dynamics.feat_size), torch.randn(3, 5, 2)
    reward = lambda action: agent._expl_behavior.reward(agent._wm, Rollout(feat, {}, action))
    at_the_bounds = reward(action.sign())
    assert torch.equal(reward(3.0 * action.sign()), at_the_bounds)
    assert not torch.isclose(reward(0.5 * action.sign())[1:], at_the_bounds[1:]).any()


@both_levels
@both_generations
@pytest.mark.parametrize("act_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=["discrete", "continuous"])
def test_an_update_trains_ensemble_and_explorer_and_nothing_else_through_them(hierarchical, act_space, presets):
    def updated(**settings) -> tuple[dict, dict]:
        torch.manual_seed(0)
        warmth = {"warmup": 0} if len(presets) > 1 else {}  # otherwise the first step moves nothing
        agent = make_agent(act_space, presets, hierarchical_mode=hierarchical, **warmth, **settings)
        before = {key: value.clone() for key, value in agent.state_dict().items()}
        torch.manual_seed(1)
        agent.update(make_batch(agent))
        return before, agent.state_dict()

    before, after = updated()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    for part in (
        "_expl_behavior._networks.0.",
        "_expl_behavior._networks.2.",
        "_expl_behavior._behavior.actor.",
        "_expl_behavior._behavior.value.",
    ):
        assert any(key.startswith(part) for key in changed), part
    _, alone = updated(expl_behavior="greedy")
    for key in alone:
        assert torch.equal(after[key], alone[key]), key


@both_generations
def test_the_ensemble_learns_to_predict(presets):
    agent = make_agent(presets=presets, **({"warmup": 10, "model_lr": 1e-3} if len(presets) > 1 else {}))
    data = agent._wm.preprocess(make_batch(agent))
    _, post, _ = agent._wm.loss(data)
    post = {key: value.detach() for key, value in post.items()}
    losses = []
    for update in range(100):
        losses.append(agent._expl_behavior.ensemble_loss(agent._wm, post, data).item())
        agent._expl_behavior.update(agent._wm, post, data, update)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@both_levels
def test_with_one_optimizer_the_explorer_has_one_for_ensemble_actor_and_critic(hierarchical):
    agent = make_agent(presets=GENERATIONS["2025"], hierarchical_mode=hierarchical)
    explorer = agent._expl_behavior
    assert set(agent.optimizers()) == {"_opt", "_expl_behavior._opt"}
    trained = {id(parameter) for group in explorer._opt._opt.param_groups for parameter in group["params"]}
    behavior = explorer._behavior
    expected = [*explorer._networks.parameters(), *behavior.actor.parameters(), *behavior.value.parameters()]
    assert trained == {id(parameter) for parameter in expected}
    batch = make_batch(agent)
    torch.manual_seed(1)
    _, post, _ = agent._wm.loss(agent._wm.preprocess(batch))
    loss = explorer.ensemble_loss(agent._wm, {key: value.detach() for key, value in post.items()}, agent._wm.preprocess(batch))
    torch.manual_seed(1)
    metrics = agent.update({**batch})
    assert metrics["explorer_skipped"] == 0 and not {"expl_actor_skipped", "expl_value_grad_norm"} & metrics.keys()
    torch.testing.assert_close(metrics["explorer_loss"], loss.detach())  # the ensemble's alone
    slow, value = behavior._slow_value.mean_layer.weight.clone(), behavior.value.mean_layer.weight
    torch.nn.init.normal_(value)
    behavior.update_slow_value(0)
    torch.testing.assert_close(behavior._slow_value.mean_layer.weight, 0.98 * slow + 0.02 * value)


@both_generations
def test_the_explorer_acts_in_training_while_it_is_to_explore(presets):
    agent = make_agent(presets=presets)
    with torch.no_grad():  # policies that always do one thing
        for behavior, action in ((agent._task_behavior, 0), (agent._expl_behavior, 2)):
            behavior.actor.mean_layer.bias[action] += 1e3
    obs = {"vector": np.zeros((200, 4), np.float32), "is_first": np.ones(200, bool)}
    taken = []
    for agent.exploring, training in ((True, True), (False, True), (True, False)):
        taken.append(np.bincount(agent.act(obs, training=training)[0], minlength=3).argmax())
    assert taken == [2, 0, 0]


@pytest.mark.parametrize("act_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-1.0, 1.0, (2,)), MIXED])
def test_random_exploration_is_uniform(act_space):
    codec = ActionCodec(act_space)
    actions = exploration.Uniform(codec).actor(torch.zeros(4000, 5)).sample()
    assert actions.shape == (4000, codec.size)
    counts = [count for count in codec.layout for _ in range(count or 1)]
    np.testing.assert_allclose(actions.mean(0), [1 / count if count else 0.0 for count in counts], atol=0.03)
    np.testing.assert_allclose(actions.std(0), [math.sqrt(count - 1) / count if count else 1 / math.sqrt(3) for count in counts], atol=0.03)
    agent = make_agent(act_space, expl_behavior="random")
    assert len(agent.act({"vector": np.zeros((7, 4), np.float32), "is_first": np.ones(7, bool)}, training=True)[0]) == 7


def test_a_run_that_is_past_expl_until_does_not_explore_when_it_fills_the_memory_again(tmp_path):
    overrides = {
        "task": "gym_CartPole-v1",
        "device": "cpu",
        "expl_behavior": "plan2explore",
        "expl_until": 90,
        "eval_every": 0,
        "logdir": str(tmp_path),
        "steps": 60,
    }
    dreamer.run_to_end(dreamer.start(tools.load_config(["defaults", "debug"], overrides)))
    for steps, explores in ((80, True), (120, True), (121, False)):
        going = dreamer.start(tools.load_config(["defaults", "debug"], {**overrides, "steps": steps}))
        assert going.agent.exploring == explores
        dreamer.run_to_end(going)


@pytest.mark.parametrize("sample", [False, True])
def test_evaluations_play_the_tasks_policy_sampled_if_so_asked(tmp_path, monkeypatch, sample):
    seen = []
    play = run.play_episodes

    def watched(agent, *args, sample):
        seen.append((agent.exploring, sample))
        return play(agent, *args, sample=sample)

    monkeypatch.setattr(run, "play_episodes", watched)
    overrides = {"task": "gym_CartPole-v1", "device": "cpu", "logdir": str(tmp_path), "steps": 60, "eval_every": 60}
    going = dreamer.start(
        tools.load_config(["defaults", "debug"], {**overrides, "expl_behavior": "plan2explore", "expl_until": 1000, "eval_sample": sample})
    )
    dreamer.run_to_end(going)
    assert seen == [(False, sample)]
    assert going.agent.exploring


def test_a_run_explores_for_expl_until_frames(tmp_path, monkeypatch):
    seen = []
    act = Dreamer.act

    def watched(agent, obs, state=None, training=False):
        seen.append((training, agent.exploring))
        return act(agent, obs, state, training)

    monkeypatch.setattr(Dreamer, "act", watched)
    assert (
        dreamer.main(
            [
                "--configs",
                "debug",
                "--task",
                "gym_CartPole-v1",
                "--device",
                "cpu",
                "--steps",
                "150",
                "--eval_every",
                "0",
                "--expl_behavior",
                "plan2explore",
                "--disag_units",
                "8",
                "--expl_until",
                "90",
                "--logdir",
                str(tmp_path),
            ]
        )
        == 0
    )
    exploring = [explores for training, explores in seen if training]
    assert exploring[0] and not exploring[-1] and exploring == sorted(exploring, reverse=True)
    assert abs(sum(exploring) - (90 - 50)) <= 6  # frames after the 50 of the prefill, and the resets among them
    metrics = (tmp_path / "metrics.jsonl").read_text()
    assert '"train/explorer_loss"' in metrics and '"train/expl_actor_loss"' in metrics


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"expl_behavior": "curious"}, "greedy, random, plan2explore"),
        ({"disag_target": "stoch_top"}, "embed, stoch, deter, feat$"),
        ({"disag_target": "top", "hierarchical_mode": True}, "embed, stoch, deter, feat, stoch_top, stoch_bottom"),
        ({"disag_layers": 0}, "at least 1"),
        ({"disag_offset": 12}, "smaller than batch_length, 12"),
        ({"disag_models": 1}, "at least 2"),
        ({"disag_offset": 0}, "at least 1"),
    ],
)
def test_wrong_settings_name_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        make_agent(**settings)


def distances(cells: np.ndarray) -> np.ndarray:
    """Steps from the corner where episodes begin to each cell."""
    return cells // Grid.SIDE + cells % Grid.SIDE


def random_walk(seed: int) -> np.ndarray:
    """The cell after every step of as many random moves."""
    rng, place, seen = np.random.default_rng(seed), np.zeros(2, int), []
    for step in range(exploring.STEPS):
        if step % Grid.LENGTH == 0:
            place = np.zeros(2, int)
        place = (place + Grid.MOVES[rng.integers(4)]).clip(0, Grid.SIDE - 1)
        seen.append(int(place @ [Grid.SIDE, 1]))
    return np.array(seen)


@pytest.mark.slow
def test_plan2explore_reaches_states_that_random_actions_do_not(tmp_path):
    """The number of cells varies too much between seeds, see docs/results.md; how far from its corner the agent goes differs more."""
    dreamer.run_to_end(dreamer.start(exploring.config_of("flat", seed=1, logdir=str(tmp_path))))
    cells, _ = exploring.cells_reached(tmp_path / "train_eps")
    walks = [distances(random_walk(seed)).mean() for seed in range(20)]
    assert distances(cells[len(cells) // 2 :]).mean() > 1.5 * np.mean(walks)
