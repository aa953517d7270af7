"""Sending metrics to Weights & Biases, with a stand-in for its package."""

import sys
import types

import numpy as np
import pytest

import checkpoints
import dreamer
import tools
from training import logs, writers

pytestmark = pytest.mark.slow


class Error(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch) -> types.ModuleType:
    """A module that records how it is used, in `begun`, `metrics`, `logged` and `finished`."""
    module = types.ModuleType("wandb")
    module.begun, module.metrics, module.logged, module.finished = [], [], [], []

    class Run:
        def define_metric(self, name, step_metric):
            module.metrics.append((name, step_metric))

        def log(self, values):
            module.logged.append(values)

        def finish(self):
            module.finished.append(self)

    def init(**arguments):
        module.begun.append(arguments)
        return Run()

    module.init, module.Error = init, Error
    module.Settings = lambda **arguments: arguments
    module.Video = lambda path, format: ("video", path, format)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def config_for(tmp_path, **overrides):
    return tools.load_config([], {"task": "gym_CartPole-v1", "logdir": str(tmp_path), "wandb_project": "mine", **overrides})


def test_metrics_and_videos_are_sent_with_their_frames(wandb, tmp_path):
    logger = logs.Logger(tmp_path, more=writers.of_run(config_for(tmp_path), tmp_path))
    logger.add({"loss": 2.0})
    logger.write(40)
    path = logger.video("openl", np.zeros((3, 8, 8, 3)), 50)
    logger.add({"loss": 4.0})
    logger.write(30)  # a killed run that was continued
    logger.close()
    assert wandb.metrics == [("*", "frame")] and len(wandb.finished) == 1
    assert wandb.logged == [{"frame": 40, "loss": 2.0}, {"frame": 50, "openl": ("video", str(path), "gif")}, {"frame": 30, "loss": 4.0}]
    assert wandb.begun[0]["project"] == "mine" and wandb.begun[0]["config"]["encoder"]["cnn_depth"] == 32


def test_a_continued_run_goes_on_in_the_same_run_and_another_folder_has_another(wandb, tmp_path):
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        writers.WandB("mine", tmp_path / folder, config_for(tmp_path / folder))
    first, again, other = wandb.begun
    assert first["id"] == again["id"] == (tmp_path / "a" / "wandb_id.txt").read_text().strip() != other["id"]
    assert all(begun["resume"] == "allow" for begun in wandb.begun)


def test_training_sends_what_it_logs(wandb, tmp_path):
    flags = ["--configs", "defaults", "debug", "--task", "gym_CartPole-v1", "--device", "cpu", "--eval_every", "0"]
    flags += ["--logdir", str(tmp_path)]
    assert dreamer.main([*flags, "--steps", "120", "--wandb_project", "mine"]) == 0
    assert wandb.begun[0]["dir"] == str(tmp_path) and wandb.logged[-1]["frame"] == 120 and len(wandb.finished) == 1
    assert wandb.logged[-1]["time/updates"] == checkpoints.load(tmp_path / "latest.pt")["updates"]
    assert dreamer.main([*flags, "--steps", "140"]) == 0
    assert len(wandb.begun) == 1  # without the setting nothing is sent


def test_a_missing_package_is_told_before_anything_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert dreamer.main(["--task", "gym_CartPole-v1", "--wandb_project", "mine", "--logdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "wandb_project is 'mine'" in error and "pip install -r requirements/wandb.txt" in error
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_opened_is_an_error_and_one_that_breaks_later_is_not(wandb, tmp_path, capsys):
    logger = logs.Logger(tmp_path, more=writers.of_run(config_for(tmp_path), tmp_path))

    def fail(*_, **__):
        raise Error("no API key")

    type(logger._more[1]._writer._run).log = fail
    for step in (1, 2):
        logger.add({"loss": 1.0})
        logger.write(step)
    logger.close()
    assert capsys.readouterr().err == "warning: WandB failed; training goes on (Error: no API key)\n"
    wandb.init = fail
    with pytest.raises(ValueError, match="no API key.*wandb login.*WANDB_MODE=offline"):
        writers.of_run(config_for(tmp_path), tmp_path)
