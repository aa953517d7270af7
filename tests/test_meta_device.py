"""What runs on a GPU, run on PyTorch's meta device, which has shapes and no numbers: reading a value is an error there.

So is a tensor that is on the CPU by mistake, as `OneDevice` checks. There is no GPU here; this is what can be shown without one.
"""

import contextlib
import types
import unittest.mock

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tools
from benchmarks.costs import without_autocast
from dreamer import Dreamer
from models import latent_layout
from networks import level_statistics
from play import measures

IMAGE, VECTOR = spaces.Box(0, 255, (16, 16, 3), np.uint8), spaces.Box(-9.0, 9.0, (4,), np.float32)
BOTH = {"image": IMAGE, "vector": VECTOR}
ACTIONS = {"discrete": spaces.Discrete(3), "continuous": spaces.Box(-1.0, 1.0, (2,))}
PRESETS = {"flat": [], "two levels": ["hdreamer"]}
PRESETS |= {f"{name} 2025": ["dreamerv3_2025", *presets] for name, presets in PRESETS.items()}
every_preset = pytest.mark.parametrize("presets", PRESETS.values(), ids=PRESETS)
every_action = pytest.mark.parametrize("act_space", ACTIONS.values(), ids=ACTIONS)


class OneDevice(TorchDispatchMode):
    """Fails where a tensor is on another device than meta. Scalars may be on the CPU: they reach a GPU as an argument of a kernel."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves((args, kwargs, out)):
            if torch.is_tensor(leaf):
                assert leaf.device.type == "meta" or leaf.ndim == 0, f"{function} with {tuple(leaf.shape)} on {leaf.device}"
        return out


@contextlib.contextmanager
def as_on_a_gpu():
    """Within this, what PyTorch cannot do on the meta device is as on a GPU: autocast, and the check of the fused Adam's devices."""
    with without_autocast(), unittest.mock.patch("torch.optim.adam._device_dtype_check_for_fused"):
        yield


@contextlib.contextmanager
def reading(allowed: int):
    """Lets tensors be copied to the CPU, `allowed` times in all."""
    copies = []

    def cpu(tensor: torch.Tensor):
        assert len(copies) < allowed, "one more tensor is copied to the CPU"
        copies.append(tensor)
        return types.SimpleNamespace(numpy=lambda: np.zeros(tensor.shape, np.float32))

    with unittest.mock.patch.object(torch.Tensor, "cpu", cpu):
        yield


def make_agent(presets, act_space, seen, **settings) -> Dreamer:
    small = {"imag_horizon": 3, "encoder.mlp_layers": 1, "decoder.mlp_layers": 1, "disag_models": 2, "disag_layers": 1}
    config = tools.load_config([*presets, "debug"], {"task": "gym_CartPole-v1", "device": "meta", "precision": "32", **small, **settings})
    with torch.device("meta"):
        return Dreamer(spaces.Dict(seen), act_space, config)


def make_batch(agent: Dreamer) -> dict:
    size = (4, 3)
    batch = {
        **{key: np.zeros((*size, *space.shape), space.dtype) for key, space in agent.obs_space.spaces.items()},
        "action": np.zeros((*size, agent.codec.size), np.float32),
        "reward": np.zeros(size, np.float32),
        **{key: np.zeros(size, bool) for key in ("is_first", "is_last", "is_terminal")},
    }
    if agent._config.replay_context:
        batch["replay.context"] = {key: np.zeros((4, *shape), dtype) for key, (shape, dtype) in latent_layout(agent._config).items()}
    return batch


def assert_updates(agent: Dreamer) -> None:
    with as_on_a_gpu():
        data = agent._wm.preprocess(make_batch(agent))
        assert {leaf.device.type for leaf in pytree.tree_leaves(data)} == {"meta"}
        with OneDevice():
            _, metrics = agent._update_on(data)
    assert all(value.device.type == "meta" and value.ndim == 0 for value in metrics.values())
    for optimizer in agent.optimizers().values():  # it has taken steps
        assert {value.device.type for slots in optimizer.state.values() for value in slots.values()} == {"meta"}


@every_preset
@pytest.mark.parametrize("seen, action", [({"image": IMAGE}, "discrete"), ({"vector": VECTOR}, "continuous")], ids=["images", "vectors"])
def test_an_update_stays_on_its_device_and_reads_no_value(presets, seen, action):
    assert_updates(make_agent(presets, ACTIONS[action], seen))


