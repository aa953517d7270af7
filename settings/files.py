"""Settings as YAML: configs.yaml, and the config.yaml of a run, which may come from a stranger."""

import copy
import functools
import json
import pathlib
import re

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, MappingEndEvent, MappingStartEvent, ScalarEvent, SequenceEndEvent, SequenceStartEvent
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

CONFIG_FILE = pathlib.Path(__file__).parent.parent / "configs.yaml"
MAPPINGS = ("env_kwargs", "eval_env_kwargs")  # settings whose value is a dict
MOST_YAML, MOST_DEPTH = 100_000, 20  # characters, and values in each other; all settings are 6,000 and 2

NAME = re.compile(r"(?!(true|false|null|none|no|off|yes|on)$)[a-z_]\w*", re.IGNORECASE | re.ASCII)  # a text without quotes to any reader
# Words without quotes that are texts in YAML 1.2, as here, and what YAML 1.1 or Python take them for.
UNCLEAR = {"no": "false", "off": "false", "yes": "true", "on": "true", "None": "null"}


def sections() -> dict:
    """The sections of configs.yaml, as a copy that may be changed."""
    return copy.deepcopy(_parsed())


@functools.cache
def _parsed() -> dict:
    """configs.yaml, whose parsing takes a tenth of a second."""
    return YAML(typ="safe", pure=True).load(CONFIG_FILE)


def load_yaml(text: str):
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


def unclear_words(text: str) -> list[tuple[str, str]]:
    """The words of `UNCLEAR` in a text in YAML, in any case, each with what it may mean."""
    events = YAML(typ="safe", pure=True).parse(text)
    words = [event.value for event in events if isinstance(event, ScalarEvent) and event.implicit[0]]  # implicit: without quotes or tag
    return [(word, UNCLEAR.get(word) or UNCLEAR[word.lower()]) for word in words if {word, word.lower()} & UNCLEAR.keys()]


def show(value) -> str:
    """A value in YAML, without the quotes that some strings need."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key if NAME.fullmatch(key) else json.dumps(key)}: {_quoted(entry)}' for key, entry in value.items())}}}"
    return str(value)


def _quoted(value) -> str:
    """A value in a dict. Strings have quotes, since no default tells that they are strings."""
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return json.dumps(value) if isinstance(value, str) else show(value)


def flatten(tree: dict, prefix: str = "") -> dict:
    """A nested dict as one level, with dots in the names. The values of `MAPPINGS` stay dicts."""
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and prefix + key not in MAPPINGS
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


def plain(config: dict) -> dict:
    """The settings as an ordinary nested dict."""
    return {key: plain(value) if isinstance(value, dict) else value for key, value in config.items()}


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
            config = load_yaml(file.read(MOST_YAML + 1))
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); repair or delete it") from None
    if not holds_settings(config) or "task" not in config:
        raise ValueError(f"{path} is damaged (it holds no settings); repair or delete it")
    return config


def write_yaml(config: dict, file) -> None:
    """Writes all settings to an open binary file."""
    yaml = YAML()
    yaml.default_flow_style = None  # lists on one line
    yaml.dump({key: _with_quotes(value) if key in MAPPINGS else value for key, value in plain(config).items()}, file)


def _with_quotes(value):
    """A value whose texts are written with quotes, so that readers of YAML 1.1 take none for something else."""
    if isinstance(value, dict):
        return {_with_quotes(key): _with_quotes(entry) for key, entry in value.items()}
    elif isinstance(value, list):
        return [_with_quotes(entry) for entry in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) else value
