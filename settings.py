"""Settings: configs.yaml, the command line, and what a continued run may change.

configs.yaml is the only place where a setting, its default and its description stand; `--help` and docs/configuration.md are
made from it (`python settings.py` writes the latter).
"""

import difflib
import functools
import math
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, MappingEndEvent, MappingStartEvent, SequenceEndEvent, SequenceStartEvent

FOLDER = pathlib.Path(__file__).parent
CONFIG_FILE = FOLDER / "configs.yaml"
DOCS_FILE = FOLDER / "docs" / "configuration.md"

# What dreamerv3-torch called differently, in this or an older version.
RENAMED = {
    "stickey": "sticky",
    "step": "steps",
    "value.layers": "critic.layers",
    "value_layers": "critic.layers",
    "value_lr": "critic.lr",
    "value_grad_clip": "critic.grad_clip",
    "slow_value_target": "critic.slow_target",
    "actor_layers": "actor.layers",
    "actor_lr": "actor.lr",
    "actor_grad_clip": "actor.grad_clip",
    "slow_target_update": "critic.slow_target_update",
    "slow_target_fraction": "critic.slow_target_fraction",
    "actor_dist": "actor.dist",
    "actor_min_std": "actor.min_std",
    "actor_max_std": "actor.max_std",
    "actor_entropy": "actor.entropy",
    "reward_layers": "reward_head.layers",
    "reward_scale": "reward_head.loss_scale",
    "cont_layers": "cont_head.layers",
    "cont_scale": "cont_head.loss_scale",
}
# What it has and this program does not need.
IGNORED = {
    "parallel": "several environments always run in parallel",
    "resize": "Atari frames are resized by ALE",
    "imag_gradient_mix": "the policy follows one gradient, see imag_gradient",
    "eval_state_mean": "evaluation samples latents",
    "actor.temp": "no action distribution has a temperature",
    "opt": "the optimizer is Adam",
    "reset_every": "the latent state is reset where an episode begins",
    "traindir": "episodes are kept in the run's folder",
    "evaldir": "evaluation episodes are not kept",
    "num_actions": "it follows from the environment",
    "break_speed": "Minecraft has no adapter here",
}

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

PRECISIONS = ("32", "bf16")
MOST_YAML, MOST_DEPTH = 100_000, 20  # characters, and values in each other; all settings are 6,000 and 2
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
            "dyn_deter",
            "dyn_hidden",
            "dyn_rec_depth",
            "units",
            "critic.slow_target_update",
            "checkpoint_every",
        ],
        1,
    ),
    **{f"{net}.{key}": 1 for net in ("encoder", "decoder") for key in ("cnn_depth", "minres", "mlp_layers", "mlp_units")},
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
    "opt_eps",
    "actor.eps",
    "critic.eps",
    "grad_clip",
    "actor.grad_clip",
    "critic.grad_clip",
)
AT_MOST = {
    **dict.fromkeys(["unimix_ratio", "actor.unimix_ratio", "discount", "discount_lambda", "critic.slow_target_fraction"], 1),
    **dict.fromkeys(["seed", "time_limit", "noops", "action_repeat"], 2**31 - 1),
    **dict.fromkeys(["dyn_rec_depth", "disag_models", "disag_layers", "encoder.mlp_layers", "decoder.mlp_layers"], 1000),
    **{f"{head}.layers": 1000 for head in ("reward_head", "cont_head", "actor", "critic")},
}


class Config(dict):
    """Settings whose entries are attributes. Assigning an unknown name is an error, as is reading one."""

    def __getattr__(self, key: str):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(unknown("setting", key, self)) from None

    def __setattr__(self, key: str, value) -> None:
        value = _coerce(key, value, self.__getattr__(key))
        _check_range(key, value)
        self[key] = value


