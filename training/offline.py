"""Folders of recorded episodes to learn from: what is in them, and whether it fits together and to the task.

Episodes are .npz files as `episodes.save_episode` writes them, or as dreamerv3-torch does. They are only read.

Shapes: L steps of an episode, A action, M steps of all episodes.
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

import console
from envs import images
from envs.check import LARGEST, is_sound
from envs.spaces import RESERVED, ActionCodec
from replay import Replay
from scale import ranks
from storage import archives
from storage.episodes import load_episode

HELD_OUT_BATCHES = 20  # that are measured at most
NEEDED = ("action", "reward", "is_first", "is_terminal")
Episode = dict[str, np.ndarray]


class Recording(NamedTuple):
    """What a folder of episodes holds.

    Attributes:
        obs_space, act_space: as an environment would have them, but discrete actions count from 0 and continuous ones lie in [-1, 1].
        lengths: of every episode by its file, in the order of their names, so the oldest first; L counts the first observation too.
        returns: sums of rewards, in the same order.
    """

    folder: pathlib.Path
    obs_space: spaces.Dict
    act_space: gymnasium.Space
    lengths: dict[pathlib.Path, int]
    returns: list[float]

    def __str__(self) -> str:
        steps = sum(self.lengths.values()) - len(self.lengths)
        return (
            f"{self.folder}: {len(self.lengths):,} episodes, {steps:,} steps, return {np.mean(self.returns):.4g} on average, "
            f"{min(self.returns):.4g} to {max(self.returns):.4g}"
        )


def check_settings(config) -> None:
    """Raises ValueError if the settings of recorded episodes do not go together, or with others."""
    if config.offline_evaldir and not config.offline_traindir:
        raise ValueError("offline_evaldir is for runs that learn from recorded episodes; give --offline_traindir too, or leave it out")
    if config.offline_evaldir and not config.eval_every:
        raise ValueError(
            "offline_evaldir is measured at every evaluation, and eval_every is 0, which means none; give --eval_every, with "
            "--eval_episode_num 0 to play no episodes"
        )
    folders = [(name, config[name]) for name in ("offline_traindir", "offline_evaldir") if config[name]]
    for name, folder in folders:
        if config.logdir and _resolved(config.logdir).is_relative_to(_resolved(folder)):
            raise ValueError(f"logdir {config.logdir!r} is in {name} {folder!r}, which is only read; give another --logdir")


def _resolved(path: str) -> pathlib.Path:
    return pathlib.Path(path).expanduser().resolve()


def survey(setting: str, folder: str, wanted: tuple[spaces.Dict, gymnasium.Space] | None, source: str, config) -> Recording:
    """Reads every episode of a folder once and checks that all fit; damaged files are named and left out.

    Args:
        setting: that named the folder, for errors.
        wanted: observation and action space that the episodes must fit. None to take those that follow from the episodes.
        source: what wants these spaces, for errors.
        config: settings.
    Raises:
        ValueError: if there are none, if one does not fit, or if it cannot be told what the actions are.
    """
    path = pathlib.Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(
            f"{setting} is {folder!r}, which is no folder; give one with recorded episodes, such as the train_eps of a run or "
            "what record.py writes"
        )
    obs_space, act_space = wanted or (None, None)
    lengths, returns, actions = {}, [], []
    for file, episode in _episodes(setting, path, config):
        if obs_space is None:
            obs_space, source = _observations(file, episode), str(file)
        _check(file, episode, obs_space, exact=wanted is None, source=source)
        taken = episode["action"][~episode["is_first"]]
        _check_actions(file, taken, act_space, actions, source)
        lengths[file] = len(episode["reward"])
        returns.append(float(episode["reward"].sum()))
        actions.append(taken)
    if not sum(map(len, actions)):
        raise ValueError(
            f"{setting} is {folder!r}, which holds no episode that can be read; give a folder with files "
            "<time>-<id>-<length>.npz, such as the train_eps of a run or what record.py writes"
        )
    return Recording(path, obs_space, act_space or _actions(np.concatenate(actions), config.actor.dist, path), lengths, returns)


def _episodes(setting: str, folder: pathlib.Path, config) -> Iterator[tuple[pathlib.Path, Episode]]:
    """Yields every episode of a folder that can be read, with its images converted; says what was left out or converted."""
    files, converted = sorted(folder.glob("*.npz")), {}
    with console.Progress("read", len(files), "episodes") as progress:
        for number, file in enumerate(files, start=1):
            try:
                stored = _read(file)
                episode = _convert(stored, config)
            except archives.Unsafe as error:
                raise ValueError(f"{setting} is {str(folder)!r}, and {file} in it is not read: {error}; move that file away") from error
            except Exception as error:  # a damaged file makes its readers raise nearly anything
                console.warn(f"left out the episode {file}, which cannot be read: {error}")
                continue
            converted |= {key: (stored[key].shape[1:], value.shape[1:]) for key, value in episode.items() if value is not stored[key]}
            yield file, episode
            progress.update(number)
    for key, (found, made) in converted.items():
        console.say(
            f"{folder}: images {key!r} of {'x'.join(map(str, found))} become {'x'.join(map(str, made))} (settings size, grayscale)."
        )


def part(recording: Recording, rank: int, count: int) -> Recording:
    """The episodes of one of so many processes.

    Raises:
        ValueError: if there are too few.
    """
    if len(recording.lengths) < count:
        raise ValueError(
            f"{recording.folder} has fewer episodes ({len(recording.lengths)}) than there are processes ({count}), which share them; "
            "start fewer processes"
        )
    lengths = dict(list(recording.lengths.items())[rank::count])
    return recording._replace(lengths=lengths, returns=recording.returns[rank::count])


def memory_for(recording: Recording, config, latents: dict | None = None, count: int = 1) -> Replay:
    """An empty memory for the newest episodes of a folder, as many steps as `dataset_size` allows.

    Args:
        latents: as in `Replay`.
        count: processes, each with a part of the episodes.
    Raises:
        ValueError: if there is not enough memory.
    """
    return Replay(
        recording.obs_space,
        ActionCodec(recording.act_space).size,
        capacity=min(config.dataset_size // count, sum(recording.lengths.values())),
        streams=1,
        batch_size=config.batch_size // count,
        batch_length=config.batch_length,
        seed=config.seed,
        latents=latents,
        sharers=min(count, ranks.count_here()),
    )


def load(memory: Replay, recording: Recording, config) -> None:
    """Loads the newest episodes, as many steps as the memory holds."""
    newest, room = [], memory.capacity
    for file, length in reversed(recording.lengths.items()):
        if room <= 0:
            break
        newest.append(file)
        room -= length
    with console.Progress("load", len(newest), "episodes", brief=True) as progress:
        for number, file in enumerate(reversed(newest), start=1):
            memory.add_episode(_convert(_read(file), config), file.name)
            progress.update(number)


def fill(recording: Recording, config) -> Replay:
    """A memory with the newest episodes, for a single process; see `memory_for`."""
    memory = memory_for(recording, config)
    load(memory, recording, config)
    return memory


def held_out_batches(memory: Replay) -> list[Episode]:
    """Sequences to measure on, the same at every call: as many steps as the memory holds, but at most HELD_OUT_BATCHES batches."""
    rng = np.random.default_rng(0)
    first = memory.sample(rng)
    count = min(HELD_OUT_BATCHES, max(1, len(memory) // first["reward"].size))
    return [first] + [memory.sample(rng) for _ in range(count - 1)]


def _read(file: pathlib.Path) -> Episode:
    episode = load_episode(file)
    if "is_first" in episode:  # the first step is, whatever the file says: in memory another episode comes before it
        episode["is_first"] = episode["is_first"].astype(bool) | (np.arange(len(episode["reward"])) == 0)
    return episode


def _convert(episode: Episode, config) -> Episode:
    """The episode with images as environments give them: of the settings' `size`, and grey if they say so."""
    return {key: _convert_images(value, config) if _is_observed(key) else value for key, value in episode.items()}


