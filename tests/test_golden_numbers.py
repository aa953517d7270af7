"""Three updates of tiny agents, from fixed weights, batches and random numbers: losses, gradient norms and weights do not change.

A change that is meant to change numbers writes the cases again, `python tests/test_golden_numbers.py CASE ...`, and says why.

The stored numbers are those of this program itself. What they should be is tested elsewhere, against dreamerv3-torch and by hand.
"""

import contextlib
import pathlib
import sys
import unittest.mock

import numpy as np
import pytest
import torch
from gymnasium import spaces

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tools
from dreamer import Dreamer
from envs.spaces import OneHot

FOLDER = pathlib.Path(__file__).parent / "data" / "golden"
UPDATES, B, T = 3, 3, 6
TOLERANCE = 1e-5  # of each tensor's largest number
SIZES = {
    "dyn_deter": 8,
    "dyn_hidden": 8,
    "units": 8,
    "dyn_stoch": 4,
    "dyn_discrete": 4,
    "imag_horizon": 5,
    "size": [16, 16],
    "kl_free": 0.05,  # below the KL of the fixed weights, so that it has a gradient
    **{f"{net}.{key}": value for net in ("encoder", "decoder") for key, value in dict(cnn_depth=2, mlp_layers=2, mlp_units=8).items()},
    # Steps are large enough to show wrong gradients. With a large epsilon a gradient near zero makes a small step whatever its sign,
    # so that other processors, whose kernels round otherwise, stay below a fifth of the tolerance.
    **dict.fromkeys(("model_lr", "actor.lr", "critic.lr"), 0.003),
    **dict.fromkeys(("opt_eps", "actor.eps", "critic.eps"), 0.1),
}
# Of 2025. The first of the updates moves nothing, since the learning rate rises from 0.
NEW_SIZES = {name: value for name, value in SIZES.items() if not name.endswith((".lr", ".eps"))}
NEW_SIZES |= {"precision": "32", "dyn_blocks": 2, "decoder.blocks": 2, "warmup": 2}
TWO_LEVELS = {"hierarchical_mode": True, "dyn_stoch_top": 3, "dyn_discrete_top": 4, "dyn_stoch_bottom": 4, "dyn_discrete_bottom": 5}
EXPLORING = {"expl_behavior": "plan2explore", "disag_models": 2, "disag_layers": 1, "disag_units": 8}
# Observations, actions and settings.
OLD_CASES = {
    "flat_discrete_vector": ("vector", "discrete", {}),
    "flat_discrete_image": ("image", "discrete", {}),
    "flat_continuous_vector": ("vector", "continuous", {}),
    "flat_reinforce_continuous": ("vector", "continuous", {"imag_gradient": "reinforce"}),
    "flat_gaussian": ("vector", "discrete", {"dyn_discrete": 0}),
    "flat_zeros": ("vector", "discrete", {"initial": "zeros"}),
    "flat_plan2explore": ("vector", "discrete", EXPLORING),
    "two_levels_discrete_vector": ("vector", "discrete", TWO_LEVELS),
    "two_levels_discrete_image": ("image", "discrete", TWO_LEVELS),
    "two_levels_continuous_vector": ("vector", "continuous", TWO_LEVELS),
    "two_levels_continuous_image": ("image", "continuous", TWO_LEVELS),
    "two_levels_plan2explore": ("vector", "discrete", {**TWO_LEVELS, **EXPLORING, "disag_action_cond": True}),
}
NEW_CASES = {
    "2025_flat_discrete_image": ("image", "discrete", {}),
    "2025_flat_continuous_vector": ("vectors", "continuous", {}),
    "2025_flat_plan2explore": ("vectors", "discrete", EXPLORING),
    "2025_two_levels_discrete_image": ("image", "discrete", TWO_LEVELS),
    "2025_two_levels_continuous_vector": ("vectors", "continuous", TWO_LEVELS),
}
CASES = {**OLD_CASES, **NEW_CASES}
OBSERVED = {
    "image": {"image": spaces.Box(0, 255, (16, 16, 3), np.uint8)},
    "vector": {"vector": spaces.Box(-1, 1, (5,))},
    "vectors": {"vector": spaces.Box(-1, 1, (5,)), "kind": OneHot((3,))},
}


@contextlib.contextmanager
def fixed_random_numbers(seed: int):
    """Within this, PyTorch's random numbers come from NumPy, whose streams are the same on every processor."""
    rng = np.random.default_rng(seed)

    def draw(sample):
        def drawn(*shape, **_):
            shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)) else shape
            return torch.as_tensor(sample(tuple(shape)).astype(np.float32))

        return drawn

    normal = draw(rng.standard_normal)
    with (
        unittest.mock.patch("torch.rand", draw(rng.random)),
        unittest.mock.patch("torch.randn", normal),
        unittest.mock.patch("torch.randn_like", lambda x: normal(x.shape)),
    ):
        yield


