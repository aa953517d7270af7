"""Runs many environments at once, fast, slow and failing ones, over many steps:

    python -m benchmarks.reliability environments

Environments in processes count, so lost and swapped steps show in the stored episodes. Games in threads must play
exactly as each of them alone. Returns 1 if a promise is broken.
"""

import argparse
import collections
import multiprocessing
import pathlib
import tempfile
import time

import numpy as np

import settings
from benchmarks.reliability.counting import FIRST_SEED, Counting, collector_for, misplaced, stored
from benchmarks.reliability.fuzz import quiet
from envs import atari

COUNTS = (1, 4, 16)
MUST_BE_ZERO = ("steps lost", "steps misplaced", "episodes missing", "processes left behind", "steps that differ from a game alone")


def count(name: str, number: int, steps: int, folder: pathlib.Path) -> collections.Counter:
    """Compares what `number` counting environments have stored after `steps` steps in all with what they counted."""
    envs, _, collector, policy = collector_for(f"gym_{name}-v0", number, folder, env_timeout=0.5)
    counts = collections.Counter(steps=0)
    try:
        while counts["steps"] < steps:
            taken, finished = collector.step(policy)
            counts["steps"] += taken
            counts["started anew"] += sum(episode.cut for episode in finished)
        collector.close_episodes()
    finally:
        envs.close()
    lengths = collections.defaultdict(dict)  # by seed and number of the episode
    for episode in stored(folder):
        seed, index = episode["count"][0, :2].astype(int)
        lengths[seed][index] = len(episode["reward"]) - 1
        counts["episodes"] += 1
        counts["steps misplaced"] += misplaced(episode)
    for episodes in lengths.values():
        *whole, _ = (episodes.get(index, 0) for index in range(max(episodes) + 1))  # the last one may be cut off
        counts["episodes missing"] += sum(length != Counting.LENGTH for length in whole)
    counts["steps lost"] = abs(counts["steps"] - sum(sum(episodes.values()) for episodes in lengths.values()))
    counts["processes left behind"] = len(multiprocessing.active_children())
    return counts


def compare_threads(game: str, number: int, steps: int) -> collections.Counter:
    """Compares the steps of `number` games in threads with those of each game alone, with its seed and actions."""
    config = settings.load_config(["defaults", "debug"], {"task": f"atari_{game}"})
    together = atari.make(game, number, config, training=True)
    actions = np.random.default_rng(0).integers(together.single_action_space.n, size=(steps, number))
    together = list(play(together, actions, FIRST_SEED))
    counts = collections.Counter({"steps in threads": 0, "steps that differ from a game alone": 0})
    for index in range(number):
        alone = play(atari.make(game, 1, config, training=True), actions[:, index : index + 1], FIRST_SEED + index)
        same = [all(np.array_equal(many[index], one[0]) for many, one in zip(*both)) for both in zip(together, alone, strict=True)]
        counts["steps in threads"] += steps
        counts["steps that differ from a game alone"] += same.count(False)
    return counts


def play(envs: atari.Atari, actions: np.ndarray, seed: int):
    """Yields image, reward, terminated and truncated of every step, (N, ...); of the first one the image."""
    try:
        yield (envs.reset(seed=seed)[0]["image"].copy(),)
        for action in actions:
            envs.step_async(action)
            obs, *rest, _ = envs.step_wait()
            yield obs["image"].copy(), *(value.copy() for value in rest)
    finally:
        envs.close()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="environments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="per kind and number of environments (default: %(default)s)")
    options = parser.parse_args(argv)
    broken = False

    def show(what: str, counts: collections.Counter, seconds: float) -> None:
        nonlocal broken
        wrong = [name for name in MUST_BE_ZERO if counts[name]]
        broken |= bool(wrong)
        found = ", ".join(f"{name} {value:,}" for name, value in counts.items())
        print(f"{what}: {found}; {seconds:.0f} s{'   BROKEN: ' + ', '.join(wrong) if wrong else ''}", flush=True)

    for name in ("Counting", "SlowCounting", "UnreliableCounting"):
        for number in COUNTS:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder, quiet():
                counts = count(name, number, options.steps, pathlib.Path(folder))
            show(f"{number} x {name}", counts, time.monotonic() - start)
    for number in COUNTS:
        start = time.monotonic()
        counts = compare_threads("pong", number, options.steps // number)
        show(f"{number} x Pong in threads", counts, time.monotonic() - start)
    return int(broken)
