"""The latents of replayed steps on disk: one .npz file without compression, written and read piece by piece.

Steps are identified by the file of their episode and their index in it. The arrays are `names` (P,), `starts` (P,) and
`lengths` (P,) of the pieces, and each latent (M, ...), the M steps of all pieces behind each other.
"""

import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from storage import archives, files

MOST_INDEX_BYTES = 2**28
INDEX = ("names", "starts", "lengths")
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and dtype of one step, by key


class Piece(NamedTuple):
    """Consecutive steps of an episode: the name of its file, the index of the first one in it, and how many."""

    name: str
    start: int
    length: int


def write(path: pathlib.Path, layout: Layout, pieces: list[Piece], rows: Callable[[str], Iterator[np.ndarray]]) -> None:
    """Writes latents; the file appears under its name only when complete.

    Args:
        pieces: which steps they are of.
        layout: see `Layout`.
        rows: yields the contiguous arrays (length, ...) of a key, one for each piece. They are not copied.
    Raises:
        OSError: if that fails; an older file stays as it was.
    """
    names, starts, lengths = zip(*pieces) if pieces else ((), (), ())
    index = np.array([os.fsencode(name) for name in names], "S"), np.array(starts, np.int64), np.array(lengths, np.int64)
    with files.replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, array in zip(INDEX, index):
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        for key, (shape, dtype) in layout.items():
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (sum(lengths), *shape)}
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for array in rows(key):
                    member.write(array.data)


def read_index(path: pathlib.Path, layout: Layout) -> list[Piece]:
    """Which steps a file holds latents of.

    Raises:
        ValueError: if it has another layout, or is damaged.
        Exception: of nearly any kind, for a damaged file.
    """
    headers = archives.npz_headers(path, most=path.stat().st_size)  # nothing is compressed
    if headers.keys() != {*INDEX, *layout}:
        raise ValueError(f"it holds {', '.join(sorted(headers))}; expected are {', '.join(sorted([*INDEX, *layout]))}")
    index = [headers[key] for key in INDEX]
    count = index[0].shape
    if [header.dtype.kind for header in index] != ["S", "i", "i"] or len(count) != 1 or any(header.shape != count for header in index):
        raise ValueError("its index is damaged")
    if sum(math.prod(header.shape) * header.dtype.itemsize for header in index) > MOST_INDEX_BYTES:
        raise archives.Unsafe(f"its index takes more than {MOST_INDEX_BYTES:,} bytes")
    with np.load(path, allow_pickle=False) as file:
        names, starts, lengths = (file[key].tolist() for key in INDEX)
    for key, (shape, dtype) in layout.items():
        if headers[key] != archives.Header((sum(lengths), *shape), np.dtype(dtype)):
            found = f"{headers[key].dtype} of shape {headers[key].shape}"
            raise ValueError(f"{key} is {found}; expected is {np.dtype(dtype)} of shape {(sum(lengths), *shape)}")
    if min([0, *starts]) < 0 or min([1, *lengths]) < 1:
        raise ValueError("its index is damaged")
    return [Piece(os.fsdecode(name), start, length) for name, start, length in zip(names, starts, lengths)]


def read_rows(path: pathlib.Path, key: str, pieces: list[Piece], codes: int | None = None) -> Iterator[np.ndarray]:
    """Reads a latent piece by piece, arrays (length, ...).

    Args:
        pieces: all of the file, from `read_index`.
        codes: integers must be below this number; None for floats.
    Raises:
        ValueError: for numbers that no latent has.
        Exception: of nearly any kind, for a damaged file; a wrong checksum only shows at the end.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        shape, by_columns, dtype = archives.read_npy_header(member)
        if by_columns:
            raise ValueError(f"{key} is not stored step by step")
        for piece in pieces:
            content = member.read(piece.length * math.prod(shape[1:]) * dtype.itemsize)
            rows = np.frombuffer(content, dtype).reshape(piece.length, *shape[1:])
            if not np.isfinite(rows).all() or (codes is not None and rows.max() >= codes):
                raise ValueError(f"{key} has numbers that no latent has")
            yield rows
