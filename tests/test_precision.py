"""bfloat16: what must stay float32 does, and gradients stay near those of float32.

And what `compile` and `deterministic_run` reach.
"""

import collections

import numpy as np
import pytest
import torch
from gymnasium import spaces

import layers
import models
import tools
from dreamer import Dreamer

OBS_SPACE = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8), "vector": spaces.Box(-9.0, 9.0, (4,), np.float32)})


PRESETS = {"flat": [], "hierarchical": ["hdreamer"]}
PRESETS |= {f"{name} 2025": ["dreamerv3_2025", *presets] for name, presets in PRESETS.items()}
every_preset = pytest.mark.parametrize("presets", PRESETS.values(), ids=PRESETS)


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_norms_have_the_parameter_gradients_of_float64_for_bfloat16_inputs(name):
    rows, size = 20_000, 64
    x, upstream = torch.randn(rows, size).bfloat16(), torch.randn(rows, size).bfloat16()
    gradients = {}
    for dtype in (torch.bfloat16, torch.float64):
        (norm,) = layers.Style(norm=name).norms(size)
        norm = norm.double() if dtype == torch.float64 else norm
        out = norm(x.to(dtype))
        assert out.dtype == dtype
        out.backward(upstream.to(dtype))
        gradients[dtype] = torch.stack([parameter.grad for parameter in norm.parameters()]).double()
    error = (gradients[torch.bfloat16] - gradients[torch.float64]).norm() / gradients[torch.float64].norm()
    assert error < 1e-3, error


def test_a_weight_that_is_used_many_times_adds_up_its_gradients_in_float32():
    # The same step 256 times, so the sum is known: in bfloat16 small terms would be lost beside a large sum.
    linear = layers.Linear(8, 8, bias=False)
    x = torch.randn(4, 8)
    config = tools.load_config([], {"device": "cpu", "precision": "bf16"})

    def gradient(times: int) -> torch.Tensor:
        with models.autocast(config):
            loss = sum(linear(x).float().sum() for _ in range(times))
        return torch.autograd.grad(loss, linear.weight)[0]

    torch.testing.assert_close(gradient(256), 256 * gradient(1), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("cell", [layers.GRUCell(6, 8), layers.BlockGRUCell(6, 8, 4, 2, layers.Style(norm="rms"))])
def test_gru_gates_and_state_are_float32(cell):
    with torch.autocast("cpu", torch.bfloat16):
        state = cell(torch.randn(3, 6), torch.randn(3, 8))
    assert state.dtype == torch.float32


@pytest.mark.parametrize("shared", [0, 5])
def test_block_layers_in_bfloat16_are_near_those_in_float32_and_their_weights_get_float32_gradients(shared):
    layer = layers.BlockLinear(16, 12, 4, shared)
    torch.nn.init.normal_(layer.weight, std=0.3)
    x, more, upstream = torch.randn(9, 16, requires_grad=True), torch.randn(9, shared) if shared else None, torch.randn(9, 12)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), layers.weight_gradients_once():
            y = layer(x, more)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        results.append([y.float(), *torch.autograd.grad((y.float() * upstream).sum(), [x, layer.weight, layer.bias])])
    for exact, rounded in zip(*results):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.01 * exact.norm()


@every_preset
@pytest.mark.parametrize("act_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=["discrete", "continuous"])
def test_losses_and_gradients_in_bfloat16_are_near_those_in_float32(presets, act_space):
    results = {}
    for precision in ("32", "bf16"):
        torch.manual_seed(0)
        config = tools.load_config([*presets, "debug"], {"task": "gym_CartPole-v1", "device": "cpu", "precision": precision})
        agent = Dreamer(OBS_SPACE, act_space, config)
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (4, 8, 16, 16, 3)).astype(np.uint8),
            "vector": rng.normal(size=(4, 8, 4)).astype(np.float32),
            "action": agent.codec.random(rng, 32).reshape(4, 8, -1),
            "reward": rng.normal(size=(4, 8)).astype(np.float32),
            **{key: np.zeros((4, 8), bool) for key in ("is_first", "is_last", "is_terminal")},
        }
        loss, _, metrics = agent._wm.loss(agent._wm.preprocess(batch), sample=False)
        assert all(value.dtype == torch.float32 for value in metrics.values())
        # Latents that flip between classes change gradients by more than rounding does, so the heads see the same features.
        data = agent._wm.preprocess(batch)
        feat = torch.randn(4, 8, agent._wm.dynamics.feat_size, generator=torch.Generator().manual_seed(1))
        with models.autocast(config):
            predictions = {**agent._wm.heads["decoder"](feat), "cont": agent._wm.heads["cont"](feat)}
            head_loss = -sum(dist.log_prob(data[key]).mean() for key, dist in predictions.items())
        head_loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in agent._wm.heads.parameters() if p.grad is not None])
        results[precision] = loss.detach(), gradient
        assert all(torch.isfinite(value) for value in agent.update(batch).values())
        agent.act({key: batch[key][:, 0] for key in ("image", "vector", "is_first")})
        assert all(p.dtype == torch.float32 for p in agent.parameters())
    (loss, gradient), (loss16, gradient16) = results["32"], results["bf16"]
    assert loss != loss16  # it did run in another precision
    torch.testing.assert_close(loss16, loss, rtol=0.01, atol=0.0)
    assert torch.cosine_similarity(gradient, gradient16, dim=0) > 0.999


@every_preset
def test_an_update_and_a_policy_step_go_through_what_is_compiled(presets, monkeypatch):
    calls = collections.Counter()

    def counting(function, *_, **__):
        owner = getattr(function, "__self__", None)

        def call(*args, **kwargs):
            calls[owner if function.__name__ == "_call_impl" else function.__name__] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", counting)
    overrides = {"task": "gym_CartPole-v1", "device": "cpu", "precision": "32", "compile": True, "imag_horizon": 6}
    config = tools.load_config([*presets, "debug"], overrides)
    with torch._functorch.config.patch(donated_buffer=True):  # undoes what building changes
        agent = Dreamer(OBS_SPACE, spaces.Discrete(3), config)
    batch = {
        "image": np.zeros((2, 4, 16, 16, 3), np.uint8),
        "vector": np.zeros((2, 4, 4), np.float32),
        "action": np.zeros((2, 4, 3), np.float32),
        "reward": np.zeros((2, 4), np.float32),
        **{key: np.zeros((2, 4), bool) for key in ("is_first", "is_last", "is_terminal")},
    }
    calls.clear()
    agent.update(batch)
    assert calls["_posterior_step"] == 4 and calls["_prior_step"] == 5  # T steps, and H - 1
    wm, behavior = agent._wm, agent._task_behavior
    networks_used = [
        wm.encoder._cnn,
        wm.encoder._mlp.layers,
        wm.heads["decoder"]._cnn,
        wm.heads["decoder"]._mlp.layers,
        wm.heads["reward"].layers,
        wm.heads["cont"].layers,
        behavior.actor.layers,
        behavior.value.layers,
        behavior._slow_value.layers,
    ]
    assert all(calls[module] for module in networks_used)
    calls.clear()
    agent.act({key: batch[key][:, 0] for key in ("image", "vector", "is_first")})
    assert all(calls[part] == 1 for part in ("_posterior_step", wm.encoder._cnn, wm.encoder._mlp.layers, behavior.actor.layers))


def test_a_deterministic_run_asks_pytorch_for_operations_that_repeat():
    try:
        tools.set_seed(0, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        tools.set_seed(0)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
