"""Losses and gradients that are not finite: what is skipped, what is counted, and when a run ends."""

import errno

import numpy as np
import pytest
import torch
from gymnasium import spaces

import checkpoints
import dreamer
import tools
from dreamer import Dreamer
from models import update_return_range
from optim import AdamOptimizer, LaPropOptimizer
from replay import Replay
from storage import disk
from training import logs, nonfinite

BATCH = 10


NEW = ("dreamerv3_2025", "debug")


def make_agent(presets=("debug",), **settings) -> Dreamer:
    config = tools.load_config(presets, {"task": "gym_CartPole-v1", "device": "cpu", "precision": "32", **settings})
    return Dreamer(spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (4,), np.float32)}), spaces.Discrete(2), config)


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "vector": rng.normal(size=(2, BATCH, 4)).astype(np.float32),
        "action": np.eye(2, dtype=np.float32)[rng.integers(2, size=(2, BATCH))],
        "reward": rng.normal(size=(2, BATCH)).astype(np.float32),
        **{key: np.zeros((2, BATCH), bool) for key in ("is_first", "is_last", "is_terminal")},
    }  # fmt: skip


def snapshot(agent: Dreamer) -> list[torch.Tensor]:
    """Copies of all weights, moments and step counts."""
    moments = [
        value for optimizer in agent.optimizers().values() for slots in optimizer.state_dict()["state"].values() for value in slots.values()
    ]
    return [torch.as_tensor(value).clone() for value in [*agent.state_dict().values(), *moments]]


@pytest.mark.parametrize("hierarchical", [True, False])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(hierarchical):
    agent, batch = make_agent(hierarchical_mode=hierarchical), make_batch()
    for _ in range(2):
        assert all(float(value) == 0 for key, value in agent.update(batch).items() if key.endswith("_skipped"))
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    metrics = agent.update({**batch, "reward": np.where(np.arange(BATCH) == 3, np.float32(np.nan), batch["reward"])})
    assert metrics["model_skipped"] == 1 and metrics["actor_skipped"] == 0  # what is imagined does not depend on this reward
    changed = {key.split(".")[0] for key, value in agent.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"_task_behavior"}
    agent.update(batch)
    assert int(agent._wm._model_opt.skipped_in_a_row) == 0
    assert all(value.isfinite().all() for value in snapshot(agent) if value.is_floating_point())


def test_an_observation_that_is_not_finite_leaves_the_whole_agent_as_it_was():
    agent, batch = make_agent(**{"critic.slow_target": False}), make_batch()
    agent.update(batch)
    before = snapshot(agent)
    batch["vector"][0, 2, 1] = np.nan
    metrics = agent.update(batch)
    assert [float(metrics[f"{name}_skipped"]) for name in ("model", "actor", "value")] == [1, 1, 1]
    assert all(torch.equal(old, new) for old, new in zip(before, snapshot(agent), strict=True))


@pytest.mark.parametrize("key", ["vector", "reward"])
@pytest.mark.parametrize("settings", [{}, {"hierarchical_mode": True, "expl_behavior": "plan2explore"}], ids=str)
def test_one_optimizer_skips_the_whole_update_and_counts_it(settings, key):
    agent, batch = make_agent(NEW, **settings, **{"critic.slow_target": False}), make_batch()
    for _ in range(2):
        agent.update(batch)
    trained = {f"_task_behavior.{name}" for name, _ in agent._task_behavior.named_parameters()}
    before = snapshot(agent)
    broken = batch[key].copy()
    broken[0, 2] = np.nan
    torch.manual_seed(3)
    metrics = agent.update({**batch, key: broken})
    assert metrics["agent_skipped"] == 1
    after = snapshot(agent)
    if key == "vector":
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    else:  # imagination does not read it: the range of imagined returns moves, and so does an explorer
        changed = {key.split(".")[0] for key, old, new in zip(agent.state_dict(), before, after) if not torch.equal(old, new)}
        assert changed <= {"_task_behavior", "_expl_behavior"} and metrics.get("explorer_skipped", 0) == 0
        assert all(torch.equal(old, new) for key, old, new in zip(agent.state_dict(), before, after) if key in trained)
    assert agent.update(batch)["agent_skipped"] == 0 and int(agent._opt.skipped_in_a_row) == 0
    assert all(value.isfinite().all() for value in snapshot(agent) if value.is_floating_point())


