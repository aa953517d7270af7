"""A run is resumed from its folder alone; what the command prints at the start, after the first updates and at the end."""

import os
import pathlib
import re
import shlex
import shutil
import sys

import pytest

import checkpoints
import dreamer
import settings
import tools
from training import folder
from training.forecast import Forecast, duration, estimate

START = ["--configs", "debug", "hdreamer_split", "--task", "gym_CartPole-v1", "--device", "cpu", "--steps", "120", "--eval_every", "60"]
START += ["--prefill", "40", "--train_ratio", "3", "--eval_episode_num", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """The folder of a run of 120 frames."""
    logdir = tmp_path_factory.mktemp("resume") / "run"
    assert dreamer.main([*START, "--logdir", str(logdir)]) == 0
    return logdir


@pytest.fixture
def logdir(finished, tmp_path) -> pathlib.Path:
    """A copy of it."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def stored(logdir: pathlib.Path) -> dict:
    return settings.flatten(settings.read_yaml(logdir / "config.yaml"))


@pytest.mark.parametrize("spelling", [["{}"], ["--logdir", "{}"]])
def test_a_run_is_resumed_from_its_folder_with_its_own_settings_and_flags_on_top(logdir, spelling, capsys):
    before, weight = stored(logdir), ["--decoder.loss_scale", "2"]
    assert dreamer.main([*(word.format(logdir) for word in spelling), "--steps", "150", "--model_lr", "0.002", *weight]) == 0
    output = capsys.readouterr().out
    assert "Resuming at frame 120" in output and "Finished at frame 150" in output
    changes = {name: value for name, value in stored(logdir).items() if value != before[name]}
    assert changes == {
        "steps": 150,
        "model_lr": 0.002,
        "decoder.loss_scale": 2.0,
        **({"logdir": str(logdir)} if before["logdir"] != str(logdir) else {}),
    }
    assert checkpoints.load(logdir / "latest.pt")["step"] == 150


def test_the_command_that_is_printed_at_the_end_resumes_the_run(logdir, capsys):
    assert dreamer.main([str(logdir)]) == 0
    printed = re.search(r"To train for longer:\n +(.*)", capsys.readouterr().out)[1]
    words = shlex.split(printed)
    assert words[1:] == ["dreamer.py", "--logdir", str(logdir), "--steps", "240"]
    assert dreamer.main(words[2:]) == 0
    assert checkpoints.load(logdir / "latest.pt")["step"] == 240


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_its_settings(logdir):
    for path in [logdir / "latest.pt", *(logdir / "train_eps").iterdir()]:
        path.unlink()
    config = folder.command_settings([], {"logdir": str(logdir)})
    assert (config.task, config.hierarchical_mode, config.prefill) == ("gym_CartPole-v1", True, 40)


def test_a_run_that_began_with_a_checkpoint_does_not_read_it_again(logdir, tmp_path, capsys):
    flags = ["--from_checkpoint", str(logdir), "--logdir", str(tmp_path / "second")]
    assert dreamer.main([*START, *flags]) == 0
    killed = pathlib.Path(shutil.copytree(tmp_path / "second", tmp_path / "killed"))
    (killed / "latest.pt").unlink()
    assert dreamer.main([str(tmp_path / "second"), "--steps", "130"]) == 0
    assert "from_checkpoint" not in capsys.readouterr().err
    # One that was killed before its first checkpoint still needs it.
    assert folder.command_settings([], {"logdir": str(killed)}).from_checkpoint == str(logdir)


def test_a_run_of_another_task_does_not_learn_from_the_old_episodes(logdir, tmp_path, capsys):
    """Their rewards are those of the old task."""
    start = [*START, "--task", "gym_CartPole-v0", "--steps", "150"]  # the same spaces
    assert dreamer.main([*start, "--from_checkpoint", str(logdir), "--logdir", str(tmp_path / "other")]) == 0
    output = capsys.readouterr()
    assert "train_eps are of the task gym_CartPole-v1, so the run begins without them" in output.err
    assert "Resuming at frame 120 after" in output.out and "with 0 steps in memory" in output.out
    old, new = ({path.name for path in (folder / "train_eps").iterdir()} for folder in (logdir, tmp_path / "other"))
    assert new and not old & new
    (tmp_path / "other" / "latest.pt").unlink()  # killed before its first checkpoint
    assert dreamer.main([*start, "--from_checkpoint", str(logdir), "--logdir", str(tmp_path / "other")]) == 0
    assert checkpoints.load(tmp_path / "other" / "latest.pt")["step"] == 150


@pytest.mark.parametrize(
    "flags, words",
    [
        (["{missing}"], ["missing holds no run", "--configs defaults"]),
        (["--logdir", "{missing}", "--seed", "3"], ["missing holds no run"]),
        (["{run}", "--task", "atari_pong"], ["holds a run of task gym_CartPole-v1", "--task is atari_pong"]),
        (["{run}", "--units", "12"], ["units 16 -> 12"]),
        (["{run}", "--hierarchical_mode", "false"], ["hierarchical_mode true -> false"]),
        (["{run}", "{run}"], ["unexpected word"]),
        (["{module}"], ["in the module no_such_module", "--import no_such_module"]),
        (["{damaged}"], ["the settings of the run in", "damaged", "'steps' is 'many'"]),
        (["{nameless}"], ["nameless are damaged: it names no task"]),
        (["{run}/latest.pt"], ["is a file; give the folder", "--from_checkpoint"]),
        (["--logdir", ""], ["--logdir is empty"]),
        (["{run}", "--logdir", "{missing}"], ["two runs are given"]),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_nothing_changes(logdir, tmp_path, flags, words, capsys):
    text = (logdir / "config.yaml").read_text()
    places = {"run": logdir, "missing": tmp_path / "missing"}
    edits = {"module": ("import:", "import: no_such_module"), "damaged": ("steps: 120", "steps: many")}
    for name, (old, new) in {**edits, "nameless": ("task: gym_CartPole-v1", "task:")}.items():
        places[name] = tmp_path / name
        places[name].mkdir()
        assert old in text
        (places[name] / "config.yaml").write_text(text.replace(old, new))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert dreamer.main([flag.format(**places) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and error.count("\n") == 1, error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_setting_of_another_version_is_left_out_with_a_note(logdir, capsys):
    text = (logdir / "config.yaml").read_text()
    (logdir / "config.yaml").write_text(f"{text}\nfar_future: 3\n")
    assert folder.command_settings([], {"logdir": str(logdir)}).steps == 120
    assert "note: far_future of the stored run is ignored" in capsys.readouterr().err


def test_without_arguments_the_command_prints_three_examples_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert dreamer.main([]) == 2
    output = capsys.readouterr().out
    assert len(re.findall(r"^    python dreamer.py ", output, re.MULTILINE)) == 3 and "--help" in output
    assert not list(tmp_path.iterdir())


def test_the_summary_shows_presets_and_flags_apart_and_when_there_are_evaluations_and_videos(tmp_path, capsys):
    assert dreamer.main([*START, "--seed", "0", "--kl_free", "0.5", "--logdir", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    presets = output.split("Suite gym, presets debug hdreamer_split\n")[1].split("Your flags\n")[0]
    flags = output.split("Your flags\n")[1].split("prefill:")[0]
    assert re.search(r"hierarchical_mode +false -> true", presets) and "steps" not in presets
    assert re.search(r"steps +1000000 -> 120\n", flags) and re.search(r"kl_free +1.0 -> 0.5\n", flags)
    assert re.search(r"seed +as by default\n", flags) and "hierarchical_mode" not in flags
    assert re.search(r"evaluation +1 episodes every 60 frames\n", output)
    assert "no open-loop predictions, since no image is decoded" in " ".join(output.split())


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--eval_every", "0"], ["evaluation none, since eval_every is 0", "videos none, since eval_every is 0"]),
        (["--eval_episode_num", "0"], ["no episodes, since eval_episode_num is 0"]),
        (["--video_pred_log", "false"], ["videos none, since video_pred_log is false"]),
        (["--eval_every", "500"], ["at the end (eval_every is 500)"]),
    ],
)
def test_a_missing_evaluation_or_video_says_why(tmp_path, flags, words, capsys):
    assert dreamer.main([*START, *flags, "--steps", "45", "--logdir", str(tmp_path / "run")]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert all(word in output for word in words), output


# The estimate of a run's time


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_estimate_times_twenty_updates_and_the_frames_that_were_collected(clock, capsys):
    forecast = Forecast()
    clock[0] += 500.0  # the agent is built
    for _ in range(11):
        forecast.count_frames(4)
        clock[0] += 0.5  # 0.125 s a frame
    clock[0] += 1000.0
    for update in range(20):
        forecast.count_update(2000 - update, 80, on_cpu=True)  # the first one takes long, and is not timed
        clock[0] += 3.0
    assert not capsys.readouterr().out
    forecast.count_update(1980, 80, on_cpu=True)
    # 1,980 updates of 3 s and 80 frames of 0.125 s are 5,950 s
    assert capsys.readouterr().out == "Estimate: this run takes about 1.7 hours more, 1,980 updates of 3 s.\n"
    clock[0] += 3.0
    forecast.count_update(1979, 80, on_cpu=True)
    assert not capsys.readouterr().out


def test_of_a_resumed_run_frames_and_updates_are_timed_in_turn(clock, capsys):
    forecast = Forecast()
    clock[0] += 1e6  # the replay memory is loaded
    for _ in range(22):
        forecast.count_update(100, 50, on_cpu=True)
        clock[0] += 2.0
        forecast.count_frames(1)
        clock[0] += 1.0
    # An update takes 1 s, a frame 2 s: 100 updates and 50 frames take 200 s.
    assert "about 3 minutes more, 100 updates of 1 s" in capsys.readouterr().out


def test_evaluations_between_updates_do_not_count_however_often_they_come(clock, capsys):
    forecast = Forecast()
    for _ in range(8):
        for _ in range(5):
            forecast.count_update(500, 0, on_cpu=True)
            clock[0] += 1.0
        clock[0] += 1e6
        forecast.pause()
    assert "about 8 minutes more, 500 updates of 1 s" in capsys.readouterr().out


def test_a_long_run_on_a_cpu_is_told_of_a_short_one():
    # Pong at default sizes on two cores: 125,000 updates of 3.19 s are 4.6 days
    text = estimate(3.19, 125_000, 0.0, on_cpu=True)
    assert "about 4.6 days more, 125,000 updates of 3.19 s" in text and "--task gym_CartPole-v1 --steps 6000" in text
    assert "CartPole" not in estimate(3.19, 125_000, 0.0, on_cpu=False)
    assert "CartPole" not in estimate(3.19, 1000, 0.0, on_cpu=True)


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "2 seconds"), (89, "89 seconds"), (90, "2 minutes"), (5399, "90 minutes"), (5400, "1.5 hours"), (129_599, "36 hours"),
     (172_800, "2.0 days"), (864_000, "10 days"), (1e9, "11,574 days")],
)  # fmt: skip
def test_a_length_of_time_has_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "overrides, frame, updates, left",
    [
        # 1,000,000 frames of Pong are 250,000 agent steps, less 2,500 of prefill; 512 / 1,024 updates for each; 100 of pretraining
        ({}, 0, 0, 100 + 247_500 / 2),
        ({}, 10_000, 100, 247_500 / 2),
        ({}, 500_000, 60_000, 125_000 / 2),
        ({"steps": 400, "prefill": 1000}, 0, 0, 100),
    ],
)
def test_the_updates_that_are_left_follow_from_frames_and_ratio(overrides, frame, updates, left, monkeypatch):
    from training.data import Environments

    data = Environments.__new__(Environments)
    data._config = tools.load_config([], {"task": "atari_pong", **overrides})
    data.budget = tools.UpdateBudget(data._config.train_ratio, data._config.batch_size * data._config.batch_length)
    assert data.updates_left(frame, updates) == left


def test_the_printed_command_names_the_python_that_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert tools.python_command() == "python"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.python_command() in (os.path.abspath(sys.executable), os.path.relpath(sys.executable))
    monkeypatch.chdir(os.path.dirname(os.path.dirname(sys.executable)))
    assert tools.python_command() == os.path.join("bin", os.path.basename(sys.executable))
