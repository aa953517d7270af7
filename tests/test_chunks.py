"""Replay chunks of the JAX original become episodes and latents of ours.

Two folders hold chunks that danijar/dreamerv3 wrote. The others are made here: step n of a stream has numbers that follow from n.
"""

import itertools
import json
import pathlib
import tracemalloc
import zipfile

import numpy as np
import pytest
from gymnasium import spaces

from envs.spaces import ActionPart, OneHot
from replay import Replay
from storage import chunks, latents
from storage.chunks import Taken
from storage.episodes import load_episode, save_episode, stored_steps

FOLDER = pathlib.Path(__file__).parent / "data" / "jax_reference"
CARTPOLE = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (4,), np.float32)})
CARTPOLE_PARTS = {"action": ActionPart(2, (2,))}
DUMMY = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (64, 64, 3), np.uint8),
        "vector": spaces.Box(-np.inf, np.inf, (7,), np.float32),
        "token": OneHot([256]),
        "count": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        "float2d": spaces.Box(-np.inf, np.inf, (20,), np.float32),
        "int2d": OneHot([4] * 6),
    }
)
DUMMY_PARTS = {"act_cont": ActionPart(6, None), "act_disc": ActionPart(5, (5,))}
SPACE = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
        "vector": spaces.Box(-np.inf, np.inf, (4,), np.float32),
        "token": OneHot([5]),
        "log_state_x": spaces.Box(-np.inf, np.inf, (1,), np.float32),
    }
)
PARTS = {"action": ActionPart(3, (3,)), "force": ActionPart(2, None)}
FLAT = {"deter": ((16,), np.float32), "stoch": ((2,), np.uint8)}
SMALL = {"deter": ((3,), np.float32), "stoch": ((2,), np.uint8)}


def recorded(case: str) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    """Folder of the chunks of a case, and its arrays (L, ...), all chunks behind each other."""
    folder = FOLDER / f"checkpoint_{case}"
    names = json.loads((folder / "contents.json").read_text())["replay_files_in_order"]
    files = [np.load(folder / "replay" / name) for name in names]
    return folder / "replay", {key: np.concatenate([file[key] for file in files]) for key in files[0].files}


def take_over(source, to, obs_space=SPACE, parts=PARTS, *, renamed=None, layout=SMALL, capacity=10**6) -> tuple[Taken, list[dict]]:
    """Converts chunks; what was taken, and the written episodes in the order of their names."""
    taken = chunks.take_over(
        source,
        to / "train_eps",
        obs_space,
        parts,
        renamed=renamed or {},
        latents=layout,
        latent=(2, 4),
        latents_path=to / "latents.npz",
        capacity=capacity,
    )
    return taken, [load_episode(to / "train_eps" / name) for name in stored_steps(to / "train_eps")]


