"""Files that appear under their names only when complete; names and text that any reader accepts."""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil


@contextlib.contextmanager
def replacing(path: pathlib.Path):
    """Opens a file for writing that takes the place of `path` only when it is complete and on the disk."""
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(directory: pathlib.Path) -> None:
    """Removes what `replacing` left in a run's folder when the process was killed in the middle of it."""
    for path in (*directory.glob("*.partial"), *directory.glob("*/*.partial")):
        path.unlink(missing_ok=True)


def link(path: pathlib.Path, other: pathlib.Path) -> None:
    """Gives a file that is not written to again a second name, at once or not at all; a copy where there are no links."""
    if other.exists() and other.samefile(path):
        return
    partial = other.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        try:
            os.link(path.resolve(), partial)
        except OSError:
            shutil.copyfile(path, partial)
        os.replace(partial, other)
    finally:
        partial.unlink(missing_ok=True)


def json_text(tree, indent: int | None = None) -> str:
    """A tree of plain values as JSON that every reader accepts: NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_with_finite_numbers(tree), indent=indent, allow_nan=False)


def _with_finite_numbers(tree):
    if isinstance(tree, dict):
        return {key: _with_finite_numbers(value) for key, value in tree.items()}
    elif isinstance(tree, (list, tuple)):
        return [_with_finite_numbers(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def file_name(text: str) -> str:
    """A text as a part of a file's name, which stays in its folder whatever the text."""
    return re.sub(r"[^\w.+-]", "_", text)[:100]