def _convert_images(value: np.ndarray, config) -> np.ndarray:
    """Images (L, H, W, C) of the settings' size and channels; any other observation, and images that are so, as they are."""
    if value.dtype != np.uint8 or value.ndim != 4:
        return value
    gray = config.grayscale and value.shape[3] == 3
    if list(value.shape[1:3]) == list(config.size) and not gray:
        return value
    return np.stack([images.convert(image, config.size, gray) for image in value])


def _is_observed(key: str) -> bool:
    return key not in RESERVED and not key.startswith("log_")


def _observations(file: pathlib.Path, episode: Episode) -> spaces.Dict:
    """The observation space that follows from an episode."""
    found = {}
    for key, value in episode.items():
        if not _is_observed(key):
            continue
        if value.dtype == np.uint8 and value.ndim == 4:
            found[key] = spaces.Box(0, 255, value.shape[1:], np.uint8)
        elif value.ndim == 2 and value.dtype.kind in "fiub":
            found[key] = spaces.Box(-np.inf, np.inf, value.shape[1:], np.float32)
        else:
            raise ValueError(
                f"{file}: {key} is {value.dtype} of shape {value.shape}; an observation is an image, uint8 of shape (L, H, W, "
                "C), or a vector of numbers, (L, n). Leave it out, or name it log_... to have it ignored"
            )
    if not found:
        raise ValueError(f"{file} holds no observations; it has {', '.join(sorted(episode))}")
    return spaces.Dict(found)


