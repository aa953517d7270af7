"""Plans of experiments, which are YAML files like benchmarks/plan.yaml: their runs, and the results that are stored of them."""

import collections
import contextlib
import json
import pathlib
import re
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import settings
from settings.files import load_yaml

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "data"
KEPT = ("all", "top")  # what a run may keep of another run's agent
OWN = {"seed", "device", "logdir", "from_checkpoint"}  # flags that a sweep gives
NEVER_EMPTY = ("results", "variants", "tasks")


class Run(NamedTuple):
    """One training run of a plan.

    Attributes:
        command: words behind `python dreamer.py`, without device and logdir.
        origin: name of the run whose agent it begins with; None for a new agent.
        keep: what it keeps of that agent, one of `KEPT`.
    """

    task: str
    variant: str
    seed: int
    command: list[str]
    origin: str | None = None
    keep: str | None = None

    @property
    def name(self) -> str:
        return f"{self.task}-{self.variant}-{self.seed}"

    @property
    def config(self) -> settings.Config:
        return settings.load_config(*settings.parse_flags(self.command))

    @property
    def frames(self) -> int:
        """The length of the whole run."""
        return self.config.steps


def load_plan(path: pathlib.Path) -> dict:
    """Reads a plan.

    Raises:
        ValueError: if it cannot be read, or if a part is missing or of the wrong kind.
    """
    try:
        plan = YAML(typ="safe", pure=True).load(path.read_text())
    except (OSError, ValueError, YAMLError) as error:
        raise ValueError(f"{path} is no plan that can be read: {' '.join(str(error).split())}") from error
    where = f"the plan {path}"
    _check(plan, where, {"results": str, "variants": dict, "tasks": dict})
    for kind, more in (("variants", {}), ("tasks", {"seeds": list})):
        for name, part in plan[kind].items():
            _check_part(name, part, f"{where}, {name} of {kind}", more)
    before = []
    for name, task in plan["tasks"].items():
        if not task["seeds"]:
            raise ValueError(f"{where}, {name} of tasks has no seeds; give at least one, such as [0]")
        if "from" in task and (task["from"] not in before or task.get("keep") not in KEPT):
            raise ValueError(f"{where}, {name} of tasks: `from` is a task that stands above it, and `keep` is {' or '.join(KEPT)}")
        before.append(name)
    names = [run.name for run in planned_runs(plan, before)]
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise ValueError(f"{where} has two runs that are called {twice[0]}; give other seeds or names")
    return plan


def _check_part(name, part, where: str, more: dict[str, type]) -> None:
    """Raises ValueError unless this is a variant or a task, with these entries more."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"{where}: the name is {name!r}; it is a text of letters, digits, - and _, in quotes if it is a number")
    _check(part, where, {"presets": list, "flags": dict, **more})
    if not all(isinstance(preset, str) for preset in part["presets"]):
        raise ValueError(f"{where}: `presets` are {part['presets']}; each is the name of a preset")
    if taken := sorted(part["flags"].keys() & OWN):
        raise ValueError(f"{where}: the sweep sets {taken[0]} itself; remove it from `flags`")


def _check(part, where: str, wanted: dict[str, type]) -> None:
    """Raises ValueError unless a part of a plan has these entries, of these types."""
    for name, kind in wanted.items():
        if not isinstance(part, dict) or not isinstance(part.get(name), kind) or (name in NEVER_EMPTY and not part[name]):
            noun = {str: "a text", dict: "a mapping", list: "a list"}[kind]
            raise ValueError(f"{where} has no `{name}`, {noun}; benchmarks/plan.yaml shows and explains what a plan has")


def planned_runs(plan: dict, tasks: list[str], seeds: list[int] | None = None, variants: list[str] | None = None) -> list[Run]:
    """The runs of these tasks, seed by seed, so that variants can be compared early.

    Args:
        seeds: those of the tasks' seeds that are run; None for all.
        variants: those of the plan's variants that are run; None for all.
    """
    chosen = {name: variant for name, variant in plan["variants"].items() if variants is None or name in variants}
    runs = []
    for task in tasks:
        planned = plan["tasks"][task]
        for seed in planned["seeds"] if seeds is None else [seed for seed in planned["seeds"] if seed in seeds]:
            for name, variant in chosen.items():
                words = ["--configs", "defaults", *planned["presets"], *variant["presets"]]
                for key, value in {**variant["flags"], **planned["flags"], "seed": seed}.items():
                    words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
                origin = f"{planned['from']}-{name}-{seed}" if "from" in planned else None
                runs.append(Run(task, name, seed, words, origin, planned.get("keep")))
    return runs


def find_run(plan: dict, name: str) -> Run:
    """The run of this name."""
    return next(run for run in planned_runs(plan, list(plan["tasks"])) if run.name == name)


# Stored results


def result_path(experiment: str, name: str) -> pathlib.Path:
    """The result of a run, or of the random policy of a task (`<task>-random`), in an experiment: `results` of a plan."""
    return RESULTS / experiment / f"{name}.json"


def is_done(plan: dict, run: Run) -> bool:
    """Whether there is a result of the whole run.

    Raises:
        ValueError: if there is one of other settings.
    """
    path = result_path(plan["results"], run.name)
    return is_stored(path, {"settings": differing(run.config)}) and stored_frames(path) >= run.frames


def stored_frames(path: pathlib.Path) -> int:
    """How many frames the stored result of a run covers; 0 without one."""
    if not path.exists():
        return 0
    result = _read(path)
    return result["frames"] if "frames" in result else result["evaluations"][-1][0]


def _read(path: pathlib.Path) -> dict:
    """A stored result.

    Raises:
        ValueError: if the file is damaged.
    """
    with contextlib.suppress(ValueError):
        if isinstance(result := json.loads(path.read_text()), dict):
            return result
    raise ValueError(f"{path} is damaged; delete it, and what is stored of the run is written again")


def differing(config: settings.Config) -> dict[str, str]:
    """Settings that are not the defaults, as they are stored with a result."""
    return {name: value for name, _, value in settings.changes_from_defaults(config)}


def is_stored(path: pathlib.Path, conditions: dict) -> bool:
    """Whether there is a result that was measured under these conditions: settings as `differing` has them, and other fields.

    What an environment or a model computes is not among them; delete results that a change of those makes wrong.

    Raises:
        ValueError: if there is one of other conditions, so that one table never holds both.
    """
    if not path.exists():
        return False
    stored = _flattened({key: value for key, value in _read(path).items() if key in conditions})
    wanted = _flattened(conditions)
    if stored != wanted:
        others = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
        raise ValueError(
            f"{path} was measured with other settings ({', '.join(others)}); delete it, and the folder of its run if there is one, "
            "to measure anew"
        )
    return True


def _flattened(conditions: dict) -> dict:
    """Conditions by name, settings among them, with the sizes of the latent as what they mean: 1/2 of 16 is 8."""
    found = {key: value for key, value in conditions.items() if key != "settings"} | conditions.get("settings", {})
    given = {name: load_yaml(found[name]) for name in ("hierarchical_mode", *settings.SIZES) if name in found}
    sizes = settings.level_sizes(settings.completed({"task": found.get("task", "atari_pong"), **given}))
    return {name: value for name, value in found.items() if name not in settings.SIZES} | {"latent": sizes}
