"""The table of suites in docs/environments.md: what could be installed and trained on, when, and with which versions.

`.ci/suites` installs and trains and then calls this for one row; rows of other suites stay. It needs nothing but Python, since a
suite that cannot be installed gets its row too.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "environments.md"
BEGIN, END = "<!-- The table is written by .ci/suites: begin -->", "<!-- end -->"
COLUMNS = ("suite", "presets and task", "installs", "trains", "learns", "date", "versions")
COMMON = ("torch", "numpy", "gymnasium")  # whose versions stand in every row
IN_MAIN_FILE = {"atari": ["ale-py"]}  # packages of suites that have no requirements file of their own
SHOWN_TO_LEARN = {  # with curves
    "atari": "[Road Runner](results.md)",
    "dmc": "[cart-pole swing-up](results.md)",
    "gym": "[CartPole](results.md)",
    "minatar": "[Breakout](results.md)",
}
LEFT_OUT = ("minecraft", "dmlab")  # cannot be installed everywhere; the page says what to do instead
LOSSES = ("model_loss", "actor_loss", "value_loss")


def trained(metrics: pathlib.Path, evaluation: bool = True) -> str:
    """What a run's metrics show: "yes" and its updates, or "no" and why. `evaluation`: whether there must be one."""
    if not metrics.exists():
        return "no: nothing logged"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for name in (*(f"train/{loss}" for loss in LOSSES), *(["eval/return"] if evaluation else [])):
        values = [line[name] for line in lines if name in line]
        if not values or not all(math.isfinite(value) for value in values):
            return f"no: {name} is {values[-1] if values else 'missing'}"
    if any(line[name] for line in lines for name in line if name.endswith("_skipped")):  # losses are means of the finite ones
        return "no: updates were skipped, as they were not finite"
    return f"yes, {max(line.get('time/updates', 0) for line in lines):,.0f} updates"


def required(text: str) -> list[str]:
    """Names of the packages in a requirements file, without those it includes or that every row has."""
    names = [match[0] for line in text.splitlines() if (match := re.match(r"[A-Za-z][\w.-]*", line))]
    return [name for name in names if name not in COMMON]


def versions(packages: list[str]) -> str:
    """Versions of Python, of what every suite shares, and of these packages."""
    found = []
    for name in (*COMMON, *packages):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join([f"Python {platform.python_version()}", *found])


def with_row(page: str, row: dict[str, str], order: list[str]) -> str:
    """The page with one row of its table replaced or added, the rows in the given order of suites.

    Raises:
        ValueError: if the page has no place for the table.
    """
    before, old, after = around(page, BEGIN)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in old.strip().splitlines()[2:]]
    by_suite = {cells[0]: cells for cells in rows} | {row["suite"]: [row[column] for column in COLUMNS]}
    ordered = [by_suite[suite] for suite in order if suite in by_suite]
    left_out = [[suite, "none: left out", "not everywhere", "no", "no", "", ""] for suite in LEFT_OUT]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *ordered, *left_out]
    return before + markdown(lines) + after


def around(page: str, begin: str) -> tuple[str, str, str]:
    """A page in three parts: up to the line `begin`, with it; the table; and the rest from `END`.

    Raises:
        ValueError: if the page has no place for the table.
    """
    if begin not in page or END not in page.split(begin, 1)[1]:
        raise ValueError(f"the page has no table between the lines {begin!r} and {END!r}; put both where it belongs")
    before, rest = page.split(begin, 1)
    old, after = rest.split(END, 1)
    return f"{before}{begin}\n", old, END + after


def markdown(rows: list) -> str:
    """Rows of cells as the lines of a table; the first has the titles, the second is `---` in each cell."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 0 if the suite was installed and trained on, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="whose row it is")
    parser.add_argument("--order", nargs="+", required=True, help="all suites, as their rows are to follow")
    parser.add_argument("--trial", required=True, help="presets and task that it trained with")
    parser.add_argument("--installs", choices=("yes", "no"), required=True)
    parser.add_argument("--code", type=int, required=True, help="with which the command ended")
    parser.add_argument("--logdir", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--page", type=pathlib.Path, default=PAGE, help="where the table is (default: %(default)s)")
    parser.add_argument("--requirements", type=pathlib.Path, help="file with the suite's own packages")
    options = parser.parse_args(argv)
    if options.installs == "no":
        trains = "no"
    else:
        trains = trained(options.logdir / "metrics.jsonl") if options.code == 0 else f"no: exit code {options.code}"
    works = trains.startswith("yes")
    row = {
        "suite": options.suite,
        "presets and task": f"`{options.trial}`",
        "installs": options.installs,
        "trains": trains,
        "learns": SHOWN_TO_LEARN.get(options.suite, "smoke only") if works else "no",
        "date": datetime.date.today().isoformat(),
        "versions": versions(required(options.requirements.read_text()) if options.requirements else IN_MAIN_FILE.get(options.suite, [])),
    }
    options.page.write_text(with_row(options.page.read_text(), row, options.order))
    print(f"{options.suite}: installs {options.installs}, trains {trains}")
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main())
