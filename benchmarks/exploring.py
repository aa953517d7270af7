"""Counts the states that exploring agents reach in a sparsely rewarded grid (`Grid-v0` in synthetic.py):

    python benchmarks/exploring.py                     # whatever is not done yet; the same command goes on
    python benchmarks/exploring.py random flat --jobs 1

`draw.py` draws the results. A run is dreamer.py's own, on one thread, in a folder that is deleted afterwards.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import dreamer
import tools
from benchmarks import results
from benchmarks.synthetic import Grid
from scale.plan import differing
from storage.episodes import load_episode

STEPS, EVERY, SEEDS = 2000, 50, range(1, 6)  # the settings were chosen on seed 0
CELLS = Grid.SIDE**2

# A small network that is soon of use. So few updates do not carry what is new far back: with a discount of 0.997 the agent stays near
# its corner.
SETTINGS = {
    "task": "gym_benchmarks.synthetic:Grid-v0", "steps": STEPS, "prefill": 200, "pretrain": 50, "eval_every": 0, "train_ratio": 64.0,
    "batch_size": 8, "batch_length": 16, "discount": 0.9, "model_lr": 1e-3, "actor.lr": 1e-3, "critic.lr": 1e-3,
    "dyn_deter": 64, "dyn_hidden": 64, "units": 64, "dyn_stoch": 4, "dyn_discrete": 8,
    "expl_behavior": "plan2explore", "disag_log": True, "disag_action_cond": True, "disag_layers": 1, "disag_units": 64, "disag_models": 5,
    "device": "cpu",
}  # fmt: skip
TWO_LEVELS = {"hierarchical_mode": True, "dyn_stoch_top": "1/2", "dyn_stoch_bottom": "1/2", "kl_free": 0.5}
VARIANTS = {
    "random": {"expl_behavior": "random", "train_ratio": 0.1},
    "flat": {},
    "two levels": TWO_LEVELS,
    "two levels, top alone": {**TWO_LEVELS, "disag_target": "stoch_top"},
    "two levels, bottom alone": {**TWO_LEVELS, "disag_target": "stoch_bottom"},
}


def config_of(variant: str, **overrides):
    return tools.load_config(["defaults", "small"], {**SETTINGS, **VARIANTS[variant], **overrides})


def conditions(variant: str) -> dict:
    """What a stored result must have been measured under to be this one's."""
    return {"steps": STEPS, "settings": differing(config_of(variant))}


def cells_reached(directory: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The cell (row * SIDE + column) and the reward after every action in a folder of episodes of one environment, both (steps,)."""
    episodes = [load_episode(path) for path in sorted(directory.glob("*.npz"))]
    seen = np.concatenate([episode["vector"][1:] for episode in episodes])  # all begin in the same corner
    cells = seen[:, : Grid.SIDE].argmax(1) * Grid.SIDE + seen[:, Grid.SIDE :].argmax(1)
    return cells, np.concatenate([episode["reward"][1:] for episode in episodes])


def run_one(variant: str, seed: int) -> None:
    """Trains one agent and stores how many cells it had reached by when, and how often it was rewarded."""
    torch.set_num_threads(1)
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        dreamer.run_to_end(dreamer.start(config_of(variant, seed=seed, logdir=f"{folder}/run")))
        cells, rewards = cells_reached(pathlib.Path(folder, "run", "train_eps"))
    reached = [len(set(cells[:steps])) for steps in range(EVERY, STEPS + 1, EVERY)]
    results.store("exploring", results.name_of(variant, seed), {
        "variant": variant, "seed": seed, **conditions(variant),
        "seconds": round(time.time() - start), "every": EVERY, "reached": reached, "rewards": int(rewards.sum())})  # fmt: skip
    print(f"{variant}, seed {seed}: {reached[-1]} of {CELLS} cells, rewarded {rewards.sum():.0f} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(map(repr, VARIANTS))}; all if none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    options = parser.parse_args()
    variants = results.chosen(parser, options.variants, list(VARIANTS))
    todo = [(variant, seed) for seed in SEEDS for variant in variants]
    todo = [run for run in todo if not results.is_done("exploring", results.name_of(*run), conditions(run[0]))]
    results.each_in_a_process(run_one, todo, options.jobs)


if __name__ == "__main__":
    main()
