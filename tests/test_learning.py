"""Learning itself: a short run that fails if anything in model, losses, sampling or replay breaks it."""

import json

import tools
from dreamer import Training


def test_a_small_agent_with_two_levels_learns_cartpole(tmp_path):
    config = tools.load_config(["defaults", "small", "hdreamer"], {
        "task": "gym_CartPole-v1", "logdir": str(tmp_path / "run"), "steps": 3000, "eval_every": 3000, "device": "cpu"})
    Training(config).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    returns = [row["eval/return"] for row in rows if "eval/return" in row]
    # The random policy has 22. docs/results.md shows what agents reach by then.
    assert returns[-1] > 100, returns
