"""Latents stored in the replay memory: the context of sequences, write-back, new sequences first, and what survives the disk."""

import collections
import errno
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import dreamer
import replay
import tools
from collect import Collector
from envs import make_envs
from envs.spaces import ActionCodec
from replay import Replay
from storage import files
from storage import latents as latent_files
from storage.disk import Disk
from storage.episodes import save_episode
from storage.memory import Free
from test_replay import SPACE, EveryStart, episode, step
from training import folder, nonfinite
from training.latents import LatentFile

LAYOUT = {"deter": ((3,), np.float32), "stoch": ((2,), np.uint8)}


def make(capacity=100, streams=1, **kwargs) -> Replay:
    return Replay(SPACE, 2, capacity=capacity, streams=streams, **{"batch_size": 4, "batch_length": 5, "latents": LAYOUT, **kwargs})


def latents(values) -> dict[str, np.ndarray]:
    """Latents (..., n) that a number (...) stands for, whole and below 256."""
    values = np.asarray(values)[..., None]
    return {"deter": values + np.array([0, 0.25, 0.5], np.float32), "stoch": np.repeat(values, 2, -1).astype(np.uint8)}


def number_of(stored: dict[str, np.ndarray]) -> np.ndarray:
    """The numbers (...) that latents (..., n) stand for; 0 for zeros."""
    numbers = stored["deter"][..., 0]
    expected = latents(numbers)
    for key, value in stored.items():
        np.testing.assert_array_equal(value, np.where(numbers[..., None] > 0, expected[key], 0))
    return numbers


def everything(memory: Replay) -> dict:
    """The sequence from every stored step, in the order of the streams."""
    memory._batch_size = len(memory)
    return memory.sample(EveryStart())


def by_position(memory: Replay) -> list[float]:
    """The latent of every step that another one follows, in the order of the streams."""
    return number_of(everything(memory)["replay.context"]).tolist()


class Step:
    def __init__(self, stream: int, number: int, first: bool):
        self.id, self.first, self.latent = (stream, number), first, 0.0


class Lists:
    """The memory as it is meant: each stream is a list of steps, the oldest first; a step that is gone is in no list."""

    def __init__(self, capacity: int, streams: int):
        self.room, self.streams, self.added = max(1, capacity // streams), [[] for _ in range(streams)], [0] * streams

    def append(self, stream: int, firsts: list[bool]) -> None:
        for first in firsts[-self.room :]:
            self.streams[stream] = [*self.streams[stream], Step(stream, self.added[stream], first)][-self.room :]
            self.added[stream] += 1

    def steps(self) -> list[Step]:
        return [step for steps in self.streams for step in steps]

    def check(self, memory: Replay, length: int) -> None:
        batch = everything(memory)
        windows = [
            ([steps[(start + n) % len(steps)] for n in range(length)], [(start + n) % len(steps) for n in range(length)])
            for steps in self.streams
            for start in range(len(steps))
        ]
        for row, (window, places) in enumerate(windows):
            firsts = [step.first or place == 0 for step, place in zip(window, places)]
            assert batch["is_first"][row].tolist() == firsts
            assert batch["is_last"][row].tolist() == [*firsts[1:], False]  # no step was stored as a last one
            assert [tuple(found) for found in batch["replay.steps"][row]] == [step.id for step in window]
            stream = self.streams[window[0].id[0]]
            before = 0.0 if places[0] == 0 else stream[places[0] - 1].latent
            assert number_of({key: value[row] for key, value in batch["replay.context"].items()}) == before


additions = st.tuples(st.just("add"), st.booleans())
episodes = st.tuples(st.just("episode"), st.integers(1, 12))
writes = st.tuples(st.just("write"), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=6))


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 20),
    streams=st.integers(1, 3),
    length=st.integers(1, 9),
    operations=st.lists(st.one_of(additions, episodes, writes, st.tuples(st.just("newest"), st.none())), max_size=25),
)
def test_contexts_ids_and_last_flags_are_those_of_lists_of_steps(capacity, streams, length, operations):
    """Writes name any steps that have ever been stored, by stream and age in all additions."""
    memory, lists, written = make(capacity, streams, batch_length=length), Lists(capacity, streams), 0
    for name, argument in operations:
        if name == "add":
            for stream in range(streams):
                lists.append(stream, [argument])
            memory.add(step([0.0] * streams, first=argument))
        elif name == "episode":
            shortest = min(range(streams), key=lambda stream: len(lists.streams[stream]))
            lists.append(shortest, [index == 0 for index in range(argument)])
            memory.add_episode({**episode(0, argument), "is_last": np.zeros(argument, bool)})
        elif name == "write":
            ids = [(stream % streams, number) for stream, number in argument if number < lists.added[stream % streams]]
            values = [float(written % 250 + 1 + index) for index in range(len(ids))]
            written += len(ids)
            memory.write_latents(np.array(ids, np.int64).reshape(-1, 2), latents(values))
            for found in lists.steps():
                for id, value in zip(ids, values):
                    found.latent = value if found.id == id else found.latent
        elif min(lists.added):
            written += 1
            memory.set_newest_latents(latents(np.full(streams, float(written % 250 + 1))))
            for steps in lists.streams:
                steps[-1].latent = float(written % 250 + 1)
        if len(memory):
            lists.check(memory, length)


