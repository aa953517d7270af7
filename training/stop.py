"""Ctrl-C and SIGTERM."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time


class StopSignal:
    """True once Ctrl-C or SIGTERM has asked the program to end; a second one ends it at once. Use as a context manager.

    In a thread other than the main one it is never true, since Python allows handlers of signals in the main thread alone.

    Args:
        tells: whether it prints what happens now.
    """

    def __init__(self, tells: bool = True):
        self._requested_at, self._tells = None, tells

    def __bool__(self) -> bool:
        return self._requested_at is not None

    def __enter__(self) -> "StopSignal":
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's

    def _handle(self, number: int, _) -> None:
        if self._requested_at is None:
            self._requested_at = time.monotonic()
            self._tell("Stopping after this update; all is saved first (Ctrl-C again: stop at once).")
        elif time.monotonic() - self._requested_at > 0.5:  # some programs send a signal twice in a row
            for worker in multiprocessing.active_children():
                worker.kill()
            self._tell("Stopped at once; what was collected since the last checkpoint may be lost.")
            os._exit(128 + number)

    def _tell(self, text: str) -> None:
        # A signal may come in the middle of another print, so this goes straight to the file.
        with contextlib.suppress(OSError):
            if self._tells:
                os.write(2, f"\n{text}\n".encode())
