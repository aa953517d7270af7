"""The worked changes of docs/modify.md: their diffs apply to the code, and their commands train, shortened by flags alone.

After a change of the code, apply a diff of the page by hand where it no longer applies, and replace it by `git diff -U1`.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from test_documented_commands import DREAMER
from test_layout import files

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "modify.md").read_text()


def section(title: str) -> tuple[str, list[str]]:
    """The diff and the commands below a heading that begins like this."""
    text = PAGE.split(f"## {title}")[1].split("\n## ")[0]
    (diff,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return diff, commands.splitlines()


def call(folder: pathlib.Path, *words: str) -> str:
    """What a command prints; it runs in this folder and must end with code 0."""
    # So that `git apply` looks for no repository above.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    result = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def train(folder: pathlib.Path, command: str, **flags) -> str:
    """What a command of the page prints, with flags behind its own, which make the run short."""
    flags = {**DREAMER, "steps": 90, "eval_every": 0, **flags}
    words = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return call(folder, sys.executable, *shlex.split(command)[1:], *words)


def weights(logdir: pathlib.Path) -> dict[str, torch.Tensor]:
    return torch.load(logdir / "latest.pt")["agent_state_dict"]


def logged(logdir: pathlib.Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.fixture
def program(tmp_path) -> pathlib.Path:
    """A copy of the program without its tests."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    copy = tmp_path / "copy"
    for path in (*files().values(), ROOT / "configs.yaml", ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(ROOT))
    return copy


def test_the_other_bottom_prior_trains_and_flat_checkpoints_convert(program):
    diff, (apply, from_the_start, flat, from_flat) = section("Worked change 1")
    (program / shlex.split(apply)[2]).write_text(diff)
    call(program, *shlex.split(apply))

    train(program, from_the_start, kl_free=0)  # with free nats, so short a training would not reach the prior
    new = weights(program / "logdir" / "in_state")
    assert new["_wm.dynamics._top_in_state.0.weight"].shape == (8, DREAMER["dyn_hidden"] + 8)
    assert new["_wm.dynamics._top_to_prior.weight"].any()  # it starts at zero

    train(program, flat)
    assert "_wm.dynamics._top_in_state.0.weight" not in weights(program / "logdir" / "flat")
    assert "Agent taken over" in train(program, from_flat, steps=120, logdir="logdir/from_flat")
    assert "_wm.dynamics._top_in_state.0.weight" in weights(program / "logdir" / "from_flat")


def test_flat_checkpoints_compute_the_same_with_the_other_bottom_prior(program):
    diff, (apply, *_) = section("Worked change 1")
    (program / shlex.split(apply)[2]).write_text(diff)
    call(program, *shlex.split(apply))
    for name in ("conftest.py", "old_files.py", "test_old_checkpoints.py", "data/dreamerv3_torch"):
        (program / "tests").mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / "tests" / name).is_dir() else shutil.copy)(ROOT / "tests" / name, program / "tests" / name)
    call(program, sys.executable, "-m", "pytest", "-q", "tests/test_old_checkpoints.py", "-k", "gives_the_old_answers")


def test_the_extra_loss_is_logged_and_slows_the_top_level(program):
    diff, (apply, describe, command) = section("Worked change 2")
    (program / shlex.split(apply)[2]).write_text(diff)
    call(program, *shlex.split(apply))
    call(program, sys.executable, *shlex.split(describe)[1:])
    assert "slow_top_scale" in (program / "docs" / "configuration.md").read_text()

    many = {"train_ratio": 24, "model_lr": 0.003}  # 50 updates
    assert "slow_top" in train(program, command, slow_top_scale=10, logdir="slow", **many)  # on the console
    train(program, command, slow_top_scale=0, logdir="as_before", **many)
    slow, as_before = (logged(program / logdir, "train/slow_top_loss")[-1] for logdir in ("slow", "as_before"))
    assert 0 < slow < 0.5 * as_before
    assert "without effect: slow_top_scale" in train(program, command, hierarchical_mode=False, logdir="flat")