def test_a_batch_has_the_shapes_that_the_agent_expects_and_none_of_them_without_latents():
    memory = make(streams=2)
    for value in range(9):
        memory.add(step([value, value]))
    batch = next(memory)
    assert batch["replay.steps"].shape == (4, 5, 2) and batch["replay.steps"].dtype == np.int64
    assert batch["replay.context"]["deter"].shape == (4, 3) and batch["replay.context"]["deter"].dtype == np.float32
    assert batch["replay.context"]["stoch"].shape == (4, 2) and batch["replay.context"]["stoch"].dtype == np.uint8
    plain = make(latents=None)
    plain.add(step([1.0]))
    assert not {"replay.steps", "replay.context"} & next(plain).keys()


def test_latents_that_are_not_finite_are_not_stored():
    memory = make()
    for value in range(3):
        memory.add(step([value]))
    memory.write_latents(np.array([[0, 0], [0, 1]]), latents([7.0, 8.0]))
    broken = latents([3.0, 4.0])
    broken["deter"][0, 1] = np.nan
    memory.write_latents(np.array([[0, 0], [0, 1]]), broken)
    assert by_position(memory) == [0, 7, 4]


def test_the_context_is_as_new_as_the_call_that_returns_the_batch():
    memory = make(capacity=30, batch_size=40, batch_length=1)
    for value in range(30):
        memory.add(step([value]))
    numbers = np.arange(30)
    ids = np.stack([np.zeros(30, int), numbers], -1)
    memory.write_latents(ids, latents(numbers + 1.0))
    next(memory)  # the next batch is drawn, and copied in the thread
    memory.write_latents(ids, latents(numbers + 101.0))
    batch = next(memory)
    first = batch["replay.steps"][:, 0, 1]
    assert number_of(batch["replay.context"]).tolist() == [0 if number == 0 else number + 100 for number in first]
    # A third is drawn; then 25 steps are replaced, and those that are left get others.
    for value in range(25):
        memory.add(step([100.0 + value]))
    memory.write_latents(ids, latents(numbers + 201.0))
    batch = next(memory)
    first = batch["replay.steps"][:, 0, 1]
    assert (first > 25).any() and (first < 25).any()
    expected = [0 if number == 0 else number + (200 if number - 1 >= 25 else 100) for number in first]
    assert number_of(batch["replay.context"]).tolist() == expected
    np.testing.assert_array_equal(batch["reward"][:, 0], first)  # the steps are those that were drawn


def test_batches_ahead_are_those_that_sampling_gives_at_every_call():
    ahead, memory = (make(capacity=40, streams=2, batch_size=9, online=True) for _ in range(2))
    for turn in range(60):
        for one in (ahead, memory):
            one.add(step([turn, 1000 + turn], first=turn % 7 == 0))
            one.set_newest_latents(latents([turn + 1.0, turn + 2.0]))
    batch, expected = next(ahead), memory.sample()
    for _ in range(10):
        for key in ("reward", "replay.steps", "is_last"):
            np.testing.assert_array_equal(batch[key], expected[key])
        np.testing.assert_array_equal(number_of(batch["replay.context"]), number_of(expected["replay.context"]))
        for one, drawn in ((ahead, batch), (memory, expected)):
            one.write_latents(drawn["replay.steps"], latents(drawn["replay.steps"][..., 1] % 50 + 100.0))
        batch, expected = next(ahead), memory.sample()