def load_config(presets: Iterable[str] = ("defaults",), overrides: dict | None = None) -> Config:
    """Settings from configs.yaml: defaults, the task's suite, presets in order, overrides.

    Args:
        presets: names of sections; "defaults" is always the first, named or not.
        overrides: values by name, nested ones with dots ("encoder.cnn_depth"); strings are read as YAML.
    Raises:
        ValueError: for an unknown preset, suite or setting, or a value of the wrong type or range.
    """
    sections = _sections()
    defaults, suites = sections.pop("defaults"), sections.pop("suites")
    layers = []
    for name in presets:
        if name not in sections and name != "defaults":
            raise ValueError(unknown("preset", name, ["defaults", *sections]))
        layers.append(flatten(sections.get(name, {})))
    layers.append(_current_names(overrides or {}))

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
            if key not in flat:
                homes = [name for name in suites if key in suites[name]]
                hint = f"; it is a setting of the {', '.join(homes)} suite, and the task is {task!r}" if homes else ""
                raise ValueError(unknown("setting", key, [*flat, "configs"]) + hint)
            flat[key] = _coerce(key, value, flat[key])
    for key, value in flat.items():
        _check_range(key, value)
    return _nest(flat)


def _sections() -> dict:
    return YAML(typ="safe", pure=True).load(CONFIG_FILE)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A message that names the nearest known name; if none is near, all of them (for settings, where they are listed)."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"unknown {kind} {name!r}; did you mean {close[0]!r}?"
    if kind == "setting":
        return f"unknown setting {name!r}; --help lists all"
    return f"unknown {kind} {name!r}; known are {', '.join(known)}"


def flatten(tree: dict, prefix: str = "") -> dict:
    """A nested dict as one level, with dots in the names."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _nest(flat: dict) -> Config:
    root = Config()
    for key, value in flat.items():
        *path, last = key.split(".")
        node = root
        for name in path:
            node = node.setdefault(name, Config())
        node[last] = value
    return root


def plain(config: Config) -> dict:
    """The settings as an ordinary nested dict."""
    return {key: plain(value) if isinstance(value, Config) else value for key, value in config.items()}


def _current_names(overrides: dict) -> dict:
    current = {}
    for key, value in flatten(overrides).items():
        if key in IGNORED:
            _note(f"{key} is ignored: {IGNORED[key]}")
        elif key == "precision" and str(value) == "16":
            _note("precision 16 is bf16 here, which has float32's range and needs no scaling of gradients")
            current[key] = "bf16"
        elif key in RENAMED:
            _note(f"{key} is called {RENAMED[key]} here")
            current[RENAMED[key]] = value
        else:
            current[key] = value
    return current


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _coerce(key: str, value, default):
    """`value` in the type of `default`; strings are read as YAML where another type is wanted."""
    kind = type(default)
    if isinstance(value, str) and kind is not str:
        value = _read(value, kind)
    if kind is list and isinstance(value, (list, tuple)):
        return [_coerce(key, part, default[0]) for part in value]
    if type(value) is kind or (default is None and isinstance(value, (str, type(None)))):
        return value
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if kind is float and type(value) is int and abs(value) < 2**1000:  # beyond, it is no float
        return float(value)
    if kind is str and type(value) in (int, float):
        return str(value)
    wanted = "one name" if default is None else f"of type {kind.__name__}, such as {_show(default)}"
    raise ValueError(f"setting {key!r} is {value!r}; it must be {wanted}")


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
        return _load_yaml(text)
    except (YAMLError, ValueError, KeyError):
        return text  # of the wrong type then, which the caller reports


def _load_yaml(text: str):
    """A value in YAML from somewhere else. Settings need no aliases, which can make a few lines stand for billions.

    Raises:
        ValueError: for a text that is too long or too deep, or has aliases.
        YAMLError: for what is no YAML, or names types of Python.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"it is longer than {MOST_YAML:,} characters")
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, (SequenceStartEvent, MappingStartEvent)) - isinstance(event, (SequenceEndEvent, MappingEndEvent))
        if depth > MOST_DEPTH or isinstance(event, AliasEvent):
            raise ValueError("its values are nested too deeply, or it has aliases")
    return YAML(typ="safe", pure=True).load(text)


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
    if key == "precision" and value not in PRECISIONS:
        raise ValueError(f"setting 'precision' is {value!r}; allowed are {', '.join(PRECISIONS)}")
    if type(value) not in (int, float):
        return
    at_least, at_most = AT_LEAST.get(key, 0), AT_MOST.get(key, math.inf)
    if not at_least <= value <= at_most or value == math.inf or (key in ABOVE_ZERO and value == 0):
        lower = "above 0" if key in ABOVE_ZERO else f"at least {at_least}"
        raise ValueError(f"setting {key!r} is {value}; it must be {lower}" + (f" and at most {at_most}" if key in AT_MOST else ""))


