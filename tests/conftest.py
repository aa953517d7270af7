"""Makes the project's modules importable from the tests, and gives every test one thread and the same random numbers."""

import contextlib
import os
import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


# First, since its import closes all handlers of logging, and that of absl, which comes with dm_control, closes pytest's output too.
with contextlib.suppress(ImportError):
    import submitit  # noqa: F401

# Networks in tests are too small for two threads, which wait for each other where something else runs. Child processes inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=["flat", "two levels", "images", "images 2025"])
def trained(request, tmp_path_factory):
    """A short run that has ended."""
    images = request.param.startswith("images")
    task = {"task": "atari_pong", "size": [32, 32]} if images else {"task": "gym_CartPole-v1"}
    import dreamer
    import tools

    config = tools.load_config(
        [*(["dreamerv3_2025"] if "2025" in request.param else []), "debug"],
        {
            **task,
            "logdir": str(tmp_path_factory.mktemp("run") / "run"),
            "steps": 240 if images else 60,
            "prefill": 40,
            "hierarchical_mode": request.param != "flat",
            "eval_every": 0,
            "device": "cpu",
            "precision": "32",
        },
    )
    training = dreamer.start(config)
    dreamer.run_to_end(training)
    return training
