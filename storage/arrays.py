"""Named arrays in .npz files.

`numpy.savez` takes names as keyword arguments and so refuses `file` and `allow_pickle`; `numpy.load` confuses the names `x` and `x.npy`.
"""

import math
import pathlib
import zipfile
from collections.abc import Iterable
from typing import IO

import numpy as np

from storage import archives

PIECE = 2**18  # bytes that are read at once


def write(file: pathlib.Path | IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays with compression, as `numpy.savez_compressed` does. `names.is_entry_name` tells which names are read again."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def read(archive: zipfile.ZipFile, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads these arrays of an open file whose headers `archives.headers_in` has checked.

    Raises:
        Exception: nearly anything, for a damaged file.
    """
    return {name: _array(archive, f"{name}.npy") for name in names}


def _array(archive: zipfile.ZipFile, entry: str) -> np.ndarray:
    with archive.open(entry) as file:
        shape, by_columns, dtype = archives.read_npy_header(file)
        values, at = np.empty(math.prod(shape), dtype), 0
        while piece := file.read(PIECE):  # at once, the content would be in memory twice
            values.view(np.uint8)[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
    return values.reshape(shape, order="F" if by_columns else "C")
