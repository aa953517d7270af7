"""The promise that two levels of equal capacity cost almost nothing, counted and not timed.

`python -m pytest -q -s tests/test_costs.py` prints the table that the README shows.
"""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import tools
from dreamer import Dreamer

pytestmark = pytest.mark.slow

VARIANTS = {"flat": [], "hdreamer_split": ["hdreamer_split"], "hdreamer": ["hdreamer"]}


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of products and convolutions.

    PyTorch's `FlopCounterMode` does too, but it also follows modules, and fails where one is given a view that was made without gradients.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in flop_registry:
            self.total += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def count(presets: list[str]) -> dict[str, float]:
    """Parameters, floating-point operations of one default update, and bytes of weights, optimizer state and saved tensors."""
    config = tools.load_config(["defaults", *presets], {"device": "cpu"})
    agent = Dreamer(spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), spaces.Discrete(6), config)
    shape = (config.batch_size, config.batch_length)
    flags = {key: np.zeros(shape, bool) for key in ("is_first", "is_terminal")}
    batch = {
        "image": np.zeros((*shape, 64, 64, 3), np.uint8),
        "action": np.zeros((*shape, 6), np.float32),
        "reward": np.zeros(shape, np.float32),
        **flags,
    }
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with Operations() as operations, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        agent.update(batch)
    states = [optimizer.state_dict()["state"] for optimizer in agent.optimizers().values()]
    optimizer = sum(value.nbytes for state in states for slots in state.values() for value in slots.values())
    weights = sum(parameter.nbytes for parameter in agent.parameters())
    for parameter in agent.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    return {
        "parameters": sum(parameter.numel() for parameter in agent.parameters()),
        "operations": operations.total,
        "bytes": weights + optimizer + sum(storage.nbytes() for storage in saved.values()),
    }


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, float]]:
    table = {name: count(presets) for name, presets in VARIANTS.items()}
    print()
    for name, cost in table.items():
        over = {key: 100 * (cost[key] / table["flat"][key] - 1) for key in cost}
        print(
            f"{name:16} {cost['parameters']:>12,} parameters ({cost['parameters'] - table['flat']['parameters']:+,})  "
            f"{cost['operations'] / 1e9:7.1f} GFLOP ({over['operations']:+.2f}%)  "
            f"{cost['bytes'] / 1e9:5.2f} GB ({over['bytes']:+.2f}%)"
        )
    return table


def test_equal_capacity_in_two_levels_has_25088_more_parameters(costs):
    assert costs["hdreamer_split"]["parameters"] - costs["flat"]["parameters"] == 25_088


def test_equal_capacity_in_two_levels_takes_less_than_a_hundredth_more_operations_and_memory(costs):
    for key in ("operations", "bytes"):
        assert 1.0 < costs["hdreamer_split"][key] / costs["flat"][key] < 1.01, key


def test_an_update_takes_no_more_operations_and_memory_than_it_did(costs):
    # Not a formula: what it took when this was written, and half a percent. Whoever needs more changes it knowingly. It took 646.4e9
    # operations while one-hot vectors were looked up: fewer, but slower ones than those of whole products.
    assert costs["flat"]["operations"] < 1.005 * 750.6e9
    assert costs["flat"]["bytes"] < 1.005 * 2.492e9
