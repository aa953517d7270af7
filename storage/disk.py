"""Files of a run on a disk that may be full or refuse to be written: what fails is told, kept, and tried again."""

import collections
import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

import console
from storage import files

MOST_WAITING = 2**30  # bytes that wait in memory
SECONDS_BETWEEN_WARNINGS = 60.0


class Waiting(NamedTuple):
    """Bytes for a file: all of it, or what comes behind that which it has."""

    kind: str
    content: bytes
    appended: bool


class Disk:
    """Writes files so that a failure ends nothing.

    What cannot be written waits in memory and is tried again with every later file. If more than `MOST_WAITING` bytes wait, those that
    have waited longest are given up. Each kind of file has a warning of its own, at most once a minute.
    """

    def __init__(self):
        self._waiting: dict[pathlib.Path, Waiting] = {}
        self._failed: set[str] = set()  # kinds of which the caller keeps the content
        self._given_up = collections.Counter()  # files by kind
        self._warned: dict[str, float] = {}  # when, by kind

    def write(self, kind: str, path: pathlib.Path, content: bytes) -> None:
        """Writes a whole file; it appears under its name only when complete.

        Args:
            kind: what such files are called in warnings, in plural.
        """
        self._waiting[path] = Waiting(kind, content, appended=False)
        self.retry()

    def append(self, kind: str, path: pathlib.Path, content: bytes) -> None:
        """Writes at the end of a file, all of it or nothing."""
        before = self._waiting[path].content if path in self._waiting else b""
        self._waiting[path] = Waiting(kind, before + content, appended=True)
        self.retry()

    def attempt(self, kind: str, folder: pathlib.Path, write: Callable[[], None]) -> bool:
        """Writes what the caller keeps and will try again by itself; returns whether that worked."""
        try:
            write()
        except OSError as error:
            self._failed.add(kind)
            self.warn(kind, folder, error)
            return False
        self._failed.discard(kind)
        return True

    def retry(self) -> None:
        """Writes what waits."""
        waited, failing = len(self._waiting) > 1 or bool(self._warned), set()
        for path, (kind, content, appended) in list(self._waiting.items()):
            if kind in failing:  # the others of this kind wait for the next time, so that a full disk costs little
                continue
            entry = self._waiting.pop(path)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _append(path, content) if appended else _write(path, content)
            except OSError as error:
                failing.add(kind)
                self._waiting[path] = entry  # behind the others: it may be the only one that cannot be written
                self.warn(kind, path.parent, error)
        self._give_up_oldest()
        if waited and self._warned and not self.unsaved():
            self._warned.clear()
            console.say("What could not be written before is on the disk now.")

    def _give_up_oldest(self) -> None:
        excess = sum(len(entry.content) for entry in self._waiting.values()) - MOST_WAITING
        while excess > 0:
            entry = self._waiting.pop(next(iter(self._waiting)))
            self._given_up[entry.kind] += 1
            excess -= len(entry.content)
            console.warn(
                f"{entry.kind} wait for the disk and would take more than {MOST_WAITING:,} bytes of memory; the oldest is given up"
            )

    def warn(self, kind: str, folder: pathlib.Path, error: OSError) -> None:
        """Tells of a failure, unless that was done for the same kind within the last minute."""
        now = time.monotonic()
        if now - self._warned.get(kind, -SECONDS_BETWEEN_WARNINGS) < SECONDS_BETWEEN_WARNINGS:
            return
        self._warned[kind] = now
        console.warn(
            f"{kind} cannot be written ({' '.join(str(error).split())}; {free_space(folder)}). Training goes on and tries again; "
            "make space there, or let it be written to"
        )

    def unsaved(self) -> str:
        """What is not on the disk, for people; empty if all is."""
        counts = collections.Counter(entry.kind for entry in self._waiting.values()) + self._given_up
        return ", ".join([*sorted(self._failed), *(f"{kind} ({count} file{'s' if count > 1 else ''})" for kind, count in counts.items())])


def can_be_written(path: pathlib.Path) -> bool:
    """Whether a file may be written here, as far as permissions tell."""
    return not path.is_dir() and os.access(existing(path), os.W_OK)


def existing(path: pathlib.Path) -> pathlib.Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_space(folder: pathlib.Path) -> str:
    """How much is free where this folder is, or would be."""
    folder = existing(folder)
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free in {folder}"
    except OSError as error:
        return f"what is free in {folder} cannot be told: {error.strerror}"


def _write(path: pathlib.Path, content: bytes) -> None:
    with files.replacing(path) as file:
        file.write(content)


def _append(path: pathlib.Path, content: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)  # half a line would damage the one that follows
            raise
