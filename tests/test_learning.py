"""Learning itself: a short run shows that nothing has broken it outright. What agents reach is in docs/results.md."""

import json

import tools
from dreamer import Training


def test_a_small_agent_with_two_levels_learns_cartpole(tmp_path):
    config = tools.load_config(["defaults", "small", "hdreamer"], {
        "task": "gym_CartPole-v1", "logdir": str(tmp_path / "run"), "steps": 3000, "eval_every": 3000, "debug_hierarchical": True,
        "device": "cpu"})
    Training(config).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    returns = [row["eval/return"] for row in rows if "eval/return" in row]
    assert returns[-1] > 100, returns  # the random policy has 25
    active = [row["train/active_bottom"] for row in rows if "train/active_bottom" in row]
    assert active[-1] > 0, active
