"""The experiments: their environments, what they measure, and their tables."""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import gymnasium
import matplotlib.image
import numpy as np
import pytest
import torch

import checkpoints
import dreamer
import networks
import settings
import tools
from benchmarks import agents, draw, drawing, exploring, learning, results, shapes, speed, trial, worldmodel
from envs import make_envs
from pages import curves
from scale import sweep
from scale.plan import RESULTS, differing, is_done, load_plan, planned_runs, result_path, stored_frames
from storage.episodes import save_episode, stored_steps

pytestmark = pytest.mark.slow


def switches(name: str, steps: int = 4000) -> np.ndarray:
    """Which things change at each step, (steps, things), with the first action alone."""
    env = gymnasium.make(f"benchmarks.synthetic:{name}-v0")
    env.unwrapped.LENGTH = steps + 1
    env.reset(seed=0)
    shown = [env.unwrapped._shown()]
    for _ in range(steps):
        env.step(0)
        shown.append(env.unwrapped._shown())
    return np.diff(shown, axis=0) != 0


@pytest.mark.parametrize("name, values", [("Together", 8), ("FourTogether", 4), ("FourApart", 4)])
def test_things_change_together_or_apart_and_as_often(name, values):
    changes = switches(name)
    assert changes.shape[1] == values  # as many things as values
    expected = 0.15 * (values - 1) / values  # a code that is drawn anew may be the old one
    np.testing.assert_allclose(changes.mean(0), expected, atol=0.02)
    if name.endswith("Together"):
        assert (changes == changes[:, :1]).all()
    else:
        assert abs(np.corrcoef(changes.T)[np.triu_indices(values, 1)]).max() < 0.08


@pytest.mark.parametrize("name, values", [("Together", 8), ("FourApart", 4)])
def test_the_second_action_turns_all_things_and_the_reward_is_the_share_at_the_first_value(name, values):
    env = gymnasium.make(f"benchmarks.synthetic:{name}-v0")
    env.unwrapped.CHANCE = 0.0
    env.reset(seed=3)
    before = env.unwrapped._shown()
    obs, reward, *_ = env.step(1)
    after = env.unwrapped._shown()
    np.testing.assert_array_equal(after, (before + 1) % values)
    assert reward == (after == 0).mean()
    assert np.abs(obs.reshape(values, values) - np.eye(values)[after]).max() < 5 * 0.3


@pytest.mark.parametrize("name, values", [("Together", 8), ("FourTogether", 4), ("FourApart", 4)])
def test_what_can_be_known_of_things_is_what_a_predictor_with_their_rules_reaches(name, values):
    env = gymnasium.make(f"benchmarks.synthetic:{name}-v0").unwrapped
    env.LENGTH = steps = 20_000
    seen, codes = [env.reset(seed=0)[0]], [env._codes]
    for _ in range(steps - 1):
        seen.append(env.step(0)[0])
        codes.append(env._codes)
    seen, codes = np.stack(seen).reshape(steps, values, values), np.stack(codes)
    shown = np.eye(values)[env._meaning[np.arange(values), codes]]  # (steps, things, values)
    for horizon in (1, 4):
        known = 0.85**horizon  # the chance that a code has not been drawn anew
        error = (seen[horizon:] - known * shown[:-horizon] - (1 - known) / values) ** 2
        assert error.sum((1, 2)).mean() == pytest.approx(env.least_open_loop(horizon), rel=0.02)
    assert ((seen - 1 / values) ** 2).sum((1, 2)).mean() == pytest.approx(env.least_open_loop(np.inf), rel=0.02)
    squashed = np.sign(seen) * np.log1p(np.abs(seen))
    spread = [squashed[shown == clean].var() for clean in (0, 1)]
    assert values * (spread[1] + (values - 1) * spread[0]) == pytest.approx(env.least_observation(), rel=0.02)
    independent = 1 if name.endswith("Together") else values
    stays = (codes[1:] == codes[:-1])[:, :independent].mean()
    surprise = -stays * np.log(stays) - (1 - stays) * np.log((1 - stays) / (values - 1))  # changes go to any other code alike
    assert independent * surprise == pytest.approx(env.least_kl(), rel=0.05)


