"""Several runs, one after the other, in the same two processes; tests/test_ranks.py looks at what each has returned and printed.

    torchrun --nproc_per_node 2 tests/ranks_runs.py FOLDER

Then the processes take the updates of ranks_worker.py.
"""

import contextlib
import hashlib
import io
import json
import pathlib
import sys
import unittest.mock

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import dreamer
import ranks_worker
import replay
from replay import Replay
from scale import ranks
from storage.lock import Lock
from storage.memory import Free

FOLDER = pathlib.Path(sys.argv[1])
SHORT = ["--steps", "200", "--envs", "2", "--eval_every", "0", "--device", "cpu"]
CARTPOLE = ["--configs", "debug", "--task", "gym_CartPole-v1", *SHORT]


class OnlyHere(gymnasium.Env):
    """Cannot be made in the second process."""

    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self):
        if ranks.rank():
            raise OSError("there is no display")

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


def fingerprint(agent) -> str:
    """A hash of all weights and moments."""
    digest = hashlib.sha256()
    states = [optimizer.state_dict()["state"] for _, optimizer in sorted(agent.optimizers().items())]
    tensors = [*agent.state_dict().values(), *(value for state in states for slots in state.values() for value in slots.values())]
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def call(*argv: str, make_env=None) -> list[dict]:
    """What `dreamer.main` returns and prints in every process, and what the agent is at the end."""
    runs, run_to_end = [], dreamer.run_to_end

    def kept(run) -> None:
        runs.append(run)
        run_to_end(run)

    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        unittest.mock.patch.object(dreamer, "run_to_end", kept),
    ):
        code = dreamer.main(list(argv), make_env)
    found = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    for run in runs:
        found |= {"weights": fingerprint(run.agent), "updates": run.agent.updates, "step": run.step, "steps held": len(run.data.replay)}
    return ranks.all_of([found])


def with_nan(updates: set[int]):
    """Within this, the batches of these updates have a NaN in the second process."""
    count, following = iter(range(10**6)), Replay.__next__

    def drawn(memory: Replay) -> dict:
        batch = following(memory)
        if ranks.rank() == 1 and next(count) in updates:
            batch["reward"][0, 0] = np.nan
        return batch

    return unittest.mock.patch.object(Replay, "__next__", drawn)


def main() -> None:
    found = {}
    recorded = str(FOLDER / "alone" / "train_eps")
    offline = ["--configs", "dreamerv3_2025", "debug", "--task", "gym_CartPole-v1", "--steps", "6", "--device", "cpu"]
    offline += ["--log_every", "3", "--eval_every", "3", "--eval_episode_num", "1"]

    def new(name: str) -> list[str]:
        return ["--logdir", str(FOLDER / name)]

    found["2023"] = call(*CARTPOLE, "--hierarchical_mode", "true", "--expl_behavior", "plan2explore", *new("2023"))
    found["resumed"] = call("--logdir", str(FOLDER / "alone"), "--steps", "500")
    found["offline"] = call(*offline, "--offline_traindir", recorded, "--offline_evaldir", recorded, *new("offline"))
    with with_nan({3}):
        found["one NaN"] = call(*CARTPOLE, "--log_every", "10", *new("nan"))
    with with_nan(set(range(3, 100))):
        found["only NaN"] = call(*CARTPOLE, "--train_ratio", "20", *new("only_nan"))

    # Refused at the start
    found["unknown flag"] = call(*CARTPOLE, "--stepz", "3", *new("refused"))
    found["without effect"] = call(*CARTPOLE, "--dyn_blocks", "4", "--steps", "60", *new("blocks"))
    found["batch_size"] = call(*CARTPOLE, "--batch_size", "3", *new("refused"))
    found["no such environment"] = call("--configs", "debug", "--task", "gym_Nothing-v0", *SHORT, *new("refused"))
    found["an environment of one process"] = call(*CARTPOLE, "--task", "gym_OnlyHere-v0", *new("refused"), make_env=OnlyHere)
    one = FOLDER / "one_episode"
    found["fewer episodes than processes"] = call(*offline, "--offline_traindir", str(one), *new("refused"))
    with unittest.mock.patch.object(replay, "available_memory", lambda: Free(6_000, "this machine")):  # enough for one process
        found["memory"] = call(*CARTPOLE, "--dataset_size", "1000", *new("refused"))
    with contextlib.closing(Lock(FOLDER / "alone")) if ranks.is_first() else contextlib.nullcontext():
        found["locked"] = call("--logdir", str(FOLDER / "alone"), "--steps", "600")
    if ranks.is_first():
        (FOLDER / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.joined():
        main()
        ranks_worker.save(FOLDER)
