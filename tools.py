"""Loading settings, schedules, devices and seeding."""

import ctypes
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from settings import Config, load_config  # noqa: F401 -- tools.load_config is where users look for it


class Every:
    """True if a counter has passed a multiple of `every` since the last call.

    Args:
        every: the interval; 0 is never.
        start: the counter at the beginning.
    """

    def __init__(self, every: int, start: int = 0):
        self._every = every
        self._last = start // every if every else 0

    def __call__(self, count: int) -> bool:
        if not self._every or count // self._every == self._last:
            return False
        self._last = count // self._every
        return True


class Timer:
    """True once every `seconds`."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self.restart()
        return True

    def restart(self) -> None:
        self._last = time.monotonic()


class Speed:
    """Rates of counters per second, between one call and the next.

    Args:
        counts: starting values of the counters by name.
    """

    def __init__(self, **counts: int):
        self._counts, self._time = counts, time.monotonic()

    def __call__(self, **counts: int) -> dict[str, float]:
        now = time.monotonic()
        rates = {name: (count - self._counts[name]) / (now - self._time) for name, count in counts.items()}
        self._counts, self._time = counts, now
        return rates


class UpdateBudget:
    """Counts the updates that are due, so that every collected step is replayed `train_ratio` times on average.

    Args:
        train_ratio: replayed steps per agent step.
        batch_steps: steps that one update replays, B * T.
    """

    def __init__(self, train_ratio: float, batch_steps: int):
        self._updates_per_step = train_ratio / batch_steps
        self.credit = 0.0  # updates that are due; a fraction waits for the next step

    def add(self, steps: int) -> None:
        """Counts collected agent steps."""
        self.credit += self.updates_for(steps)

    def updates_for(self, steps: float) -> float:
        """Updates that become due when this many agent steps are collected."""
        return steps * self._updates_per_step

    def due(self, stop=False) -> Iterator[None]:
        """Yields once for every update that is due now. Once `stop` is true, the others stay due."""
        for _ in range(int(self.credit)):
            if stop:
                return
            self.credit -= 1.0
            yield


def pick_device(name: str) -> str:
    """The device for a value of the setting `device`. "auto" is a GPU if there is one; "meta" holds shapes without
    numbers.

    Raises:
        ValueError: for an unknown device, or one that this machine lacks.
    """
    match = re.fullmatch(r"(auto|cpu|mps|cuda|meta)|cuda:(\d+)", name)
    if not match:
        raise ValueError(f"device is {name!r}; allowed are auto, cpu, cuda, cuda:<number> and mps")
    gpus, mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if gpus else "mps" if mps else "cpu"
    if name == "mps" and not mps:
        raise ValueError("device is 'mps', but PyTorch finds no Apple GPU here; use --device auto or --device cpu")
    if name.startswith("cuda") and int(match[2] or 0) >= gpus:
        raise ValueError(
            f"device is {name!r}, but PyTorch finds {gpus} CUDA GPUs here; use --device auto or --device cpu, or "
            "install a PyTorch that is built for CUDA"
        )
    return name


NARROW = 256  # hidden units below which a CPU loses more by converting to bfloat16 than its products gain


def pick_precision(name: str, device: str, hidden: int) -> tuple[str, str]:
    """The precision for a value of the setting `precision`.

    Args:
        name: the setting.
        device: from `pick_device`.
        hidden: hidden units of the networks (`dyn_hidden`).
    Returns:
        "32" or "bf16", and why; the reason is empty unless the setting is "auto".
    """
    if name != "auto":
        return name, ""
    capable = torch.cpu.get_capabilities()
    unit = "AMX" if capable.get("amx_bf16") else "AVX-512" if capable.get("avx512_bf16") else None
    if device == "cpu" and unit and hidden < NARROW:
        return "32", f"layers of {hidden} units are faster in float32 on a CPU"
    if device == "cpu" and unit:
        return "bf16", f"the processor computes in bfloat16, with {unit}"
    if device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "the GPU computes in bfloat16"
    return "32", f"no bfloat16 units are known on {device}"


def autocast(config) -> torch.autocast:
    """A context in which matrix products and convolutions run in bfloat16, if `precision` is bf16.

    Weights are cast at every use. With a cached copy, a recurrence would sum the gradients of its steps in bfloat16.
    """
    return torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.precision == "bf16", cache_enabled=False)


def python_command() -> str:
    """What to type for this Python: `python`, or its path where that word means another one."""
    found = shutil.which("python")
    if found and os.path.dirname(os.path.abspath(found)) == os.path.dirname(os.path.abspath(sys.executable)):
        return "python"
    path = os.path.relpath(sys.executable)
    return os.path.abspath(sys.executable) if path.startswith(os.pardir) else path


def describe_device(device: str) -> str:
    """A readable device, with the name of the GPU or the number of CPU threads."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device == "cpu" else device


def check_compiler(device: str) -> None:
    """Compiles a small function, to find out early whether `torch.compile` works.

    Raises:
        ValueError: if it does not.
    """
    try:
        torch.compile(torch.add)(torch.ones(2, device=device), 1.0)
    except Exception as error:  # whatever a toolchain may fail with
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"compile is true, but torch.compile does not work here ({type(error).__name__}: {reason}); install a C++ "
            "compiler such as g++ (on a GPU also Triton), or use --compile false"
        ) from error


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks. Otherwise every update requests them from the kernel again."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4  # from glibc's malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        pass  # another C library: nothing to tune


def allow_tf32() -> None:
    """Lets NVIDIA GPUs round the factors of float32 products to TF32, as convolutions do by default."""
    torch.backends.cuda.matmul.allow_tf32 = True


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and PyTorch.

    Args:
        deterministic: restrict PyTorch to deterministic operations. It warns about an operation that has no such
            version.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.backends.cudnn.benchmark = False
    if deterministic or torch.are_deterministic_algorithms_enabled():  # importing torch._inductor is slow
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def train_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of a rank's training environments that start at this frame. A resumed run gets another one, and so new episodes."""
    return _derived_seed(seed, 0, step, *_of(rank))


def eval_seed(seed: int) -> int:
    """Seed of the evaluation environments: never a training seed, and the same at every evaluation."""
    return _derived_seed(seed, 1)


def policy_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of a rank's random actions from this frame on; never that of an environment, whose generators are of the same kind."""
    return _derived_seed(seed, 2, step, *_of(rank))


def video_seed(seed: int, clock: int) -> int:
    """Seed of the choice of sequences for open-loop predictions."""
    return _derived_seed(seed, 3, clock)


def rank_seed(seed: int, clock: int, rank: int) -> int:
    """Seed of all other random numbers of a rank beyond the first, from this frame or update on."""
    return _derived_seed(seed, 4, clock, rank)


def _of(rank: int) -> tuple[int, ...]:
    return (rank,) if rank else ()  # one process draws the same as the first rank


def _derived_seed(*keys: int) -> int:
    # 30 bits: environments add their index, and accept 31 bits.
    return int(np.random.SeedSequence(keys).generate_state(1)[0] >> 2)