def test_recall_rewards_what_was_shown_when_asked():
    env = gymnasium.make("benchmarks.synthetic:Recall-v0")
    total, cues, steps, ended = 0.0, [], 0, False
    obs, _ = env.reset(seed=0)
    while not ended:
        if obs[:4].any():
            cues.append(int(obs[:4].argmax()))
        asked = bool(obs[4])
        obs, reward, ended, *_ = env.step(cues[-1] if len(cues) != 2 else (cues[-1] + 1) % 4)  # the second answer is wrong
        assert not reward or asked
        total, steps = total + reward, steps + 1
    assert (total, steps, len(cues)) == (4.0, 5 * 7, 5)


def test_the_interval_of_paired_differences_is_that_of_their_mean():
    pairs = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = results.bootstrap_interval(pairs)
    error = pairs.std() / 20
    np.testing.assert_allclose([low, high], [pairs.mean() - 1.96 * error, pairs.mean() + 1.96 * error], atol=0.01)
    assert results.difference([1.0, 1.0, 1.0, 1.0, 1.0], 1) == "+1.0 (+1.0 to +1.0) \\*"
    assert results.difference([2.0, 2.0, -1.0], 1) == "+1.0" and results.difference([1.0], 1) == ""
    assert results.difference([2.0, 2.0, 2.5], 1) == "+2.2 \\*"


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 10])
def test_an_asterisk_is_wrong_once_in_twenty_times(pairs):
    rng = np.random.default_rng(0)
    assert np.mean([results.t_test(rng.normal(size=pairs)) for _ in range(10_000)]) == pytest.approx(0.05, abs=0.008)


def test_intervals_of_five_pairs_are_as_narrow_as_the_page_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        low, high = results.bootstrap_interval(rng.normal(size=5))
        covered.append(low <= 0.0 <= high)
    assert abs(np.mean(covered) - 0.84) < 0.06


def test_results_of_other_settings_are_not_taken_for_done(tmp_path, monkeypatch):
    monkeypatch.setattr("scale.plan.RESULTS", tmp_path)
    runs = planned_runs(load_plan(draw.PLAN_2023), ["cartpole"])
    config = runs[0].config
    conditions = {"settings": differing(config), "updates": 8}
    assert not results.is_done("learning", runs[0].name, conditions)
    results.store("learning", runs[0].name, {**conditions, "hours": 2.0})
    assert results.is_done("learning", runs[0].name, conditions)
    config.model_lr = 0.5
    with pytest.raises(SystemExit, match=r"\(model_lr\)"):
        results.is_done("learning", runs[0].name, {**conditions, "settings": differing(config)})
    with pytest.raises(SystemExit, match=r"\(updates\)"):
        results.is_done("learning", runs[0].name, {**conditions, "updates": 9})


def test_a_name_that_no_experiment_has_is_refused_with_those_that_there_are(capsys):
    parser = argparse.ArgumentParser()
    assert results.chosen(parser, [], ["a", "b"]) == ["a", "b"] and results.chosen(parser, ["b"], ["a", "b"]) == ["b"]
    with pytest.raises(SystemExit):
        results.chosen(parser, ["c", "a"], ["a", "b"])
    assert "there is no 'c'; there are 'a', 'b'" in capsys.readouterr().err


def step_an_environment(path: str, fails: bool) -> None:
    envs = make_envs(tools.load_config(["debug"], {"task": "gym_CartPole-v1"}), 1, training=True)
    envs.reset(0)
    assert not fails
    pathlib.Path(path).write_text("done")


