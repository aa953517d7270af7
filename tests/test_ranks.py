"""Data parallel training: several processes learn what one would, lose nothing when one dies, and print what one would print."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch

import checkpoints
import dreamer
import ranks_worker
import tools
from benchmarks import ranks as speed_of_ranks
from benchmarks.reliability import kill
from scale import ranks
from storage.episodes import stored_steps
from training import offline

ROOT = pathlib.Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]


def torchrun(count: int, *command: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command in several processes; returns torchrun's exit code and what all have printed."""
    environment, pipe = {**os.environ, "OMP_NUM_THREADS": "1", **environment}, subprocess.PIPE
    process = subprocess.Popen([*TORCHRUN, str(count), *command], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.terminate()  # not kill: torchrun then ends the others
    return subprocess.CompletedProcess(command, process.returncode, out, err)


# In one process


def test_in_one_process_nothing_is_exchanged():
    values = [torch.tensor([1.0, float("nan")]), torch.tensor(2.0)]
    before = [value.clone() for value in values]
    ranks.average_(values)
    assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(values, before))
    assert ranks.rank() == 0 and ranks.count() == ranks.count_here() == 1 and ranks.is_first() and ranks.launcher() == ""
    assert ranks.total(3, 4) == (3, 4) and ranks.all_of([5]) == [5] and ranks.from_first("x") == "x" and ranks.share(7) == 7
    assert not ranks.gather(torch.ones(2, requires_grad=True)).requires_grad
    with pytest.raises(KeyError), ranks.all_or_none():
        raise KeyError


@pytest.mark.parametrize("batch_size, count, fitting", [(16, 3, "15 or 18"), (2, 3, "3"), (9, 4, "8 or 12")])
def test_a_batch_that_processes_cannot_share_evenly_is_refused_with_sizes_that_fit(batch_size, count, fitting, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: count)
    with pytest.raises(ValueError, match=rf"batch_size is {batch_size}, and {count} processes .* --batch_size {fitting}, or"):
        ranks.share(batch_size)


def test_every_process_has_its_own_seeds_and_the_first_has_those_of_a_single_process():
    kinds = [
        lambda rank: tools.train_seed(1, 500, rank),
        lambda rank: tools.policy_seed(1, 500, rank),
        lambda rank: tools.rank_seed(1, 500, rank),
    ]
    seeds = [kind(rank) for kind in kinds for rank in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == tools.train_seed(1, 500) and seeds[64] == tools.policy_seed(1, 500)


def test_a_flag_of_another_process_is_seen_once_they_have_met(monkeypatch):
    flag = []
    agreed = ranks.Agreed(flag)
    assert not agreed and agreed.meet(3) == (3,)
    flag.append(True)
    assert agreed  # at once in a single process
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "total", lambda asked, *numbers: (asked + 1, *(2 * number for number in numbers)))
    flag.clear()
    assert not agreed
    assert agreed.meet(3) == (6,) and agreed


def test_recorded_episodes_are_dealt_out_and_none_twice():
    lengths = {pathlib.Path(f"{number}.npz"): number for number in range(5)}
    recording = offline.Recording(pathlib.Path("x"), None, None, lengths, [float(number) for number in range(5)])
    parts = [offline.part(recording, rank, 2) for rank in range(2)]
    assert [list(part.lengths.values()) for part in parts] == [part.returns for part in parts] == [[0, 2, 4], [1, 3]]
    with pytest.raises(ValueError, match=r"fewer episodes \(5\) than there are processes \(6\)"):
        offline.part(recording, 5, 6)


