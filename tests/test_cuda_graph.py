"""Updates as a CUDA graph. There is no GPU here: a tape of PyTorch's operations stands in for it, with the same rules.

Like a graph, the tape knows tensors by their memory, and Python numbers as they were when it was recorded.
"""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tools
from dreamer import Dreamer
from models import latent_layout
from scale import graph, ranks

ROOT = pathlib.Path(__file__).parent.parent
OBS_SPACE = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8), "vector": spaces.Box(-9.0, 9.0, (4,), np.float32)})
PRESETS = {"flat": [], "two levels": ["hdreamer"]}
PRESETS |= {f"{name} 2025": ["dreamerv3_2025", *presets] for name, presets in PRESETS.items()}
every_preset = pytest.mark.parametrize("presets", PRESETS.values(), ids=PRESETS)
DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))


class Tape(TorchDispatchMode):
    """Records operations while they run; `replay` runs them again and writes the results where they were."""

    def __init__(self):
        super().__init__()
        self._operations, self._recorded = [], True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "lift_fresh"), function
        out = function(*args, **(kwargs or {}))
        self._operations.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        if self._recorded:  # recording has already run the operations, unlike a capture: this is their first run
            self._recorded = False
            return
        for function, args, kwargs, out in self._operations:
            inputs = {_memory(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
            for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(function(*args, **kwargs))):
                if torch.is_tensor(old) and _memory(old) not in inputs:  # neither a view nor written in place
                    old.copy_(new)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class TapeGpu:
    """Stands in for `graph.Gpu`; counts what is called."""

    def __init__(self):
        self.plain = self.captures = self.replays = 0

    def begin(self):
        pass

    def run(self, function):
        self.plain += 1
        return function()

    def capture(self, function):
        self.captures += 1
        tape = Tape()
        with tape:
            outputs = function()

        def replay():
            self.replays += 1
            tape.replay()

        return outputs, replay


def make_agent(presets, act_space=DISCRETE, **settings) -> Dreamer:
    torch.manual_seed(0)
    config = tools.load_config([*presets, "debug"], {"task": "gym_CartPole-v1", "device": "cpu", "precision": "32", **settings})
    return Dreamer(OBS_SPACE, act_space, config)


def graphed(agent: Dreamer) -> TapeGpu:
    """Lets an agent update as with a CUDA graph."""
    gpu = TapeGpu()
    agent._graphed = graph.GraphedUpdate(agent._update_on, agent.optimizers().values(), gpu)
    return gpu


def make_batch(agent: Dreamer, seed: int, length: int = 8) -> dict:
    rng, size = np.random.default_rng(seed), (4, length)
    batch = {
        "image": rng.integers(0, 256, (*size, 16, 16, 3)).astype(np.uint8),
        "vector": rng.normal(size=(*size, 4)).astype(np.float32),
        "action": agent.codec.random(rng, 4 * length).reshape(*size, -1),
        "reward": rng.normal(size=size).astype(np.float32),
        **{key: rng.random(size) < 0.1 for key in ("is_first", "is_last", "is_terminal")},
    }
    if agent._config.replay_context:
        layout = latent_layout(agent._config)
        batch["replay.context"] = {key: rng.integers(0, 3, (4, *shape)).astype(dtype) for key, (shape, dtype) in layout.items()}
    return batch


def assert_same_updates(plain: Dreamer, other: Dreamer, seeds) -> None:
    """Both agents learn from the same batches; metrics and posteriors, then weights, moments and counters are equal, bit for bit."""
    found = []
    for agent in (plain, other):
        torch.manual_seed(1)
        found.append([agent.update(make_batch(agent, seed)) for seed in seeds] + [{"next": torch.rand(3)}])
    for metrics, expected in zip(*found):
        assert metrics.keys() == expected.keys()
        for key in metrics:
            torch.testing.assert_close(metrics[key], expected[key], rtol=0, atol=0, equal_nan=True, msg=key)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for name, optimizer in plain.optimizers().items():
        same = other.optimizers()[name]
        assert torch.equal(optimizer.skipped_in_a_row, same.skipped_in_a_row)
        for number, slots in optimizer.state_dict()["state"].items():
            for key, value in slots.items():
                assert torch.equal(value, same.state_dict()["state"][number][key]), (name, number, key)


@every_preset
@pytest.mark.parametrize("act_space", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_replayed_update_changes_weights_as_a_plain_one_does(presets, act_space):
    plain, other = make_agent(presets, act_space), make_agent(presets, act_space)
    gpu = graphed(other)
    assert_same_updates(plain, other, range(6))
    assert (gpu.plain, gpu.captures, gpu.replays) == (3, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("generation", [[], ["dreamerv3_2025"]], ids=["2023", "2025"])
def test_plan2explore_and_a_slow_critic_that_moves_in_every_second_update_are_replayed_too(generation):
    settings = {"expl_behavior": "plan2explore", "disag_models": 2, "disag_layers": 1, "critic.slow_target_update": 2}
    plain, other = make_agent(generation, **settings), make_agent(generation, **settings)
    gpu = graphed(other)
    assert_same_updates(plain, other, range(10))
    assert (gpu.plain, gpu.captures, gpu.replays) == (6, 2, 4)  # each kind has its graph, and its plain updates


@pytest.mark.parametrize("generation", [[], ["dreamerv3_2025"]], ids=["2023", "2025"])
def test_a_loaded_checkpoint_is_what_later_updates_go_on_from(generation):
    plain, other = make_agent(generation), make_agent(generation)
    gpu = graphed(other)
    assert_same_updates(plain, other, range(5))
    checkpoint = plain.checkpoint()
    donor = make_agent(generation)
    donor.load_checkpoint(checkpoint)
    donor.update(make_batch(donor, 5))
    for agent in (plain, other):
        agent.load_checkpoint(donor.checkpoint())
    assert_same_updates(plain, other, range(6, 11))
    assert (gpu.plain, gpu.captures, gpu.replays) == (6, 2, 4)  # the graph of before knew the moments of before


def test_batches_of_another_shape_are_learned_from_and_begin_anew():
    plain, other = make_agent([]), make_agent([])
    gpu = graphed(other)
    for agent in (plain, other):
        torch.manual_seed(2)
        for length in (8, 8, 8, 8, 6, 6, 6, 6, 8):
            agent.update(make_batch(agent, length, length))
    assert (gpu.plain, gpu.captures, gpu.replays) == (7, 2, 2)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_updates_that_are_skipped_for_nan_are_counted_within_the_graph():
    agent = make_agent([])
    graphed(agent)
    for seed in range(6):
        batch = make_batch(agent, seed)
        if seed in (1, 4, 5):
            batch["reward"][0, 0] = np.nan
        agent.update(batch)
    assert agent._wm._model_opt.skipped_in_a_row == 2.0
    assert all(value.isfinite().all() for value in agent.state_dict().values())


def test_metrics_and_posteriors_are_not_overwritten_by_later_updates():
    agent = make_agent(["dreamerv3_2025"])
    graphed(agent)
    for seed in range(4):
        agent.update(make_batch(agent, seed))
    found = [agent._graphed(agent._wm.preprocess(make_batch(agent, seed)), True) for seed in (7, 8)]
    (post, metrics), (later_post, later_metrics) = found
    assert not torch.equal(post["deter"], later_post["deter"]) and metrics["agent_loss"] != later_metrics["agent_loss"]


def test_what_can_not_be_captured_is_refused_with_the_reason():
    def settings(**overrides):
        config = tools.load_config([], {"task": "gym_CartPole-v1"})
        dict.update(config, overrides)
        return config

    assert graph.wanted(settings(device="cuda:1"))
    assert not graph.wanted(settings(device="cuda", cuda_graph="false"))
    for overrides, reason in (
        ({"device": "cpu"}, "need an NVIDIA GPU, and the device is cpu"),
        ({"device": "mps"}, "the device is mps"),
        ({"device": "cuda", "compile": True}, "compile is true"),
    ):
        assert not graph.wanted(settings(**overrides))
        with pytest.raises(ValueError, match=f"cuda_graph is true, but .*{reason}.*; use --cuda_graph auto"):
            graph.wanted(settings(cuda_graph="true", **overrides))


def test_several_processes_are_not_captured(monkeypatch):
    config = tools.load_config([], {"task": "gym_CartPole-v1"})
    dict.update(config, device="cuda")
    assert graph.wanted(config)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    assert not graph.wanted(config) and "several processes average gradients" in graph.obstacle(config)


def test_an_agent_is_refused_at_its_start_if_its_updates_must_be_a_graph_and_can_not():
    with pytest.raises(ValueError, match="cuda_graph is true, but CUDA graphs need an NVIDIA GPU"):
        make_agent([], cuda_graph="true")


def test_an_error_within_the_capture_says_how_to_train_without_it():
    agent = make_agent([])
    gpu = graphed(agent)

    def fail(function):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

    gpu.capture = fail
    for seed in range(3):
        agent.update(make_batch(agent, seed))
    with pytest.raises(
        RuntimeError, match=r"\(CUDA error: operation not permitted when stream is capturing\); resume with --cuda_graph false"
    ):
        agent.update(make_batch(agent, 3))


def benchmark(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "benchmarks/gpu.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_benchmark_of_gpus_says_that_there_is_none_or_runs_on_a_cpu():
    refused = benchmark("--device", "cuda:99")
    assert refused.returncode == 2 and "error: device is 'cuda:99'" in refused.stderr and "--device cpu --quick" in refused.stderr
    found = benchmark("--device", "cpu", "--quick")
    assert found.returncode == 0, found.stderr
    rows = [line.split(" | ") for line in found.stdout.splitlines() if " | plain | " in line]
    assert len(rows) == 6 and all(float(row[3]) > 0 for row in rows)
    frames, updates = found.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert int(frames.replace(",", "")) > 0 and int(updates.replace(",", "")) > 0


def test_precision_is_float32_unless_asked_and_auto_is_bfloat16_on_a_gpu_that_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    asked = tools.load_config(["defaults"], {"task": "gym_CartPole-v1"}).precision
    assert tools.pick_precision(asked, "cuda", 512) == ("32", "")
    assert tools.pick_precision("auto", "cuda", 64) == ("bf16", "the GPU computes in bfloat16")