def test_experiments_in_processes_have_environments_and_one_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    paths = [str(tmp_path / name) for name in "abc"]
    with pytest.raises(RuntimeError, match=r"failed, for the reasons above: \('.*b', True\)$"):
        results.each_in_a_process(step_an_environment, [(path, path == paths[1]) for path in paths], jobs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_the_error_of_the_mean_does_not_grow_with_the_spread_of_dreams():
    truth = torch.randn(4000, 3, 2)
    dreams = (truth + 0.5).repeat_interleave(worldmodel.DREAMS, 0)
    dreams = dreams + 2.0 * torch.randn_like(dreams)
    error = worldmodel.error_of_mean(dreams, truth)
    assert error.shape == (4000, 3)
    torch.testing.assert_close(error.mean(), torch.tensor(2 * 0.25), atol=0.05, rtol=0.0)


def test_the_final_return_is_the_mean_of_the_last_quarter():
    assert agents.final_return({"evaluations": [(1000, 0.0), (2000, 1.0), (3000, 4.0), (4000, 8.0)]}) == 8.0
    assert agents.final_return({"evaluations": [(step, float(step)) for step in range(1, 9)]}) == 7.5


def test_planned_runs_differ_in_variant_and_seed_alone():
    plan = load_plan(draw.PLAN_2023)
    runs = planned_runs(plan, ["cartpole"])
    assert [run.seed for run in planned_runs(plan, ["cartpole"], seeds=[2, 7])] == [2, 2]
    assert [(run.variant, run.seed) for run in runs] == [(variant, seed) for seed in (1, 2, 3) for variant in ("flat", "hdreamer")]
    flat, two_levels = runs[:2]
    assert [word for word in two_levels.command if word not in flat.command] == ["hdreamer_split", "--kl_free", "0.5"]


def test_the_plan_has_the_published_settings_and_as_many_latents_for_both_variants():
    plan = load_plan(learning.PLAN)
    for task in plan["tasks"]:
        flat, two_levels = (run.config for run in planned_runs(plan, [task], seeds=[0]))
        assert flat.optimizer == "laprop" and (flat.dyn_deter, flat.units) == (512, 64)
        assert settings.level_sizes(flat) == {"flat": (32, 4)} and settings.level_sizes(two_levels) == {"top": (16, 4), "bottom": (16, 4)}
        assert flat.kl_free == two_levels.kl_free == 1.0
        ratio = {"atari": 256, "minatar": 32, "minigrid": 128}.get(flat.task.partition("_")[0], 512)
        assert (flat.train_ratio, flat.batch_size, flat.batch_length) == (ratio, 16, 64)
        assert flat.action_repeat == {"dmc": 2, "atari": 4}.get(flat.task.partition("_")[0], 1)


def test_a_plan_is_trained_and_a_run_that_begins_with_another_waits_for_it(tmp_path, capsys):
    pytest.importorskip("submitit")
    task = {"presets": ["dreamerv3_2025", "debug"], "seeds": [4], "flags": {"task": "gym_CartPole-v1", "steps": 60, "eval_every": 0}}
    tasks = {"first": task, "second": {**task, "from": "first", "keep": "top"}}
    plan = {"results": str(tmp_path / "results"), "variants": {"flat": {"presets": [], "flags": {}}}, "tasks": tasks}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    words = [str(tmp_path / "plan.yaml"), "--folder", str(tmp_path / "runs"), "--jobs", "2"]
    assert sweep.main([*words, "--only", "second"]) == 1
    assert "begins with the agent of first-flat-4, which is not trained to its end" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "results" / "second-random.json").read_text())["returns"]) == trial.RANDOM_EPISODES
    assert sweep.main(words) == 0
    for name in tasks:
        result = json.loads((tmp_path / "results" / f"{name}-flat-4.json").read_text())
        steps = sum(stored_steps(tmp_path / "runs" / f"{name}-flat-4" / "run" / "train_eps").values())
        assert result["frames"] == steps == 60 and result["training"][0] == [frames := result["training"][0][0], frames]  # 1 for each step
        assert "GPU" not in result["machine"] and result["settings"]["train_ratio"] == "4.0"
    log = (tmp_path / "runs" / "second-flat-4" / "log.txt").read_text()
    assert "tensors" in log and "origin.pt" in log


def test_the_table_of_transfer_has_frames_to_the_target_and_mean_returns():
    def result(learns_after: int, frames: int = 30_000) -> dict:
        training = [[at, 300.0 if at > learns_after else 100.0] for at in range(1000, frames + 1, 1000)]
        return {"training": training, "frames": frames}

    plan = load_plan(draw.PLAN_QUARTER)
    task = "swingup_after_balance"
    two_levels = {0: result(10_000), 2: result(10_000, frames=50_000)}  # the mean of both is over 30,000 frames
    found = {task: {"flat": {0: result(15_000), 1: result(99_999), 3: result(0, frames=29_000)}, "hdreamer": two_levels}}
    # The mean of five episodes reaches 250 with the fourth of 300: (100 + 4 * 300) / 5 = 260.
    assert agents.frames_to(found[task]["flat"][0], 250) == 19_000
    cells = cells_of_last(agents.transfer_table(plan, found))
    assert cells[:3] == ["the whole agent of balance", "19,000, over 30,000", "14,000, 14,000"]
    assert cells[3:] == ["200, 100 (**150**)", "233, 233 (**233**)", ""]  # (100 * 10 + 300 * 20) / 30 = 233.3


