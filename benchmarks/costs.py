"""What an agent costs, counted and not timed: parameters, operations and memory of an update."""

import contextlib
import unittest.mock

import numpy as np
import torch
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import tools
from dreamer import Dreamer
from models import latent_layout

SIZES = ("size1m", "size12m", "size25m", "size50m", "size100m", "size200m", "size400m")


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


@contextlib.contextmanager
def without_autocast():
    """Within this, PyTorch's autocast is off, as with precision 32. It does not know the meta device."""
    with (
        unittest.mock.patch.object(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext()),
        unittest.mock.patch.object(torch, "is_autocast_enabled", lambda device: False),
    ):
        yield


def count(presets: list[str], **overrides) -> dict[str, float]:
    """Parameters, floating-point operations of one default update, and bytes of weights, optimizer state and saved tensors.

    Also the parameters that are trained, all but the slow critic's, and the bytes of the saved tensors ("activations").

    On the meta device, which computes nothing, a network of any size is counted in seconds.
    """
    config = tools.load_config(["defaults", *presets], {"precision": "32", **overrides})
    with torch.device(config.device):
        agent = Dreamer(spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), spaces.Discrete(6), config)
    shape = (config.batch_size, config.batch_length)
    flags = {key: np.zeros(shape, bool) for key in ("is_first", "is_last", "is_terminal")}
    batch = {
        "image": np.zeros((*shape, 64, 64, 3), np.uint8),
        "action": np.zeros((*shape, 6), np.float32),
        "reward": np.zeros(shape, np.float32),
        **flags,
    }
    if config.replay_context:
        batch["replay.context"] = {key: np.zeros((shape[0], *size), dtype) for key, (size, dtype) in latent_layout(config).items()}
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with without_autocast(), Operations() as operations, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        agent.update(batch)
    states = [optimizer.state_dict()["state"] for optimizer in agent.optimizers().values()]
    optimizer = sum(value.nbytes for state in states for slots in state.values() for value in slots.values())
    weights = sum(parameter.nbytes for parameter in agent.parameters())
    for parameter in agent.parameters():
        saved.pop(parameter.untyped_storage()._cdata, None)
    activations = sum(storage.nbytes() for storage in saved.values())
    return {
        "parameters": sum(parameter.numel() for parameter in agent.parameters()),
        "trained": sum(parameter.numel() for optimizer in agent.optimizers().values() for parameter in optimizer._params),
        "operations": operations.total,
        "activations": activations,
        "bytes": weights + optimizer + activations,
    }
