"""An update as a CUDA graph: captured once and replayed, instead of launching thousands of kernels one by one."""

import collections
from collections.abc import Callable, Iterable

import torch
from torch.utils import _pytree as pytree

from scale import ranks

WARM_UP = 3  # updates before the capture, so that libraries choose their kernels and optimizers make their state outside of it


def obstacle(config) -> str:
    """Why the updates of an agent with these settings cannot be captured; empty if they can."""
    if torch.device(config.device).type != "cuda":
        return f"CUDA graphs need an NVIDIA GPU, and the device is {config.device}"
    if config.compile:
        return "compile is true, and compiled networks may compile again during the capture"
    if ranks.count() > 1:
        return "several processes average gradients, and NCCL is captured only with PyTorch's handling of its errors switched off"
    return ""


def wanted(config) -> bool:
    """Whether updates become a CUDA graph, by the setting `cuda_graph`.

    Raises:
        ValueError: if it is "true" and they cannot.
    """
    reason = obstacle(config)
    if config.cuda_graph == "true" and reason and config.device != "meta":  # an agent on meta is an outline that never learns
        raise ValueError(f"cuda_graph is true, but {reason}; use --cuda_graph auto, which leaves it out where it cannot be")
    return config.cuda_graph != "false" and not reason


class Gpu:
    """The calls to CUDA that `GraphedUpdate` needs.

    Args:
        device: the agent's.
    """

    def __init__(self, device: str):
        self._stream = torch.cuda.Stream(device)

    def begin(self) -> None:
        """Gives the next captures new memory, which they share: graphs never run at the same time."""
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable):
        """Calls a function on the stream of the capture: autograd and cuBLAS keep to the stream where they were used first."""
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            result = function()
        outside.wait_stream(self._stream)
        return result

    def capture(self, function: Callable) -> tuple[object, Callable[[], None]]:
        """Records the kernels that a function launches, without running them.

        Returns:
            what the function returned, tensors that every replay fills; and the function that replays.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on to allocate memory: the thread of autograd, and other agents'.
        options = dict(pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._stream.device), torch.cuda.graph(graph, **options):
            outputs = function()
        return outputs, graph.replay


class GraphedUpdate:
    """Runs an update as a CUDA graph. Weights, moments and random numbers are those of the plain update, bit for bit.

    The first WARM_UP updates are plain ones. Then the update is captured: its Python code runs once more, and the GPU records the
    kernels without running them. From then on each update copies its batch into the tensors that the graph reads, and replays it.

    A graph finds weights, moments and running averages where they were at its capture, so updates write to them in place. Random
    numbers need no care: at every replay PyTorch tells the graph seed and position of the GPU's generator. When batches get another
    shape, or a loaded checkpoint replaces the optimizers' states, all begins anew with plain updates.

    Args:
        update: the update, from a preprocessed batch to any dicts of tensors. It reads no value of a tensor.
        optimizers: what it steps; the `state` of each is noted.
        gpu: the calls to CUDA, see `Gpu`.
    """

    def __init__(self, update: Callable, optimizers: Iterable, gpu):
        self._update, self._optimizers, self._gpu = update, list(optimizers), gpu
        self._begin(None, [])

    def _begin(self, shapes, states: list[dict]) -> None:
        """Forgets the graphs. `shapes` and the optimizers' `states` are what the next ones are for."""
        self._shapes, self._states = shapes, states
        self._inputs, self._graphs, self._plain = None, {}, collections.Counter()
        self._gpu.begin()

    def __call__(self, data: dict, branch: bool = False):
        """Takes one update.

        Args:
            data: the preprocessed batch.
            branch: what the update's Python code decides this time. Every value has a graph of its own.
        Returns:
            what `update` returns; no later update writes to it.
        """
        leaves, structure = pytree.tree_flatten(data)
        shapes = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
        states = [optimizer.state for optimizer in self._optimizers]
        if shapes != self._shapes or any(now is not before for now, before in zip(states, self._states)):
            self._begin(shapes, states)
        if self._plain[branch] < WARM_UP:
            self._plain[branch] += 1
            return self._gpu.run(lambda: self._update(data))
        if self._inputs is None:
            self._inputs = pytree.tree_map(torch.empty_like, data)
        torch._foreach_copy_(pytree.tree_leaves(self._inputs), leaves)
        if branch not in self._graphs:
            self._graphs[branch] = self._capture()
        outputs, replay = self._graphs[branch]
        replay()
        return pytree.tree_map(torch.clone, outputs)

    def _capture(self):
        try:
            return self._gpu.capture(lambda: self._update(self._inputs))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(f"the update cannot be captured in a CUDA graph ({reason}); resume with --cuda_graph false") from error