def test_returns_of_a_run_are_those_of_its_training_episodes_but_for_those_cut_off_when_it_stopped(tmp_path):
    for number, length in enumerate((5, 9, 3)):  # observations, one more than steps
        episode = {"reward": np.full(length, 0.5, np.float32), "is_terminal": np.zeros(length, bool)}
        save_episode(tmp_path / "train_eps", episode, stem=f"20260101T00000{number}-{number}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "episode/return": 2.5}\n{"step": 24, "cut_off/return": 4.5}\n')
    config = tools.load_config([], {"task": "gym_CartPole-v1", "eval_every": 0, "action_repeat": 2})
    assert trial.read_returns(tmp_path, config) == {"training": [(8, 2.5), (28, 1.5)]}


def test_a_run_that_was_stopped_is_stored_and_not_done(tmp_path):
    plan = {**load_plan(learning.PLAN), "results": str(tmp_path)}
    (run,) = planned_runs(plan, ["cartpole"], seeds=[0])[:1]
    path = result_path(plan["results"], run.name)
    assert stored_frames(path) == 0 and not is_done(plan, run)
    for frames, done in ((8999, False), (9000, True)):
        results.store(plan["results"], run.name, {"settings": differing(run.config), "frames": frames, "training": [[20, 20.0]]})
        assert stored_frames(path) == frames and is_done(plan, run) == done


@pytest.mark.parametrize("presets", [[], ["hdreamer_split"]], ids=["flat", "two levels"])
def test_a_run_begins_with_the_part_of_an_agent_that_its_plan_keeps(presets, tmp_path, capsys):
    """The source is a run on CartPole; a run of another task with the same spaces begins with it, at frame 0 and without episodes."""
    start = ["--configs", "dreamerv3_2025", *presets, "debug", "--device", "cpu", "--eval_every", "0", "--seed", "3"]
    assert dreamer.main([*start, "--task", "gym_CartPole-v1", "--steps", "80", "--logdir", str(tmp_path / "source")]) == 0
    source = checkpoints.load(tmp_path / "source")
    whole, top = (trial.kept(tmp_path / "source", keep, seed=5) for keep in ("all", "top"))
    assert all(torch.equal(whole["agent_state_dict"][name], tensor) for name, tensor in source["agent_state_dict"].items())
    same = {name for name, tensor in source["agent_state_dict"].items() if torch.equal(top["agent_state_dict"][name], tensor)}
    weights = {name for name in source["agent_state_dict"] if name.endswith("weight") and "norm" not in name}
    new = {name.removeprefix("_wm.dynamics.") for name in weights - same}
    stat_layers = [f"_wm.dynamics._{part}_stat_layer.{'top.' if presets else ''}weight" for part in ("imgs", "obs")]
    assert {*stat_layers, "_wm.dynamics._cell.gates.weight"} <= same
    assert "_task_behavior.actor.layers.Actor_linear0.weight" in new
    assert {"_imgs_stat_layer.bottom.weight", "_obs_stat_layer.bottom.weight", "_top_summary.0.weight"} <= new or not presets
    capsys.readouterr()
    for name, checkpoint, updates in (("whole", whole, source["updates"]), ("top", top, 0)):
        checkpoints.save(tmp_path / f"{name}.pt", checkpoint)
        begins = ["--from_checkpoint", str(tmp_path / f"{name}.pt"), "--logdir", str(tmp_path / name)]
        assert dreamer.main([*start, "--task", "gym_CartPole-v0", "--steps", "60", *begins]) == 0
        output = capsys.readouterr().out
        assert "Resuming at frame 0 after" in output and f"after {updates} updates" in output, output
        assert sum(stored_steps(tmp_path / name / "train_eps").values()) == 60  # none of the source's episodes
    with pytest.raises(ValueError, match="keep is 'bottom'"):
        trial.kept(tmp_path / "source", "bottom", seed=5)


def test_training_curves_are_means_over_bins_of_frames():
    result = {"training": [[400, 1.0], [1000, 3.0], [1001, 5.0], [3500, 7.0], [4100, 9.0]], "frames": 4500}
    curve = agents.training_curve(result, 1000)
    assert curve.steps.tolist() == [1000, 2000, 4000] and curve.values.tolist() == [2.0, 5.0, 7.0]
    assert agents.return_before(agents.episodes(result), 4000, 3000) == 6.0


def test_the_table_beside_the_original_has_final_returns_and_areas_of_the_runs_that_reached_it(monkeypatch):
    def result(first: float, second: float, frames: int = 50_000) -> dict:
        training = [[at, first if at <= 25_000 else second] for at in range(1000, frames + 1, 1000)]
        return {"training": training, "frames": frames, "hours": 2.0}

    plan = load_plan(learning.PLAN)
    same_size = {"size1m/dmc_cartpole_swingup": [curves.Curve(np.array([15_000, 20_000]), np.array([120.0, 160.0]))]}
    original = agents.published() | same_size
    monkeypatch.setattr(agents, "published", lambda: original)
    flat, two_levels = {0: result(100, 300), 1: result(100, 400)}, {0: result(200, 310), 1: result(200, 430), 2: result(200, 0, 20_000)}
    table = agents.published_table(plan, {"cartpole_swingup": {"random": [50.0], "flat": flat, "hdreamer": two_levels}})
    early, late = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[-2:])
    assert early[1:5] == ["10,000 to 20,000", "50", "**189** (137 to 213)", "**140**"]
    assert early[5:] == ["100, 100 (**100**)", "200, 200, 200 (**200**)", "+100 \\*", "+100 \\*", ""]
    # Of the curves' five bins the middle one has half of either: 100, 100, 200, 300, 300 for the first seed.
    assert late[1:5] == ["40,000 to 50,000", "50", "**322** (265 to 457)", ""]  # the original at size1m did not get that far
    assert late[5:] == ["300, 400 (**350**)", "310, 430 (**370**)", "+20", "+60", "2.0, 2.0"]