def _check(file: pathlib.Path, episode: Episode, obs_space: spaces.Dict, exact: bool, source: str) -> None:
    """Raises ValueError unless an episode has these observations (with `exact`: no others), and all else that is learned from."""
    missing = [key for key in (*obs_space.spaces, *NEEDED) if key not in episode and not key.startswith("log_")]
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}; it has {', '.join(sorted(episode))}. Wanted are {', '.join(NEEDED)} and the "
            f"observations of {source}"
        )
    other = [key for key in episode if key not in obs_space.spaces and _is_observed(key)]
    if exact and other:
        raise ValueError(f"{file} has {', '.join(other)}, which {source} has not; all episodes must have the same observations")
    for key, space in obs_space.spaces.items():
        if key.startswith("log_"):
            continue
        value = episode[key]
        if value.shape[1:] != space.shape or (space.dtype == np.uint8) != (value.dtype == np.uint8 and value.ndim == 4):
            raise ValueError(
                f"{file}: {key} is {value.dtype} of shape {value.shape[1:]} at each step; {source} has {space.dtype} of "
                f"shape {space.shape}. Give episodes of the same task, with images of as many channels (grayscale)"
            )
    for key in NEEDED:
        wanted, dimensions = ("(L, A), one-hot for discrete actions", 2) if key == "action" else ("(L,)", 1)
        if episode[key].ndim != dimensions:
            raise ValueError(f"{file}: {key} has shape {episode[key].shape}; wanted is {wanted}")
    for key in {*obs_space.spaces, *NEEDED} & episode.keys():
        if episode[key].dtype.kind not in "fiub":
            raise ValueError(f"{file}: {key} is {episode[key].dtype}; wanted are numbers")
        if episode[key].dtype.kind == "f" and not is_sound(episode[key]):
            raise ValueError(f"{file}: {key} has NaN, infinite values, or numbers beyond {LARGEST:g}; move that file away")


def _actions(actions: np.ndarray, dist: str, folder: pathlib.Path) -> gymnasium.Space:
    """The action space that follows from recorded actions (M, A) and the setting `actor.dist`.

    Actions of two or more numbers that are always one-hot are discrete; those that are always several one-hot vectors behind each other
    have so many discrete parts; all others are continuous, unless one-hot vectors seem to be among them.
    """
    size = actions.shape[1]
    flags = np.isin(actions, (0, 1)).all(0)  # (A,)
    binary = bool(flags.all()) and size > 1
    if dist == "normal" or (dist == "auto" and not binary and not _mixed(actions, flags)):
        return spaces.Box(-1.0, 1.0, (size,), np.float32)
    if binary and (actions.sum(1) == 1).all():
        return spaces.Discrete(size)
    classes = _parts(actions) if binary else None
    if classes is None:
        raise ValueError(
            f"the actions in {folder}, vectors of {size} numbers, are not one-hot, nor several one-hot parts of which every "
            "class occurs, or they have discrete and continuous parts, so it cannot be told what they mean. Give --actor.dist "
            "normal if they are continuous, or let an environment of the task tell, with --eval_every and --eval_episode_num above 0"
        )
    return spaces.MultiDiscrete(classes)


def _mixed(actions: np.ndarray, flags: np.ndarray) -> bool:
    """Whether actions (M, A) seem to have one-hots beside numbers: neighbouring columns of zeros and ones have a constant sum.

    `flags` (A,) marks the columns of zeros and ones.
    """
    runs = np.split(np.arange(len(flags)), np.flatnonzero(np.diff(flags)) + 1)
    sums = [actions[:, columns].sum(1) for columns in runs if flags[columns[0]]]
    sizes = [len(columns) for columns in runs if flags[columns[0]]]
    return any(0 < total[0] < size and (total == total[0]).all() for total, size in zip(sums, sizes))


def _parts(actions: np.ndarray) -> list[int] | None:
    """Class counts of the one-hot parts that zeros and ones (M, A) consist of; None if they do, or could, consist of something else.

    Where every class occurs, a part ends exactly where for the first time all rows have had their one.
    """
    classes, start = [], 0
    for end in range(1, actions.shape[1] + 1):
        if (actions[:, start:end].sum(1) == 1).all():
            classes.append(end - start)
            start = end
    told = start == actions.shape[1] and actions.any(0).all() and min(classes) > 1
    return classes if told else None


def _check_actions(
    file: pathlib.Path, actions: np.ndarray, act_space: gymnasium.Space | None, before: list[np.ndarray], source: str
) -> None:
    """Raises ValueError unless actions (L - 1, A) are of this space; without one, of the size of those of the files before."""
    if act_space is None:
        if before and actions.shape[1] != before[0].shape[1]:
            raise ValueError(
                f"{file}: action has {actions.shape[1]} numbers, in {source} it has {before[0].shape[1]}; all episodes must be of one task"
            )
        return
    codec = ActionCodec(act_space)
    if actions.shape[1] != codec.size:
        raise ValueError(
            f"{file}: action has {actions.shape[1]} numbers; {source} has {act_space}, which takes {codec.size}. Give "
            "episodes of the same task"
        )
    pieces = np.split(actions, np.cumsum([count or 1 for count in codec.layout])[:-1], 1)
    onehots = [piece for piece, count in zip(pieces, codec.layout) if count]
    if not all(np.isin(onehot, (0, 1)).all() and (onehot.sum(1) == 1).all() for onehot in onehots):
        raise ValueError(f"{file}: action is not one-hot; {source} has {act_space}. Give episodes of the same task")