# The command line


def parse_flags(argv: list[str]) -> tuple[list[str], dict]:
    """Splits a command line into presets (after --configs) and overrides by name, strings or lists of them; the last one counts.

    Raises:
        ValueError: for a word that belongs to no flag, or a flag without a value.
    """
    words, flags, presets = list(argv), {}, []
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
    return presets or ["defaults"], flags


class Setting(NamedTuple):
    """A setting as configs.yaml describes it; the name of a nested one has dots."""

    group: str
    name: str
    default: object
    comment: str


def describe() -> Iterator[Setting]:
    """Every setting, in the order of configs.yaml."""
    sections = _sections()
    for section, group, path, comment in _comments():
        if section == "defaults":
            yield Setting(group, path, flatten(sections["defaults"])[path], comment)
        elif section == "suites":
            suite, _, name = path.partition(".")
            yield Setting(f"Suite {suite}", name, sections["suites"][suite][name], comment)


def describe_presets() -> Iterator[tuple[str, str, dict]]:
    """Name, description and settings of every preset."""
    sections, title = _sections(), []
    for line in CONFIG_FILE.read_text().splitlines():
        if line.startswith("# "):
            title.append(line[2:])
        elif match := re.match(r"(\w+):", line):
            if match[1] not in ("defaults", "suites"):
                yield match[1], " ".join(title), flatten(sections[match[1]])
        else:
            title = []


def _comments() -> Iterator[tuple[str, str, str, str]]:
    """(section, group, name, comment) of every commented entry in configs.yaml."""
    section, group, path = "", "", []
    for line in CONFIG_FILE.read_text().splitlines():
        if match := re.fullmatch(r"  # (.+)", line):
            group = match[1]
        elif match := re.fullmatch(r"( *)(\w+):(?:.*?\s# (.+)|.*)", line):
            depth = len(match[1]) // 2
            path = [*path[:depth], match[2]]
            section = path[0]
            if match[3]:
                yield section, group, ".".join(path[1:]), match[3]