def test_the_figure_beside_the_original_shows_what_was_run_up_to_the_last_frame_of_the_plan(monkeypatch):
    larger = [curves.Curve(np.array([10_000, 40_000, 90_000]), np.array(values)) for values in ([1.0, 2.0, 9.0], [3.0, 6.0, 9.0])]
    same_size = [curves.Curve(np.array([10_000, 20_000]), np.array([4.0, 5.0]))]
    original = {"dmc_cartpole_swingup": larger, "size1m/dmc_cartpole_swingup": same_size}
    monkeypatch.setattr(agents, "published", lambda: original)
    run = {"training": [[at, 7.0] for at in range(1000, 30_001, 1000)], "frames": 30_000}
    found = {"cartpole_swingup": {"random": [0.5], "flat": {0: run}, "hdreamer": {}}}
    figure = agents.published_figure(load_plan(learning.PLAN), found, columns=3)
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "flat",
        *(title for title, _ in agents.ORIGINALS.values()),
        "random policy",
    ]
    drawn = [(line.get_linestyle(), line.get_xdata(), line.get_ydata()) for line in figure.axes[0].lines]
    assert [(style, [*x], [*y]) for style, x, y in drawn[:2]] == [
        ("--", [10_000, 40_000], [2.0, 4.0]),
        ("-.", [10_000, 20_000], [4.0, 5.0]),
    ]
    assert any(np.array_equal(y, [7.0] * 3) for style, x, y in drawn[2:])


@pytest.mark.parametrize("name, latents", [("size1m_vectors", 32 * 4), ("size1m_images", 32 * 4), ("size12m_images", 32 * 16)])
def test_batches_of_2025_begin_with_stored_latents(name, latents):
    shape = shapes.SHAPES[name]
    assert list(shape.variants) == ["flat", "hdreamer_split"]
    for presets in shape.variants.values():
        config = shape.config(presets)
        batch = shape.batch(config)
        assert config.precision == "32" and batch["reward"].shape == (16, 64) and not batch["is_first"].any()
        assert batch["replay.context"]["deter"].shape == (16, config.dyn_deter)
        codes = [value for key, value in batch["replay.context"].items() if key != "deter"]
        assert sum(code.shape[1] * config.dyn_discrete for code in codes) == latents


def test_the_jax_original_needs_its_checkout_and_a_python_that_has_its_modules(tmp_path, monkeypatch, capfd):
    batch = {"action": np.zeros((2, 4, 3), np.float32), "replay.context": {}}
    with pytest.raises(SystemExit, match="does not start"), speed.jax_original(sys.executable, str(tmp_path), "size1m_vectors", batch):
        pass
    assert "give --jax a checkout of https://github.com/danijar/dreamerv3" in capfd.readouterr().err
    (tmp_path / "dreamerv3").mkdir()
    (tmp_path / "dreamerv3" / "configs.yaml").touch()
    (tmp_path / "elements.py").write_text("import jax_of_no_python")
    with pytest.raises(SystemExit, match="does not start"), speed.jax_original(sys.executable, str(tmp_path), "size1m_vectors", batch):
        pass
    assert "does not import jax_of_no_python" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="give the path of a Python"), speed.jax_original("./none", str(tmp_path), "size1m_vectors", batch):
        pass
    with speed.jax_original(sys.executable, None, "size1m_vectors", batch) as original:
        assert original is None