# Two processes that make one run after the other


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> pathlib.Path:
    """A folder with the runs of tests/ranks_runs.py, the updates of ranks_worker.py, and a run of one process that two have resumed."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [
        "--configs",
        "dreamerv3_2025",
        "debug",
        "--task",
        "gym_CartPole-v1",
        "--device",
        "cpu",
        "--eval_every",
        "100",
        "--log_every",
        "50",
    ]
    assert dreamer.main([*flags, "--steps", "300", "--logdir", str(folder / "alone")]) == 0
    (folder / "one_episode").mkdir()
    shutil.copy(next(folder.glob("alone/train_eps/*.npz")), folder / "one_episode")
    done = torchrun(2, "tests/ranks_runs.py", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(runs) -> dict[str, list[dict]]:
    return json.loads((runs / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2023", "resumed", "offline", "one NaN", "only NaN", "without effect"])
def test_weights_and_moments_of_all_processes_stay_equal_bit_for_bit(name, found):
    first, second = found[name]
    assert first["weights"] == second["weights"] and first["updates"] == second["updates"] > 0
    assert first["steps held"] > 0 and second["steps held"] > 0


def metrics(logdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_goes_on_with_two_processes_and_then_with_one(runs, found, capsys):
    logdir = runs / "alone"
    assert [result["code"] for result in found["resumed"]] == [0, 0]
    first = found["resumed"][0]
    resumed = re.search(r"Resuming at frame 300 after (\d+) updates, with (\d+) steps in memory", first["out"])
    assert resumed and int(resumed[2]) == 300
    assert f"{first['updates'] - int(resumed[1])}" == f"{round(200 * 4 / (2 * 12))}"  # of 200 frames, with the train_ratio of `debug`
    assert "of the observations in memory have the latents" in first["out"]
    assert (logdir / "latents.npz").exists() and (logdir / "latents_1.npz").exists()
    assert dreamer.main(["--logdir", str(logdir), "--steps", "600"]) == 0
    out, episodes = capsys.readouterr().out, len(list((logdir / "train_eps").glob("*.npz")))
    counted = re.search(r"Resuming at frame (\d+) after (\d+) updates, with (\d+) steps in memory.\n(\d+) of the observations", out)
    assert int(counted[1]) == int(counted[3]) == first["step"] and int(counted[2]) == first["updates"]
    assert first["step"] < int(counted[4]) <= first["step"] + episodes  # every step, and first observations
    assert not (logdir / "latents_1.npz").exists()
    lines = metrics(logdir)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == 600 == sum(stored_steps(logdir / "train_eps").values())
    assert sorted({line["step"] // 100 for line in lines if "eval/return" in line}) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_recorded_episodes_are_learned_from_and_held_out_ones_measured_by_the_first_process(runs, found):
    assert [result["code"] for result in found["offline"]] == [0, 0]
    read = re.search(r"replay +([\d,]+) of ([\d,]+) steps", found["offline"][0]["out"])
    assert sum(result["steps held"] for result in found["offline"]) == int(read[1]) == int(read[2])
    assert [line["step"] for line in metrics(runs / "offline") if "eval/model_loss" in line and "eval/return" in line] == [3, 6]


@pytest.mark.slow
def test_a_batch_of_one_process_that_is_not_finite_skips_the_update_in_all(runs, found):
    skipped = [line["train/model_skipped"] for line in metrics(runs / "nan") if "train/model_skipped" in line]
    assert max(skipped) > 0 and [result["code"] for result in found["one NaN"]] == [0, 0]
    first, second = found["only NaN"]
    assert first["code"] == second["code"] == 1 and first["err"] == ""
    assert second["err"].startswith("error: loss or gradient was not finite") and "Inputs with NaN or infinity: reward" in second["err"]
    assert len(list((runs / "only_nan").glob("nonfinite_*.npz"))) == 1


REFUSED = {
    "unknown flag": "unknown setting 'stepz'",
    "batch_size": "give --batch_size 2 or 4",
    "no such environment": "cannot make the environment",
    "an environment of one process": "there is no display",
    "fewer episodes than processes": "has fewer episodes (1) than there are processes (2)",
    "memory": "set dataset_size to at most",
    "locked": "another run of this process is writing into",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_start_is_said_once_and_changes_nothing(name, runs, found):
    assert [result["code"] for result in found[name]] == [2, 2]
    lines = [line for result in found[name] for line in result["err"].splitlines()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and REFUSED[name] in lines[0]
    assert not (runs / "refused").exists()


@pytest.mark.slow
def test_a_warning_about_settings_is_said_once(found):
    lines = [line for result in found["without effect"] for line in result["err"].splitlines()]
    assert lines == ["warning: without effect: dyn_blocks, since dyn_core is gru"]


# The same updates as in one process


def tensors(tree) -> list[torch.Tensor]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for part in tree for leaf in tensors(part)] if isinstance(tree, list) else [tree]


@pytest.fixture(scope="module")
def updates(runs) -> dict[str, list[dict]]:
    """What tests/ranks_worker.py has found in one process, and in each of two and four."""
    ranks_worker.save(runs)
    done = torchrun(4, "tests/ranks_worker.py", str(runs))
    assert done.returncode == 0, done.stderr
    return {count: [torch.load(runs / f"{rank}_of_{count}.pt") for rank in range(count)] for count in (1, 2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", ranks_worker.CASES)
def test_processes_together_learn_what_one_would(name, count, updates):
    # In float64: gradients before clipping, weights, moments, return ranges and losses of three updates.
    wanted = updates[1][0][name, "torch.float64"]
    for result in updates[count]:
        found = result[name, "torch.float64"]
        for part in wanted:
            pairs = list(zip(tensors(wanted[part]), tensors(found[part]), strict=True))
            assert pairs and all(torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-9) for a, b in pairs), part
        for step, other in zip(wanted["gradients"], found["gradients"], strict=True):
            largest = max(float(gradient.abs().max()) for gradient in step)
            assert all(float((a - b).abs().max()) < 1e-9 * largest for a, b in zip(step, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", ranks_worker.CASES)
def test_gradients_in_float32_differ_by_rounding(name, count, updates):
    # Of the first step: later ones start from weights that Adam has moved by the signs of the smallest gradients.
    wanted, found = (result[name, "torch.float32"]["gradients"][0] for result in (updates[1][0], updates[count][-1]))
    assert all(float((a - b).abs().max()) <= 1e-5 * float(a.abs().max()) + 1e-9 for a, b in zip(wanted, found, strict=True))


# Ended from outside


@pytest.mark.slow
@pytest.mark.parametrize("how, times", [(kill.kill, 4), (kill.stop, 2)])
def test_a_run_of_two_processes_of_which_one_is_killed_or_all_are_stopped_loses_nothing(how, times, tmp_path):
    counts = how("CartPole", times, tmp_path, random.Random(3), ranks=2)
    assert {name: count for name, count in counts.items() if name in kill.MUST_BE_ZERO and count} == {}


FAILING = """
import os
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
class Failing(CartPoleEnv):
    taken = 0
    def step(self, action):
        Failing.taken += 1
        if os.environ.get("RANK") == "1" and Failing.taken > 100:
            raise ValueError("the arm is stuck")
        return super().step(action)
gymnasium.register("Failing-v0", Failing, max_episode_steps=10)
"""


@pytest.mark.slow
def test_a_process_whose_environment_fails_ends_the_run_with_its_traceback_and_the_first_one_saves(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    logdir = tmp_path / "run"
    flags = "--configs defaults debug --task gym_Failing-v0 --import failing --steps 100000 --eval_every 0 --device cpu".split()
    done = torchrun(2, "dreamer.py", *flags, "--logdir", str(logdir), PYTHONPATH=str(tmp_path))
    assert done.returncode and "the arm is stuck" in done.stderr
    assert done.stderr.count("error: environment 0 has failed 4 times in a row") == 1
    assert done.stderr.count("error: another process of this run has ended") == 1
    step, stored = checkpoints.load(logdir / "latest.pt")["step"], sum(stored_steps(logdir / "train_eps").values())
    assert 0 < step <= stored <= step + 2  # a step of each process, about which they had not met yet


# The page


@pytest.mark.slow
def test_the_tables_of_the_page_are_those_that_the_command_prints():
    page = (ROOT / "docs" / "scale.md").read_text()
    printed = speed_of_ranks.paper(["size50m"])
    assert all(line in page for line in printed)
