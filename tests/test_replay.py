"""Replay memory and episodes on disk, with steps that can be recognised."""

import pathlib
import tempfile
import tracemalloc

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import replay
from benchmarks.reliability import files
from replay import Replay
from storage import episodes
from storage.episodes import load_episode, save_episode
from storage.memory import Free

SPACE = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (1,), np.float32)})


def make(capacity=100, streams=1, **kwargs) -> Replay:
    return Replay(SPACE, 2, capacity=capacity, streams=streams, **{"batch_size": 200, "batch_length": 6, **kwargs})


def step(values: list[float], first: bool = False) -> dict:
    count = len(values)
    flags = {key: np.zeros(count, bool) for key in ("is_last", "is_terminal")}
    return {
        "vector": np.array(values, np.float32)[:, None],
        "action": np.zeros((count, 2), np.float32),
        "reward": np.array(values, np.float32),
        "is_first": np.full(count, first),
        **flags,
    }


def episode(start: int, length: int) -> dict:
    values = np.arange(start, start + length, dtype=np.float32)
    first = np.arange(length) == 0
    return {
        "vector": values[:, None],
        "action": np.zeros((length, 2), np.float32),
        "reward": values,
        "is_first": first,
        "is_last": first[::-1].copy(),
        "is_terminal": first[::-1].copy(),
    }


def test_sequences_are_consecutive_or_marked_where_they_are_not():
    memory = make(capacity=20)
    for value in range(33):  # wraps around; 13..32 are kept
        memory.add(step([value], first=value % 7 == 0))
    assert len(memory) == 20
    batch = memory.sample()
    values, first = batch["reward"], batch["is_first"]
    assert values.min() == 13 and values.max() == 32
    jumps = np.diff(values) != 1
    assert (values[:, 1:][jumps] == 13).all() and (values[:, :-1][jumps] == 32).all()
    np.testing.assert_array_equal(first, (values % 7 == 0) | (values == 13))
    assert (values % 7 == 0)[:, 1:-1].any(), "sequences run on over the ends of episodes"


def test_every_stored_step_is_a_start_equally_often():
    memory = make(capacity=60, streams=3, batch_size=20000)
    for value in range(12):
        memory.add(step([value, 100 + value, 200 + value]))
    memory.add_episode(episode(300, 5))  # streams of unequal length
    starts, counts = np.unique(memory.sample()["reward"][:, 0], return_counts=True)
    assert len(starts) == 41
    expected = 20000 / 41
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_iterating_gives_the_batches_that_sampling_gives_one_ahead():
    ahead, memory = make(capacity=20), make(capacity=20)
    for value in range(20):
        ahead.add(step([value])), memory.add(step([value]))
    first = next(ahead)
    np.testing.assert_array_equal(first["reward"], memory.sample()["reward"])
    expected = memory.sample()  # as the memory was when the batch before was taken
    for value in range(20, 40):  # overwrites all that the copy reads
        ahead.add(step([value]))
    second = next(ahead)
    for key, value in expected.items():
        np.testing.assert_array_equal(second[key], value)
    assert set(np.unique(next(ahead)["reward"])) == set(range(20, 40))


def test_a_memory_with_the_random_state_of_the_next_batch_goes_on_with_that_batch():
    memory, other = make(), make()
    for value in range(20):
        memory.add(step([value])), other.add(step([value]))
    for _ in range(3):
        next(memory)
    other.rng.bit_generator.state = memory.next_rng.bit_generator.state
    for _ in range(3):
        np.testing.assert_array_equal(next(other)["reward"], next(memory)["reward"])


def test_a_batch_drawn_by_another_generator_leaves_the_order_of_the_others_alone():
    memory, other = make(), make()
    for value in range(20):
        memory.add(step([value])), other.add(step([value]))
    for _ in range(3):
        memory.sample(np.random.default_rng(5))
        np.testing.assert_array_equal(memory.sample()["reward"], other.sample()["reward"])