# New sequences first


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 60),
    streams=st.integers(1, 3),
    length=st.integers(1, 6),
    stored=st.booleans(),
    turns=st.lists(st.one_of(st.integers(1, 20), st.just("sample"), st.just("episode")), max_size=25),
)
def test_every_new_stretch_is_replayed_once_and_before_anything_is_drawn(capacity, streams, length, stored, turns):
    """Turns are so many steps of every stream, a batch of three sequences, or an episode from the disk."""
    memory = make(capacity, streams, batch_size=3, batch_length=length, online=True, latents=LAYOUT if stored else None)
    room, stretch = max(1, capacity // streams), length + stored
    count, new = [0] * streams, [0] * streams
    waiting, value = collections.deque(), 0
    values = {}  # by stream and number
    for turn in turns:
        if turn == "episode":
            size = [min(room, added) for added in count]
            stream = size.index(min(size))
            memory.add_episode(episode(10_000, 4))
            for index in range(min(4, room)):
                values[stream, count[stream]] = 10_000 + 4 - min(4, room) + index
                count[stream] += 1
            new[stream] = 0
        elif turn == "sample":
            oldest = [max(0, added - room) for added in count]
            expected = []
            while waiting and len(expected) < 3:
                stream, begin = waiting.popleft()
                if begin >= oldest[stream]:
                    expected.append([values[stream, begin + stored + index] for index in range(length)])
            if len(memory):
                assert memory.sample()["reward"][: len(expected)].tolist() == expected
        else:
            for _ in range(turn):
                memory.add(step([value + 1000.0 * stream for stream in range(streams)]))
                for stream in range(streams):
                    values[stream, count[stream]] = value + 1000.0 * stream
                    count[stream] += 1
                    new[stream] += 1
                    if new[stream] == stretch:
                        waiting.append((stream, count[stream] - stretch))
                        new[stream] = 0
                value += 1
        # Stretches that are gone need not wait.
        while len(memory) and waiting and waiting[0][1] < max(0, count[waiting[0][0]] - room):
            waiting.popleft()
        assert len(memory._queue) <= streams * (room // stretch)


def test_a_batch_for_a_video_takes_no_new_stretch_and_old_ones_are_drawn_at_random():
    memory = make(batch_size=2, online=True)
    for value in range(12):  # two stretches of six, whose first step is the context
        memory.add(step([value]))
    memory.sample(np.random.default_rng(3))
    assert memory.sample()["reward"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]
    starts = {int(start) for _ in range(60) for start in memory.sample()["reward"][:, 0]}
    assert starts == set(range(12))


def test_without_online_the_random_numbers_are_those_of_a_memory_without_latents():
    memories = make(), make(latents=None), Replay(SPACE, 2, capacity=100, streams=1, batch_size=4, batch_length=5)
    for value in range(30):
        for memory in memories:
            memory.add(step([value]))
    for _ in range(3):
        batches = [next(memory)["reward"].tolist() for memory in memories]
        assert batches[0] == batches[1] == batches[2]


# Memory


def test_latents_count_in_the_printed_size_and_in_the_refusal(monkeypatch):
    layout = {"deter": ((512,), np.float32), "stoch": ((32,), np.uint8)}
    memory = make(capacity=50, streams=2, latents=layout)
    assert memory.latent_nbytes == 50 * (512 * 4 + 32) == sum(array.nbytes for array in memory._latents.values())
    assert memory.nbytes == 50 * (19 + 512 * 4 + 32)
    monkeypatch.setattr(replay, "available_memory", lambda: Free(1_000_000, "this machine"))
    with pytest.raises(ValueError, match="dataset_size to at most 428"):  # 900,000 / 2,099
        make(capacity=10_000, latents=layout)
    make(capacity=428, latents=layout)


# On the disk


SPACE_OF_CARTPOLE = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (4,), np.float32)})


