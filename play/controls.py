"""Actions as a person chooses them: their names, their keys, and the way to action vectors and back.

Shapes: A action. An action is also a list with an entry for each choice: a class of each one-hot, a number in [-1, 1] for each
continuous one.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from envs.spaces import ActionCodec

# Names that gymnasium's documentation gives to the actions of its own environments, which do not name them themselves.
NAMES = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "idle", "right"),
    "Acrobot": ("left", "idle", "right"),
    "LunarLander": ("idle", "left engine", "main engine", "right engine"),
    "FrozenLake": ("left", "down", "right", "up"),
    "Taxi": ("down", "up", "right", "left", "pickup", "dropoff"),
    "CliffWalking": ("up", "right", "down", "left"),
    "Blackjack": ("stick", "hit"),
}
MINATAR = {"n": "idle", "l": "left", "u": "up", "r": "right", "d": "down", "f": "fire"}
KEYS = {
    "ArrowUp": r"up|forward|main engine",
    "ArrowDown": r"down|back(ward)?",
    "ArrowLeft": r"left",
    "ArrowRight": r"right",
    "Space": r"fire|do|pickup|toggle|hit",
}
IDLE = r"noop|idle|none|nothing|stay"


def controls(codec: ActionCodec, config) -> list[dict]:
    """What a page needs to offer each choice of an action, in the order of an action's entries.

    A choice has a `name` and, if it is discrete, `classes`: each with its `name`, and the `keys` (of a browser's KeyboardEvent.code)
    that are pressed together for it. `idle` is the class that does nothing, or None.
    """
    found = []
    for part, (size, classes) in codec.parts.items():
        several = len(classes or range(size)) > 1
        for index in range(len(classes) if classes else size):
            choice = {"name": f"{part} {index + 1}" if several else part}
            if classes:
                names = class_names(config, classes[index]) if len(codec.layout) == 1 else None
                names = names or [str(number) for number in range(classes[index])]
                choice["classes"] = [{"name": name, "keys": keys_of(name)} for name in names]
                choice["idle"] = next((number for number, name in enumerate(names) if re.fullmatch(IDLE, name)), None)
            found.append(choice)
    return found


def class_names(config, count: int) -> list[str] | None:
    """The names of the classes of a task's only choice; None if they have none, or if a package is not installed."""
    suite, _, task = config.task.partition("_")
    try:
        if suite == "atari":
            names = _atari_names(task, config)
        elif suite == "minatar":
            names = _minatar_names(task)
        elif suite == "minigrid":
            from minigrid.core.actions import Actions

            names = [action.name for action in Actions]
        elif suite == "crafter":
            from crafter import constants

            names = list(constants.actions)
        else:
            names = list(NAMES.get(task.partition("-")[0], ()))
    except (ImportError, AttributeError, LookupError, RuntimeError):  # no names are no reason not to play
        return None
    return [name.lower().replace("_", " ") for name in names] if len(names) == count else None


def _atari_names(game: str, config) -> list[str]:
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.loadROM(roms.get_rom_path(game))
    actions = ale.getLegalActionSet() if config.actions == "all" else ale.getMinimalActionSet()
    return [" ".join(re.findall("NOOP|FIRE|UP|DOWN|LEFT|RIGHT", action.name)) for action in actions]


def _minatar_names(game: str) -> list[str]:
    from minatar import Environment

    env = Environment(game)
    return [MINATAR[env.env.action_map[index]] for index in env.minimal_action_set()]


def keys_of(name: str) -> list[str]:
    """The keys that are pressed together for an action of this name."""
    return [key for key, words in KEYS.items() if re.search(rf"\b({words})\b", name)]


def to_vector(layout: Sequence[int | None], entries: list) -> np.ndarray:
    """The action vector (A,) of an action.

    Args:
        layout: see `ActionCodec.layout`.
        entries: the action.
    Raises:
        ValueError: for entries that are no action.
    """
    if not isinstance(entries, list) or len(entries) != len(layout):
        raise ValueError(f"an action has {len(layout)} entries, and not {entries!r:.60}")
    parts = []
    for classes, entry in zip(layout, entries):
        if classes is None:
            if type(entry) not in (int, float) or not math.isfinite(entry):
                raise ValueError(f"{entry!r:.40} is no number from -1 to 1")
            parts.append([min(1.0, max(-1.0, entry))])
        elif type(entry) is not int or not 0 <= entry < classes:
            raise ValueError(f"{entry!r:.40} is no class from 0 to {classes - 1}")
        else:
            parts.append(np.eye(classes)[entry])
    return np.concatenate(parts).astype(np.float32)


def to_entries(layout: Sequence[int | None], vector: np.ndarray) -> list:
    """The action whose vector (A,) this is."""
    entries, start = [], 0
    for classes in layout:
        part = vector[start : start + (classes or 1)]
        entries.append(round(float(part[0]), 4) if classes is None else int(part.argmax()))
        start += len(part)
    return entries
