"""Learning itself: a short run shows that nothing has broken it outright. What agents reach is in docs/results.md."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent


def test_a_small_agent_with_two_levels_learns_cartpole(tmp_path):
    # In a process of its own: one thread is fastest for small networks, and the tests before have used up much memory.
    command = [
        sys.executable,
        str(ROOT / "dreamer.py"),
        "--configs",
        "defaults",
        "small",
        "hdreamer_split",
        "--task",
        "gym_CartPole-v1",
        "--steps",
        "2500",
        "--eval_every",
        "2500",
        "--debug_hierarchical",
        "true",
        "--device",
        "cpu",
        "--logdir",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=1200, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    returns = [row["eval/return"] for row in rows if "eval/return" in row]
    assert returns[-1] > 75, returns  # the random policy has 25
    active = [row["train/active_bottom"] for row in rows if "train/active_bottom" in row]
    assert active[-1] > 0, active