def _show(value) -> str:
    """A value in YAML, without the quotes that some strings need."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_show(entry)}' for key, entry in value.items())}}}"
    return str(value)


def help_text(width: int = 80) -> str:
    """All settings and presets for a terminal of this many columns."""
    lines = [
        "usage: python dreamer.py [--configs PRESET ...] [--SETTING VALUE ...]",
        "",
        "Defaults come first, then the settings of the task's suite, the presets in the order given, and the flags.",
        "",
        "Presets",
        *_table(((name, text) for name, text, _ in describe_presets()), 22, width),
    ]
    group = None
    for setting in describe():
        if setting.group != group:
            group = setting.group
            lines += ["", group]
        lines += _table([(f"--{setting.name} {_show(setting.default)}", setting.comment)], 36, width)
    return "\n".join(textwrap.fill(line, width) if line and not line.startswith(" ") else line for line in lines)


def _table(rows: Iterable[tuple[str, str]], indent: int, width: int) -> list[str]:
    lines = []
    for head, text in rows:
        head = f"  {head}"
        if len(head) >= indent:
            lines.append(head)
            head = ""
        lines += textwrap.wrap(text, width, initial_indent=head.ljust(indent), subsequent_indent=" " * indent)
    return lines


def markdown() -> str:
    """The contents of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Made from `configs.yaml` by `python settings.py`. Every setting is a flag: `--seed 1 --encoder.cnn_depth 16`. Defaults "
        "come first, then the settings of the task's suite, the presets in the order given to `--configs`, and the flags. "
        "A *fixed* setting cannot change when a run is continued in its folder, since stored weights or episodes depend on it; "
        "others take the new value, which is printed and recorded in `config_changes.jsonl`.",
        "",
        "## Presets",
        "",
        "| preset | | settings |",
        "|---|---|---|",
    ]
    for name, text, entries in describe_presets():
        values = ", ".join(f"`{key}: {_show(value)}`" for key, value in entries.items())
        lines.append(f"| `{name}` | {_cell(text)} | {_cell(values)} |")
    group = None
    for setting in describe():
        if setting.group != group:
            group = setting.group
            lines += ["", f"## {group}", "", "| setting | default | | |", "|---|---|---|---|"]
        cells = [
            f"`{setting.name}`",
            f"`{_show(setting.default)}`",
            _cell(setting.comment),
            "fixed" if FIXED.fullmatch(setting.name) else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Names of dreamerv3-torch", "", "Accepted with a note on stderr.", "", "| its name | here |", "|---|---|"]
    lines += [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    lines += [f"| `{old}` | ignored: {why} |" for old, why in IGNORED.items()]
    lines += ["| `precision: 16` | `precision: bf16` |"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


# Runs


def changes(old: dict, new: dict) -> list[tuple[str, str, str]]:
    """(name, old value, new value) of every setting that differs; "-" where one of the two has no such setting."""
    old, new = flatten(old), flatten(new)
    names = dict.fromkeys([*new, *old])
    pairs = [(name, *(_show(flat[name]) if name in flat else "-" for flat in (old, new))) for name in names]
    return [(name, before, after) for name, before, after in pairs if before != after]


def changes_from_defaults(config: Config) -> list[tuple[str, str, str]]:
    """What differs from the section `defaults`; settings that only the task's suite has are compared with the suite."""
    return changes(_defaults_of(str(config.task)), plain(config))


@functools.cache
def _defaults_of(task: str) -> dict:
    """Section `defaults` with the settings of the task's suite."""
    sections = _sections()
    return {**sections["suites"].get(task.partition("_")[0], {}), **sections["defaults"]}


def shown(stored: dict) -> dict[str, str]:
    """Every setting of a stored run as text by name; those that came later have their defaults."""
    flat = flatten(_defaults_of(str(stored["task"]))) | flatten(stored)
    return {name: _show(value) for name, value in flat.items()}


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


def holds_settings(tree) -> bool:
    """Whether what was read is a nested dict of plain values by name, none so long that it could be no setting's."""
    return isinstance(tree, dict) and all(_is_text(key) and (holds_settings(value) or _is_plain(value)) for key, value in tree.items())


def _is_plain(value) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, float) or _is_text(value) or (type(value) is int and abs(value) < 2**63)


def _is_text(value) -> bool:
    return type(value) is str and len(value) < 1000 and value.splitlines() in ([], [value])


def read_yaml(path: pathlib.Path) -> dict:
    """Settings that `write_yaml` has written.

    Raises:
        ValueError: for a damaged file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = _load_yaml(file.read(MOST_YAML + 1))
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); repair or delete it") from None
    if not holds_settings(config) or "task" not in config:
        raise ValueError(f"{path} is damaged (it holds no settings); repair or delete it")
    return config


def write_yaml(config: Config, file) -> None:
    """Writes all settings to an open binary file."""
    yaml = YAML()
    yaml.default_flow_style = None  # lists on one line
    yaml.dump(plain(config), file)


if __name__ == "__main__":
    DOCS_FILE.parent.mkdir(exist_ok=True)
    DOCS_FILE.write_text(markdown())
    print(f"wrote {DOCS_FILE}")
