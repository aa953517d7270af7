"""Results of experiments: small JSON files in `data/`, and statistics of paired differences."""

import json
import pathlib

import numpy as np

import tools

HERE = pathlib.Path(__file__).parent


def path_of(experiment: str, name: str) -> pathlib.Path:
    return HERE / "data" / experiment / f"{name}.json"


def store(experiment: str, name: str, result: dict) -> None:
    """Writes a result; the file appears only when complete, so that what exists is done."""
    path = path_of(experiment, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tools.replacing(path) as file:
        file.write((json.dumps(result) + "\n").encode())


def load(experiment: str) -> list[dict]:
    """All results of an experiment, by name."""
    return [json.loads(path.read_text()) for path in sorted(path_of(experiment, "*").parent.glob("*.json"))]


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of paired differences (n,), from 10,000 resamples of the pairs."""
    means = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(1)
    return tuple(np.quantile(means, (0.025, 0.975)))


def difference(pairs: list[float], digits: int) -> str:
    """Mean of paired differences with its interval as text; two pairs at least, or nothing."""
    if len(pairs) < 2:
        return ""
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(np.mean(pairs), *bootstrap_interval(np.array(pairs)), d=digits)