class Policy:
    """Draws actions; its latents are a number that grows with every step."""

    def __init__(self, codec: ActionCodec):
        self._codec, self._rng, self.count = codec, np.random.default_rng(0), 0.0
        self.of = {}  # the number by observation

    def act(self, obs, state, training):
        vectors = self._codec.random(self._rng, len(obs["is_first"]))
        self.count += 1
        for observation in obs["vector"]:
            self.of[observation.tobytes()] = self.count % 250
        return self._codec.decode(vectors), {"action": torch.as_tensor(vectors)}

    def stored_latents(self, state):
        return latents(np.full(len(state["action"]), self.count % 250, np.float32))


def collected(folder: pathlib.Path, count: int, steps: int, capacity: int) -> tuple[Replay, Policy]:
    """A memory that has seen steps of CartPole in so many environments, the last episodes cut off."""
    config = tools.load_config([], {"task": "gym_CartPole-v1"})
    envs = make_envs(config, count, training=True)
    codec = ActionCodec(envs.act_space)
    memory = Replay(envs.obs_space, codec.size, capacity=capacity, streams=count, batch_size=4, batch_length=5, latents=LAYOUT)
    collector, policy = Collector(envs, memory, folder, seed=3, training=True), Policy(codec)
    for _ in range(steps):
        collector.step(policy)
    collector.close_episodes()
    envs.close()
    return memory, policy


def of_observations(memory: Replay) -> dict[bytes, float]:
    """The latent of every stored step, by its observation."""
    found = {}
    for stream, size in enumerate(memory._size):
        numbers = number_of({key: array[stream, :size] for key, array in memory._latents.items()})
        found |= {vector.tobytes(): float(number) for vector, number in zip(memory._arrays["vector"][stream], numbers)}
    return found


@pytest.mark.parametrize("count, capacity", [(1, 1000), (2, 1000), (3, 150)])
def test_loaded_steps_have_the_latents_that_they_had(count, capacity, tmp_path):
    memory, policy = collected(tmp_path / "episodes", count, 120, capacity)
    before = of_observations(memory)
    assert len(before) > 100 and all(number == policy.of.get(observation, 0) for observation, number in before.items())
    assert sum(number == 0 for number in before.values()) <= count  # the newest steps, on which the policy has not acted
    memory.save_latents(tmp_path / "latents.npz")
    assert not memory.latents_changed
    other = Replay(SPACE_OF_CARTPOLE, 2, capacity=capacity, streams=count, batch_size=4, batch_length=5, latents=LAYOUT)
    other.load(tmp_path / "episodes")
    assert not any(of_observations(other).values())
    loaded = other.load_latents(tmp_path / "latents.npz", {"stoch": 256})
    after = of_observations(other)
    assert loaded > 100 and len(after) > 100
    assert after == {key: before.get(key, 0) for key in after}  # zeros: memory had dropped these steps of a loaded episode
    if capacity == 1000:
        assert after.keys() <= before.keys() and len(before) - len(after) <= count  # episodes without a step are not stored


@settings(max_examples=40, deadline=None)
@given(
    capacity=st.integers(1, 60),
    streams=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    other=st.tuples(st.integers(1, 80), st.integers(1, 3)),
    gone=st.sets(st.integers(0, 7)),
)
def test_episodes_in_other_streams_or_gone_or_longer_than_memory_are_found_by_name(capacity, streams, lengths, other, gone):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        for index, length in enumerate(lengths):
            save_episode(path, episode(100 * index, length)).rename(f"{folder}/2026{index:04d}T000000-x-{length}.npz")
        first = make(capacity, streams, batch_length=1)
        first.load(path)
        batch = everything(first)
        stored = {float(value) for value in batch["reward"][:, 0]}
        first.write_latents(batch["replay.steps"], latents(batch["reward"] % 97 + 1))
        first.save_latents(path / "latents")
        for index in gone:
            for file in path.glob(f"2026{index:04d}T*.npz"):
                file.unlink()
        second = make(*other, batch_length=1)
        second.load(path)
        if not len(second):
            return
        replay.PIECE, piece = 7, replay.PIECE
        try:
            second.load_latents(path / "latents")
        finally:
            replay.PIECE = piece
    batch = everything(second)
    values = batch["reward"][:, 0]
    held = dict(zip(map(tuple, batch["replay.steps"][:, 0].tolist()), values))
    for (stream, number), context in zip(batch["replay.steps"][:, 0].tolist(), number_of(batch["replay.context"])):
        before = held.get((stream, number - 1))
        assert context == (0 if before is None or before not in stored else before % 97 + 1)