def test_sequences_stay_in_the_stream_of_one_environment():
    memory = make(capacity=60, streams=3)
    for value in range(30):
        memory.add(step([value, 100 + value, 200 + value]))
    values = memory.sample()["reward"]
    assert (values // 100 == values[:, :1] // 100).all()
    assert set(np.unique(values // 100)) == {0, 1, 2}


def test_a_stream_shorter_than_a_sequence_is_repeated_with_marked_seams():
    memory = make()
    for value in range(4):
        memory.add(step([value], first=value == 0))
    batch = memory.sample()
    np.testing.assert_array_equal(batch["reward"][:, 1:], (batch["reward"][:, :-1] + 1) % 4)
    np.testing.assert_array_equal(batch["is_first"], batch["reward"] == 0)


def test_cut_off_episodes_are_marked_as_last():
    memory = make(streams=2)
    memory.add(step([1.0, 2.0]))
    memory.end_episodes()
    assert memory.sample()["is_last"].all()


def test_images_stay_bytes_and_the_printed_size_is_the_allocated_one():
    space = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
    memory = Replay(space, 6, capacity=50, streams=2, batch_size=1, batch_length=1)
    assert memory.nbytes == 50 * (64 * 64 * 3 + 6 * 4 + 4 + 3) == sum(array.nbytes for array in memory._arrays.values())


def test_more_than_the_free_memory_is_refused_with_a_size_that_fits(monkeypatch):
    monkeypatch.setattr(replay, "available_memory", lambda: Free(10_000, "this machine"))
    with pytest.raises(ValueError, match="dataset_size to at most 473"):
        make(capacity=10_000)  # 19 bytes a step
    make(capacity=473)


def test_an_empty_memory_says_so():
    with pytest.raises(ValueError, match="empty"):
        make().sample()


def test_episodes_survive_the_disk(tmp_path):
    saved = episode(5, 9)
    path = save_episode(tmp_path, saved)
    assert path.name.endswith("-9.npz") and list(tmp_path.iterdir()) == [path]
    loaded = load_episode(path)
    for key, value in saved.items():
        np.testing.assert_array_equal(loaded[key], value)
    np.testing.assert_array_equal(loaded["discount"], 1.0 - saved["is_terminal"])
    assert sum(episodes.stored_steps(tmp_path).values()) == 8


def test_loading_keeps_the_newest_episodes_that_fit_and_skips_damaged_ones(tmp_path, capsys):
    names = []
    for index in range(6):
        path = save_episode(tmp_path, episode(100 * index, 10))
        names.append(path.rename(tmp_path / f"2026010{index}T000000-x-10.npz"))
    names[4].write_bytes(names[4].read_bytes()[:100])
    memory = make(capacity=25)
    assert memory.load(tmp_path) == 3 * 9
    assert names[4].name in capsys.readouterr().err
    assert set(np.unique(memory.sample()["reward"] // 100)) == {2, 3, 5}


def test_files_that_could_run_code_are_not_read(tmp_path):
    path = tmp_path / "20260101T000000-x-2.npz"
    np.savez(path, **{**episode(0, 2), "vector": np.array([[object()], [object()]])})
    with pytest.raises(ValueError, match="allow_pickle"):
        load_episode(path)


def test_episodes_of_the_older_program_get_their_last_flag(tmp_path):
    old = episode(0, 4)
    del old["is_last"]
    np.savez_compressed(tmp_path / "20260101T000000-x-4.npz", **old, logprob=np.zeros(4, np.float32))
    memory = make()
    assert memory.load(tmp_path) == 3
    batch = memory.sample()
    np.testing.assert_array_equal(batch["is_last"], batch["reward"] == 3)
    assert "logprob" not in batch


class EveryStart:
    """In place of a generator: every step is a start, each once."""

    def integers(self, high: int, size: int) -> np.ndarray:
        assert size == high
        return np.arange(high)


class Lists:
    """The memory as it is meant: each stream is a list of numbered steps, the oldest first. A step is its number and first flag."""

    def __init__(self, capacity: int, streams: int):
        self.room, self.streams, self.count = max(1, capacity // streams), [[] for _ in range(streams)], 0

    def append(self, stream: int, firsts: list[bool]) -> list[float]:
        numbers = [float(self.count + index) for index in range(len(firsts))]
        self.count += len(firsts)
        self.streams[stream] = (self.streams[stream] + list(zip(numbers, firsts)))[-self.room :]
        return numbers

    def windows(self, length: int) -> list[tuple[list[float], list[bool]]]:
        """Numbers and first flags of the sequence from every step, in the order of the streams."""
        return [
            ([steps[(start + n) % len(steps)][0] for n in range(length)], [_begins(steps, start + n) for n in range(length)])
            for steps in self.streams
            for start in range(len(steps))
        ]


def _begins(steps: list[tuple[float, bool]], index: int) -> bool:
    return steps[index % len(steps)][1] or index % len(steps) == 0


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.integers(1, 40),
    streams=st.integers(1, 4),
    batch_length=st.integers(1, 30),
    additions=st.lists(st.one_of(st.booleans(), st.integers(1, 50)), max_size=60),
)
def test_every_sequence_is_a_run_of_consecutive_steps_or_marked_where_it_is_not(capacity, streams, batch_length, additions):
    """Additions are a step of every stream (true: the first of an episode), or an episode of so many steps."""
    memory, lists = make(capacity=capacity, streams=streams, batch_length=batch_length), Lists(capacity, streams)
    for addition in additions:
        if isinstance(addition, bool):
            memory.add(step([lists.append(stream, [addition])[0] for stream in range(streams)], first=addition))
        else:
            shortest = min(range(streams), key=lambda stream: len(lists.streams[stream]))
            numbers = lists.append(shortest, [index == 0 for index in range(addition)])
            memory.add_episode(episode(int(numbers[0]), addition))
    assert len(memory) == sum(map(len, lists.streams)) <= memory.capacity == lists.room * streams
    assert sum(array.nbytes for array in memory._arrays.values()) == memory.nbytes == 19 * memory.capacity
    if not len(memory):
        return
    memory._batch_size = len(memory)
    batch = memory.sample(EveryStart())
    assert [(list(numbers), list(firsts)) for numbers, firsts in zip(batch["reward"], batch["is_first"])] == lists.windows(batch_length)
    np.testing.assert_array_equal(batch["vector"][..., 0], batch["reward"])  # all arrays are of the same steps


@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(1, 60), streams=st.integers(1, 3), lengths=st.lists(st.integers(1, 25), min_size=1, max_size=12))
def test_episodes_on_disk_come_back_as_the_newest_ones_that_fit(capacity, streams, lengths):
    with tempfile.TemporaryDirectory() as folder:
        for index, length in enumerate(lengths):
            save_episode(pathlib.Path(folder), episode(100 * index, length)).rename(f"{folder}/2026{index:04d}T000000-x-{length}.npz")
        memory = make(capacity=capacity, streams=streams)
        loaded = memory.load(pathlib.Path(folder))
    newest, room = [], memory.capacity
    for index, length in reversed(list(enumerate(lengths))):
        if room > 0:
            newest.append((index, length))
        room -= length
    assert loaded == sum(length - 1 for _, length in newest)
    expected = Lists(capacity, streams)
    for index, length in reversed(newest):
        shortest = min(range(streams), key=lambda stream: len(expected.streams[stream]))
        expected.count = 100 * index
        expected.append(shortest, [number == 0 for number in range(length)])
    memory._batch_size = len(memory)
    starts = memory.sample(EveryStart())["reward"][:, 0].tolist()
    assert starts == [number for steps in expected.streams for number, _ in steps]


def test_memory_stays_at_its_printed_bound_over_ten_times_its_capacity():
    space = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
    memory = Replay(space, 2, capacity=1000, streams=2, batch_size=4, batch_length=8)
    steps = {**step([1.0, 2.0]), "image": np.full((2, 64, 64, 3), 7, np.uint8)}
    resident = []
    for number in range(5000):
        memory.add(steps)
        if number % 50 == 49:
            next(memory)
        if number % 500 == 499:
            resident.append(files.resident_bytes())
    assert len(memory) == 1000 and sum(array.nbytes for array in memory._arrays.values()) == memory.nbytes
    assert resident[-1] - resident[1] < 2e6  # from the second lap on; 12 MB are one copy of the memory


@pytest.mark.slow
def test_resident_memory_does_not_grow_with_updates():
    sizes = files.updates(200)
    assert max(sizes) - sizes[5] < 5e6


def test_loading_takes_no_more_than_one_episode_beside_the_memory(tmp_path):
    space = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
    for index in range(20):
        save_episode(tmp_path, {**episode(index, 100), "image": np.zeros((100, 64, 64, 3), np.uint8)})
    memory = Replay(space, 2, capacity=2000, streams=1, batch_size=4, batch_length=8)
    tracemalloc.start()
    assert memory.load(tmp_path) == 20 * 99
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 100 * 64 * 64 * 3  # 1.2 MB each, 25 MB in all
