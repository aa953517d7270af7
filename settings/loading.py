"""Loads settings: types, ranges, presets, flags."""

import difflib
import functools
import math
import re
from collections.abc import Iterable

from ruamel.yaml.error import YAMLError

from settings.combinations import check_combinations, check_presets
from settings.files import MAPPINGS, flatten, holds_settings, load_yaml, plain, sections, show, unclear_words
from settings.levels import CLASSES, COUNTS, RELATIVE, level_sizes, read_share
from settings.names import current_names, current_value, note

# Settings that are one of a few words, by the last part of the name.
CHOICES = {
    "precision": ("32", "bf16", "auto"),
    "cuda_graph": ("auto", "true", "false"),
    "prefill_policy": ("random", "policy"),
    "dyn_core": ("gru", "block_gru"),
    "norm": ("layer", "rms", "none"),
    "cnn": ("strided", "pooled"),
    "symlog_inputs": ("all", "numbers", "none"),
    "optimizer": ("adam", "laprop"),
}
# Numbers are never negative; these have a smaller range.
AT_LEAST = {
    **dict.fromkeys(
        [
            "steps",
            "envs",
            "eval_envs",
            "log_every",
            "action_repeat",
            "dataset_size",
            "batch_size",
            *COUNTS,
            "dyn_deter",
            "dyn_hidden",
            "dyn_blocks",
            "dyn_img_layers",
            "dyn_obs_layers",
            "dyn_rec_depth",
            "units",
            "critic.slow_target_update",
            "checkpoint_every",
        ],
        1,
    ),
    **{f"{net}.{key}": 1 for net in ("encoder", "decoder") for key in ("cnn_depth", "minres", "mlp_layers", "mlp_units")},
    "decoder.blocks": 1,
    "opt_eps": 1e-37,  # below, it is 0 in float32
    "batch_length": 2,
    "imag_horizon": 2,
    "disag_models": 2,
    "disag_units": 1,
    "disag_layers": 1,
    "disag_offset": 1,
}
ABOVE_ZERO = (
    "train_ratio",
    "model_lr",
    "actor.lr",
    "critic.lr",
    "actor.eps",
    "critic.eps",
    "grad_clip",
    "actor.grad_clip",
    "critic.grad_clip",
)
AT_MOST = {
    **dict.fromkeys(["unimix_ratio", "actor.unimix_ratio", "discount", "discount_lambda", "critic.slow_target_fraction"], 1),
    "replay_context": 1,
    **dict.fromkeys(["seed", "time_limit", "eval_time_limit", "noops", "action_repeat"], 2**31 - 1),
    **dict.fromkeys(["dyn_rec_depth", "dyn_img_layers", "dyn_obs_layers", "disag_models", "disag_layers"], 1000),
    **dict.fromkeys(["encoder.mlp_layers", "decoder.mlp_layers"], 1000),
    **{f"{head}.layers": 1000 for head in ("reward_head", "cont_head", "actor", "critic")},
}


class Config(dict):
    """Settings whose entries are attributes. Assigning an unknown name is an error, as is reading one.

    Attributes:
        given: names of settings that came as flags, overrides or assignments, not from presets. Not an entry.
        presets: names of the presets that the other values come from, without "defaults". Not an entry.
    """

    given: frozenset[str] = frozenset()
    presets: tuple[str, ...] = ()

    def __getattr__(self, key: str):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(unknown("setting", key, self)) from None

    def __setattr__(self, key: str, value) -> None:
        self[key] = checked(key, value, self.__getattr__(key))
        self._note_given({key})

    def was_given(self, name: str) -> bool:
        """Whether a setting, by its name with dots, came as a flag, an override or an assignment."""
        *path, last = name.split(".")
        return name in self.given or last in functools.reduce(Config.__getitem__, path, self).given

    def _note_given(self, names: Iterable[str]) -> None:
        object.__setattr__(self, "given", self.given.union(names))