@pytest.fixture
def saved(tmp_path) -> tuple[pathlib.Path, Replay]:
    """A file with the latents of two episodes of ten steps, and a memory with these episodes but without latents."""
    memories = []
    for index in range(2):
        save_episode(tmp_path, episode(100 * index, 10)).rename(tmp_path / f"2026000{index}T000000-x-10.npz")
    for _ in range(2):
        memories.append(make())
        memories[-1].load(tmp_path)
    batch = everything(memories[0])
    memories[0].write_latents(batch["replay.steps"], latents(batch["reward"] + 1))
    memories[0].save_latents(tmp_path / "latents.npz")
    return tmp_path / "latents.npz", memories[1]


def damage(path: pathlib.Path, how: str) -> None:
    content = path.read_bytes()
    with np.load(path) as file:
        arrays = {key: file[key] for key in file}
    if how == "gone":
        path.unlink()
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "one bit":  # in the last latents, so that only the checksum tells
        index = content.rindex(np.float32([109, 109.25, 109.5]).tobytes())
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
    elif how == "compressed":
        np.savez_compressed(path, **{**arrays, "deter": np.zeros((10**6, 3), np.float32)})
    elif how == "objects":
        np.savez(path, **{**arrays, "stoch": np.array([object()])})
    else:
        change = {
            "sizes": {"deter": np.zeros((20, 4), np.float32)},
            "dtype": {"stoch": arrays["stoch"].astype(np.uint16)},
            "levels": {"stoch_top": arrays["stoch"]},
            "class": {"stoch": np.full_like(arrays["stoch"], 200)},
            "infinite": {"deter": np.full_like(arrays["deter"], np.inf)},
            "order": {"deter": np.asfortranarray(arrays["deter"])},
            "lengths": {"lengths": np.array([10, -10, 20])[:2]},
            "count": {"lengths": arrays["lengths"] + 1},
            "starts": {"starts": arrays["starts"] - 1},
            "index": {"names": np.arange(2)},
        }[how]
        np.savez(path, **{**arrays, **change})


HOW = "gone half compressed objects sizes dtype levels class infinite order lengths count starts index".split()


@pytest.mark.parametrize("how", ["one bit", *HOW])
def test_a_file_that_is_missing_damaged_or_of_another_agent_is_named_in_one_line_and_leaves_zeros(how, saved, capsys):
    path, memory = saved
    damage(path, how)
    config = tools.load_config(["debug"], {"dyn_discrete": 119})
    LatentFile(memory, path.parent, Disk()).load(config)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and str(path) in captured.err and "zeros" in captured.err
    assert not any(by_position(memory))


def test_a_good_file_is_loaded_and_a_run_without_latents_reads_none(saved, capsys):
    path, memory = saved
    LatentFile(memory, path.parent, Disk()).load(tools.load_config(["debug"], {"dyn_discrete": 119}))
    assert "20 of the observations" in capsys.readouterr().out
    assert by_position(memory) == [0, *range(1, 11), *range(101, 110)]
    plain = make(latents=None)
    plain.add(step([1.0]))
    file = LatentFile(plain, path.parent / "other", Disk())
    file.load(tools.load_config(["debug"], {}))
    file.save(last=True)
    assert capsys.readouterr() == ("", "") and not (path.parent / "other").exists()


