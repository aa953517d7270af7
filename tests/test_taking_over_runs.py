"""Runs that begin with another program's or another run's checkpoint, the way back, full size, and what is refused."""

import copy
import functools
import json
import os
import pathlib
import pickle
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

import checkpoints
import dreamer
import dreamerv3_torch
import runs
import tools
from dreamer import Dreamer
from old_files import DATA, NAMES, batch, checkpoint, levels, make_agent, same, stored_settings

ROOT = pathlib.Path(__file__).parent.parent
# A game of five actions, as the file's, and its episodes' observations.
GAME = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Game(gymnasium.Env):
    observation_space, action_space = spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(5)

    def reset(self, seed=None, options=None):
        self._step = 0
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action):
        self._step += 1
        return np.full((64, 64, 3), self._step, np.uint8), float(action == 3), self._step == 60, False, {}

gymnasium.register("Game-v0", Game)
"""
FRAMES = 4 * (24 + 42 + 18 - 3)  # of the stored episodes, whose first observations are no steps
KINDS = {"flat": {}, "split": levels(3, 4, 3, 4), "widened": levels(6, 4, 4, 5)}


@pytest.fixture
def old_run(tmp_path) -> pathlib.Path:
    """A folder as dreamerv3-torch leaves it."""
    folder = tmp_path / "old"
    shutil.copytree(DATA / "atari" / "train_eps", folder / "train_eps")
    shutil.copyfile(DATA / "atari" / "latest.pt", folder / "latest.pt")
    (folder / "metrics.jsonl").write_text('{"step": 312, "train_return": 1.0}\n')
    (tmp_path / "game.py").write_text(GAME)
    return folder


def run(folder: pathlib.Path, *flags: str, code: int = 0, **overrides) -> subprocess.CompletedProcess:
    """The command line at the file's sizes on the game, from the folder above `folder`."""
    chosen = {**stored_settings("atari"), "task": "gym_game:Game-v0", "device": "cpu", "action_repeat": 4, "prefill": 60, "pretrain": 8,
              "eval_every": 0, "train_ratio": 2, "steps": 500, **overrides}
    words = [word for key, value in chosen.items() for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))]
    result = subprocess.run([sys.executable, str(ROOT / "dreamer.py"), *words, *flags], capture_output=True, text=True, timeout=300,
                            stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(folder.parent)}, cwd=folder.parent)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def found(output: str) -> str:
    """What is said of the agent that was taken over, on one line."""
    return " ".join(output.split("Agent taken over")[1].split("Continuing")[0].split())


