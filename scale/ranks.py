"""What the processes of one run, its *ranks*, do together. `torchrun` starts them; in a single process everything is the identity.

Every rank has its environments, its part of the replay memory and its random numbers, and computes gradients on its share of
each batch. All ranks take the same decisions at the same places, since each function here must be called by all of them: it waits for
the others. Only the first rank writes checkpoints, logs and pages.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import tools

LONGEST_WAIT = datetime.timedelta(days=30)  # the first rank may evaluate for long; a rank that has died is noticed at once


class RankLost(RuntimeError):
    """Another rank of the run has ended before this one."""


class SaidElsewhere(Exception):
    """The run ends for a reason that another rank tells."""


def _started(name: str, default: int) -> int:
    """What `torchrun` says in an environment variable."""
    return int(os.environ.get(name, default))


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes the run has, on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def count_here() -> int:
    """How many of them are on this machine."""
    return _started("LOCAL_WORLD_SIZE", 1) if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes what there is one of."""
    return rank() == 0


def started_by_torchrun() -> bool:
    """Whether this process is one of several that `torchrun` has started."""
    return dist.is_available() and _started("WORLD_SIZE", 1) > 1 and "RANK" in os.environ


def launcher() -> str:
    """The command before the script that starts as many processes again; empty for a single process."""
    machines = f"--nnodes {count() // count_here()} ... " if count() > count_here() else ""
    return f"torchrun {machines}--nproc_per_node {count_here()}" if count() > 1 else ""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within this, the processes that `torchrun` has started are one run, and only the first prints more than errors and warnings."""
    if not started_by_torchrun() or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, number, size = next(dist.rendezvous("env://"))
    # What processes left in the store before `torchrun --max_restarts` started others in their place is not read.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=LONGEST_WAIT)
    try:
        with contextlib.nullcontext() if is_first() else _silent(contextlib.redirect_stdout):
            yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _silent(redirect) -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect(nowhere):
        yield


def only_first_warns() -> contextlib.AbstractContextManager:
    """A context for what is the same in all ranks, so that a warning is printed once."""
    return contextlib.nullcontext() if is_first() else _silent(contextlib.redirect_stderr)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Within this, each rank works by itself; then all go on, or none does if one has failed. Warnings are those of the first rank.

    Raises:
        Exception: what was raised within, in the lowest of the ranks that have failed.
        SaidElsewhere: in the others.
    """
    if count() == 1:
        yield
        return
    error = None
    try:
        with only_first_warns():
            yield
    except Exception as raised:
        error = raised
    failed = all_of([] if error is None else [rank()])
    if failed and failed[0] == rank():
        raise error
    if failed:
        raise SaidElsewhere


def take_device(device: str) -> None:
    """On a GPU, makes the one of this process what "cuda" means. Does nothing in a single process.

    Args:
        device: the setting.
    Raises:
        ValueError: if there are fewer GPUs than processes on this machine, or for a device that cannot be shared.
    """
    if count() == 1:
        return
    found, gpus = tools.pick_device(device), torch.cuda.device_count()
    if found == "mps" or ":" in found or (found == "cuda" and gpus < count_here()):
        raise ValueError(
            f"device is {device!r}, and torchrun has started {count_here()} processes here, which need one NVIDIA GPU each, of "
            f"{gpus}; give {f'--device cuda with --nproc_per_node {gpus}, or ' if gpus else ''}--device cpu"
        )
    if found == "cuda":
        torch.cuda.set_device(_started("LOCAL_RANK", 0))


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Names the cause if a collective fails."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost("another process of this run has ended") from error


def total(*numbers: int) -> tuple[int, ...]:
    """Sums of numbers over the ranks."""
    if count() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.int64)
    with _together():
        dist.all_reduce(sums)
    return tuple(sums.tolist())


def all_of(items: list) -> list:
    """The items of all ranks, those of the first rank first."""
    if count() == 1:
        return items
    found = [None] * count()
    with _together():
        dist.all_gather_object(found, items)
    return [item for part in found for item in part]


def from_first(value: Any) -> Any:
    """The value of the first rank."""
    if count() == 1:
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def copy_from_first(module: nn.Module) -> None:
    """Gives parameters and buffers the values of the first rank."""
    if count() > 1:
        with torch.no_grad(), _together():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def average_(values: Iterable[Tensor]) -> None:
    """Replaces tensors of any shapes by their means over the ranks, with one all-reduce. A NaN in one rank is one in all."""
    if count() == 1:
        return
    values = [value.detach() for value in values]
    flat = torch.cat([value.reshape(-1) for value in values])
    with _together():
        dist.all_reduce(flat)
    flat /= count()
    parts = flat.split([value.numel() for value in values])
    torch._foreach_copy_(values, [part.view(value.shape) for part, value in zip(parts, values)])


def gather(values: Tensor) -> Tensor:
    """The tensors of all ranks, which have one shape, joined along their first dimension, without gradient."""
    if count() == 1:
        return values.detach()
    parts = [torch.empty_like(values) for _ in range(count())]
    with _together():
        dist.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)


def share(batch_size: int) -> int:
    """The sequences of a batch that each rank replays.

    Raises:
        ValueError: if they cannot be shared evenly.
    """
    if batch_size % count():
        below = batch_size - batch_size % count()
        fitting = f"{below} or {below + count()}" if below else f"{count()}"
        raise ValueError(
            f"batch_size is {batch_size}, and {count()} processes share each batch evenly; give --batch_size {fitting}, or start "
            "another number of processes"
        )
    return batch_size // count()


class Agreed:
    """A flag that all ranks see alike: true once it was true in one of them when they last met. In a single process the flag itself.

    Args:
        flag: of this rank.
    """

    def __init__(self, flag):
        self._flag, self._met = flag, False

    def meet(self, *numbers: int) -> tuple[int, ...]:
        """Lets the ranks agree; returns sums of numbers over them, see `total`."""
        asked, *sums = total(int(bool(self._flag)), *numbers)
        self._met = asked > 0
        return tuple(sums)

    def __bool__(self) -> bool:
        return self._met if count() > 1 else bool(self._flag)
