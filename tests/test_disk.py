"""Disks that are full or read-only, files that wait for them, and old episodes that are removed where that is asked for."""

import errno
import json
import pathlib
import re
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoints
import dreamer
import settings
from benchmarks.reliability import files
from storage import disk, episodes
from storage import files as storage_files
from storage.disk import Disk
from storage.episodes import load_episode, save_episode
from test_replay import episode
from training import logs
from training.data import EpisodeFolder

pytestmark = pytest.mark.slow

CARTPOLE = ["--configs", "defaults", "debug", "--task", "gym_CartPole-v1", "--device", "cpu", "--eval_every", "0"]


class HalfWritten:
    """A file that takes half of what it is given, and then nothing more. One without a buffer tells how much that was."""

    def __init__(self, file, buffered: bool):
        self._file, self._buffered, self._taken = file, buffered, False

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content) -> int:
        written = 0 if self._taken else self._file.write(content[: len(content) // 2])
        self._taken = True
        if self._buffered or not written:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written


class Device:
    """What the program writes to: `fails` is None, "full" or "read-only"."""

    fails = None

    def open(self, path, mode: str, **kwargs):
        if self.fails == "read-only" and set(mode) & set("wax"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        file = open(path, mode, **kwargs)  # noqa: SIM115 -- the caller closes it
        return HalfWritten(file, buffered="buffering" not in kwargs) if self.fails == "full" else file


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    for module in (storage_files, disk):
        monkeypatch.setattr(module, "open", device.open, raising=False)
    return device


@pytest.mark.parametrize("fails", ["full", "read-only"])
def test_what_cannot_be_written_waits_and_comes_whole_and_in_order(device, fails, tmp_path, capsys):
    target = Disk()
    target.append("lines", tmp_path / "log", b"one\n")
    device.fails = fails
    for number in range(3):
        target.write("things", tmp_path / f"thing{number}", b"x" * 100 + bytes([number]))
        target.append("lines", tmp_path / "log", f"line {number}\n".encode())
    assert [path.name for path in tmp_path.iterdir()] == ["log"]  # no temporary files
    assert (tmp_path / "log").read_bytes() == b"one\n"  # no half lines
    assert target.unsaved() == "things (3 files), lines (1 file)"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and all("MB are free in" in line and "tries again" in line for line in warnings)
    device.fails = None
    target.append("lines", tmp_path / "log", b"end\n")
    assert (tmp_path / "log").read_bytes() == b"one\nline 0\nline 1\nline 2\nend\n"
    assert [(tmp_path / f"thing{number}").read_bytes()[-1] for number in range(3)] == [0, 1, 2]
    assert target.unsaved() == "" and "is on the disk now" in capsys.readouterr().out


def test_each_kind_is_warned_of_at_most_once_a_minute(device, tmp_path, capsys, monkeypatch):
    clock, target, device.fails = [1000.0], Disk(), "full"
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for _ in range(150):
        clock[0] += 1.0
        target.write("things", tmp_path / "thing", b"xx")
        target.write("others", tmp_path / "other", b"xx")
    told = capsys.readouterr().err
    assert told.count("things") == told.count("others") == 3


def test_a_file_that_never_can_be_written_does_not_keep_others_of_its_kind_back(tmp_path):
    (tmp_path / "taken").mkdir()
    target = Disk()
    target.write("things", tmp_path / "taken", b"x")
    for number in range(3):
        target.write("things", tmp_path / f"thing{number}", b"x")
    target.retry()
    assert target.unsaved() == "things (1 file)" and len(list(tmp_path.glob("thing*"))) == 3


def test_memory_for_what_waits_is_bounded_and_what_is_given_up_is_told(device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(disk, "MOST_WAITING", 1000)
    target, device.fails = Disk(), "full"
    for number in range(15):
        target.write("things", tmp_path / f"thing{number}", bytes(100))
    assert sum(len(entry.content) for entry in target._waiting.values()) == 1000
    assert capsys.readouterr().err.count("given up") == 5
    device.fails = None
    target.retry()
    assert target.unsaved() == "things (5 files)" and len(list(tmp_path.iterdir())) == 10


@pytest.mark.parametrize("fails", ["full", "read-only"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(device, fails, tmp_path):
    path = tmp_path / "latest.pt"
    entries = {name: {} for name in checkpoints.AGENT} | dict.fromkeys(checkpoints.RUN - checkpoints.AGENT - {"version"}, 0)
    for step in (1, 2):
        checkpoints.save(path, {**entries, "step": step})
    device.fails = fails
    with pytest.raises(OSError, match="No space|Read-only"):
        checkpoints.save(path, {**entries, "step": 3, "more": np.zeros(10**6).tolist()})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latest.pt", "previous.pt"]
    assert checkpoints.load(path)["step"] == 2 and checkpoints.load(tmp_path / "previous.pt")["step"] == 1


def test_curves_and_videos_reach_tensorboard_and_wait_for_the_disk(device, tmp_path):
    logger = logs.Logger(tmp_path)
    for step in range(4):
        device.fails = "full" if step in (1, 2) else None
        logger.add({"loss": float(step)})
        logger.write(step)
        path = logger.video("openl_a/../../x", np.zeros((3, 8, 8, 3)), step)
    logger.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0.0, 1.0, 2.0, 3.0]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(step, float(step)) for step in range(4)]
    assert events.Images("openl_a/../../x")[2].encoded_image_string == path.read_bytes()
    assert len(list((tmp_path / "videos").iterdir())) == 4 and path.parent == tmp_path / "videos"


def train(tmp_path: pathlib.Path, *flags: str) -> int:
    return dreamer.main([*CARTPOLE, "--checkpoint_every", "1", "--logdir", str(tmp_path), *flags])


@pytest.mark.parametrize("fails", ["full", "read-only"])
def test_a_run_goes_on_without_a_disk_and_ends_with_an_error(device, fails, tmp_path, capsys):
    assert train(tmp_path, "--steps", "100") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".pt", ".npz")}
    training = dreamer.start(settings.load_config(["debug"], {**settings.parse_flags(CARTPOLE)[1], "logdir": str(tmp_path), "steps": 200}))
    device.fails = fails
    dreamer.run_to_end(training)
    assert training.step == 200 and "the checkpoint, episodes" in training.disk.unsaved()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".pt", ".npz", ".partial")} == before
    device.fails = None
    training.disk.retry()
    training.save()
    assert training.disk.unsaved() == ""
    assert on_disk(tmp_path) == checkpoints.load(tmp_path / "latest.pt")["step"] == 200


