"""What the settings of a run that is continued may change."""

import copy
import functools
import pathlib
import re
from collections.abc import Mapping

from settings.combinations import GENERATION, check_combinations
from settings.files import flatten, holds_settings, plain, sections, show
from settings.levels import CLASSES, COUNTS, SIZES, level_sizes
from settings.loading import Config, checked
from settings.names import current_value

# A continued run keeps these: stored weights would not fit, or weights and episodes would mean something else.
FIXED = re.compile(
    r"""
    task | env_kwargs | size | grayscale | action_repeat | sticky | actions | lives |
    hierarchical_mode | dyn_(?!scale).* | initial | units | act | norm |
    (encoder|decoder)\.(?!outscale|image_dist|loss_scale).* | (reward_head|cont_head|critic)\.(layers|dist|slow_target) |
    cont_head\.discounted | optimizer | replay_context | actor\.(layers|dist|std|min_std|max_std) |
    expl_behavior | disag_(?!log|offset).*
""",
    re.VERBOSE,
)

# It keeps these against presets and defaults that say otherwise, and changes them only where they are given one by one. They
# decide which tensors there are, their shapes or meaning; a run that took over a checkpoint has them from there.
KEPT = re.compile(
    r"""
    dyn_(stoch|discrete)(_top|_bottom)? | dyn_(deter|hidden|rec_depth|core|blocks|img_layers|obs_layers) | kl_free | initial |
    make_env | units | norm | (encoder|decoder)\.(cnn_keys|mlp_keys|norm|cnn|cnn_depth|kernel_size|minres|mlp_layers|mlp_units) |
    encoder\.symlog_inputs | decoder\.(blocks|cnn_sigmoid|vector_dist) | cont_head\.discounted | optimizer | replay_context |
    (reward_head|cont_head|actor|critic)\.layers | (reward_head|critic)\.dist | actor\.std | critic\.slow_target |
    disag_(target|action_cond|models|layers|units)
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


def completed(stored: dict) -> dict:
    """Every setting of a stored run by name, nested ones with dots; those that came later have their defaults."""
    values = {name: current_value(name, value) for name, value in flatten(stored).items()}
    return flatten(_defaults_of(str(stored.get("task")))) | values


def shown(stored: dict) -> dict[str, str]:
    """Every setting of a stored run as text by name; those that came later have their defaults."""
    return {name: show(value) for name, value in completed(stored).items()}


def _resolved(config: dict) -> dict:
    """Settings with the sizes of the latent as numbers; without those that are not read, since the number of levels decides that.

    Sizes that mean none, in a damaged file, stay as they are.
    """
    try:
        sizes = level_sizes(config)
    except ValueError:
        return config
    found = {name: value for name, value in config.items() if name not in SIZES}
    for level, (latents, classes) in sizes.items():
        suffix = "" if level == "flat" else f"_{level}"
        found |= {f"dyn_stoch{suffix}": latents, f"dyn_discrete{suffix}": classes}
    return found


def take(config: Config, values: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Puts values by name, nested ones with dots, into `config`, except where a setting was given one by one (`config.given`).

    Returns:
        what changes, see `changes`, sizes of the latent first; those count as what they mean, see `level_sizes`.
    Raises:
        ValueError: for a value of the wrong type or range, or one that does not go with what was given.
    """
    now = copy.deepcopy(config)
    for name, value in values.items():
        if not config.was_given(name):
            *path, last = name.split(".")
            section = functools.reduce(Config.__getitem__, path, now)
            section[last] = checked(name, value, section[last])
    check_combinations(now)
    found = changes(_resolved(plain(config)), _resolved(plain(now)))
    if found:  # else they only say the same in another way, such as 8 for 1/2 of 16
        config.update(now)
    return sorted(found, key=lambda change: change[0] not in SIZES)


def keep_stored(config: Config, stored: dict | None) -> str | None:
    """Puts the stored values of settings that match `KEPT` into `config`, where only presets or defaults say otherwise.

    So a run resumes as it began, whatever presets mean now. Presets of another generation change nothing of what
    `dreamerv3_2025` sets, since its values go together. Settings that were given one by one (`config.given`) stay, and nothing
    is kept if the number of levels differs, which `changes_of_run` refuses.

    Args:
        config: settings, which are changed.
        stored: those of the run that resumes.
    Returns:
        a line that says what was kept; None if that is what `config` means anyway.
    Raises:
        ValueError: if a stored value has the wrong type or range.
    """
    if not holds_settings(stored) or stored.get("hierarchical_mode") != config.hierarchical_mode:
        return None
    before = completed(stored)
    differing = take(config, {name: before[name] for name in _kept_names(config, before)})
    if not differing:
        return None
    told = ", ".join(f"{name} {old} (now {new})" for name, new, old in differing)
    return f"Kept from the stored run, where presets and defaults say otherwise: {told}"


def _kept_names(config: Config, before: dict) -> list[str]:
    """The settings that a run keeps, whose settings were `before`: those of `KEPT`, and of another generation all that its preset sets."""
    unread = () if config.hierarchical_mode else (*COUNTS, *CLASSES)
    generation = flatten(sections()[GENERATION]) if before["optimizer"] != config.optimizer else ()
    return [name for name in flatten(config) if name in before and (KEPT.fullmatch(name) or name in generation) and name not in unread]


def changes_of_model(stored: dict | None, config: Config) -> list[tuple[str, str, str]]:
    """How settings that say what weights mean differ from those stored with them, see `changes`; the latent's sizes may differ."""
    may_differ = re.compile(r"hierarchical_mode|dyn_(stoch|discrete).*|task")
    return [
        change
        for change in changes(_resolved(completed(stored) if holds_settings(stored) else {}), _resolved(plain(config)))
        if FIXED.fullmatch(change[0]) and not may_differ.fullmatch(change[0]) and "-" not in change[1:]
    ]


def changes_of_run(stored: dict, config: Config, folder: pathlib.Path) -> list[tuple[str, str, str]]:
    """What a continued run changes, see `changes`; sizes of the latent count as what they mean, see `level_sizes`.

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
        change
        for change in changes(_resolved(completed(stored) if stored else {}), _resolved(plain(config)))
        if change[0] not in ("logdir", "from_checkpoint") and "-" not in change[1:]
    ]
    fixed = [f"{name} {old} -> {new}" for name, old, new in found if FIXED.fullmatch(name)]
    if fixed:
        raise ValueError(
            f"{folder} holds a run with other settings that its weights or episodes depend on: {'; '.join(fixed)}. "
            "Give the old values to continue it, or another --logdir for a new run"
        )
    return found
