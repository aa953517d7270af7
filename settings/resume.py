"""What the settings of a run that is continued may change."""

import functools
import pathlib
import re

from settings.files import flatten, holds_settings, plain, sections, show
from settings.loading import Config

# A continued run keeps these: stored weights would not fit, or weights and episodes would mean something else.
FIXED = re.compile(
    r"""
    task | size | grayscale | action_repeat | sticky | actions | lives |
    hierarchical_mode | dyn_(?!scale).* | initial | units | act | norm |
    (encoder|decoder)\.(?!outscale|image_dist).* | (reward_head|cont_head|critic)\.(layers|dist|slow_target) |
    actor\.(layers|dist|std|min_std|max_std) | expl_behavior | disag_(?!log|offset).*
""",
    re.VERBOSE,
)


def changes(old: dict, new: dict) -> list[tuple[str, str, str]]:
    """(name, old value, new value) of every setting that differs; "-" where one of the two has no such setting."""
    old, new = flatten(old), flatten(new)
    names = dict.fromkeys([*new, *old])
    pairs = [(name, *(show(flat[name]) if name in flat else "-" for flat in (old, new))) for name in names]
    return [(name, before, after) for name, before, after in pairs if before != after]


def changes_from_defaults(config: Config) -> list[tuple[str, str, str]]:
    """What differs from the section `defaults`; settings that only the task's suite has are compared with the suite."""
    return changes(_defaults_of(str(config.task)), plain(config))


@functools.cache
def _defaults_of(task: str) -> dict:
    """Section `defaults` with the settings of the task's suite."""
    known = sections()
    return {**known["suites"].get(task.partition("_")[0], {}), **known["defaults"]}


def shown(stored: dict) -> dict[str, str]:
    """Every setting of a stored run as text by name; those that came later have their defaults."""
    flat = flatten(_defaults_of(str(stored["task"]))) | flatten(stored)
    return {name: show(value) for name, value in flat.items()}


def changes_of_model(stored: dict | None, config: Config, latent: bool = False) -> list[tuple[str, str, str]]:
    """How settings that say what weights mean differ from those stored with them, see `changes`.

    Args:
        latent: whether those of the latent's sizes count, which may differ.
    """
    may_differ = re.compile("task" if latent else r"hierarchical_mode|dyn_(stoch|discrete).*|task")
    return [
        change
        for change in changes(stored if holds_settings(stored) else {}, plain(config))
        if FIXED.fullmatch(change[0]) and not may_differ.fullmatch(change[0]) and "-" not in change[1:]
    ]


def changes_of_run(stored: dict, config: Config, folder: pathlib.Path) -> list[tuple[str, str, str]]:
    """What a continued run changes, see `changes`.

    Raises:
        ValueError: if a fixed setting is among it, or if it learned from recorded episodes and should learn from an environment, or
            the other way round, since its log counts something else then.
    """
    before, now = ("recorded episodes" if source.get("offline_traindir") else "an environment" for source in (stored, config))
    if stored and before != now:
        raise ValueError(
            f"{folder} holds a run that learns from {before}; to go on from {now}, begin another run with its weights: "
            f"--from_checkpoint {folder} and another --logdir"
        )
    found = [
        change for change in changes(stored, plain(config)) if change[0] not in ("logdir", "from_checkpoint") and "-" not in change[1:]
    ]
    fixed = [f"{name} {old} -> {new}" for name, old, new in found if FIXED.fullmatch(name)]
    if fixed:
        raise ValueError(
            f"{folder} holds a run with other settings that its weights or episodes depend on: {'; '.join(fixed)}. "
            "Give the old values to continue it, or another --logdir to begin anew"
        )
    return found