# The two doors


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_the_old_program_is_continued(old_run, kind):
    original = (old_run / "latest.pt").read_bytes()
    output = run(old_run, "--logdir", str(old_run), **KINDS[kind]).stdout
    assert f"Continuing at frame {FRAMES} after 4 updates, with 81 steps in memory." in output
    counts = {"flat": "83 copied, 0 split, 0 widened, 0 new", "split": "79 copied, 8 split, 0 widened, 4 new",
              "widened": "76 copied, 0 split, 7 widened, 8 new"}[kind]
    text = found(output)
    assert "dreamerv3-torch; latent of 6 categoricals of 4 classes" in text and counts in text
    assert "141 tensors that are stored again" in text and "learning rates" in text
    assert "prefill:" not in output and "pretrain: 4 of 8 updates" in output
    assert (old_run / "latest.dreamerv3-torch.pt").read_bytes() == original

    stored = checkpoints.load(old_run / "latest.pt")
    assert stored["step"] == 500 and stored["updates"] == 4 + 4 + (500 - FRAMES) // 4 * 2 // 24
    steps = stored["optims_state_dict"]["_wm._model_opt._opt"]["state"][0]["step"]
    assert steps == stored["updates"]
    lengths = sum(len(np.load(path)["reward"]) - 1 for path in (old_run / "train_eps").glob("*.npz"))
    assert 4 * lengths == 500
    lines = [json.loads(line) for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train_return"] == 1.0 and lines[-1]["step"] == 500

    again = run(old_run, "--logdir", str(old_run), **{**KINDS[kind], "steps": 560}).stdout
    assert "Agent taken over" not in again and "Continuing at frame 500" in again
    assert (old_run / "latest.dreamerv3-torch.pt").read_bytes() == original


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_run_begins_with_a_checkpoint_from_elsewhere(old_run, tmp_path, kind):
    before = {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    flags = ["--from_checkpoint", str(old_run / "latest.pt"), "--logdir", str(new)]
    result = run(old_run, *flags, steps=400, **KINDS[kind])
    assert f"Continuing at frame {FRAMES} after 4 updates, with 81 steps in memory." in result.stdout
    assert "from_checkpoint" not in result.stdout.split("To train on")[1]  # the printed command goes on in the new folder
    assert checkpoints.load(new / "latest.pt")["step"] == 400
    assert {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()} == before
    assert len(list((new / "train_eps").glob("*.npz"))) == 5 and not (new / "latest.dreamerv3-torch.pt").exists()

    result = run(old_run, *flags, steps=420, **KINDS[kind])
    assert "Continuing at frame 400" in result.stdout and "from_checkpoint is not read" in result.stderr
    if kind == "flat":
        assert "from_checkpoint" not in run(old_run, "--logdir", str(new), steps=420).stdout


def test_a_flat_run_of_this_program_goes_on_with_two_levels(old_run, tmp_path):
    flat, split = tmp_path / "flat", tmp_path / "split"
    run(old_run, "--from_checkpoint", str(old_run), "--logdir", str(flat), steps=400)
    output = run(old_run, "--from_checkpoint", str(flat), "--logdir", str(split), steps=440, **KINDS["split"], act="ReLU").stdout
    assert re.search(r"differ from those it was trained with\n +act +SiLU -> ReLU\nContinuing", output)
    assert "hDreamer; latent of 6 categoricals of 4 classes" in found(output)
    updates = checkpoints.load(flat / "latest.pt")["updates"]
    assert f"Continuing at frame 400 after {updates} updates" in output
    assert checkpoints.load(split / "latest.pt")["step"] == 440


def test_a_checkpoint_without_episodes_starts_at_frame_zero_and_its_own_policy_fills_the_memory(old_run, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copyfile(old_run / "latest.pt", tmp_path / "alone" / "model.pt")
    output = run(old_run, "--from_checkpoint", "alone/model.pt", "--logdir", str(tmp_path / "new"), steps=300).stdout
    assert "Continuing at frame 0 after 4 updates, with 0 steps in memory." in output and "prefill: 60 of 60 steps" in output


def test_a_trained_agent_fills_the_memory_with_its_own_policy(old_run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    acted = []
    monkeypatch.setattr(dreamer.exploration.Random, "act", lambda *_: pytest.fail("random actions"))
    act = Dreamer.act
    monkeypatch.setattr(Dreamer, "act", lambda agent, *args: (acted.append(1), act(agent, *args))[1])
    overrides = {**stored_settings("atari"), "task": "gym_game:Game-v0", "device": "cpu", "eval_every": 0, "prefill": 90, "steps": 90,
                 "from_checkpoint": str(old_run), "logdir": str(tmp_path / "new"), "action_repeat": 1}
    training = dreamer.Training(tools.load_config([], overrides))
    training.run()
    assert training.step == 90 and len(acted) == 90 - 81


def test_a_stop_before_the_first_own_checkpoint_leaves_every_choice_open(old_run, monkeypatch):
    monkeypatch.syspath_prepend(str(old_run.parent))
    overrides = {**stored_settings("atari"), "task": "gym_game:Game-v0", "device": "cpu", "eval_every": 0, "logdir": str(old_run)}
    with monkeypatch.context() as patched:
        patched.setattr(dreamer.Training, "save", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dreamer.Training(tools.load_config([], overrides))
    dreamer.Training(tools.load_config([], {**overrides, **KINDS["split"]})).close()
    assert (old_run / "latest.dreamerv3-torch.pt").read_bytes() == (DATA / "atari" / "latest.pt").read_bytes()


def test_episodes_are_linked_through_symlinks_and_onto_themselves(old_run, tmp_path):
    stored = tmp_path / "stored"
    (old_run / "train_eps").rename(stored)
    (old_run / "train_eps").mkdir()
    for path in stored.iterdir():
        (old_run / "train_eps" / path.name).symlink_to(pathlib.Path("..", "..", "stored", path.name))
    for _ in range(2):
        runs.take_over_episodes(old_run / "train_eps", tmp_path / "new")
        runs.take_over_episodes(tmp_path / "new", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in stored.iterdir())
    assert all(path.read_bytes() == (stored / path.name).read_bytes() for path in (tmp_path / "new").iterdir())


@pytest.mark.parametrize("path", ["", "nowhere.pt", "train_eps"])
def test_a_checkpoint_that_is_not_there_is_named(old_run, path):
    error = run(old_run, "--from_checkpoint", path, "--logdir", "new", code=2).stderr
    assert f"there is no checkpoint '{path or '.'}" in error and not (old_run.parent / "new").exists()


@pytest.mark.parametrize("kind, overrides, words", [
    ("latent", levels(3, 5, 3, 4), ["6 categoricals of 4 classes", "dyn_stoch_top 3, dyn_discrete_top 4"]),
    ("sizes", {"dyn_deter": 32}, ["_wm.dynamics.W has shape (1, 24), not (1, 32)"]),
    ("damaged", {}, ["latest.pt", "damaged"]),
    ("code", {}, ["latest.pt", "more than tensors"]),
])
@pytest.mark.parametrize("door", ["--logdir", "--from_checkpoint"])
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_changes(old_run, tmp_path, kind, overrides, words, door):
    path = old_run / "latest.pt"
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "code":
        torch.save({**checkpoint("atari"), "extra": Payload(tmp_path / "attacked")}, path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    flags = ["--logdir", str(old_run)] if door == "--logdir" else ["--from_checkpoint", str(path), "--logdir", str(tmp_path / "new")]
    result = run(old_run, *flags, code=2, **overrides)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert after == before and not (tmp_path / "new").exists()


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path):
    file = tmp_path / "latest.pt"
    torch.save({**checkpoint("atari"), "agent_state_dict": Payload(tmp_path / "attacked")}, file)
    with pytest.raises(ValueError, match="more than tensors"):
        checkpoints.load(file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)
    file.write_bytes(pickle.dumps(Payload(tmp_path / "attacked")))
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(file)
    assert not (tmp_path / "attacked").exists()
    torch.save(Payload(tmp_path / "own"), tmp_path / "own.pt")
    torch.load(tmp_path / "own.pt", weights_only=False)
    assert (tmp_path / "own").exists()  # it would have run


# What is refused in Python


def damage(edit) -> dict:
    """A checkpoint in which `edit(weights, optimizers)` has changed something."""
    stored = copy.deepcopy(checkpoint("atari"))
    edit(stored["agent_state_dict"], stored["optims_state_dict"])
    return stored


def _nan(weights, optimizers):
    weights["_wm.dynamics._cell.layers.GRU_linear.weight"][3, 3] = torch.nan


def _infinite_moment(weights, optimizers):
    optimizers["_task_behavior._actor_opt._opt"]["state"][2]["exp_avg_sq"][0] = torch.inf


def _missing(weights, optimizers):
    for name in [name for name in weights if name.endswith("_cell.layers.GRU_norm.bias")]:
        del weights[name]
    optimizers.clear()


def _extra(weights, optimizers):
    weights["_wm.heads.colour.weight"] = torch.zeros(3)


def _other_optimizer(weights, optimizers):
    for slots in optimizers["_wm._model_opt._opt"]["state"].values():
        slots["momentum_buffer"] = slots.pop("exp_avg")


def _fewer_moments(weights, optimizers):
    optimizers["_wm._model_opt._opt"]["param_groups"][0]["params"].pop()


def _no_actor_optimizer(weights, optimizers):
    del optimizers["_task_behavior._actor_opt._opt"]


def _too_large_for_float32(weights, optimizers):
    weights["_wm.dynamics.W"] = torch.full((1, 24), 1e300, dtype=torch.float64)


def _endless_step(weights, optimizers):
    optimizers["_task_behavior._value_opt._opt"]["state"][3]["step"] = torch.tensor(1e300, dtype=torch.float64)


def _negative_step(weights, optimizers):
    optimizers["_wm._model_opt._opt"]["state"][3]["step"] = torch.tensor(-5.0)


def _negative_square(weights, optimizers):
    optimizers["_wm._model_opt._opt"]["state"][3]["exp_avg_sq"][0] = -1e-9


@pytest.mark.parametrize("edit, words", [
    (_nan, ["GRU_linear.weight", "not finite"]), (_infinite_moment, ["exp_avg_sq of _task_behavior.actor", "not finite"]),
    (_extra, ["_wm.heads.colour.weight is unknown"]),
    (_other_optimizer, ["_wm._model_opt._opt is not Adam", "load the weights alone"]), (_fewer_moments, ["57 parameters", "58"]),
    (_no_actor_optimizer, ["_task_behavior._actor_opt._opt"]), (_too_large_for_float32, ["_wm.dynamics.W", "not finite"]),
    (_endless_step, ["step of _task_behavior.value", "not finite"]), (_negative_step, ["negative step"]),
    (_negative_square, ["negative exp_avg_sq"]),
], ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_refused_and_leaves_the_agent_as_it_was(edit, words, kind):
    assert_refused(make_agent("atari", **KINDS[kind]), damage(edit), words)


def assert_refused(agent: Dreamer, stored: dict, words: list[str]) -> None:
    agent.update(batch("atari"))
    before = copy.deepcopy((dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
    with pytest.raises(ValueError) as error:
        agent.load_checkpoint(stored)
    assert all(word in str(error.value) for word in words), error.value
    assert same(before, (dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))


JUNK = [None, 3, "x", [], {}, torch.tensor(3), torch.tensor(-5.0), torch.tensor(torch.nan), torch.zeros(0), torch.zeros(5, 5).bool(),
        torch.zeros(3, 3, dtype=torch.complex64), torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, device="meta"),
        torch.zeros(4, dtype=torch.float8_e5m2)]


def entries(tree, path: tuple = ()):
    """The paths of all entries of nested dicts."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from entries(value, (*path, key))


@pytest.mark.parametrize("kind", ["flat", "widened"])
def test_whatever_is_wrong_with_a_checkpoint_there_is_one_line_and_nothing_has_changed(kind):
    agent, rng, refused = make_agent("proprio", **KINDS[kind]), random.Random(0), 0
    agent.update(batch("proprio"))
    paths = list(entries(checkpoint("proprio")))
    for _ in range(100):
        stored = checkpoint("proprio")
        *folders, key = rng.choice(paths)
        place = functools.reduce(lambda tree, name: tree[name], folders, stored)
        change = rng.choice(["delete", "replace", "cut", "add"])
        if change == "delete":
            del place[key]
        elif change == "add":
            place[rng.choice(["more", 7, "_wm._orig_mod.x", "_expl_behavior._networks.9.a"])] = rng.choice(JUNK)
        else:
            cut = change == "cut" and torch.is_tensor(place[key]) and place[key].numel()
            place[key] = place[key].flatten()[:-1] if cut else rng.choice(JUNK)
        before = copy.deepcopy((dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
        try:
            agent.load_checkpoint(stored)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            assert same(before, (dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
    assert 50 < refused < 100


@pytest.mark.parametrize("stored", [None, [], {}, {"agent_state_dict": {}, "optims_state_dict": None}], ids=str)
def test_what_is_no_checkpoint_is_refused(stored):
    with pytest.raises(ValueError, match="agent_state_dict and optims_state_dict are dicts"):
        make_agent("atari").load_checkpoint(stored)


def test_sizes_in_the_metadata_that_are_nonsense_are_not_believed():
    for levels_noted in ([[float("inf"), 4]], [[-1, 4]], [], "x", [[1]], torch.zeros(2), None):
        stored = checkpoint("atari")["agent_state_dict"]
        stored._metadata["_wm.dynamics"]["levels"] = levels_noted
        make_agent("atari").load_state_dict(stored)


def test_tensors_that_carry_gradients_are_taken_as_numbers():
    stored, agent = checkpoint("proprio"), make_agent("proprio")
    for slots in stored["optims_state_dict"]["_wm._model_opt._opt"]["state"].values():
        slots["exp_avg"].requires_grad_()
    for tensor in stored["agent_state_dict"].values():
        tensor.requires_grad_()
    agent.load_checkpoint(stored)
    agent.update(batch("proprio"))
    copy.deepcopy(agent.checkpoint())


def test_missing_tensors_are_named():
    with pytest.raises(ValueError, match="_wm.dynamics._cell.layers.GRU_norm.bias is missing"):
        make_agent("atari").load_state_dict(damage(_missing)["agent_state_dict"])
    with pytest.raises(ValueError, match="no agent of hDreamer or dreamerv3-torch: .*_img_in_layers.0.weight.* It has weight, bias"):
        make_agent("atari").load_state_dict(torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match="no tensors"):
        make_agent("atari").load_state_dict({})
    with pytest.raises(ValueError, match="'agent_state_dict'"):
        make_agent("atari").load_state_dict(checkpoint("atari"))
    with pytest.raises(ValueError, match="of type list"):
        make_agent("atari").load_state_dict([1])
    with pytest.raises(ValueError, match="step"):
        make_agent("atari").load_state_dict({**checkpoint("atari")["agent_state_dict"], "step": 3})


@pytest.mark.parametrize("kind", KINDS)
def test_other_actions_and_observations_are_named(kind):
    assert_refused(make_agent("atari", **KINDS[kind]), checkpoint("crafter"), ["its actions have 17 entries, this task's 5"])
    assert_refused(make_agent("atari", **KINDS[kind]), checkpoint("dmc"), ["actions"])
    assert_refused(make_agent("atari", **KINDS[kind], **{"encoder.cnn_depth": 3}), checkpoint("atari"), ["encoder"])
    agent = make_agent("proprio", **KINDS[kind])
    with pytest.raises(ValueError, match="observations are not this task's|actions"):
        agent.load_checkpoint(checkpoint("dmc"))


def test_two_levels_load_into_the_same_two_alone():
    agent = make_agent("atari", **levels(3, 4, 3, 4))
    agent.update(batch("atari"))
    stored = agent.checkpoint()
    words = ["3 categoricals of 4 classes + 3 categoricals of 4 classes", "dyn_stoch_top 3", "dyn_stoch_bottom 3"]
    assert_refused(make_agent("atari"), stored, words)
    assert_refused(make_agent("atari", **levels(2, 4, 4, 4)), stored, words)
    plain = {**stored, "agent_state_dict": dict(stored["agent_state_dict"])}  # without the sizes that this program notes
    assert_refused(make_agent("atari", **levels(2, 4, 4, 4)), plain, words)
    assert_refused(make_agent("atari", **levels(3, 4, 4, 3)), plain, words)  # the same shapes; Adam's moments tell


def test_gaussian_and_categorical_latents_do_not_fit_each_other():
    gaussian, categorical = checkpoint("gaussian"), checkpoint("dmc")
    with pytest.raises(ValueError, match="6 Gaussians.*hierarchical_mode false, dyn_stoch 6, dyn_discrete 0, since two levels need"):
        make_agent("dmc", **KINDS["split"]).load_checkpoint(gaussian)
    with pytest.raises(ValueError, match="6 Gaussians.*dyn_discrete 0"):
        make_agent("dmc").load_checkpoint(gaussian)
    with pytest.raises(ValueError, match="6 categoricals of 4 classes.*dyn_discrete 4"):
        make_agent("gaussian").load_checkpoint(categorical)


@pytest.mark.parametrize("sizes", [{"dyn_stoch": 8, "dyn_discrete": 3}, {"dyn_stoch": 3, "dyn_discrete": 8}, levels(4, 3, 4, 3)])
def test_another_grouping_of_as_many_entries_is_seen_from_adams_moments(sizes):
    # The shapes are the same, so without the moments nothing would tell.
    with pytest.raises(ValueError, match="6 categoricals of 4 classes"):
        make_agent("atari", **sizes).load_checkpoint(checkpoint("atari"))


def test_a_grouping_that_nothing_tells_is_assumed_with_a_warning(capsys):
    make_agent("atari", dyn_stoch=32, dyn_discrete=32, **levels(3, 4, 3, 4)).load_state_dict(checkpoint("atari")["agent_state_dict"])
    assert "taken for 6 categoricals of 4 classes" in capsys.readouterr().err
    with pytest.raises(ValueError, match="24 entries"):
        make_agent("atari", dyn_stoch=32, dyn_discrete=32, **levels(3, 5, 3, 5)).load_state_dict(checkpoint("atari")["agent_state_dict"])
    assert capsys.readouterr().err == ""


def test_a_plan2explore_file_loads_into_an_agent_that_does_not_explore_so_and_not_the_other_way_round():
    report = make_agent("plan2explore", expl_behavior="greedy").load_checkpoint(checkpoint("plan2explore"))
    assert "35 tensors of Plan2Explore" in report["ignored"]
    with pytest.raises(ValueError, match="_expl_behavior._behavior.*is missing"):
        make_agent("plan2explore").load_checkpoint(checkpoint("atari"))


# The way back


def test_an_export_can_be_turned_into_that_of_a_compiled_run_and_back():
    plain, compiled = checkpoint("atari"), checkpoint("atari_compiled")
    for stored, other, as_compiled in ((plain, compiled, True), (compiled, plain, False)):
        written = dreamerv3_torch.export(stored, compiled=as_compiled)
        assert [list(written[part]) for part in written] == [list(other[part]) for part in other]
        assert [tensor.tolist() for tensor in written["agent_state_dict"].values()] == [
            tensor.tolist() for tensor in stored["agent_state_dict"].values()]


@pytest.mark.parametrize("overrides, missing", [({"reward_EMA": False}, "ema_vals"), ({"expl_behavior": "random"}, "_expl_behavior")])
def test_what_the_old_program_would_not_store_is_left_out(overrides, missing):
    exported = dreamerv3_torch.export(make_agent("atari", **overrides).checkpoint())
    assert not any(missing in name for name in exported["agent_state_dict"])
    make_agent("atari", **overrides).load_checkpoint(exported)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_read_and_written_again_is_the_same(name, tmp_path):
    agent, stored = make_agent(name), checkpoint(name)
    agent.load_checkpoint(stored)
    torch.save(dreamerv3_torch.export(agent.checkpoint(), compiled=name == "atari_compiled"), tmp_path / "exported.pt")
    written = torch.load(tmp_path / "exported.pt", weights_only=True)
    assert list(written) == list(stored)
    for part in stored:
        assert list(written[part]) == list(stored[part])  # in the same order
        assert same(dict(written[part]), dict(stored[part]))
    for state in (written, stored):
        for optimizer in state["optims_state_dict"].values():
            assert [list(slots) for slots in optimizer["state"].values()] == [["step", "exp_avg", "exp_avg_sq"]] * len(optimizer["state"])
    sizes = [path.stat().st_size for path in (DATA / name / "latest.pt", tmp_path / "exported.pt")]
    assert abs(sizes[1] / sizes[0] - 1) < 0.1  # a tensor with several names is stored once


def test_the_export_command_writes_a_file_that_loads_and_refuses_two_levels(tmp_path, capsys):
    for kind in ("flat", "split"):
        agent = make_agent("atari", **KINDS[kind])
        agent.load_checkpoint(checkpoint("atari"))
        checkpoints.save(tmp_path / f"{kind}.pt", {**agent.checkpoint(), "step": 1, "last_eval": 0, "updates": 4, "update_credit": 0.0,
                                                   "random_state": checkpoints.random_state(np.random.default_rng())})
    assert dreamerv3_torch.main([str(tmp_path / "flat.pt"), str(tmp_path / "out.pt")]) == 0
    assert same(dict(torch.load(tmp_path / "out.pt")["agent_state_dict"]), dict(checkpoint("atari")["agent_state_dict"]))
    assert dreamerv3_torch.main([str(tmp_path / "flat.pt"), str(tmp_path / "out.pt")]) == 2
    assert dreamerv3_torch.main([str(tmp_path / "split.pt"), str(tmp_path / "other.pt")]) == 2
    assert not (tmp_path / "other.pt").exists()
    errors = capsys.readouterr().err
    assert "exists" in errors and "only flat agents can be exported" in errors


def test_precision_does_not_change_what_is_stored():  # nor does compilation, see test_command_line.py
    plain, other = make_agent("proprio"), make_agent("proprio", precision="bf16")
    for agent in (plain, other):
        agent.load_checkpoint(checkpoint("proprio"))
        torch.manual_seed(0)
        agent.update(batch("proprio"))
    a, b = (agent.checkpoint() for agent in (plain, other))
    assert list(a["agent_state_dict"]) == list(b["agent_state_dict"])
    assert [(x.dtype, x.shape, x.device) for x in a["agent_state_dict"].values()] == [
        (x.dtype, x.shape, x.device) for x in b["agent_state_dict"].values()]
    assert a["optims_state_dict"].keys() == b["optims_state_dict"].keys()
    for name in a["optims_state_dict"]:
        for mine, theirs in zip(a["optims_state_dict"][name]["state"].values(), b["optims_state_dict"][name]["state"].values()):
            assert {key: value.dtype for key, value in mine.items()} == {key: value.dtype for key, value in theirs.items()}


# Full size, and devices that are not here


MEASURE = r"""
import pathlib, re, sys, time
import numpy as np
from gymnasium import spaces
import checkpoints, tools
from dreamer import Dreamer
config = tools.load_config(["defaults", *sys.argv[2:]], {"device": "cpu"})
agent = Dreamer(spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), spaces.Discrete(6), config)
def memory(field):
    return 1024 * int(re.search(field + r":\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
before, start = memory("VmRSS"), time.monotonic()
report = agent.load_checkpoint(checkpoints.load(pathlib.Path(sys.argv[1])))
print(report["weights"])
print(time.monotonic() - start, memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> pathlib.Path:
    """A file of default size, with moments, as the old program would have saved it on a GPU."""
    agent = Dreamer(spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), spaces.Discrete(6),
                    tools.load_config([], {"device": "cpu"}))
    for optimizer in agent.optimizers().values():
        optimizer.load_moments([{"step": torch.tensor(100.0), "exp_avg": torch.zeros_like(parameter),
                                 "exp_avg_sq": torch.full_like(parameter, 1e-4)} for parameter in optimizer._params])
    path = tmp_path_factory.mktemp("full") / "latest.pt"
    tag = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:0"
    try:
        torch.save(dreamerv3_torch.export(agent.checkpoint(), compiled=True), path)
    finally:
        torch.serialization.location_tag = tag
    return path


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is measured with Linux's counters")
@pytest.mark.parametrize("presets, weights", [([], "83 copied, 0 split, 0 widened, 0 new"), (["hdreamer"], "76 copied, 0 split, 7 widened"),
                                              (["hdreamer_split"], "79 copied, 8 split, 0 widened")])
def test_a_file_of_full_size_from_a_gpu_converts_in_seconds_and_little_memory(full_size, presets, weights):
    size = full_size.stat().st_size
    assert size > 200e6
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(full_size, weights_only=True)
    result = subprocess.run([sys.executable, "-c", MEASURE, str(full_size), *presets], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report, measured = result.stdout.splitlines()
    seconds, peak = map(float, measured.split())
    print(f"{presets or 'flat'}: {size / 1e6:.0f} MB, {seconds:.1f} s, peak {peak / size:.2f} times the file")
    assert weights in report and seconds < 20 and peak < 3 * size
