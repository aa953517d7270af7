"""Describes the settings for `--help` and docs/configuration.md, from the comments in configs.yaml."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from settings.files import CONFIG_FILE, flatten, sections, show
from settings.names import BOOLEANS, IGNORED, RENAMED
from settings.resume import FIXED

INTRODUCTION = """# Configuration

`python -m settings` makes this page from `configs.yaml`. Every setting is a flag: `--seed 1 --encoder.cnn_depth 16`.
Later values override earlier ones: defaults, the suite of the task, presets in the order given to `--configs`, flags.

`python dreamer.py --logdir RUN` resumes a run with its stored settings; flags override them. A *fixed* setting cannot
change then, because stored weights or episodes depend on it. Other changes are printed and recorded in
`config_changes.jsonl`. Presets never change the generation (2023 or 2025), the sizes of networks and latent, `kl_free` and
`initial` of a stored run. A warning names flags that have no effect."""


class Setting(NamedTuple):
    """A setting as configs.yaml describes it; nested names have dots."""

    group: str
    name: str
    default: object
    comment: str


def describe() -> Iterator[Setting]:
    """Yields every setting in the order of configs.yaml."""
    known = sections()
    for section, group, path, comment in _comments():
        if section == "defaults":
            yield Setting(group, path, flatten(known["defaults"])[path], comment)
        elif section == "suites":
            suite, _, name = path.partition(".")
            yield Setting(f"Suite {suite}", name, known["suites"][suite][name], comment)


def describe_presets() -> Iterator[tuple[str, str, dict]]:
    """Yields name, description and settings of every preset."""
    known, title = sections(), []
    for line in CONFIG_FILE.read_text().splitlines():
        if line.startswith("# "):
            title.append(line[2:])
        elif match := re.match(r"(\w+):", line):
            if match[1] not in ("defaults", "suites"):
                yield match[1], " ".join(title), flatten(known[match[1]])
        else:
            title = []


def _comments() -> Iterator[tuple[str, str, str, str]]:
    """Yields (section, group, name, comment) of every commented entry in configs.yaml."""
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


def help_text(width: int = 80) -> str:
    """Returns all presets and settings as text with lines of at most `width` columns."""
    lines = [
        "usage: python dreamer.py [--configs PRESET ...] [--SETTING VALUE ...]",
        "",
        "Later values override earlier ones: defaults, the suite of the task, presets in the order given, flags.",
        "",
        "Presets",
        *_table(((name, text) for name, text, _ in describe_presets()), 22, width),
    ]
    group = None
    for setting in describe():
        if setting.group != group:
            group = setting.group
            lines += ["", group]
        lines += _table([(f"--{setting.name} {show(setting.default)}", setting.comment)], 36, width)
    return "\n".join(textwrap.fill(line, width) if line and not line.startswith(" ") else line for line in lines)


def _table(rows: Iterable[tuple[str, str]], indent: int, width: int) -> list[str]:
    lines = []
    for head, text in rows:
        head = f"  {head}"
        if len(head) >= indent:
            lines.append(head)
            head = ""
        wrapper = textwrap.TextWrapper(width, head.ljust(indent), " " * indent, break_on_hyphens=False)
        lines += wrapper.wrap(text)
    return lines


def markdown() -> str:
    """Returns the contents of docs/configuration.md."""
    lines = [*INTRODUCTION.splitlines(), "", "## Presets", "", "| preset | meaning | settings |", "|---|---|---|"]
    for name, text, entries in describe_presets():
        values = ", ".join(f"`{key}: {show(value)}`" for key, value in entries.items())
        lines.append(f"| `{name}` | {_cell(text)} | {_cell(values)} |")
    group = None
    for setting in describe():
        if setting.group != group:
            group = setting.group
            lines += ["", f"## {group}", "", "| setting | default | meaning | fixed |", "|---|---|---|---|"]
        cells = [
            f"`{setting.name}`",
            f"`{show(setting.default)}`",
            _cell(setting.comment),
            "fixed" if FIXED.fullmatch(setting.name) else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Names of dreamerv3-torch", "", "These names are accepted with a note on stderr.", ""]
    lines += ["| dreamerv3-torch | hDreamer |", "|---|---|"]
    lines += [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    lines += [f"| `{old}` | ignored: {why} |" for old, why in IGNORED.items()]
    lines += ["| `precision: 16` | `precision: bf16` |"]
    for name, words in BOOLEANS.items():
        lines += [f"| `{name}: {old}` | `{name}: {new}`, without a note |" for old, new in words.items() if old != new]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")