def make_agent(case: str) -> Dreamer:
    observed, actions, overrides = CASES[case]
    presets, sizes = (["dreamerv3_2025"], NEW_SIZES) if case in NEW_CASES else ([], SIZES)
    config = tools.load_config(presets, {"task": "gym_X-v0", "device": "cpu", **sizes, **overrides})
    act_space = spaces.Discrete(3) if actions == "discrete" else spaces.Box(-1, 1, (2,))
    agent = Dreamer(spaces.Dict(OBSERVED[observed]), act_space, config)
    for name, tensor in sorted(agent.state_dict().items()):
        rng = np.random.default_rng(list(name.replace("_slow_value", "value").encode()))
        if tensor.ndim > 1:
            fan = tensor[0].numel()
            tensor.copy_(torch.as_tensor(rng.normal(size=tensor.shape) / np.sqrt(fan)))
        elif not name.endswith("ema_vals"):
            tensor.add_(torch.as_tensor(0.1 * rng.normal(size=tensor.shape)))
        if case in NEW_CASES and name.endswith(("reward.mean_layer.bias", "value.mean_layer.bias")):
            tensor.sub_(2.0 * torch.linspace(-20.0, 20.0, 255).abs())  # bins far from 0, up to e^20, would magnify roundings
    return agent


def make_batch(case: str, agent: Dreamer, seed: int) -> dict[str, np.ndarray]:
    (observed, actions, _), rng = CASES[case], np.random.default_rng(seed)
    is_first = np.zeros((B, T), bool)
    is_first[0, 0] = is_first[1, 3] = True
    is_terminal = np.zeros((B, T), bool)
    is_terminal[1, 2] = True
    if observed == "image":
        seen = {"image": rng.integers(256, size=(B, T, 16, 16, 3)).astype(np.uint8)}
    else:
        seen = {"vector": rng.normal(size=(B, T, 5)).astype(np.float32)}
    done = {
        "discrete": lambda: np.eye(3, dtype=np.float32)[rng.integers(3, size=(B, T))],
        "continuous": lambda: rng.uniform(-1, 1, size=(B, T, 2)).astype(np.float32),
    }[actions]()
    done[is_first] = 0.0
    reward = rng.normal(size=(B, T)).astype(np.float32)
    batch = {**seen, "action": done, "reward": reward, "is_first": is_first, "is_terminal": is_terminal}
    if observed == "vectors":
        batch["kind"] = np.eye(3, dtype=np.float32)[rng.integers(3, size=(B, T))]
    if case in NEW_CASES:
        batch["is_last"] = is_terminal.copy()
        batch["is_last"][2, 3] = True
        levels = agent._wm.dynamics.levels.values()
        codes = {"stoch" + level.suffix: rng.integers(level.discrete + 1, size=(B, level.stoch)) for level in levels}
        batch["replay.context"] = {"deter": np.tanh(rng.normal(size=(B, 8))).astype(np.float32), **codes}
    return batch


def numbers(case: str) -> dict[str, np.ndarray]:
    """Losses and gradient norms of every update, and the weights after the last one."""
    agent, found = make_agent(case), {}
    with fixed_random_numbers(seed=0):
        for update in range(UPDATES):
            metrics = agent.update(make_batch(case, agent, seed=update))
            found |= {f"{update}/{name}": value for name, value in metrics.items() if name.endswith(("_loss", "_norm", "kl", "entropy"))}
    found |= agent.state_dict()
    return {name: value.detach().float().numpy() for name, value in found.items()}


def scale_of(name: str, stored: dict[str, np.ndarray]) -> float:
    """The largest number in a tensor. Of a metric it is that of all updates: a loss with terms of both signs may pass through zero."""
    kind = name.rpartition("/")[2]
    return max(np.abs(value).max(initial=1e-6) for other, value in stored.items() if other.rpartition("/")[2] == kind)


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_weights_of_three_updates_are_the_stored_ones(case):
    stored, found = dict(np.load(FOLDER / f"{case}.npz")), numbers(case)
    assert found.keys() == stored.keys()
    for name, expected in stored.items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE * scale_of(name, stored), err_msg=name)


def test_the_stored_weights_have_been_trained():
    for case in CASES:
        before, after = make_agent(case).state_dict(), np.load(FOLDER / f"{case}.npz")
        still = [name for name, value in before.items() if np.array_equal(value, after[name])]
        assert not still, (case, still)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for case in sys.argv[1:] or CASES:
        np.savez_compressed(FOLDER / f"{case}.npz", **numbers(case))
        print(f"wrote {case}")