def test_a_run_that_could_not_save_says_so_and_returns_1(device, tmp_path, capsys, monkeypatch):
    run_to_end = dreamer.run_to_end

    def fill_and_run(run):
        device.fails = "full"
        run_to_end(run)

    monkeypatch.setattr(dreamer, "run_to_end", fill_and_run)
    assert train(tmp_path, "--steps", "100") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: not everything could be written to .*: the checkpoint, episodes \(\d+ files\), metrics .* MB are free", error)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
def test_a_run_outlives_real_errors_of_the_kernel(tmp_path):
    assert files.run_on_full_disk(files.SmallDisk(tmp_path, mount=False), recovers=True, steps=1500, seconds=1.0) == []


def test_a_folder_that_is_full_from_the_start_is_refused(device, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    assert train(tmp_path, "--steps", "100") == 2
    assert "cannot write into the folder of the run" in capsys.readouterr().err and not (tmp_path / ".writable").exists()


def test_old_episodes_stay_unless_their_removal_is_asked_for(tmp_path):
    assert train(tmp_path, "--steps", "400", "--dataset_size", "100") == 0
    stored = episodes.stored_steps(tmp_path / "train_eps")
    assert sum(stored.values()) == 400
    assert train(tmp_path, "--steps", "500", "--dataset_size", "100", "--keep_episodes", "false") == 0
    left = episodes.stored_steps(tmp_path / "train_eps")
    lengths = [steps + 1 for steps in left.values()]
    assert sum(lengths[1:]) < 100 <= sum(lengths) or sum(left.values()) < 200  # the newest that fill the memory, and the last ones
    assert sum(left.values()) < 400 and max(left) > max(stored)
    checkpoint = checkpoints.load(tmp_path / "latest.pt")
    assert checkpoint["step"] == 500 == steps_of(tmp_path)


def test_frames_are_counted_right_after_a_resume_although_files_are_gone(tmp_path, capsys):
    flags = ["--dataset_size", "60", "--keep_episodes", "false"]
    assert train(tmp_path, "--steps", "300", *flags) == 0
    assert on_disk(tmp_path) < 200 and steps_of(tmp_path) == 300
    # As after a process that was killed: an episode of 20 steps is newer than the checkpoint.
    save_episode(tmp_path / "train_eps", load_episode_of(tmp_path, 21))
    training = dreamer.start(
        settings.load_config(["debug"], {**settings.parse_flags([*CARTPOLE, *flags])[1], "logdir": str(tmp_path), "steps": 340})
    )
    assert training.step == 320 and len(training.data.replay) == 60
    dreamer.run_to_end(training)
    assert checkpoints.load(tmp_path / "latest.pt")["step"] == 340 == steps_of(tmp_path)


@pytest.mark.parametrize("removed", [0, 2])
def test_a_kill_while_old_episodes_are_removed_forgets_no_frame(removed, tmp_path, monkeypatch):
    assert train(tmp_path, "--steps", "300") == 0
    flags = [*CARTPOLE, "--dataset_size", "60", "--keep_episodes", "false", "--steps", "400"]
    config = settings.load_config(["debug"], {**settings.parse_flags(flags)[1], "logdir": str(tmp_path)})
    training = dreamer.start(config)
    training.agent.updates += 1  # something to save

    def killed(self):
        for name in list(self.counters()["removing"])[:removed]:
            (self.path / name).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpisodeFolder, "remove_old", killed)
        training.save()
    training.close()
    left = on_disk(tmp_path)
    assert left < 300 if removed else left == 300
    again = dreamer.start(config)
    assert again.step == 300 == again.data.counters()["removed_steps"] + left
    again.agent.updates += 1
    assert again.save() and not again.save()
    assert again.data.counters()["removed_steps"] + on_disk(tmp_path) == 300
    assert on_disk(tmp_path) < left
    again.close()


