"""Runs that begin with another program's or another run's checkpoint, the way back, and full size."""

import json
import os
import pathlib
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
import tools
from checkpoints import __main__ as export
from checkpoints import dreamerv3_torch
from dreamer import Dreamer
from old_files import DATA, KINDS, NAMES, Payload, batch, checkpoint, levels, make_agent, same, stored_settings
from training import folder
from training.run import Run

pytestmark = pytest.mark.slow

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
    chosen = {
        **stored_settings("atari"),
        "task": "gym_game:Game-v0",
        "device": "cpu",
        "action_repeat": 4,
        "prefill": 60,
        "pretrain": 8,
        "eval_every": 0,
        "train_ratio": 2,
        "steps": 500,
        **overrides,
    }
    words = [word for key, value in chosen.items() for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))]
    result = subprocess.run(
        [sys.executable, str(ROOT / "dreamer.py"), *words, *flags],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(folder.parent)},
        cwd=folder.parent,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result


def found(output: str) -> str:
    """What is said of the agent that was taken over, on one line."""
    return " ".join(output.split("Agent taken over")[1].split("Resuming")[0].split())


# The two doors


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_the_old_program_is_continued(old_run, kind):
    original = (old_run / "latest.pt").read_bytes()
    output = run(old_run, "--logdir", str(old_run), **KINDS[kind]).stdout
    assert f"Resuming at frame {FRAMES} after 4 updates, with 81 steps in memory." in output
    counts = {
        "flat": "83 copied, 0 split, 0 widened, 0 new",
        "split": "79 copied, 8 split, 0 widened, 4 new",
        "widened": "76 copied, 0 split, 7 widened, 8 new",
    }[kind]
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
    assert "Agent taken over" not in again and "Resuming at frame 500" in again
    assert (old_run / "latest.dreamerv3-torch.pt").read_bytes() == original


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_run_begins_with_a_checkpoint_from_elsewhere(old_run, tmp_path, kind):
    before = {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    flags = ["--from_checkpoint", str(old_run / "latest.pt"), "--logdir", str(new)]
    result = run(old_run, *flags, steps=400, **KINDS[kind])
    assert f"Resuming at frame {FRAMES} after 4 updates, with 81 steps in memory." in result.stdout
    assert "from_checkpoint" not in result.stdout.split("To train for longer")[1]  # the printed command goes on in the new folder
    assert checkpoints.load(new / "latest.pt")["step"] == 400
    assert {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()} == before
    assert len(list((new / "train_eps").glob("*.npz"))) == 5 and not (new / "latest.dreamerv3-torch.pt").exists()

    result = run(old_run, *flags, steps=420, **KINDS[kind])
    assert "Resuming at frame 400" in result.stdout and "from_checkpoint is not read" in result.stderr
    if kind == "flat":
        assert "from_checkpoint" not in run(old_run, "--logdir", str(new), steps=420).stdout


@pytest.mark.parametrize("presets", [[], ["hdreamer"], ["hdreamer_split"]], ids=str)
def test_an_old_run_is_taken_over_without_a_flag_for_any_size_and_resumes(old_run, presets, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(old_run.parent))
    flags = "--task gym_game:Game-v0 --device cpu --action_repeat 4 --eval_every 0 --train_ratio 2 --batch_size 2 --batch_length 12"
    command = ["--configs", "defaults", *presets, *flags.split(), "--logdir", str(old_run), "--steps"]
    assert dreamer.main([*command, "340"]) == 0
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith("Taken from the checkpoint: ")]
    assert "dyn_deter 512 -> 24, dyn_hidden 512 -> 20, units 512 -> 16, encoder.cnn_depth 32 -> 2, decoder.cnn_depth 32 -> 2" in line
    assert "keys" not in line and "mlp" not in line and "disag" not in line  # of parts that are not there
    latent = {"": (6, 4), "hdreamer": {"top": (6, 4), "bottom": (6, 4)}, "hdreamer_split": {"top": (3, 4), "bottom": (3, 4)}}
    stored = checkpoints.load(old_run / "latest.pt")["config"]
    sizes = dreamer.settings.level_sizes(stored)
    assert (sizes if presets else sizes["flat"]) == latent["".join(presets)] and (stored["units"], stored["dyn_deter"]) == (16, 24)
    assert dreamer.settings.read_yaml(old_run / "config.yaml")["encoder"]["cnn_depth"] == 2

    assert dreamer.main([*command, "350"]) == 0  # the same command again
    output = capsys.readouterr().out
    assert "Resuming at frame 340" in output and "Kept from the stored run" in output and "Taken" not in output
    assert dreamer.load_agent(old_run, "cpu")._wm.dynamics.deter_size == 24