def test_the_jax_original_answers_with_the_seconds_of_one_train_step(tmp_path):
    """With a program of a few lines in the place of the original."""
    (tmp_path / "answers.py").write_text("print('ready', flush=True)\nfor line in iter(input, None): print(len(line), flush=True)")
    command = [sys.executable, str(tmp_path / "answers.py")]
    with speed.other_program(command, str(tmp_path), "size1m_vectors", {}) as other:
        seconds = speed.by_turns({"ours": lambda: 3.0, "theirs": other("update")}, 2)
    assert seconds == {"ours": [3.0, 3.0], "theirs": [6.0, 6.0]}
    result = {name: {"seconds": [value], "operations": None, "bytes": None} for name, value in (("flat", 3.0), ("the JAX original", 6.0))}
    assert speed.describe("flat", result, alternated=True).endswith("0.500 of the JAX original")


def test_stored_results_are_those_of_the_plans():
    """They were stored when presets had other sizes and free nats, and every flat run named sizes of levels too."""
    for path, least in ((learning.PLAN, 0), (draw.PLAN_QUARTER, 0), (draw.PLAN_LAPTOP, 2), (draw.PLAN_2023, 32)):
        plan = load_plan(path)
        stored = {path.stem for path in (RESULTS / plan["results"]).glob("*.json")}
        runs = [run for run in planned_runs(plan, list(plan["tasks"])) if run.name in stored]
        assert len(runs) >= least
        assert all(results.is_done(plan["results"], run.name, {"settings": differing(run.config)}) for run in runs)
    for name, data in worldmodel.DATA.items():
        for variant in data.variants:
            assert results.is_done("worldmodel", results.name_of(name, variant, 0), worldmodel.conditions(name, variant))
    for variant in exploring.VARIANTS:
        assert results.is_done("exploring", results.name_of(variant, 1), exploring.conditions(variant))


def test_other_sizes_of_the_latent_are_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("scale.plan.RESULTS", tmp_path)
    same, other = (
        {"settings": differing(tools.load_config([preset], {"task": "gym_X-v0", "dyn_stoch": 16, "dyn_discrete": 16}))}
        for preset in ("hdreamer_split", "hdreamer")
    )
    numbers = {"dyn_stoch_top": "8", "dyn_discrete_top": "16", "dyn_stoch_bottom": "8", "dyn_discrete_bottom": "16"}
    results.store("learning", "a", {"settings": {**same["settings"], **numbers}})
    assert results.is_done("learning", "a", same)
    with pytest.raises(SystemExit, match=r"\(latent\)"):
        results.is_done("learning", "a", other)


@pytest.mark.parametrize("variant", worldmodel.VARIANTS)
def test_a_world_model_is_trained_and_measured(variant, monkeypatch):
    stored, measured, whole_sequences = {}, [], worldmodel.whole_sequences

    def remembering(memory):
        measured.append(len(memory))
        return whole_sequences(memory)

    monkeypatch.setattr(worldmodel, "whole_sequences", remembering)
    monkeypatch.setattr(worldmodel, "DATA", {"together": worldmodel.DATA["together"]._replace(steps=400, updates=8)})
    monkeypatch.setattr(worldmodel, "SEQUENCES", worldmodel.DECODED + 4)
    monkeypatch.setattr(worldmodel, "HELD_OUT", 600)
    monkeypatch.setattr(results, "store", lambda experiment, name, result: stored.update({name: result}))
    worldmodel.run_one("together", variant, 0)
    (result,) = stored.values()
    assert measured == [600, 400] and result["bound_recorded"] != result["bound"]  # on held-out steps, and on those it was trained on
    assert result["bound"] == pytest.approx(result["kl"] + result["observation"] + result["reward"], abs=1e-3)
    assert result["kl"] == pytest.approx(sum(value for key, value in result.items() if key.startswith("kl_")), abs=1e-3)
    assert len(result["open_loop"]) == worldmodel.HORIZON and len(result["bounds"]) == 8
    guess = gymnasium.make("benchmarks.synthetic:Together-v0").unwrapped.least_open_loop(np.inf)
    assert np.mean(result["open_loop_mean"]) == pytest.approx(guess, rel=0.1)
    assert result["open_loop_last"][-1] == pytest.approx(2 * guess, rel=0.2)  # two draws that have nothing to do with each other


