"""Real files that dreamerv3-torch wrote, the agents that fit them, and what that program answered."""

import json
import os
import pathlib

import numpy as np
import torch
from gymnasium import spaces

import settings
import tools
from dreamer import Dreamer

DATA = pathlib.Path(__file__).parent / "data" / "dreamerv3_torch"
NAMES = ["atari", "atari_compiled", "crafter", "dmc", "dmc_zeros", "gaussian", "plan2explore", "proprio"]
NOT_OBSERVED = {"reward", "discount", "is_first", "is_terminal", "action"}


def checkpoint(name: str) -> dict:
    return torch.load(DATA / name / "latest.pt", weights_only=True)


def recorded(name: str) -> dict:
    return dict(np.load(DATA / name / "recorded.npz"))


def stored_settings(name: str) -> dict:
    """Those settings of its config.json that this program has too, but not compiled, which takes long and changes no number."""
    stored = settings.flatten(json.loads((DATA / name / "config.json").read_text()))
    skipped = {"task", "logdir", "device", "compile", "actor.dist"} | ({"actor.std"} if stored["actor.std"] == "none" else set())
    known = settings.flatten(tools.load_config([], {"task": "gym_X-v0"}))  # without settings that only one suite has
    return {key: stored[key] for key in known.keys() - skipped if key in stored}


def spaces_of(name: str) -> tuple[spaces.Dict, spaces.Space]:
    """Observation and action space of a file."""
    obs = {key[3:]: value for key, value in recorded(name).items() if key.startswith("in_") and key[3:] not in NOT_OBSERVED}
    obs_space = spaces.Dict(
        {
            key: spaces.Box(0, 255, value.shape[2:], np.uint8)
            if value.dtype == np.uint8
            else spaces.Box(-np.inf, np.inf, value.shape[2:], np.float32)
            for key, value in obs.items()
        }
    )
    stored = json.loads((DATA / name / "config.json").read_text())
    discrete = stored["actor"]["dist"] == "onehot"
    return obs_space, spaces.Discrete(stored["num_actions"]) if discrete else spaces.Box(-1, 1, (stored["num_actions"],))


def make_agent(name: str, **overrides) -> Dreamer:
    """An untrained agent with the spaces and settings of a file."""
    return Dreamer(*spaces_of(name), tools.load_config([], {**stored_settings(name), "device": "cpu", **overrides}))


def levels(top: int, top_classes: int, bottom: int, bottom_classes: int) -> dict:
    """Settings of two levels."""
    return {
        "hierarchical_mode": True,
        "dyn_stoch_top": top,
        "dyn_discrete_top": top_classes,
        "dyn_stoch_bottom": bottom,
        "dyn_discrete_bottom": bottom_classes,
    }


# Settings of agents that the atari, dmc, proprio, crafter and Plan2Explore files fit.
KINDS = {"flat": {}, "split": levels(3, 4, 3, 4), "widened": levels(6, 4, 4, 5)}


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


def batch(name: str) -> dict:
    return {key[3:]: value for key, value in recorded(name).items() if key.startswith("in_")}


@torch.no_grad()
def answers(agent: Dreamer, name: str) -> dict[str, torch.Tensor]:
    """What an agent answers to the recorded batch, most likely latents at every step; names as in the recording."""
    wm, behavior = agent._wm, agent._task_behavior
    data = wm.preprocess(batch(name))
    embed = wm.encoder(data)
    post, prior = wm.dynamics.observe(embed, data["action"], data["is_first"], sample=False)
    feat = wm.dynamics.get_feat(post)
    last = {key: value[:, -1] for key, value in post.items()}
    opened = wm.dynamics.imagine_with_action(data["action"][:, :3], last, sample=False)
    policy = behavior.actor(feat)
    found = {
        "embed": embed,
        "deter": post["deter"],
        "feat": feat,
        "reward": wm.heads["reward"](feat).mode,
        "action_mode": policy.mode,
        "cont": wm.heads["cont"](feat).mean,
        "value": behavior.value(feat).mode,
        "slow_value": behavior._slow_value(feat).mode,
        "open_deter": opened["deter"],
        "open_feat": wm.dynamics.get_feat(opened),
        **{f"post_{key}": value for key, value in post.items()},
        **{f"prior_{key}": value for key, value in prior.items()},
        **{f"dec_{key}": dist.mode for key, dist in wm.heads["decoder"](feat).items()},
    }
    if hasattr(policy, "probs"):
        found["policy_logits"] = policy.probs.log()
    return found


def close(actual: torch.Tensor, expected: np.ndarray, atol: float, rtol: float = 0.0) -> None:
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    np.testing.assert_allclose(actual.detach(), expected, atol=atol, rtol=rtol)


def same(a, b) -> bool:
    """Equality of nested containers of tensors."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return a == b
