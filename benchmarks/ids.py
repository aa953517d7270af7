"""Trains a debug agent on every registered id of gymnasium, MiniGrid, BabyAI and POPGym: one update each, or why not.

    .ci/ids                               installs all of them into a virtual environment, and calls this
    python benchmarks/ids.py              all ids that have no result yet; then writes the table of docs/environments.md
    python benchmarks/ids.py Lunar Taxi   only those whose names contain one of these; the table waits for all
    python benchmarks/ids.py --again failed

Results are kept after each id, so the command can be stopped and started again. All ids are tried in this one process.
"""

import argparse
import collections
import contextlib
import datetime
import importlib
import io
import json
import multiprocessing
import pathlib
import re
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator

import gymnasium

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import dreamer
from benchmarks import suites

RESULTS = ROOT / "benchmarks" / "results" / "ids.json"
BEGIN = "<!-- The table is written by benchmarks/ids.py: begin -->"
COLUMNS = ("ids", "registered", "one update", "refused", "failed", "which, and why")
# As few steps as one update takes: the first batch, and one frame more.
FLAGS = "--configs defaults debug --prefill 30 --pretrain 1 --steps 32 --envs 1 --eval_every 0 --env_timeout 60 --device cpu"
TRAINED, REFUSED, FAILED = "one update", "refused", "failed"
PACKAGES = ["minigrid", "popgym", "box2d", "mujoco", "jax"]  # whose versions stand below the table
STARTED = "started"  # stays where an id ends the whole program
NAMED = 3  # ids that the table names of those with one reason
WIDTH = 200  # characters of a reason


class TooLong(BaseException):
    """The time for an id is over. Not an Exception, which environments and their callers may catch."""


def registered() -> dict[str, str]:
    """All tasks, each with its row of the table: `gym_CartPole-v1` belongs to `gymnasium: classic_control`."""
    found = {}
    for package in ("minigrid", "popgym"):  # which register their ids
        importlib.import_module(package)
    for name, spec in gymnasium.registry.items():
        module = str(spec.entry_point or spec.vector_entry_point)
        if name.startswith(("MiniGrid-", "BabyAI-")):
            found[f"minigrid_{name.removeprefix('MiniGrid-')}"] = name.partition("-")[0]
        elif name.startswith("popgym-"):
            found[f"popgym_{name.removeprefix('popgym-').removesuffix('-v0')}"] = "POPGym"
        elif module.startswith("gymnasium.envs."):
            found[f"gym_{name}"] = f"gymnasium: {module.split('.')[2].partition(':')[0]}"
    return found


def attempt(task: str, limit: float) -> dict:
    """Trains on a task as from the command line, in a folder that is removed; returns what came of it."""
    before, started = set(multiprocessing.active_children()), time.monotonic()
    out, errors = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            with time_limit(limit):
                code = dreamer.main([*FLAGS.split(), "--task", task, "--logdir", f"{folder}/run"])
        except (Exception, TooLong) as error:  # `main` answers what it can foresee; an id must not end the pass
            code, found = None, (FAILED, f"{type(error).__name__}: {error}")
        else:
            found = judge(code, errors.getvalue(), suites.trained(pathlib.Path(folder, "run", "metrics.jsonl"), evaluation=False))
    if code == 130 or "\nStopped at frame" in out.getvalue():
        raise KeyboardInterrupt
    left = set(multiprocessing.active_children()) - before
    if left:
        found = FAILED, f"{len(left)} processes of it are left"
        for process in left:
            process.kill()
            process.join()
    return {"result": found[0], "reason": found[1], "seconds": round(time.monotonic() - started, 1)}


