"""Makes the project's modules importable from the tests, gives every test the same random numbers, and keeps the fast tier fast."""

import os
import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


FAST_SECONDS = 10.0  # of CPU time, with fixtures and child processes


def cpu_seconds() -> float:
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.began = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    taken = cpu_seconds() - item.began
    if taken > FAST_SECONDS and not item.get_closest_marker("slow"):
        pytest.fail(f"it took {taken:.1f} s of CPU time, a fast test at most {FAST_SECONDS:.0f}: make it smaller, or mark it slow")
    return result


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=["flat", "two levels", "images"])
def trained(request, tmp_path_factory):
    """A short run that has ended."""
    task = {"task": "atari_pong", "size": [32, 32]} if request.param == "images" else {"task": "gym_CartPole-v1"}
    import dreamer
    import tools

    config = tools.load_config(
        ["defaults", "debug"],
        {
            **task,
            "logdir": str(tmp_path_factory.mktemp("run") / "run"),
            "steps": 240 if request.param == "images" else 60,
            "prefill": 40,
            "hierarchical_mode": request.param != "flat",
            "eval_every": 0,
            "device": "cpu",
        },
    )
    training = dreamer.start(config)
    dreamer.learn(training)
    return training