@pytest.mark.parametrize("after", [0, 1])
def test_a_skipped_step_leaves_the_later_steps_of_laprop_as_they_would_have_been(after):
    config = tools.load_config(NEW, {"task": "gym_X-v0", "warmup": 3, "model_lr": 0.1})
    grads, found = torch.randn(4, 3), []
    for skips in (False, True):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = LaPropOptimizer("test", [weight], config)
        for step, grad in enumerate(grads):
            if skips and step == after:
                assert optimizer.step((weight * torch.nan).sum())["test_skipped"] == 1
            optimizer.step((weight * grad).sum())
        found.append(weight.data)
    assert torch.equal(*found) and not torch.equal(found[0], torch.tensor([1.0, -2.0, 3.0]))


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    weight = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    optimizer = AdamOptimizer("test", [weight], lr=0.1, eps=1e-8, clip=1.0)
    metrics = optimizer.step(weight.abs().sqrt().sum())  # the slope of a root at 0
    assert metrics["test_loss"] == 1 and metrics["test_skipped"] == 1
    assert torch.equal(weight.data, torch.tensor([0.0, 1.0]))
    metrics = optimizer.step(weight.square().sum())
    assert metrics["test_skipped"] == 0
    # Adam's first step is as long as the learning rate, whatever the gradient: no moment has been left behind.
    torch.testing.assert_close(weight.data, torch.tensor([0.0, 0.9]))


def test_returns_that_are_not_finite_do_not_enter_their_running_range():
    ema = torch.tensor([1.0, 3.0])
    assert update_return_range(ema, torch.tensor([1.0, torch.nan, 2.0])) == 2.0
    assert torch.equal(ema, torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("presets", [("debug",), NEW], ids=["2023", "2025"])
def test_after_many_updates_in_a_row_the_error_names_input_and_losses(presets):
    agent, batch = make_agent(presets), make_batch()
    batch["reward"][1, 4:6] = np.nan
    with pytest.raises(nonfinite.NonFinite) as caught:
        for _ in range(2 * nonfinite.LIMIT):
            agent.update(batch)
    message = str(caught.value)
    assert "reward (2 entries)" in message and "reward_loss" in message and "vector_loss" not in message
    assert "All weights are finite." in message
    assert agent.updates == nonfinite.LIMIT
    assert caught.value.batch is batch


def test_the_console_says_which_share_of_updates_was_skipped_if_any_was():
    line = logs.metrics_lines(5, {"train/model_loss": 1.0, "train/model_skipped": 0.25, "train/actor_skipped": 0.0})
    assert "not finite, share of updates skipped model 0.25" in line and "actor" not in line
    assert "skipped" not in logs.metrics_lines(5, {"train/model_skipped": 0.0})


def test_weights_that_are_not_finite_are_named():
    agent, batch = make_agent(), make_batch()
    with torch.no_grad():
        agent._wm.heads["reward"].mean_layer.bias[0] = torch.nan
    with pytest.raises(nonfinite.NonFinite, match=r"All inputs are finite: .*reward -.* to .*heads\.reward\.mean_layer\.bias"):
        for _ in range(nonfinite.LIMIT):
            agent.update(batch)


@pytest.mark.parametrize("room", [True, False], ids=["with room", "without room for the batch"])
def test_a_run_ends_with_exit_code_1_and_keeps_episodes_batch_and_the_weights_from_before(room, tmp_path, monkeypatch, capsys):
    flags = {"task": "gym_CartPole-v1", "device": "cpu", "logdir": str(tmp_path), "train_ratio": "12"}
    draw, drawn = Replay.__next__, []

    def poisoned(self):
        drawn.append(draw(self))
        return drawn[-1] if len(drawn) <= 12 else {**drawn[-1], "reward": drawn[-1]["reward"] * np.float32(np.nan)}

    def write_if_there_is_room(path, content):
        if path.name.startswith("nonfinite"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    write = disk._write
    if not room:
        monkeypatch.setattr(disk, "_write", write_if_there_is_room)
    monkeypatch.setattr(Replay, "__next__", poisoned)
    argv = [text for name, value in flags.items() for text in (f"--{name}", value)]
    assert dreamer.main(["--configs", "defaults", "debug", *argv]) == 1
    error = capsys.readouterr().err
    assert "reward (24 entries)" in error and "reward_loss" in error and "updates in a row" in error
    if room:
        (kept,) = tmp_path.glob("nonfinite_*.npz")
        assert str(kept) in error and np.isnan(np.load(kept)["reward"]).all()
    else:
        assert "is kept in" not in error and "error: not everything could be written" in error and "the last batch (1 file)" in error
    stored = checkpoints.load(tmp_path / "latest.pt")
    assert all(value.isfinite().all() for value in stored["agent_state_dict"].values())
    assert stored["step"] >= 50 and sum(1 for _ in tmp_path.glob("train_eps/*.npz")) > 0
    training = dreamer.start(
        tools.load_config(["defaults", "debug"], {"task": "gym_CartPole-v1", "device": "cpu", "logdir": str(tmp_path), "train_ratio": 12})
    )
    assert training.step == stored["step"]
    training.close()