@pytest.mark.slow
@every_preset
@pytest.mark.parametrize("target, action", [("stoch", "continuous"), ("embed", "discrete")])
def test_so_does_an_update_with_plan2explore(presets, target, action):
    settings = {"disag_target": target, "disag_action_cond": target == "stoch", "disag_log": True, "expl_extr_scale": 0.5}
    assert_updates(make_agent(presets, ACTIONS[action], BOTH, expl_behavior="plan2explore", **settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"dyn_discrete": 0},
        {"dyn_discrete": 0, "dyn_std_act": "abs", "dyn_mean_act": "tanh5"},
        {"debug_hierarchical": True, "weight_decay": 0.1, "reward_EMA": False, "critic.slow_target": False},
        {"dyn_rec_depth": 2, "cont_head.discounted": True, "actor.std": "0.5", "imag_gradient": "reinforce"},
        {"reward_head.dist": "symlog_mse", "critic.dist": "normal", "decoder.image_dist": "normal", "decoder.vector_dist": "binary"},
        {"grad_heads": ["decoder"], "norm": "none", "critic.slow_target_update": 2},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_so_does_an_update_with_other_settings(settings):
    assert_updates(make_agent([], ACTIONS["continuous"], BOTH if "decoder.image_dist" in settings else {"vector": VECTOR}, **settings))


def test_discrete_and_continuous_actions_at_once_stay_on_the_device_too():
    act_space = spaces.Dict({"move": spaces.Box(-1.0, 1.0, (2,)), "button": spaces.Discrete(3)})
    assert_updates(make_agent(["dreamerv3_2025"], act_space, {"vector": VECTOR}))


@every_preset
@every_action
@pytest.mark.parametrize("behavior", ["greedy", "random", "plan2explore"])
def test_acting_copies_actions_to_the_cpu_and_nothing_else(presets, act_space, behavior):
    agent = make_agent(presets, act_space, BOTH, expl_behavior=behavior)
    obs = {key: value[:, 0] for key, value in make_batch(agent).items() if key in ("image", "vector", "is_first")}
    state = None
    for training in (True, False):
        with as_on_a_gpu(), reading(1):
            actions, state = agent.act(obs, state, training=training)
        assert len(actions) == 4 and {value.device.type for value in state.values()} == {"meta"}
    data = {key: torch.zeros(4, *value.shape[1:], device="meta") for key, value in obs.items()}
    with as_on_a_gpu(), reading(1), OneDevice(), torch.no_grad():
        agent._act(data, state, True, True)


@every_preset
def test_storing_the_latents_of_an_update_copies_each_of_them_once(presets):
    agent = make_agent(presets, ACTIONS["discrete"], BOTH)
    with as_on_a_gpu():
        post, _ = agent._update_on(agent._wm.preprocess(make_batch(agent)))
    with reading(1 + len(agent._wm.dynamics.levels)):
        assert agent.stored_latents(post)["deter"].shape == (4, 3, agent._config.dyn_deter)


@every_preset
def test_a_video_of_predictions_is_copied_once(presets):
    agent = make_agent(presets, ACTIONS["discrete"], BOTH)
    with as_on_a_gpu(), reading(1):
        (video,) = agent.video_pred(make_batch(agent)).values()
    assert video.shape == (3, 16 * (4 if "hdreamer" in presets else 3), 16 * 4, 3)


@every_preset
@torch.no_grad()
def test_the_tensors_of_the_latent_report_stay_on_the_device(presets):
    model = make_agent(presets, ACTIONS["discrete"], BOTH)._wm
    dynamics, steps = model.dynamics, {"image": torch.zeros(4, 3, 16, 16, 3, device="meta"), "vector": torch.zeros(4, 3, 4, device="meta")}
    action, is_first = torch.zeros(4, 3, 3, device="meta"), torch.zeros(4, 3, device="meta")
    with as_on_a_gpu(), OneDevice():
        embed = model.encoder(steps)
        post, prior = dynamics.observe(embed, action, is_first)
        found = level_statistics(dynamics, post, prior)
        flat = {key: value.flatten(0, 1) for key, value in post.items()}
        likelihoods = dynamics.code_likelihoods(flat, embed.flatten(0, 1))
        assert {tuple(value.shape) for value in likelihoods.values()} == {(12, 12)}
        for levels in (*measures.subsets(dynamics.levels), *measures.choices_to_resample(model).values()):
            states = [dynamics.resample(flat, levels), dynamics.imagine_with_action(action, last(post), sample=levels)]
            for state in states:
                decoded = model.heads["decoder"](dynamics.get_feat(state))
                assert {dist.mean.device.type for dist in decoded.values()} == {"meta"}
        if "top" in dynamics.levels:
            dynamics.observe_top(embed, action, is_first)
    assert {value.device.type for value in found.values()} == {"meta"}


def last(states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value[:, -1] for key, value in states.items()}


def test_the_meta_device_refuses_what_a_gpu_would_wait_for():
    number, vector = torch.zeros((), device="meta"), torch.zeros(3, device="meta")
    for read in (lambda: number.item(), lambda: bool(number), lambda: int(number), lambda: vector.cpu(), lambda: vector.tolist()):
        with pytest.raises(RuntimeError):
            read()
    for mixed in (lambda: torch.zeros(3), lambda: torch.stack([vector, torch.zeros(3)]), lambda: vector + torch.zeros(3)):
        with pytest.raises((AssertionError, RuntimeError)), OneDevice():
            mixed()
