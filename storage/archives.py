"""What files from strangers announce, checked before anything in them is read: sizes, names, and what a pickle would call.

Checkpoints and episodes are zip archives. A small one can announce, or hold, more than any memory has.
"""

import collections
import functools
import io
import math
import pathlib
import pickletools
import re
import zipfile
from typing import NamedTuple

import numpy as np
import torch

from envs.names import MOST_NAME, is_entry_name

MOST_EPISODE_BYTES = 2**32  # 350,000 steps of images of 64x64x3
MOST_HEADER_BYTES = 10_000  # of an array
MOST_VALUES, MOST_DEPTH = 1_000_000, 50  # of a checkpoint's containers
# All that a checkpoint of this program or of dreamerv3-torch calls while it is read.
CALLED = re.compile(r"collections OrderedDict|torch (Size|device|\w+Storage)|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)")
CALLING = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")


class Unsafe(ValueError):
    """A file that, once read, could take all memory, end elsewhere than it should, or run code. Its text says why."""


class Header(NamedTuple):
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def check_names(names: list[str]) -> None:
    """Raises Unsafe for a name that stands twice, or that would lead out of a folder."""
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise Unsafe(f"it holds {twice[0]!r:.100} more than once")
    for name in names:
        if not is_entry_name(name):
            raise Unsafe(f"it holds the name {name!r:.100}, which is none of an array or tensor")


def _check_size(archive: zipfile.ZipFile, most: int) -> None:
    announced = sum(entry.file_size for entry in archive.infolist())
    if announced > most:
        raise Unsafe(f"it would unpack to {announced:,} bytes; allowed are {most:,}")


def npz_headers(path: pathlib.Path, most: int = MOST_EPISODE_BYTES) -> dict[str, Header]:
    """Shape and dtype of every array in a .npz file, by name; only headers are read.

    Raises:
        Unsafe: for names that lead elsewhere or stand twice, arrays of Python objects, and more than `most` bytes.
        Exception: nearly anything, for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        return headers_in(archive, most)


def headers_in(archive: zipfile.ZipFile, most: int = MOST_EPISODE_BYTES) -> dict[str, Header]:
    """`npz_headers` of an open file."""
    check_names(archive.namelist())
    _check_size(archive, most)
    return {entry.filename.removesuffix(".npy"): _npy_header(archive, entry) for entry in archive.infolist()}


def _npy_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Header:
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{entry.filename!r:.100} is no array")
    with archive.open(entry) as file:
        shape, _, dtype = read_npy_header(file)
        held = entry.file_size - file.tell()
    if dtype.hasobject:
        raise Unsafe(f"{entry.filename!r:.100} holds Python objects, which could run code (allow_pickle=False)")
    announced = math.prod(shape) * dtype.itemsize
    if announced != held:
        raise ValueError(f"{entry.filename!r:.100} announces {announced:,} bytes and holds {held:,}")
    return Header(shape, dtype)


def read_npy_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first index varies fastest, and dtype of the array in an open .npy file, whose numbers come next."""
    magic = file.read(np.lib.format.MAGIC_LEN)
    size = file.read(2 if magic[6:7] == b"\1" else 4)
    if (length := int.from_bytes(size, "little")) > MOST_HEADER_BYTES:
        raise ValueError(f"the header of an array has {length:,} bytes; allowed are {MOST_HEADER_BYTES:,}")
    return _parsed(magic + size + file.read(length))


@functools.lru_cache(1024)  # parsing takes longest of all where episodes are short, and most headers are alike
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def check_checkpoint(path: pathlib.Path) -> None:
    """Makes sure that reading a checkpoint takes about twice the memory of the file at most, and calls only what makes tensors.

    Raises:
        Unsafe: if it would.
        ValueError, zipfile.BadZipFile: for a file that is damaged or no archive.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError("it is no archive as torch.save writes it")
    with zipfile.ZipFile(path) as archive:
        check_names(archive.namelist())
        _check_size(archive, 2 * path.stat().st_size + 2**20)  # numbers hardly shrink where they are compressed
        if damaged := archive.testzip():  # torch.load checks no sums
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                _check_pickle(archive.read(name))


def _check_pickle(content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in CALLING or (opcode.name == "GLOBAL" and not CALLED.fullmatch(argument)):
            raise Unsafe(f"it holds more than tensors and plain values ({argument or opcode.name!s:.100})")


def check_values(tree) -> None:
    """Makes sure that what was read is a tree of plain containers, and that no tensor in it claims more than it holds.

    Raises:
        Unsafe: for tensors that repeat their numbers or hold none, for containers that hold themselves or each other too often or too
            deeply, and for dicts with attributes of their own, beside those that PyTorch notes.
    """
    count, waiting = 0, [(tree, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > MOST_DEPTH:
            raise Unsafe("its containers hold each other too often or too deeply")
        if isinstance(value, torch.Tensor):
            _check_tensor(value)
        elif isinstance(value, dict):
            if vars(value).keys() - {"_metadata"} if isinstance(value, collections.OrderedDict) else ():
                raise Unsafe("it holds a dict with attributes of its own")
            if any(isinstance(key, str) and (len(key) > MOST_NAME or not key.isprintable()) for key in value):
                raise Unsafe(f"it holds a name of more than {MOST_NAME} characters, or one that cannot be printed")
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
            waiting += [(getattr(value, "_metadata", None), depth + 1)]
        elif isinstance(value, (list, tuple)):
            waiting += [(part, depth + 1) for part in value]


def _check_tensor(tensor: torch.Tensor) -> None:
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise Unsafe(f"it holds a tensor of shape {tuple(tensor.shape)} without as many numbers")
