"""Results of experiments: small JSON files in `data/`, and statistics of paired differences."""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
from collections.abc import Callable

import numpy as np

from pages.intervals import bootstrap_interval
from scale import plan
from storage import files


def store(experiment: str, name: str, result: dict) -> None:
    """Writes a result; the file appears only when complete, so that what exists is done."""
    path = plan.result_path(experiment, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        file.write((files.json_text(result) + "\n").encode())


def is_done(experiment: str, name: str, conditions: dict) -> bool:
    """Whether there is a result that was measured under these conditions: settings as `scale.plan.differing` has them, and other fields.

    What an environment or a model computes is not among them; delete results that a change of those makes wrong.

    Raises:
        SystemExit: if there is one of other conditions, so that one table never holds both.
    """
    try:
        return plan.is_stored(plan.result_path(experiment, name), conditions)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def chosen(parser: argparse.ArgumentParser, given: list[str], allowed: list[str]) -> list[str]:
    """The names on a command line, or all if there are none; ends with an error if one of them is not allowed."""
    unknown = set(given) - set(allowed)
    if unknown:
        parser.error(f"there is no {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(map(repr, allowed))}")
    return given or allowed


def name_of(*parts: str | int) -> str:
    """A name for a result, from a variant's name and others."""
    return "-".join(str(part).replace(",", "").replace(" ", "_") for part in parts)


def each_in_a_process(run: Callable, todo: list[tuple], jobs: int) -> None:
    """Calls a function with each of these arguments, so many at a time, each in a new process with one thread.

    Raises:
        RuntimeError: if one of them failed, after the others have ended.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn = multiprocessing.get_context("spawn")

    def call(arguments: tuple) -> int:
        process = spawn.Process(target=run, args=arguments)  # not of a pool, whose processes may not start those of environments
        process.start()
        process.join()
        return process.exitcode

    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        failed = [arguments for arguments, code in zip(todo, threads.map(call, todo)) if code]
    if failed:
        raise RuntimeError(f"failed, for the reasons above: {', '.join(map(str, failed))}")


def load(experiment: str) -> list[dict]:
    """All results of an experiment, by name."""
    return [json.loads(path.read_text()) for path in sorted((plan.RESULTS / experiment).glob("*.json"))]


def difference(pairs: list[float], digits: int) -> str:
    """Mean of paired differences as text, with its interval if they are enough and an asterisk if `t_test` is passed; empty below two."""
    if len(pairs) < 2:
        return ""
    interval = bootstrap_interval(np.array(pairs))
    between = " ({:+.{d}f} to {:+.{d}f})".format(*interval, d=digits) if interval else ""
    return f"{np.mean(pairs):+.{digits}f}{between}" + " \\*" * t_test(pairs)


def t_test(pairs: list[float]) -> bool:
    """Whether Student's t interval of the mean, at 95%, does not hold zero."""
    quantiles = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of two to ten pairs; more: a little too strict
    quantile = quantiles[min(len(pairs), 10) - 2]
    return bool(abs(np.mean(pairs)) > quantile * np.std(pairs, ddof=1) / len(pairs) ** 0.5)