def test_old_episodes_make_room_for_a_checkpoint(tmp_path, monkeypatch):
    assert train(tmp_path, "--steps", "300") == 0
    flags = [*CARTPOLE, "--dataset_size", "60", "--keep_episodes", "false", "--steps", "400"]
    training = dreamer.start(settings.load_config(["debug"], {**settings.parse_flags(flags)[1], "logdir": str(tmp_path)}))
    training.agent.updates += 1
    save = checkpoints.save

    def save_if_there_is_room(path, checkpoint):
        if on_disk(tmp_path) > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, checkpoint)

    monkeypatch.setattr(checkpoints, "save", save_if_there_is_room)
    assert training.save() and training.disk.unsaved() == ""
    training.close()
    assert on_disk(tmp_path) < 200 and steps_of(tmp_path) == 300


def on_disk(logdir: pathlib.Path) -> int:
    return sum(episodes.stored_steps(logdir / "train_eps").values())


def steps_of(logdir: pathlib.Path) -> int:
    """Agent steps of all episodes of a run, of those too whose files it has removed."""
    checkpoint = checkpoints.load(logdir / "latest.pt")
    gone = [steps for name, steps in checkpoint["removing"].items() if not (logdir / "train_eps" / name).exists()]
    return checkpoint["removed_steps"] + sum(gone) + on_disk(logdir)


def load_episode_of(logdir: pathlib.Path, length: int) -> dict:
    """An episode of another length with the arrays that the run stores."""
    found = load_episode(next((logdir / "train_eps").glob("*.npz")))
    return {key: np.resize(value, (length, *value.shape[1:])) for key, value in found.items() if key != "discount"}


def test_episodes_beyond_the_memory_are_the_ones_that_it_does_not_load(tmp_path):
    for index, length in enumerate([5, 7, 3, 9, 4]):
        save_episode(tmp_path, episode(100 * index, length)).rename(tmp_path / f"2026010{index}T000000-x-{length}.npz")
    (tmp_path / "notes.txt").write_text("mine")
    for capacity in range(1, 35):
        old = {name for name, _ in episodes.old_episodes(tmp_path, capacity)}
        lengths, names = (
            [4, 9, 3, 7, 5],
            [f"2026010{index}T000000-x-{length}.npz" for index, length in zip(range(4, -1, -1), [4, 9, 3, 7, 5])],
        )
        kept = next((n for n in range(1, 6) if sum(lengths[:n]) >= capacity), 5)
        assert old == set(names[kept:])


def test_an_offline_run_removes_nothing(tmp_path):
    for index in range(4):
        save_episode(tmp_path / "recorded", episode(index, 20))
    flags = ["--offline_traindir", str(tmp_path / "recorded"), "--keep_episodes", "false", "--dataset_size", "20", "--actor.dist", "normal"]
    assert train(tmp_path / "run", *flags, "--steps", "2") == 0
    assert len(list((tmp_path / "recorded").iterdir())) == 4