def test_the_ablations_are_what_they_say():
    torch.manual_seed(0)
    sizes = dict(stoch_top=2, stoch_bottom=3, discrete_top=4, discrete_bottom=4, deter=8, hidden=8, num_actions=2, embed=5)
    blind, direct = worldmodel.BottomPriorAlone(**sizes), worldmodel.DirectBottomPosterior(**sizes)
    for rssm in (blind, direct):
        torch.nn.init.normal_(rssm._top_to_prior.weight)
    x, codes = torch.randn(6, 8), torch.eye(4)[torch.tensor([[0, 1], [2, 3]])]  # two codes of the top, (2, 2, 4)
    one, other = (code.expand(6, 2, 4) for code in codes)
    assert torch.equal(blind.level_logits("bottom", one, x), blind.level_logits("bottom", other, x))
    assert not torch.allclose(direct.level_logits("bottom", one, x), direct.level_logits("bottom", other, x))
    embed, action, first, state = torch.randn(6, 1, 5), torch.randn(6, 1, 2), torch.zeros(6, 1), direct.initial(6)
    logits = []
    for shift in (0.0, 5.0):  # of the bottom prior, which the posterior must not feel
        with torch.no_grad():
            direct._imgs_stat_layer["bottom"].bias[0] += shift
        torch.manual_seed(1)
        logits.append(direct.observe(embed, action, first, state)[0]["logit_bottom"])
    torch.testing.assert_close(*logits)


def test_the_other_ways_to_build_it_are_what_they_say():
    torch.manual_seed(0)
    sizes = dict(stoch_top=2, stoch_bottom=3, discrete_top=4, discrete_bottom=4, deter=8, hidden=8, num_actions=2, embed=5)
    inputs = torch.randn(6, 1, 5), torch.randn(6, 1, 2), torch.zeros(6, 1)
    post, prior = worldmodel.ResidualFromZero(**sizes).observe(*inputs)
    torch.testing.assert_close(post["logit_bottom"], prior["logit_bottom"])
    for rssm, learns in ((networks.HierarchicalRSSM(**sizes), False), (worldmodel.PriorLearnsThroughPosterior(**sizes), True)):
        post, _ = rssm.observe(*inputs)
        (post["logit_bottom"] * torch.randn(4)).sum().backward()
        assert bool(rssm._imgs_stat_layer["bottom"].weight.grad.any()) == learns


def test_the_loss_of_the_bottom_prior_moves_the_top_posterior_unless_it_is_kept_from_it():
    torch.manual_seed(0)
    sizes = dict(stoch_top=2, stoch_bottom=3, discrete_top=4, discrete_bottom=4, deter=8, hidden=8, num_actions=2, embed=5)
    inputs = torch.randn(6, 1, 5), torch.randn(6, 1, 2), torch.zeros(6, 1)
    for kind, moves in ((networks.HierarchicalRSSM, True), (worldmodel.TopUnmovedByBottomPrior, False)):
        rssm = kind(**sizes)
        torch.nn.init.normal_(rssm._top_to_prior.weight)
        post, prior = rssm.observe(*inputs)
        loss = rssm._level_dist("bottom", post).detach().kl(rssm._level_dist("bottom", prior)).sum()
        loss.backward()
        assert (rssm._obs_stat_layer["top"].weight.grad is not None and bool(rssm._obs_stat_layer["top"].weight.grad.any())) == moves
        assert rssm._top_to_prior.weight.grad.any() and rssm._top_summary[0].weight.grad.any()


def test_the_table_of_world_models_has_means_over_seeds_levels_and_paired_differences():
    def result(bound: float, **kls: float) -> dict:
        return {
            "bound": bound,
            "kl": sum(kls.values()),
            **kls,
            "observation": 1.0,
            "reward": 0.5,
            "open_loop": [bound, 3.0, 3.0, 3.0, 3.0, 4.5],
            "open_loop_reward": [bound / 10],
        }

    flat = {0: result(4.0, kl_flat=2.0), 1: result(6.0, kl_flat=3.0), 2: result(90.0, kl_flat=9.0)}
    half = {0: result(3.0, kl_top=1.0, kl_bottom=0.25), 1: result(5.4, kl_top=2.0, kl_bottom=0.5)}  # seed 2 has no pair
    found = {"flat": flat, worldmodel.HALF_EACH: half, "residual starts at zero": half}  # ablations have a table of their own
    cells = cells_of_last(draw.worldmodel_table("together", found))
    assert cells[1:9] == ["2", "4.20", "1.88 (1.50 + 0.38)", "1.00", "0.500", "3.24", "3.45", "0.4200"]
    assert cells[9:] == [draw.VARIANTS["flat"], "-0.80", "-0.16", "-0.13", "-0.08000"]


