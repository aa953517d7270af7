"""docs/coming_from_dreamerv3_torch.md and docs/checkpoints.md against the code: names, defaults and Python on them are the program's."""

import pathlib
import re

import pytest

import dreamer
from checkpoints import __main__ as export
from pages import curves
from settings import load_config
from settings.files import flatten, plain, sections, show
from settings.names import IGNORED, RENAMED
from test_documented_commands import shortened

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "coming_from_dreamerv3_torch.md").read_text()


def rows(after: str) -> list[list[str]]:
    """The cells of the first table behind a text, without its head."""
    table = re.search(r"(?:^\|.*\n)+", PAGE.split(after)[1], re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`(.+?)`", cell)


def test_the_tables_of_settings_are_those_that_the_program_reads():
    assert dict(map(names, map(" ".join, rows("### Renamed")))) == RENAMED
    assert {names(old)[0]: reason for old, reason in rows("### Ignored")} == IGNORED


def test_the_translated_metrics_are_those_that_the_program_translates():
    assert dict(map(names, map(" ".join, rows("translate these names")))) == curves.RENAMED


def test_the_other_metrics_have_names_that_are_on_the_page_of_metrics():
    page = (DOCS / "metrics.md").read_text()
    here = [name for _, cell in rows("are not translated:") for name in names(cell) if not re.search(r"<observation>|/$", name)]
    assert len(here) > 8
    assert not [name for name in here if f"`{name}`" not in page]


def test_the_defaults_on_the_page_are_those_of_the_program():
    known = sections()
    defaults = flatten(known["defaults"])
    for cell, _, here in rows("### Other defaults"):
        for name in names(cell):
            if name == "action_repeat":
                found = {suite: values.get(name, defaults[name]) for suite, values in known["suites"].items()}
                assert {suite: value for suite, value in found.items() if value != 1} == {"atari": 4, "dmc": 2, "metaworld": 2}
            elif name == "time_limit":
                found = {suite: values.get(name, defaults[name]) for suite, values in known["suites"].items()}
                assert {suite: value for suite, value in found.items() if value} == {"atari": 108000}
            else:
                assert names(here)[0] == show(defaults[name]), name


def test_booleans_that_became_words_are_read_as_the_page_says():
    for cell, yes, no in rows("words here"):
        for name in names(cell):
            for value, word in ((True, yes), (False, no)):
                assert f"`{flatten(plain(load_config([], {name: value})))[name]}`" == word


def test_the_new_settings_of_the_page_exist():
    known = sections()
    every = {*flatten(known["defaults"]), *(name for values in known["suites"].values() for name in flatten(values))}
    new = names(PAGE.split("### New")[1].split("[configuration.md]")[0])
    assert len(new) == 29
    assert set(new) <= every and not set(new) & {*RENAMED, *IGNORED}


@pytest.mark.slow
def test_the_python_of_the_page_on_checkpoints_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dreamer.main(shortened("python dreamer.py --configs defaults --task atari_pong --logdir logdir/run")) == 0
    (tmp_path / "logdir" / "old_pong").mkdir()
    assert export.main(["logdir/run/latest.pt", "logdir/old_pong/latest.pt"]) == 0
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "checkpoints.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        scope = {}
        exec(block, scope)
        assert scope["agent"].updates > 0
        if "envs" in scope:
            scope["envs"].close()