def load_config(presets: Iterable[str] = ("defaults",), overrides: dict | None = None, stored: dict | None = None) -> Config:
    """Loads settings from configs.yaml: defaults, the task's suite, presets in order, overrides.

    Args:
        presets: names of sections; "defaults" is always the first, named or not.
        overrides: values by name, nested ones with dots ("encoder.cnn_depth"); strings are read as YAML.
        stored: the settings of a run, nested; they apply before the presets.
    Raises:
        ValueError: for an unknown preset, suite or setting, a value of the wrong type or range, a share of `dyn_stoch` that is
            no whole number, or what settings/combinations.py refuses.
    """
    known = sections()
    defaults, suites = known.pop("defaults"), known.pop("suites")
    presets = list(presets)
    layers = [current_names(flatten(stored or {}))]
    for name in presets:
        if name not in known and name != "defaults":
            raise ValueError(unknown("preset", name, ["defaults", *known]))
        layers.append(flatten(known.get(name, {})))
    check_presets(presets)
    layers.append(current_names(flatten(overrides or {})))

    flat = flatten(defaults)
    task = str(next((layer["task"] for layer in reversed(layers) if "task" in layer), flat["task"]))
    suite = task.partition("_")[0]
    if suite not in suites or suite == task:
        raise ValueError(
            f"task {task!r} does not begin with a suite; {unknown('suite', suite, suites)} (for example atari_pong, gym_CartPole-v1)"
        )
    flat.update(flatten(suites[suite]))
    for layer in layers:
        for key, value in layer.items():
            if key.partition(".")[0] in MAPPINGS and "." in key:
                raise ValueError(f"setting {key!r}: {key.partition('.')[0]} is one dict: {_example(*key.split('.', 1))}")
            if key not in flat and layer is layers[0]:  # a run of another version
                note(f"{key} of the stored run is ignored: this version has no such setting")
                continue
            if key not in flat:
                homes = [name for name in suites if key in suites[name]]
                hint = f"; it is a setting of the {', '.join(homes)} suite, and the task is {task!r}" if homes else ""
                raise ValueError(unknown("setting", key, [*flat, "configs"]) + hint)
            flat[key] = _coerce(key, value, flat[key])
    for key, value in flat.items():
        _check_range(key, value)
    if flat["hierarchical_mode"]:
        level_sizes(flat)
    config = _nest(flat)
    config._note_given(layers[-1])
    check_combinations(config)
    object.__setattr__(config, "presets", tuple(name for name in presets if name != "defaults"))
    return config


def _nest(flat: dict) -> Config:
    root = Config()
    for key, value in flat.items():
        *path, last = key.split(".")
        node = root
        for name in path:
            node = node.setdefault(name, Config())
        node[last] = value
    return root


def checked(key: str, value, default):
    """`value` in the type of the setting, whose default tells it.

    Raises:
        ValueError: for a value of the wrong type or range.
    """
    value = _coerce(key, value, default)
    _check_range(key, value)
    return value


def _coerce(key: str, value, default):
    """`value` in the type of `default`; strings are read as YAML where another type is wanted."""
    value = current_value(key, value)
    if key in COUNTS and (share := read_share(value)):
        return share
    if key in MAPPINGS:
        return _mapping(key, value)
    kind = int if key in RELATIVE else type(default)
    if isinstance(value, str) and kind is not str:
        value = _read(value, kind)
    if key in CLASSES and value is None:
        return None
    if kind is list and isinstance(value, (list, tuple)):
        return [_coerce(key, part, default[0]) for part in value]
    if type(value) is kind or (kind is type(None) and isinstance(value, str)):
        return value
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if kind is float and type(value) is int and abs(value) < 2**1000:  # beyond, it is no float
        return float(value)
    if kind is str and type(value) in (int, float):
        return str(value)
    wanted = RELATIVE.get(key) or ("one name" if default is None else f"of type {kind.__name__}, such as {show(default)}")
    raise ValueError(f"setting {key!r} is {value!r}; it must be {wanted}")


