"""Processes for environments, so that one that dies or hangs does not stop the program."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def start(name: str, target: Callable, args: tuple, method: str | None = None) -> tuple:
    """Starts a process that calls `target(*args, connection)`, with one thread for products, see `limit_threads`.

    Args:
        name: name of the process.
        target: function that runs in it.
        args: its arguments before the connection.
        method: start method of `multiprocessing`; None for "fork", or the system's default where there is no fork.
    Returns:
        the process, and this side's end of the connection.
    Raises:
        RuntimeError: in a daemonic process, which cannot start processes.
    """
    if multiprocessing.current_process().daemon:
        raise RuntimeError(
            "environments run in processes of their own, which a daemonic process cannot start, such as one of multiprocessing.Pool; "
            "use concurrent.futures.ProcessPoolExecutor, or multiprocessing.Process"
        )
    context = multiprocessing.get_context("fork" if forks(method) else method)
    ours, theirs = context.Pipe()
    # Not a daemon: environments may start processes of their own.
    process = context.Process(name=name, target=_begin, args=(target, *args, theirs))
    process.start()
    theirs.close()
    return process, ours


def forks(method: str | None) -> bool:
    """Whether `start` forks with this method."""
    return (method or "fork") == "fork" and "fork" in multiprocessing.get_all_start_methods()


def hint_at_threads(method: str | None) -> str:
    """The end of a message about a process that does not answer, started with this method.

    It may wait for threads of OpenMP that PyTorch had before the fork.
    """
    threads = forks(method) and "torch" in sys.modules
    return "; if it computes with several threads of PyTorch or OpenMP, see docs/your_environment.md" if threads else ""


def _begin(target: Callable, *args) -> None:
    limit_threads()
    target(*args)


def limit_threads() -> None:
    """Lets PyTorch, and libraries that are loaded from now on, compute in one thread.

    A forked process has none of the threads of its parent, and OpenMP would wait for them for ever. Environments that run in parallel
    would also take more threads than there are cores.
    """
    os.environ.update(dict.fromkeys(THREADS, "1"))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def outlive_signals() -> None:
    """Lets this process go on after SIGINT and SIGTERM, which reach its whole process group.

    What it starts ends at SIGTERM as usual, since `multiprocessing` and `subprocess` end their processes with it. Ctrl-C does not end it,
    because the environment needs it until the main process stops.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _nothing)  # unlike SIG_IGN, not inherited by other programs
    if hasattr(signal, "siginterrupt"):  # there is none on Windows
        signal.siginterrupt(signal.SIGTERM, False)
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _nothing(*_) -> None:
    """Handles a signal."""


def stop(process, connection) -> None:
    """Kills a process and closes its connection."""
    connection.close()
    process.kill()
    process.join()
