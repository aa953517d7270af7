"""One run at a time in a folder."""

import contextlib
import errno
import os
import pathlib
import socket

import console

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None

NAME = "run.lock"


class Lock:
    """Holds the folder of a run until it is closed, or until the process ends in whatever way.

    The system keeps the lock, not the file: what a process leaves behind when it is killed locks nothing. The file says who holds
    it. Worker processes do not inherit it.

    Args:
        logdir: the folder.
    Raises:
        ValueError: if another process holds it; then nothing has changed in it.
        OSError: if it cannot be written.
    """

    def __init__(self, logdir: pathlib.Path):
        self._path, self._file = logdir / NAME, None
        if fcntl is None:
            return
        while self._file is None:
            file = open(self._path, "a+")  # noqa: SIM115 -- it stays open
            try:
                self._acquire(file)
                # Its last holder may have removed the file after it was opened here.
                if _same_file(file, self._path):
                    self._file = file
            finally:
                if self._file is None:
                    file.close()
        try:
            self._sign()
        except OSError:
            self.close()
            raise

    def _acquire(self, file) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"another run is writing into {self._path.parent}: {_holder(file)}; wait for its end, stop it, or give another --logdir"
                ) from error
            console.warn(f"{self._path.parent} cannot be locked ({error.strerror}); take care that only one run writes into it")

    def _sign(self) -> None:
        """Writes down whose lock it is; says so if its last holder did not end well."""
        if before := _holder(self._file):
            console.say(f"The run before in this folder did not end by itself ({before}).")
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        """Releases the folder."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._file.close()
            self._file = None


def _holder(file) -> str:
    file.seek(0)
    return " ".join(file.read(200).split())


def _same_file(file, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