def cells_of_last(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]


def test_the_short_table_of_world_models_is_after_a_quarter_a_half_and_all_updates():
    flat = {seed: {"bounds": [(at, 0.0) for at in range(1, 9)]} for seed in range(2)}
    half = {seed: {"bounds": [(at, at + seed) for at in range(1, 9)]} for seed in range(2)}
    faster = {worldmodel.FASTER_FLAT: flat, worldmodel.FASTER_HALF_EACH: half}
    cells = cells_of_last(draw.elbo_table({"four_apart": faster | {worldmodel.HALF_EACH: half}}))  # whose flat runs are missing
    assert cells[:5] == [draw.DATA["four_apart"], "0.5", "0.0006", "2", "4,000"]
    assert cells[5:] == [f"{at + 0.5:+.2f}" + (at > 6) * " \\*" for at in (2, 4, 8)]


def test_the_table_of_ablations_compares_with_two_levels_as_they_are_half_way_and_at_the_end():
    whole = {seed: {"bounds": [(at, 0.0) for at in range(1, 9)]} for seed in range(2)}
    ablated = {seed: {"bounds": [(at, at + seed) for at in range(1, 9)]} for seed in range(2)}
    last = "top unmoved by bottom prior"
    found = {name: {worldmodel.ONE_EACH: whole, last: ablated} for name in draw.SYNTHETIC}
    del found["four_apart"][last]
    cells = cells_of_last(draw.ablations_table(found))
    assert cells == [draw.VARIANTS[last], *(["+4.50", "+8.50 \\*"] * 2), "", ""]


@pytest.mark.parametrize("count, columns, places", [(1, 3, (1, 1)), (3, 3, (1, 3)), (4, 3, (2, 3))])
def test_a_figure_has_no_more_columns_than_panels(count, columns, places):
    figure, axes = drawing.panels(count, columns, "x", "y", {"flat": ("black", "-")})
    assert axes[0].get_gridspec().get_geometry() == places
    assert [axis.get_visible() for axis in figure.axes] == [True] * count + [False] * (len(figure.axes) - count)


def test_pages_have_a_name_for_all_data_and_variants():
    assert list(draw.DATA) == list(worldmodel.DATA) and list(draw.VARIANTS) == list(worldmodel.VARIANTS)


@pytest.mark.parametrize("script", ["draw", "exploring", "learning", "speed", "suites", "trial", "worldmodel"])
def test_every_script_starts_from_any_folder(script, tmp_path):
    path = pathlib.Path(draw.__file__).with_name(f"{script}.py")
    result = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "usage:" in result.stdout, result.stderr


def test_a_page_keeps_its_words_and_gets_new_tables():
    page = "before\n<!-- one -->\nold\n<!-- end -->\nbetween\n<!-- two -->\n<!-- end -->\nafter\n"
    filled = draw.fill(page, {"one": "| new |", "two": "| \\1 |"})
    assert filled.split() == "before <!-- one --> | new | <!-- end --> between <!-- two --> | \\1 | <!-- end --> after".split()
    assert draw.fill(filled, {"one": "| new |"}) == filled
    with pytest.raises(ValueError, match="three"):
        draw.fill(page, {"three": ""})


def test_the_figures_on_the_pages_are_those_that_are_drawn():
    drawn = {f"{name}.png" for name in draw.figures()}
    assert {figure.name for figure in draw.FIGURES.iterdir()} == drawn
    shown = re.findall(rf"\]\({draw.FIGURES.name}/(.*)\)", draw.PAGE.read_text() + draw.APPENDIX.read_text())
    assert sorted(shown) == sorted(drawn - {"readme.png"})


def test_a_panel_has_at_most_five_curves_and_figures_are_sharp_at_900_pixels():
    for name, figure in draw.figures().items():
        for axis in figure.axes:
            looks = {(line.get_color(), line.get_linestyle()) for line in axis.get_lines()}
            assert len(looks) <= 5, (name, axis.get_title(), looks)
        assert matplotlib.image.imread(draw.FIGURES / f"{name}.png").shape[1] == 1800, name


def test_results_fit_on_a_page():
    assert len(draw.PAGE.read_text().splitlines()) <= 200