def _mapping(key: str, value) -> dict:
    """The value of a setting that is a dict; a string, or the words of one that a shell has split, are read as YAML.

    Raises:
        ValueError: for what is no dict of names and plain values, or has words that other readers of YAML take for booleans.
    """
    text = " ".join(map(str, value)) if isinstance(value, list) else value
    found = _read(text, dict) if isinstance(text, str) else value
    if not holds_settings(found):
        raise ValueError(
            f"setting {key!r} is {value!r}; it must be a dict of names and numbers, words, booleans, null or lists of them, such as "
            f"{_example(key, 'map_name')}"
        )
    for word, meaning in unclear_words(text) if isinstance(text, str) else ():
        raise ValueError(
            f"setting {key!r} has the word {word}, which may mean a text or {meaning}; write {meaning}, or quote it for a text, as in "
            f"--{key} '{{name: \"{word}\"}}'"
        )
    return plain(found)


def _example(key: str, name: str) -> str:
    return f"--{key} '{{{name}: 8x8}}'"


def _read(text: str, kind: type):
    """A value as people write it, for a setting of this type."""
    if text.strip() in ("None", "null"):
        return None
    if kind is type(None):
        return text  # a name or a path
    if kind is list:
        text = text.strip().translate(str.maketrans("()", "[]"))
        text = text if text.startswith("[") else f"[{text}]"
    try:
        return load_yaml(text)
    except (YAMLError, ValueError, KeyError):
        return text  # of the wrong type then, which the caller reports


def _check_range(key: str, value) -> None:
    if key == "size":
        if len(value) != 2 or any(type(side) is not int or side < 1 or side % 16 for side in value):
            raise ValueError(f"setting 'size' is {value}; it must be height and width in pixels, multiples of 16, such as [64, 64]")
        return
    if key.endswith(("cnn_keys", "mlp_keys")):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(
                f"setting {key!r} is {value!r}, which is no regular expression ({error}); '.*' matches all keys, '$^' none"
            ) from error
    choices = CHOICES.get(key.rpartition(".")[2])
    if choices and value not in choices:
        raise ValueError(f"setting {key!r} is {value!r}; allowed are {', '.join(choices)}")
    if type(value) not in (int, float):
        return
    at_least, at_most = AT_LEAST.get(key, 0), AT_MOST.get(key, math.inf)
    if not at_least <= value <= at_most or value == math.inf or (key in ABOVE_ZERO and value == 0):
        lower = "above 0" if key in ABOVE_ZERO else f"at least {at_least}"
        raise ValueError(f"setting {key!r} is {value}; it must be {lower}" + (f" and at most {at_most}" if key in AT_MOST else ""))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A message that names the nearest known name; if none is near, all of them (for settings, where they are listed)."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"unknown {kind} {name!r}; did you mean {close[0]!r}?"
    if kind == "setting":
        return f"unknown setting {name!r}; --help lists all"
    return f"unknown {kind} {name!r}; known are {', '.join(known)}"


def parse_flags(argv: list[str]) -> tuple[list[str], dict]:
    """Splits a command line into presets (after --configs, none if it is missing) and overrides.

    A first word without dashes is the folder of a run, as after --logdir.

    Returns:
        presets, and strings or lists of strings by name. The last value of a name counts.
    Raises:
        ValueError: for a word that belongs to no flag, a flag without a value, or two folders of runs.
    """
    words, flags, presets = list(argv), {}, []
    run = words.pop(0) if words and words[0] and not words[0].startswith("-") else None
    while words:
        flag = words.pop(0)
        if not flag.startswith("--") or len(flag) < 3:
            raise ValueError(f"unexpected word {flag!r}; settings are given as --name value")
        name, equals, value = flag[2:].partition("=")
        values = [value] if equals else []
        while not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if not values:
            raise ValueError(f"setting --{name} has no value; booleans are given as --{name} true")
        if name == "configs":
            presets += values
        else:
            flags[name] = values[0] if len(values) == 1 else values
    if run is not None and "logdir" in flags:
        raise ValueError(f"two runs are given, {run!r} and --logdir {flags['logdir']!r}; leave one out")
    return presets, {**flags, **({} if run is None else {"logdir": run})}
