"""`./run` sets up a virtual environment once and passes flags on. A Python and a pip that only note how they are called stand in here."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

import settings
import tools

ROOT = pathlib.Path(__file__).parent.parent

# Answers as the script's checks expect, and makes an environment whose programs write down their arguments.
PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) echo {version} ;;
    *ensurepip*) exit {ensurepip} ;;
    "-m venv .venv")
        mkdir -p .venv/bin
        for program in python tensorboard; do
            printf '#!/bin/sh\\ncase "$*" in *version_info*) echo {version}; exit ;; esac\\necho "%s $*" >> calls\\nexit {install}\\n' \\
                $program > .venv/bin/$program
            chmod +x .venv/bin/$program
        done ;;
esac
"""


@pytest.fixture
def start(tmp_path):
    """Calls `./run` in a folder of its own, from another one; returns the result and the programs that it has called there."""
    folder, programs = tmp_path / "hdreamer", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    shutil.copy(ROOT / "run", folder)
    (folder / "requirements.txt").write_text("torch\n")

    def call(*words, name="python3", version="3.11", ensurepip=0, install=0, **env):
        (programs / name).write_text(PYTHON.format(version=version, ensurepip=ensurepip, install=install))
        (programs / name).chmod(0o755)
        env = {"PATH": f"{programs}:/usr/bin:/bin", **env}
        result = subprocess.run([folder / "run", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        log = folder / "calls"
        calls = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return result, calls

    call.folder = folder
    return call


INSTALL = "python -m pip install --disable-pip-version-check --quiet -r requirements.txt"


def test_the_first_call_sets_up_and_the_next_ones_reuse_it(start):
    result, calls = start("test", "--slow", "a b")
    assert result.returncode == 0 and "downloads PyTorch" in result.stdout
    assert calls == [INSTALL, "python test_hdreamer.py --slow a b"]
    result, calls = start("test")
    assert calls == ["python test_hdreamer.py"] and not result.stdout
    (start.folder / "requirements.txt").write_text("torch\nnumpy\n")
    assert start("test")[1] == [INSTALL, "python test_hdreamer.py"]


@pytest.mark.parametrize("task, wanted", [("cartpole", "gym_CartPole-v1"), ("road_runner", "atari_road_runner"), ("pong", "atari_pong")])
def test_a_task_trains_with_settings_that_exist_and_further_flags_come_last(start, task, wanted):
    command = shlex.split(start(task, "--seed", "7", "--steps", "90")[1][-1])
    assert command[:2] == ["python", "dreamer.py"]
    config = tools.load_config(*settings.parse_flags(command[2:]))
    assert (config.task, config.seed, config.steps) == (wanted, 7, 90)


def test_the_tasks_are_the_commands_that_the_readme_prints(start):
    readme = " ".join((ROOT / "README.md").read_text().replace("\\\n", " ").split())
    for task in ("dream", "cartpole", "road_runner", "pong"):
        assert start(task)[1][-1].strip() in readme


def test_any_other_command_runs_in_the_environment(start):
    result, calls = start("cartpol")
    assert result.returncode == 1 and "no task or program cartpol" in result.stderr and not calls and not (start.folder / ".venv").exists()
    assert start("tensorboard", "--logdir", "logdir")[1][-1] == "tensorboard --logdir logdir"
    result, calls = start("nothing")
    assert result.returncode == 1 and "there is no nothing in .venv" in result.stderr and not calls


def test_an_installation_that_fails_is_tried_again(start):
    assert start("test", install=1)[0].returncode == 1
    assert start("test")[1] == [INSTALL, "python test_hdreamer.py"]


@pytest.mark.parametrize(
    "python, words",
    [
        ({"version": "3.9"}, ["Python 3.9", "3.10 to 3.13", "PYTHON=python3.12 ./run"]),
        ({"version": "3.14"}, ["Python 3.14", "3.10 to 3.13"]),
        ({"ensurepip": 1}, ["virtual environments", "sudo apt install python3-venv"]),
        ({"PYTHON": "python3.12", "name": "python3.12", "ensurepip": 1}, ["sudo apt install python3.12-venv"]),
        ({"PYTHON": "python3.77"}, ["there is no python3.77", "sudo apt install python3"]),
    ],
)
def test_a_python_that_cannot_serve_is_named_with_its_remedy(start, python, words):
    result, calls = start("test", **python)
    assert result.returncode == 1 and all(word in result.stderr for word in words), result.stderr
    assert not calls and not (start.folder / ".venv").exists()


def test_an_environment_of_another_python_is_refused(start):
    assert start("test", install=1)[0].returncode == 1
    result, calls = start("test", version="3.12", name="python3.12", PYTHON="python3.12")
    assert result.returncode == 1 and ".venv is not a virtual environment of Python 3.12; remove it" in result.stderr and not calls


def test_it_runs_in_its_own_folder_wherever_it_is_called_from(start, tmp_path):
    other = tmp_path / "other" / "hdreamer"
    other.mkdir(parents=True)
    relative = {"PYTHON": "programs/python3", "CDPATH": str(tmp_path / "other")}
    assert start("test", **relative)[1][-1] == "python test_hdreamer.py"
    (start.folder / "requirements.txt").unlink()
    assert "there is no requirements.txt" in start("test")[0].stderr


def test_without_arguments_it_lists_the_tasks_and_sets_up_nothing(start):
    for words in ([], ["--help"]):
        result, calls = start(*words)
        assert result.returncode == 0 and not calls and not (start.folder / ".venv").exists()
        assert all(f"./run {task}" in result.stdout for task in ("dream", "cartpole", "road_runner", "pong", "test"))


def test_it_is_marked_as_executable_and_asks_for_no_bash():
    assert os.access(ROOT / "run", os.X_OK)
    assert (ROOT / "run").read_text().startswith("#!/bin/sh\n")