def numbered(start: int, stop: int, firsts=(), lasts=(), terminals=()) -> dict[str, np.ndarray]:
    """A chunk's arrays for the steps from `start` to `stop`."""
    n = np.arange(start, stop)
    return {
        "image": np.broadcast_to(n[:, None, None, None] % 256, (len(n), 4, 4, 3)).astype(np.uint8),
        "vector": np.float32([[[m, -m], [m / 2, m / 4]] for m in n]),
        "token": n.astype(np.int32) % 5,
        "reward": n.astype(np.float32),
        "is_first": np.isin(n, firsts),
        "is_last": np.isin(n, lasts),
        "is_terminal": np.isin(n, terminals),
        "action": n.astype(np.int32) % 3,
        "force": np.float32([[m, -m / 10] for m in n]),
        "dyn/deter": np.float32([[m, m + 0.25, m + 0.5] for m in n]),
        "dyn/stoch": np.eye(4, dtype=np.float32)[np.stack([n % 4, n // 4 % 4], -1)],
        "stepid": np.stack([np.frombuffer(b"%016d" % start + int(m - start).to_bytes(4, "big"), np.uint8) for m in n]),
    }


def write(folder: pathlib.Path, time: int, uuid: str, successor: str, arrays: dict) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"20250101T{time:06d}F000000-{uuid}-{successor}-{len(arrays['reward'])}.npz"
    np.savez_compressed(path, **arrays)
    return path


def three_chunks(folder: pathlib.Path) -> list[pathlib.Path]:
    """A stream of 30 steps in three chunks, with the episodes 0-6, 7-17, 18-24 and 25-29. The last one is open."""
    firsts, lasts = (0, 7, 18, 25), (6, 17, 24)
    names = [("a", "b"), ("b", "c"), ("c", "0000")]
    return [
        write(folder, index, *names[index], numbered(10 * index, 10 * index + 10, firsts, lasts, terminals=(17,))) for index in range(3)
    ]


def numbers_of(episodes: list[dict]) -> list[list[int]]:
    """The numbers of the steps in each episode."""
    return [episode["reward"].astype(int).tolist() for episode in episodes]


def memory_of(folder: pathlib.Path, obs_space, parts, layout) -> tuple[Replay, int]:
    """A memory with everything that was converted, and how many of its steps have latents."""
    size = sum(part.size for part in parts.values())
    memory = Replay(obs_space, size, capacity=10_000, streams=1, batch_size=4, batch_length=5, latents=layout)
    memory.load(folder / "train_eps")
    return memory, memory.load_latents(folder / "latents.npz", {key: 5 for key in layout if key != "deter"})


def test_cartpole_becomes_its_six_episodes(tmp_path):
    source, arrays = recorded("cartpole")
    taken, episodes = take_over(source, tmp_path, CARTPOLE, CARTPOLE_PARTS, renamed={"vector": "image"}, layout=FLAT)
    assert taken == Taken(episodes=6, steps=96, latents=102, skipped=0)
    assert [len(episode["reward"]) for episode in episodes] == [23, 40, 11, 11, 12, 5]
    assert [episode["reward"].sum() for episode in episodes] == [22, 39, 10, 10, 11, 4]  # 1 for every step but the first
    assert sum(stored_steps(tmp_path / "train_eps").values()) == 96
    for episode in episodes:
        assert episode["is_first"].tolist() == [True] + [False] * (len(episode["reward"]) - 1)
        assert episode["is_last"].tolist() == [False] * (len(episode["reward"]) - 1) + [True]
    # The pole fell in five of them; the sixth was going on when the replay was written.
    assert [np.flatnonzero(episode["is_terminal"]).tolist() for episode in episodes] == [[22], [39], [10], [10], [11], []]
    np.testing.assert_array_equal(np.concatenate([episode["vector"] for episode in episodes]), arrays["image"])
    # The second and third episodes are steps 23-62 and 63-73 of the stream; the third spans both chunks.
    for episode, first, last in [(1, 23, 62), (2, 63, 73)]:
        assert episodes[episode]["action"][0].tolist() == [0, 0]
        led = episodes[episode]["action"][1:].tolist()
        assert led == [[1, 0] if chosen == 0 else [0, 1] for chosen in arrays["action"][first:last]]
    assert set(arrays["action"][23:62].tolist()) == {0, 1}
    assert episodes[0]["action"].dtype == episodes[0]["vector"].dtype == episodes[0]["reward"].dtype == np.float32


def test_the_dummy_keeps_every_kind_of_observation_and_action(tmp_path):
    source, arrays = recorded("dummy")
    taken, episodes = take_over(source, tmp_path, DUMMY, DUMMY_PARTS, layout=FLAT)
    assert taken == Taken(episodes=2, steps=112, latents=114, skipped=0)
    assert [len(episode["reward"]) for episode in episodes] == [101, 13]
    assert [episode["reward"].sum() for episode in episodes] == [100, 12]
    joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    np.testing.assert_array_equal(joined["image"], arrays["image"])
    np.testing.assert_array_equal(joined["vector"], arrays["vector"])
    assert joined["count"][:, 0].tolist() == arrays["count"].tolist()
    assert joined["float2d"][50].tolist() == [number for row in arrays["float2d"][50].tolist() for number in row]
    assert joined["token"].shape == (114, 256)
    assert joined["token"].sum() == 114
    assert (joined["token"] @ np.arange(256)).tolist() == arrays["token"].tolist()
    assert joined["int2d"].shape == (114, 24)
    for t, row, column in [(0, 0, 0), (33, 1, 2), (101, 0, 2), (113, 1, 0)]:
        place = 4 * (3 * row + column)
        assert joined["int2d"][t, place : place + 4].tolist() == [float(c == arrays["int2d"][t, row, column]) for c in range(4)]
    assert joined["action"].shape == (114, 11)  # act_cont before act_disc
    for t in (1, 33, 39, 100, 102, 113):  # led by what was chosen a step before, also across chunks
        expected = [number / max(1, abs(number)) for number in arrays["act_cont"][t - 1].astype(float)]
        np.testing.assert_allclose(joined["action"][t, :6], expected, rtol=1e-6)
        assert joined["action"][t, 6:].tolist() == [float(c == arrays["act_disc"][t - 1]) for c in range(5)]
    assert not joined["action"][[0, 101]].any()
    assert np.abs(arrays["act_cont"]).max() > 1
    assert np.abs(joined["action"]).max() <= 1
    assert np.flatnonzero(joined["is_first"]).tolist() == [0, 101]
    assert np.flatnonzero(joined["is_last"]).tolist() == [100, 113]
    assert np.flatnonzero(joined["is_terminal"]).tolist() == np.flatnonzero(arrays["is_terminal"]).tolist() == [100]


def codes_by_hand(stoch: np.ndarray) -> np.ndarray:
    """(L, S, K) -> (L, S)."""
    return np.array([[1 + row.index(1.0) if 1.0 in row else 0 for row in step] for step in stoch.tolist()])


@pytest.mark.parametrize("levels", [{"stoch": 2}, {"stoch_top": 1, "stoch_bottom": 1}, {"stoch_top": 1, "stoch_bottom": 3}], ids=str)
@pytest.mark.parametrize("case", ["cartpole", "dummy"])
def test_the_replay_memory_loads_every_step_with_its_latents(tmp_path, case, levels):
    source, arrays = recorded(case)
    obs_space, parts = (CARTPOLE, CARTPOLE_PARTS) if case == "cartpole" else (DUMMY, DUMMY_PARTS)
    layout = {"deter": ((16,), np.float32), **{key: ((size,), np.uint8) for key, size in levels.items()}}
    take_over(source, tmp_path, obs_space, parts, renamed={"vector": "image"} if case == "cartpole" else {}, layout=layout)
    memory, loaded = memory_of(tmp_path, obs_space, parts, layout)
    count = len(arrays["reward"])
    assert len(memory) == loaded == count
    expected = codes_by_hand(arrays["dyn/stoch"])
    widened = np.concatenate([expected, np.zeros((count, 2), int)], -1)
    batches = [memory.sample() for _ in range(40)]
    steps = np.concatenate([batch["replay.steps"][:, 0, 1] for batch in batches])
    after = steps > 0  # the oldest step has no context
    context = {key: np.concatenate([batch["replay.context"][key] for batch in batches]) for key in layout}
    before = steps[after] - 1
    assert len(set(before.tolist())) > 50
    np.testing.assert_array_equal(context["deter"][after], arrays["dyn/deter"][before])
    first = 0
    for key, size in levels.items():
        np.testing.assert_array_equal(context[key][after], widened[before, first : first + size])
        np.testing.assert_array_equal(memory._latents[key][0, :count], widened[:, first : first + size])
        first += size
    np.testing.assert_array_equal(memory._latents["deter"][0, :count], arrays["dyn/deter"])


def test_without_a_layout_no_latents_are_written(tmp_path):
    three_chunks(tmp_path / "replay")
    taken, _ = take_over(tmp_path / "replay", tmp_path, layout=None)
    assert taken == Taken(4, 26, 0, 0)
    assert not (tmp_path / "latents.npz").exists()


def test_actions_shift_and_flags_are_set_in_numbered_steps(tmp_path):
    three_chunks(tmp_path / "replay")
    taken, episodes = take_over(tmp_path / "replay", tmp_path)
    assert taken == Taken(4, 26, 30, 0)
    assert numbers_of(episodes) == [[*range(7)], [*range(7, 18)], [*range(18, 25)], [*range(25, 30)]]
    second = episodes[1]
    assert second["action"].shape == (11, 5)
    assert second["action"][0].tolist() == [0, 0, 0, 0, 0]
    assert second["action"][1].tolist() == pytest.approx([0, 1, 0, 1, -0.7])  # 7 = 1 mod 3, and the force is (7, -0.7)
    assert second["action"][4].tolist() == pytest.approx([0, 1, 0, 1, -1])  # chosen at 10, in the second chunk as 11 is
    assert second["action"][3].tolist() == pytest.approx([1, 0, 0, 1, -0.9])  # chosen at 9, in the first chunk
    assert second["vector"][3].tolist() == [10, -10, 5, 2.5]
    assert second["token"][3].tolist() == [1, 0, 0, 0, 0]
    assert [np.flatnonzero(episode["is_terminal"]).tolist() for episode in episodes] == [[], [10], [], []]
    assert [episode["discount"].sum() for episode in episodes] == [7, 10, 7, 5]
    assert all("log_state_x" not in episode for episode in episodes)


def test_a_repeated_conversion_writes_the_same_files(tmp_path):
    three_chunks(tmp_path / "replay")
    take_over(tmp_path / "replay", tmp_path)
    before = {path.name: load_episode(path) for path in (tmp_path / "train_eps").iterdir()}
    pieces = latents.read_index(tmp_path / "latents.npz", SMALL)
    sorted((tmp_path / "train_eps").iterdir())[1].unlink()  # as if killed in between
    (tmp_path / "latents.npz").unlink()
    take_over(tmp_path / "replay", tmp_path)
    after = {path.name: load_episode(path) for path in (tmp_path / "train_eps").iterdir()}
    assert before.keys() == after.keys()
    for name, key in itertools.product(before, before[next(iter(before))]):
        np.testing.assert_array_equal(before[name][key], after[name][key])
    assert latents.read_index(tmp_path / "latents.npz", SMALL) == pieces
    assert sorted(before)[1] == f"20250101T000000000000-{(b'0' * 16 + bytes([0, 0, 0, 7])).hex()}-11.npz"


def test_converted_episodes_are_older_than_new_ones(tmp_path):
    three_chunks(tmp_path / "replay")
    _, (episode, *_) = take_over(tmp_path / "replay", tmp_path)
    new = save_episode(tmp_path / "train_eps", {key: value for key, value in episode.items() if key != "discount"})
    assert list(stored_steps(tmp_path / "train_eps"))[-1] == new.name


def test_what_follows_a_missing_chunk_starts_an_episode(tmp_path):
    _, middle, _ = three_chunks(tmp_path / "replay")
    middle.unlink()
    taken, episodes = take_over(tmp_path / "replay", tmp_path)
    assert taken == Taken(4, 16, 20, 0)
    assert numbers_of(episodes) == [[*range(7)], [7, 8, 9], [20, 21, 22, 23, 24], [25, 26, 27, 28, 29]]
    assert episodes[1]["is_last"].tolist() == [False, False, True]  # cut off
    assert not episodes[1]["is_terminal"].any()
    assert episodes[2]["is_first"].tolist() == [True, False, False, False, False]
    assert not episodes[2]["action"][0].any()
    assert episodes[2]["action"][1, :3].tolist() == [0, 0, 1]  # 20 = 2 mod 3
    assert episodes[2]["reward"][0] == 20
    memory, loaded = memory_of(tmp_path, SPACE, PARTS, SMALL)
    assert loaded == 20
    assert memory._latents["deter"][0, :20, 0].tolist() == [*range(10), *range(20, 30)]


def test_a_first_step_ends_the_episode_before_it_and_nothing_follows_a_last_step(tmp_path):
    write(tmp_path / "replay", 0, "a", "b", numbered(0, 10, firsts=(0, 4), lasts=(6,)))
    write(tmp_path / "replay", 1, "b", "c", numbered(10, 15, firsts=(10,), lasts=(14,)))
    write(tmp_path / "replay", 2, "c", "d", numbered(15, 18))
    _, episodes = take_over(tmp_path / "replay", tmp_path)
    assert numbers_of(episodes) == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17]]
    assert all(episode["is_last"].sum() == episode["is_last"][-1] == 1 for episode in episodes)
    assert all(episode["is_first"].sum() == episode["is_first"][0] == 1 for episode in episodes)


def test_an_episode_of_a_single_observation_is_left_out(tmp_path):
    write(tmp_path / "replay", 0, "a", "b", numbered(0, 6, firsts=(1, 5), lasts=(0, 4)))
    taken, episodes = take_over(tmp_path / "replay", tmp_path)
    assert numbers_of(episodes) == [[1, 2, 3, 4]]
    assert taken == Taken(1, 3, 4, 0)


def test_chunks_of_several_environments_are_told_apart(tmp_path):
    write(tmp_path / "replay", 0, "a", "b", numbered(0, 5, firsts=(0,)))
    write(tmp_path / "replay", 1, "X", "Y", numbered(100, 105, firsts=(100,)))
    write(tmp_path / "replay", 2, "b", "c", numbered(5, 10, lasts=(9,)))
    write(tmp_path / "replay", 3, "Y", "X", numbered(105, 110))  # a successor that has been used already
    write(tmp_path / "replay", 4, "p", "q", numbered(200, 203))
    write(tmp_path / "replay", 5, "q", "p", numbered(203, 206))  # a circle
    _, episodes = take_over(tmp_path / "replay", tmp_path)
    assert numbers_of(episodes) == [[*range(10)], [*range(100, 110)], [*range(200, 206)]]


def test_chunks_follow_their_successors_even_where_clocks_went_back(tmp_path):
    write(tmp_path / "replay", 7, "a", "b", numbered(0, 5, firsts=(0,)))
    write(tmp_path / "replay", 3, "b", "c", numbered(5, 10))
    assert numbers_of(take_over(tmp_path / "replay", tmp_path)[1]) == [[*range(10)]]


def test_of_two_files_of_one_chunk_the_one_with_a_successor_counts(tmp_path):
    write(tmp_path / "replay", 0, "a", "0000", numbered(0, 4, firsts=(0,)))
    write(tmp_path / "replay", 0, "a", "b", numbered(0, 6, firsts=(0,)))
    write(tmp_path / "replay", 1, "b", "0000", numbered(6, 9))
    taken, episodes = take_over(tmp_path / "replay", tmp_path)
    assert numbers_of(episodes) == [[*range(9)]]
    assert taken == Taken(1, 8, 9, 0)


def test_only_the_newest_chunks_are_read(tmp_path, capsys):
    oldest, *_ = three_chunks(tmp_path / "replay")
    oldest.write_bytes(b"never read")
    taken, episodes = take_over(tmp_path / "replay", tmp_path, capacity=11)
    assert numbers_of(episodes) == [[*range(10, 18)], [*range(18, 25)], [*range(25, 30)]]
    assert taken == Taken(3, 17, 20, 0)
    assert capsys.readouterr().err == ""
    assert take_over(tmp_path / "replay", tmp_path / "less", capacity=10)[0] == Taken(2, 8, 10, 0)


def test_an_episode_that_memory_should_not_hold_is_cut(tmp_path, monkeypatch):
    for index, (uuid, successor) in enumerate(itertools.pairwise("abcdef")):
        write(tmp_path / "replay", index, uuid, successor, numbered(10 * index, 10 * index + 10, firsts=(0,)))
    step = 48 + 4 * (4 + 5) + 4 * 5 + 4 + 3 + 20  # bytes: image, vector and token, action, reward, flags, step id
    monkeypatch.setattr(chunks, "MOST_EPISODE_BYTES", 10 * step)
    _, episodes = take_over(tmp_path / "replay", tmp_path)
    assert numbers_of(episodes) == [[*range(20)], [*range(20, 40)], [*range(40, 50)]]
    assert all(episode["is_first"][0] and episode["is_last"][-1] for episode in episodes)


def damage(path: pathlib.Path, kind: str) -> None:
    """Damages the second of three chunks."""
    arrays = dict(np.load(path))
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "flipped":
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            content[archive.getinfo("image.npy").header_offset + 80] ^= 255
        path.write_bytes(content)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "name":
        path.rename(path.with_name("chunk.npz"))
    elif kind == "length":
        path.rename(path.with_name(path.name.replace("-10.npz", "-999999999.npz")))
    elif kind == "leads elsewhere":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("../../elsewhere.npy", b"")
    elif kind == "bomb":
        np.savez_compressed(path, **{**arrays, "image": np.zeros((10, 2**18), np.uint8)})
    else:
        changes = {
            "objects": {"vector": np.array([{}] * 10, object)},
            "shape": {"image": np.zeros((10, 4, 4, 1), np.uint8)},
            "wide images": {"image": np.zeros((10, 4, 4, 3), np.uint16)},
            "float tokens": {"token": np.zeros(10, np.float32)},
            "two lengths": {"reward": np.zeros(9, np.float32)},
            "reward of two": {"reward": np.zeros((10, 2), np.float32)},
            "integer flags": {"is_last": np.zeros(10, np.int32)},
            "token beyond": {"token": np.array([5] * 10, np.int32)},
            "token below": {"token": np.array([-2] * 10, np.int32)},
            "absent action": {"action": np.array([-1] * 10, np.int32)},
            "nan": {"vector": np.full((10, 2, 2), np.nan, np.float32)},
            "infinite": {"vector": np.full((10, 4), np.inf, np.float32)},
            "infinite reward": {"reward": np.full(10, -np.inf, np.float32)},
            "infinite force": {"force": np.full((10, 2), -np.inf, np.float32)},
            "numbers of float64": {"vector": np.full((10, 4), 1e300)},
            "lacks reward": {"reward": None},
        }
        arrays.update(changes[kind])
        np.savez_compressed(path, **{key: array for key, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "zip"),
        ("flipped", ""),
        ("empty", "zip"),
        ("folder", "it is no file"),
        ("name", "its name is not <timestamp>"),
        ("length", "expected are 999999999 steps"),
        ("leads elsewhere", "../../elsewhere"),
        ("bomb", "allowed are 1,048,576"),
        ("objects", "Python objects"),
        ("shape", "image is uint8 of shape (10, 4, 4, 1)"),
        ("wide images", "image is uint16"),
        ("float tokens", "token is float32"),
        ("two lengths", "reward is float32 of shape (9,)"),
        ("reward of two", "reward is float32 of shape (10, 2)"),
        ("integer flags", "is_last is int32"),
        ("token beyond", "token has values from 5 to 5"),
        ("token below", "token has values from -2"),
        ("absent action", "action has values from -1"),
        ("nan", "vector has numbers that are not finite"),
        ("infinite", "vector has numbers that are not finite"),
        ("infinite reward", "reward has numbers that are not finite"),
        ("infinite force", "force has numbers that are not finite"),
        ("numbers of float64", "vector has numbers that are not finite"),
        ("lacks reward", "it lacks reward"),
    ],
)
def test_a_damaged_chunk_is_left_out_with_one_warning(tmp_path, capsys, monkeypatch, kind, reason):
    monkeypatch.setattr(chunks, "MOST_CHUNK_BYTES", 2**20)  # a bomb of the real size takes seconds to make
    _, path, _ = three_chunks(tmp_path / "replay")
    damage(path, kind)
    taken, episodes = take_over(tmp_path / "replay", tmp_path)
    assert taken == Taken(4, 16, 20, 1)
    assert numbers_of(episodes) == [[*range(7)], [7, 8, 9], [20, 21, 22, 23, 24], [25, 26, 27, 28, 29]]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert warning.startswith(f"warning: skipped the replay chunk {tmp_path}/replay/")
    assert reason in warning
    assert memory_of(tmp_path, SPACE, PARTS, SMALL)[1] == 20


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"dyn/deter": None, "dyn/stoch": None}, False),
        ({"dyn/stoch": None}, False),
        ({"dyn/deter": np.zeros((10, 4), np.float32)}, False),
        ({"dyn/stoch": np.zeros((10, 3, 4), np.float32)}, False),
        ({"dyn/stoch": np.zeros((10, 2, 256), np.float32)}, False),
        ({"dyn/stoch": np.zeros((9, 2, 4), np.float32)}, False),
        ({"dyn/stoch": np.zeros((10, 2, 4), np.int32)}, False),
        ({"dyn/stoch": np.ones((10, 2, 4), np.float32)}, True),
        ({"dyn/stoch": np.full((10, 2, 4), 0.25, np.float32)}, True),
        ({"dyn/stoch": np.full((10, 2, 4), np.nan, np.float32)}, True),
        ({"dyn/deter": np.full((10, 3), np.nan, np.float32)}, True),
        ({"dyn/deter": np.full((10, 3), -np.inf, np.float32)}, True),
    ],
)
def test_a_chunk_whose_latents_cannot_be_used_gives_episodes_without_them(tmp_path, capsys, changes, warned):
    _, path, _ = three_chunks(tmp_path / "replay")
    arrays = {**np.load(path), **changes}
    np.savez_compressed(path, **{key: array for key, array in arrays.items() if array is not None})
    taken, episodes = take_over(tmp_path / "replay", tmp_path)
    assert taken == Taken(4, 26, 20, 0)
    assert numbers_of(episodes) == [[*range(7)], [*range(7, 18)], [*range(18, 25)], [*range(25, 30)]]
    assert capsys.readouterr().err.count(f"warning: skipped the latents in {path}") == warned
    memory, loaded = memory_of(tmp_path, SPACE, PARTS, SMALL)
    assert loaded == 20
    assert memory._latents["deter"][0, :30, 1].tolist() == [n + 0.25 if n < 10 or n >= 20 else 0 for n in range(30)]
    expected = [[n % 4 + 1, n // 4 % 4 + 1] if n < 10 or n >= 20 else [0, 0] for n in range(30)]
    assert memory._latents["stoch"][0, :30].tolist() == expected


def test_zero_latents_have_the_code_zero(tmp_path):
    arrays = numbered(0, 6, firsts=(0,))
    arrays["dyn/stoch"][0] = 0
    arrays["dyn/stoch"][3, 1] = 0
    write(tmp_path / "replay", 0, "a", "b", arrays)
    take_over(tmp_path / "replay", tmp_path)
    memory, _ = memory_of(tmp_path, SPACE, PARTS, SMALL)
    assert memory._latents["stoch"][0, :6].tolist() == [[0, 0], [2, 1], [3, 1], [4, 0], [1, 2], [2, 2]]


def test_absent_observations_are_zeros(tmp_path):
    arrays = numbered(0, 4, firsts=(0,))
    arrays["token"][2] = -1
    arrays["vector"][1, 0, 1] = -np.inf
    write(tmp_path / "replay", 0, "a", "b", arrays)
    _, (episode,) = take_over(tmp_path / "replay", tmp_path)
    assert episode["token"].tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert episode["vector"].tolist() == [[0, 0, 0, 0], [1, 0, 0.5, 0.25], [2, -2, 1, 0.5], [3, -3, 1.5, 0.75]]


def test_several_integers_become_one_hots_behind_each_other(tmp_path):
    arrays = numbered(0, 3, firsts=(0,)) | {"action": np.int64([[1, 0], [0, 2], [1, 1]]), "extra": np.zeros((2, 9))}
    write(tmp_path / "replay", 0, "a", "b", arrays)
    _, (episode,) = take_over(tmp_path / "replay", tmp_path, parts={"action": ActionPart(5, (2, 3))})
    assert episode["action"].tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_observations_and_actions_may_have_other_names_there(tmp_path):
    arrays = numbered(0, 3, firsts=(0,))
    arrays["camera"], arrays["buttons"] = arrays.pop("image"), arrays.pop("action")
    write(tmp_path / "replay", 0, "a", "b", arrays)
    assert take_over(tmp_path / "replay", tmp_path)[0] == Taken(0, 0, 0, 1)
    taken, (episode,) = take_over(tmp_path / "replay", tmp_path, renamed={"image": "camera", "action": "buttons"})
    assert taken == Taken(1, 2, 3, 0)
    assert episode["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert episode["action"][:, :3].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_an_empty_folder_has_no_episodes(tmp_path):
    taken, episodes = take_over(tmp_path, tmp_path)
    assert (taken, episodes) == (Taken(0, 0, 0, 0), [])
    assert latents.read_index(tmp_path / "latents.npz", SMALL) == []


def test_what_cannot_be_written_is_an_error_and_no_damaged_chunk(tmp_path, monkeypatch):
    three_chunks(tmp_path / "replay")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunks, "save_episode", full)
    with pytest.raises(OSError, match="No space left"):
        take_over(tmp_path / "replay", tmp_path)


def test_memory_holds_a_few_chunks_however_many_there_are(tmp_path):
    """100 chunks of 32 steps, with 98 kB of images and 33 kB of latents each, in episodes of 48 steps."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (32, 32, 3), np.uint8)})
    layout = {"deter": ((256,), np.float32), "stoch": ((2,), np.uint8)}
    for index in range(100):
        arrays = numbered(32 * index, 32 * index + 32, firsts=range(0, 3200, 48), lasts=range(47, 3200, 48))
        arrays |= {"image": np.zeros((32, 32, 32, 3), np.uint8), "dyn/deter": np.ones((32, 256), np.float32)}
        write(tmp_path / "replay", index, f"n{index}", f"n{index + 1}", arrays)
    options = {"renamed": {}, "latents": layout, "latent": (2, 4), "latents_path": tmp_path / "latents.npz", "capacity": 3200}
    tracemalloc.start()
    taken = chunks.take_over(tmp_path / "replay", tmp_path / "train_eps", space, {"action": ActionPart(3, (3,))}, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken == Taken(67, 3200 - 67, 3200, 0)
    assert peak < 12 * 32 * (32 * 32 * 3 + 4 * 256)  # all would be 100 chunks