def test_the_file_is_written_at_checkpoints_only_if_that_is_cheap_and_always_at_the_end(saved, monkeypatch):
    path, memory = saved
    now, writings = [100.0], []

    def slow(target):
        now[0] += 3.0
        writings.append(now[0])
        memory.latents_changed = False

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(memory, "save_latents", slow)
    file = LatentFile(memory, path.parent, Disk())
    for _ in range(200):
        memory.latents_changed = True
        file.save()
        now[0] += 1.0
    assert writings == [103.0, 166.0, 229.0, 292.0]  # 60 s after the end of the last one
    file.save(last=True)
    assert len(writings) == 5
    file.save(last=True)  # nothing has changed
    assert len(writings) == 5


def test_a_full_disk_ends_nothing_and_keeps_the_file_that_was_there(saved, monkeypatch, capsys):
    path, memory = saved
    before, disk, write = path.read_bytes(), Disk(), files.open if hasattr(files, "open") else open

    class Full:
        def __init__(self, file):
            self.file, self.room = file, 300

        def write(self, content):
            self.room -= memoryview(content).nbytes
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(content)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(files, "open", lambda *args: Full(write(*args)), raising=False)
    memory.latents_changed = True
    file = LatentFile(memory, path.parent, disk)
    file.save()
    assert "the latents of replay cannot be written" in capsys.readouterr().err
    assert disk.unsaved() == "the latents of replay" and path.read_bytes() == before and not list(path.parent.glob("*.partial"))
    monkeypatch.setattr(files, "open", write, raising=False)
    file.save(last=True)
    assert not disk.unsaved() and path.read_bytes() != before


