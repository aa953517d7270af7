"""Processes that environments run in, so that one that dies or hangs does not take the program with it."""

import multiprocessing
from collections.abc import Callable


def start(name: str, target: Callable, args: tuple, method: str | None = None) -> tuple:
    """Starts a process that is called with `args` and a connection; returns it and our end of the connection.

    Args:
        name: what the process is called.
        method: how it starts, as in `multiprocessing`; None for the system's default, "fork" where there is it.
    Raises:
        RuntimeError: in a daemonic process.
    """
    if multiprocessing.current_process().daemon:
        raise RuntimeError(
            "environments run in processes of their own, which a daemonic process cannot start, such as one of multiprocessing.Pool; "
            "use concurrent.futures.ProcessPoolExecutor, or multiprocessing.Process"
        )
    context = multiprocessing.get_context(method or ("fork" if "fork" in multiprocessing.get_all_start_methods() else None))
    ours, theirs = context.Pipe()
    process = context.Process(name=name, target=target, args=(*args, theirs))  # no daemon, which could not start processes itself
    process.start()
    theirs.close()
    return process, ours


def stop(process, connection) -> None:
    """Ends a process at once."""
    connection.close()
    process.kill()
    process.join()