def judge(code: int, errors: str, trained: str) -> tuple[str, str]:
    """Result and reason.

    Args:
        code: exit code of the command.
        errors: what it wrote to stderr.
        trained: what the metrics show, from `suites.trained`.
    """
    warnings = "; ".join(line for line in errors.splitlines() if line.startswith("warning: "))
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    if code == 0:
        return (TRAINED, warnings) if trained.startswith("yes, ") else (FAILED, trained)
    if code == 2 and len(said) == 1 and errors.rstrip().endswith(said[0]) and "Traceback" not in errors:
        return REFUSED, said[0].removeprefix("error: ")
    return FAILED, f"exit code {code}: {' '.join(errors.split())[-WIDTH:]}"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooLong within it when the time is over."""

    def stop(*_):
        raise TooLong(f"no end after {seconds:g} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Results:
    """Results by task in a JSON file, which is written after every change."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.by_task = json.loads(path.read_text()) if path.exists() else {}
        for found in self.by_task.values():
            if found["result"] == STARTED:
                found |= {"result": FAILED, "reason": "it ended or blocked the whole program"}

    def __setitem__(self, task: str, found: dict | None) -> None:
        """Notes what was found; None removes the task."""
        self.by_task[task] = found
        if found is None:
            del self.by_task[task]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.by_task, indent=0))

    def missing(self, tasks: list[str], again: str | None) -> list[str]:
        """Those of `tasks` that are to be tried; `again` names results that do not count, or is "all"."""
        return [task for task in tasks if task not in self.by_task or again in ("all", self.by_task[task]["result"])]


def try_all(tasks: list[str], results: Results, limit: float) -> None:
    """Tries the tasks one after the other; Ctrl-C leaves the present one for the next time."""
    for number, task in enumerate(tasks, 1):
        results[task] = {"result": STARTED, "reason": ""}
        try:
            results[task] = found = attempt(task, limit)
        except KeyboardInterrupt:
            results[task] = None
            raise
        print(f"{number}/{len(tasks)} {task}: {told(found)} ({found['seconds']:g} s)", flush=True)


def told(found: dict) -> str:
    return f"{found['result']}{found['reason'] and ': '}{found['reason']}"


def rows(families: dict[str, str], results: dict[str, dict]) -> list[list[str]]:
    """One row per family: counts, and the ids that were not trained on by their reasons."""
    lines = []
    for family in dict.fromkeys(families.values()):
        tasks = [task for task, of in families.items() if of == family]
        counts = collections.Counter(results[task]["result"] for task in tasks if task in results)
        lines.append([family, str(len(tasks)), *(str(counts[result]) for result in (TRAINED, REFUSED, FAILED)), reasons(tasks, results)])
    return lines


def reasons(tasks: list[str], results: dict[str, dict]) -> str:
    """Tasks without an update, grouped by why; a reason that names its task counts as the same for all."""
    groups = collections.defaultdict(list)
    for task in tasks:
        found = results.get(task, {"result": "not tried", "reason": ""})
        if found["result"] != TRAINED:
            name = task.partition("_")[2]
            text = re.sub(r" \(\S+, line \d+\)", "", found["reason"])  # where the line is in this installation
            text = " ".join(text.replace(task, "ID").replace(name, "ID").replace("|", "/").split())
            groups[f"{found['result']}{text and ': '}{text[:WIDTH]}"].append(name)
    named = lambda names: ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return "; ".join(f"{named(names)}: {why}" for why, names in groups.items())


def table(families: dict[str, str], results: dict[str, dict]) -> str:
    """The table in Markdown, and a line that says when and with which versions."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(families, results)]
    tried = f"{datetime.date.today().isoformat()}, {suites.versions(PACKAGES)}."
    return f"{suites.markdown(lines)}\n{textwrap.fill(tried, 120)}\n"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 0 if no id failed, 1 if one did, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only tasks whose names contain one of these")
    parser.add_argument("--again", choices=(TRAINED, REFUSED, FAILED, "all"), help="try ids with this result again")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one id (default: %(default)g)")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="file of the results (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the result of each id; try none")
    parser.add_argument("--page", type=pathlib.Path, default=suites.PAGE, help="where the table is (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        families = registered()
    except ImportError as error:
        parser.error(f"{error}; run: pip install -r requirements/minigrid.txt -r requirements/popgym.txt")
    results = Results(options.results)
    tasks = [task for task in families if not options.words or any(word in task for word in options.words)]
    if options.list:
        for task in tasks:
            print(f"{task}: {told(results.by_task.get(task, {'result': 'not tried', 'reason': ''}))}")
    else:
        try:
            try_all(results.missing(tasks, options.again), results, options.limit)
        except KeyboardInterrupt:
            print("Stopped; the same command goes on.", file=sys.stderr)
            return 130
    written = table(families, results.by_task)
    print(written)
    if tasks and not results.missing(list(families), None):
        before, _, after = suites.around(options.page.read_text(), BEGIN)
        options.page.write_text(f"{before}{written}{after}")
    return int(any(results.by_task.get(task, {"result": ""})["result"] == FAILED for task in tasks))


if __name__ == "__main__":
    sys.exit(main())