def test_a_flat_run_of_this_program_goes_on_with_two_levels(old_run, tmp_path):
    flat, split = tmp_path / "flat", tmp_path / "split"
    run(old_run, "--from_checkpoint", str(old_run), "--logdir", str(flat), steps=400)
    output = run(old_run, "--from_checkpoint", str(flat), "--logdir", str(split), steps=440, **KINDS["split"], act="ReLU").stdout
    assert re.search(r"differ from those it was trained with\n +act +SiLU -> ReLU\nResuming", output)
    assert "hDreamer; latent of 6 categoricals of 4 classes" in found(output)
    updates = checkpoints.load(flat / "latest.pt")["updates"]
    assert f"Resuming at frame 400 after {updates} updates" in output
    assert checkpoints.load(split / "latest.pt")["step"] == 440


def test_a_checkpoint_without_episodes_starts_at_frame_zero_and_its_own_policy_fills_the_memory(old_run, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copyfile(old_run / "latest.pt", tmp_path / "alone" / "model.pt")
    output = run(old_run, "--from_checkpoint", "alone/model.pt", "--logdir", str(tmp_path / "new"), steps=300).stdout
    assert "Resuming at frame 0 after 4 updates, with 0 steps in memory." in output and "prefill: 60 of 60 steps" in output


def test_a_trained_agent_fills_the_memory_with_its_own_policy(old_run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    acted = []
    monkeypatch.setattr(dreamer.exploration.Random, "act", lambda *_: pytest.fail("random actions"))
    act = Dreamer.act
    monkeypatch.setattr(Dreamer, "act", lambda agent, *args: (acted.append(1), act(agent, *args))[1])
    overrides = {
        **stored_settings("atari"),
        "task": "gym_game:Game-v0",
        "device": "cpu",
        "eval_every": 0,
        "prefill": 90,
        "steps": 90,
        "from_checkpoint": str(old_run),
        "logdir": str(tmp_path / "new"),
        "action_repeat": 1,
    }
    training = dreamer.start(tools.load_config([], overrides))
    dreamer.run_to_end(training)
    assert training.step == 90 and len(acted) == 90 - 81


def test_a_stop_before_the_first_own_checkpoint_leaves_every_choice_open(old_run, monkeypatch):
    monkeypatch.syspath_prepend(str(old_run.parent))
    overrides = {**stored_settings("atari"), "task": "gym_game:Game-v0", "device": "cpu", "eval_every": 0, "logdir": str(old_run)}
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dreamer.start(tools.load_config([], overrides))
    dreamer.start(tools.load_config([], {**overrides, **KINDS["split"]})).close()
    assert (old_run / "latest.dreamerv3-torch.pt").read_bytes() == (DATA / "atari" / "latest.pt").read_bytes()


def test_episodes_are_linked_through_symlinks_and_onto_themselves(old_run, tmp_path):
    stored = tmp_path / "stored"
    (old_run / "train_eps").rename(stored)
    (old_run / "train_eps").mkdir()
    for path in stored.iterdir():
        (old_run / "train_eps" / path.name).symlink_to(pathlib.Path("..", "..", "stored", path.name))
    for _ in range(2):
        folder.take_over_episodes(old_run / "train_eps", tmp_path / "new")
        folder.take_over_episodes(tmp_path / "new", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in stored.iterdir())
    assert all(path.read_bytes() == (stored / path.name).read_bytes() for path in (tmp_path / "new").iterdir())


def test_episodes_without_a_checkpoint_that_can_be_read_are_not_taken_for_a_run_that_goes_on(old_run):
    (old_run / "latest.pt").rename(old_run / "latest_model.pt")
    before = sorted(old_run.rglob("*"))
    error = run(old_run, "--logdir", str(old_run), code=2).stderr
    assert f"{old_run} has a latest_model.pt" in error and "early versions of dreamerv3-torch" in error
    assert sorted(old_run.rglob("*")) == before

    (old_run / "latest_model.pt").unlink()
    result = run(old_run, "--logdir", str(old_run))
    assert f"no checkpoint: a new agent begins at frame {FRAMES}, with 81 of their steps in memory" in result.stderr
    assert "Resuming" not in result.stdout and checkpoints.load(old_run / "latest.pt")["step"] == 500


@pytest.mark.parametrize("path", ["", "nowhere.pt", "train_eps"])
def test_a_checkpoint_that_is_not_there_is_named(old_run, path):
    error = run(old_run, "--from_checkpoint", path, "--logdir", "new", code=2).stderr
    assert f"there is no checkpoint '{path or '.'}" in error and not (old_run.parent / "new").exists()


ALL_OBSERVED = {f"{net}.{kind}_keys": ".*" for net in ("encoder", "decoder") for kind in ("mlp", "cnn")}


@pytest.mark.parametrize(
    "kind, overrides, words",
    [
        ("latent", levels(3, 5, 3, 4), ["6 categoricals of 4 classes", "--dyn_stoch_top 3 --dyn_discrete_top 4"]),
        (
            "sizes",
            {"dyn_deter": 32, "units": 20, "encoder.minres": 8},
            ["dyn_deter 32 here, 24 in the checkpoint; units 20 here", "Flags that fit: --dyn_deter 24 --units 16 --encoder.minres 4\n"],
        ),
        ("images", {"size": [32, 32]}, ["size [32, 32] here, [64, 64] in the checkpoint. Flags that fit: --size 64 64\n"]),
        (
            "task",
            {"task": "gym_CartPole-v1", **ALL_OBSERVED},
            ["entries, this task's 2, which no setting", "here vectors of 4 numbers, which"],
        ),
        ("damaged", {}, ["latest.pt", "damaged"]),
        ("code", {}, ["latest.pt", "more than tensors"]),
    ],
)
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
    lines = [line for line in result.stderr.splitlines(keepends=True) if not line.startswith("note:")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert after == before and not (tmp_path / "new").exists() and not (tmp_path / "attacked").exists()


# The way back


def test_an_export_can_be_turned_into_that_of_a_compiled_run_and_back():
    plain, compiled = checkpoint("atari"), checkpoint("atari_compiled")
    for stored, other, as_compiled in ((plain, compiled, True), (compiled, plain, False)):
        written = dreamerv3_torch.export(stored, compiled=as_compiled)
        assert [list(written[part]) for part in written] == [list(other[part]) for part in other]
        assert [tensor.tolist() for tensor in written["agent_state_dict"].values()] == [
            tensor.tolist() for tensor in stored["agent_state_dict"].values()
        ]


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
        checkpoints.save(
            tmp_path / f"{kind}.pt",
            {
                **agent.checkpoint(),
                "step": 1,
                "last_eval": 0,
                "updates": 4,
                "update_credit": 0.0,
                "random_state": checkpoints.random_state(np.random.default_rng()),
            },
        )
    assert export.main([str(tmp_path / "flat.pt"), str(tmp_path / "out.pt")]) == 0
    assert same(dict(torch.load(tmp_path / "out.pt")["agent_state_dict"]), dict(checkpoint("atari")["agent_state_dict"]))
    assert export.main([str(tmp_path / "flat.pt"), str(tmp_path / "out.pt")]) == 2
    assert export.main([str(tmp_path / "split.pt"), str(tmp_path / "other.pt")]) == 2
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
        (x.dtype, x.shape, x.device) for x in b["agent_state_dict"].values()
    ]
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
    agent = Dreamer(
        spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), spaces.Discrete(6), tools.load_config([], {"device": "cpu"})
    )
    for optimizer in agent.optimizers().values():
        optimizer.load_moments(
            [
                {"step": torch.tensor(100.0), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.full_like(parameter, 1e-4)}
                for parameter in optimizer._params
            ]
        )
    path = tmp_path_factory.mktemp("full") / "latest.pt"
    tag = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:0"
    try:
        torch.save(dreamerv3_torch.export(agent.checkpoint(), compiled=True), path)
    finally:
        torch.serialization.location_tag = tag
    return path


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is measured with Linux's counters")
@pytest.mark.parametrize(
    "presets, weights",
    [
        ([], "83 copied, 0 split, 0 widened, 0 new"),
        (["hdreamer"], "76 copied, 0 split, 7 widened"),
        (["hdreamer_split"], "79 copied, 8 split, 0 widened"),
    ],
)
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
