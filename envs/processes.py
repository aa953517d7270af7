"""Processes for environments, so that one that dies or hangs does not stop the program."""

import multiprocessing
from collections.abc import Callable


def start(name: str, target: Callable, args: tuple, method: str | None = None) -> tuple:
    """Starts a process that calls `target(*args, connection)`.

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
    context = multiprocessing.get_context(method or ("fork" if "fork" in multiprocessing.get_all_start_methods() else None))
    ours, theirs = context.Pipe()
    # Not a daemon: environments may start processes of their own.
    process = context.Process(name=name, target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    return process, ours


def stop(process, connection) -> None:
    """Kills a process and closes its connection."""
    connection.close()
    process.kill()
    process.join()
