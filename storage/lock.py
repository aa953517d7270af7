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
WAY_OUT = "wait for its end, stop it, or give another --logdir"

# Locks by process and folder. The system's lock excludes other processes alone, and is lost when this one closes the file a second
# time. A forked process has another id, so it holds none of these.
_held: dict[tuple[int, str], "Lock"] = {}


class Lock:
    """Holds the folder of a run until it is closed, or until the process ends in whatever way.

    The system keeps the lock, not the file: what a process leaves behind when it is killed locks nothing. The file says who holds
    it. Worker processes do not inherit it.

    Args:
        logdir: the folder.
    Raises:
        ValueError: if another run holds it, of this process or another one; then nothing has changed in it.
        OSError: if it cannot be written.
    """

    def __init__(self, logdir: pathlib.Path):
        self._path, self._folder, self._file = logdir / NAME, str(logdir.resolve()), None
        if _held.setdefault(self._key, self) is not self:  # one step, so that one of two threads gets it
            raise ValueError(f"another run of this process is writing into {logdir}; {WAY_OUT}")
        try:
            if fcntl is not None:
                self._open()
                self._sign()
        except BaseException:
            self.close()
            raise

    @property
    def _key(self) -> tuple[int, str]:
        return os.getpid(), self._folder

    def _open(self) -> None:
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

    def _acquire(self, file) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"another run is writing into {self._path.parent}: {_holder(file)}; {WAY_OUT}") from error
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
        """Releases the folder. In a forked process, it only closes the file."""
        if self._file is not None:
            if _held.get(self._key) is self:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            self._file.close()
            self._file = None
        if _held.get(self._key) is self:
            del _held[self._key]


def _holder(file) -> str:
    file.seek(0)
    return " ".join(file.read(200).split())


def _same_file(file, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