def test_writing_and_reading_take_no_second_copy_of_the_latents(tmp_path):
    layout = {"deter": ((1000,), np.float32), "stoch": ((32,), np.uint8)}
    save_episode(tmp_path, episode(0, 9000)).rename(tmp_path / "20260000T000000-x-9000.npz")
    memory = make(capacity=9000, latents=layout)  # 36 MB
    memory.load(tmp_path)
    tracemalloc.start()
    memory.save_latents(tmp_path / "latents.npz")
    memory.load_latents(tmp_path / "latents.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 14e6  # a piece of 4 MB, its bytes and what is compared


def test_the_index_of_a_file_is_read_without_its_latents(saved):
    path, _ = saved
    names = [f"2026000{index}T000000-x-10.npz" for index in range(2)]
    assert latent_files.read_index(path, LAYOUT) == [latent_files.Piece(name, 0, 10) for name in names]


# Runs

PRESETS = ["defaults", "dreamerv3_2025", "debug", "hdreamer_split"]
FLAGS = {"device": "cpu", "envs": 2, "steps": 160, "prefill": 60, "pretrain": 0, "train_ratio": 6, "eval_every": 0}


def run(logdir: pathlib.Path, **flags):
    """A run on CartPole that has ended."""
    config = tools.load_config(PRESETS, {"task": "gym_CartPole-v1", **FLAGS, "logdir": str(logdir), **flags})
    training = dreamer.start(config)
    dreamer.run_to_end(training)
    return training


def stored(memory: Replay) -> dict[bytes, list[bytes]]:
    """The latents of every stored step, by its observation."""
    return {
        vector.tobytes(): [array[stream, index].tobytes() for array in memory._latents.values()]
        for stream, size in enumerate(memory._size)
        for index, vector in enumerate(memory._arrays["vector"][stream, :size])
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("latents") / "run")


def reopened(logdir: pathlib.Path) -> Replay:
    """The memory of a run as its resume finds it."""
    training = dreamer.start(folder.command_settings([], {"logdir": str(logdir)}))
    training.close()
    return training.data.replay


def test_a_resumed_run_has_the_latents_that_it_had(finished, capsys):
    before = stored(finished.data.replay)
    assert sum(any(map(any, latents)) for latents in before.values()) > 150  # nearly all: the policy acted, updates wrote
    after = stored(reopened(finished.logdir))
    assert "of the observations in memory have the latents that they had" in capsys.readouterr().out
    shared = before.keys() & after.keys()
    assert len(shared) > 150 and all(after[key] == before[key] for key in shared)
    assert len(after.keys() - before.keys()) <= 2  # the first observations of the new episodes


def test_the_summary_says_what_latents_take(tmp_path, capsys):
    training = dreamer.start(tools.load_config(PRESETS, {"task": "gym_CartPole-v1", **FLAGS, "logdir": str(tmp_path / "run")}))
    training.close()
    # Per step: 16 float32 of deter, and codes of 2 + 2 categoricals.
    bytes_of_latents = training.data.replay.capacity * (16 * 4 + 4)
    assert f"of which latents {bytes_of_latents:,}" in capsys.readouterr().out


def test_an_agent_that_comes_from_another_folder_finds_zeros_and_no_warning(finished, tmp_path, capsys):
    config = tools.load_config(
        PRESETS, {"task": "gym_CartPole-v1", **FLAGS, "logdir": str(tmp_path / "other"), "from_checkpoint": str(finished.logdir)}
    )
    training = dreamer.start(config)
    training.close()
    assert len(training.data.replay) > 150 and not any(any(map(any, latents)) for latents in stored(training.data.replay).values())
    assert "latents" not in capsys.readouterr().err


@pytest.mark.parametrize("policy, restarts", [("policy", 0), ("random", 1)])
def test_a_policy_that_has_collected_the_first_steps_goes_on_in_the_same_episodes(policy, restarts, tmp_path, monkeypatch):
    calls, restart = [], Collector.restart
    monkeypatch.setattr(Collector, "restart", lambda self: (calls.append(self), restart(self)))
    training = run(tmp_path / "run", prefill_policy=policy, steps=80)
    assert len(calls) == restarts and training.agent.updates > 0


def test_new_sequences_are_replayed_first_in_a_run(finished):
    assert finished.config.replay_online and finished.data.replay._queue.maxlen > 0
    assert len(finished.data.replay._queue) <= 2  # 13 steps each; an update takes two of them


def test_recorded_episodes_give_the_same_run_whether_or_not_it_is_stopped(finished, tmp_path):
    flags = {"offline_traindir": str(finished.logdir / "train_eps"), "eval_episode_num": 0, "envs": 1, "actor.dist": "onehot"}
    for left_out in ("prefill", "pretrain", "train_ratio"):
        flags[left_out] = tools.load_config(PRESETS, {})[left_out]
    whole = run(tmp_path / "whole", steps=8, **flags)
    run(tmp_path / "parts", steps=4, **flags)
    parts = dreamer.start(folder.command_settings([], {"logdir": str(tmp_path / "parts"), "steps": 8}))
    dreamer.run_to_end(parts)
    assert whole.agent.updates == parts.agent.updates == 8
    assert stored(whole.data.replay) == stored(parts.data.replay)
    for name, value in whole.agent.state_dict().items():
        assert torch.equal(value, parts.agent.state_dict()[name]), name


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_latents_that_were_saved_last(tmp_path, capsys):
    logdir = tmp_path / "run"
    words = ["--configs", *PRESETS, "--task", "gym_CartPole-v1", "--logdir", str(logdir), "--checkpoint_every", "1"]
    words += [word for name, value in {**FLAGS, "steps": 100_000}.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([sys.executable, "dreamer.py", *words], cwd=pathlib.Path(dreamer.__file__).parent, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (logdir / "latents.npz").exists() and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(2.0)
    finally:
        process.kill()
        process.wait()
    memory = reopened(logdir)
    captured = capsys.readouterr()
    count = int(re.search(r"([\d,]+) of the observations in memory have the latents", captured.out)[1].replace(",", ""))
    assert 0 < count <= len(memory)
    with np.load(logdir / "latents.npz") as file:
        assert count <= file["lengths"].sum()
    assert sum(any(map(any, latents)) for latents in stored(memory).values()) > 0.8 * count


def test_the_batch_of_a_run_that_ends_with_nan_is_kept_with_its_context(finished, tmp_path):
    batch = finished.data.replay.sample(np.random.default_rng(0))
    batch["reward"][0, 0] = np.nan
    assert "reward (1 entries)" in nonfinite._findings(finished.agent, batch)
    path = nonfinite.write_batch(batch, tmp_path, 7, Disk())
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["context_deter"], batch["replay.context"]["deter"])
        assert {"context_stoch_top", "context_stoch_bottom", "replay.steps", "vector"} <= set(file)
