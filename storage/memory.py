"""How much memory this process may still take: of the machine, of the containers that it is in, and of its own limit."""

import mmap
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

try:
    import resource
except ImportError:  # there are no such limits on Windows
    resource = None

ROOT = pathlib.Path("/")


class Free(NamedTuple):
    """Free bytes, and what limits them, for messages."""

    bytes: int
    limit: str


def available_memory(root: pathlib.Path = ROOT) -> Free | None:
    """The least that any limit leaves; None if the system reports none.

    Args:
        root: of the file system.
    """
    return min([*_of_machine(root), *_of_groups(root), *_of_process(root)], default=None)


def _of_machine(root: pathlib.Path) -> Iterator[Free]:
    kilobytes = _numbers(root / "proc/meminfo").get("MemAvailable:")
    if kilobytes is not None:
        yield Free(1024 * kilobytes, "this machine")


def _of_groups(root: pathlib.Path) -> Iterator[Free]:
    """What the control groups of this process leave, and those that these are in. Containers and batch systems set them."""
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, *rest = line.split(":", 2)
        if len(rest) < 2:
            continue  # no line of the form number:controllers:path
        controllers, path = rest
        if not controllers:  # version 2
            for group in _with_parents(mounted, path):
                yield from _of_group(group, ("memory.max", "memory.high"), "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            for group in _with_parents(mounted / "memory", path):
                yield from _of_group(group, ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def _with_parents(mounted: pathlib.Path, path: str) -> Iterator[pathlib.Path]:
    """The folder of a group and those above it. Seen from a container, that of its own group may be the mounted one."""
    group = mounted / path.strip("/")
    while group != mounted:
        yield group
        group = group.parent
    yield mounted


def _of_group(group: pathlib.Path, limits: tuple[str, ...], usage: str, cache: str) -> Iterator[Free]:
    """What the limits of a group leave. Files that were read once count as used, but give way: `cache` is their entry in memory.stat."""
    used = _number(group / usage)
    for name in limits:
        limit = _number(group / name)  # "max", which is none, is no number
        if limit is not None and used is not None:
            reclaimed = _numbers(group / "memory.stat").get(cache, 0)
            yield Free(max(0, limit - used + min(reclaimed, used)), f"the memory limit of this container or job, {limit / 1e9:.1f} GB")


def _of_process(root: pathlib.Path) -> Iterator[Free]:
    """What the limit of the address space leaves, as `ulimit -v` sets it."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    pages = next(iter(_lines(root / "proc/self/statm")), "").split()
    if limit != -1 and limit != resource.RLIM_INFINITY and pages:
        yield Free(max(0, limit - int(pages[0]) * mmap.PAGESIZE), f"the limit of this process, ulimit -v, {limit / 1e9:.1f} GB")


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # this system has no such file
        return []


def _number(path: pathlib.Path) -> int | None:
    text = "".join(_lines(path)[:1])
    return int(text) if text.isdecimal() else None


def _numbers(path: pathlib.Path) -> dict[str, int]:
    """The first number of each line by its first word."""
    words = [line.split() for line in _lines(path)]
    return {first: int(second) for first, second, *_ in (line for line in words if len(line) > 1) if second.isdecimal()}
