"""Makes damaged and malicious checkpoints, episodes and settings."""

import copy
import io
import os
import pathlib
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

TRICKS = ["../../escaped", "/escaped", "a/../../escaped", "..\\escaped", "new\nline", "nul\0", "", "x" * 5000, "a/b", "é\u202e"]
NUMBERS = [-1, 0, 1, 2**31, 2**63, -(2**63), 10**30, 10**5000, 1e308, float("nan"), float("inf"), True]
JUNK = [
    None,
    *NUMBERS,
    *TRICKS,
    [],
    {},
    [[]],
    {"x": {"y": 1}},
    torch.tensor(3),
    torch.zeros(0),
    torch.zeros(5, 5).bool(),
    torch.full((2,), torch.nan),
    torch.zeros(3, 3, dtype=torch.complex64),
    torch.zeros(1).expand(10**9),
]


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


# Bytes


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut off, moved, doubled, or replaced by sizes that are far too large."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([1, 4, 50, 2000]))
        change = rng.choice(["flip", "cut", "splice", "double", "delete", "size", "zero"])
        if change == "flip":
            for index in range(start, end):
                content[index] ^= 1 << rng.randrange(8)
        elif change == "cut":
            del content[start:]
        elif change == "splice":
            other = rng.randrange(len(content) + 1)
            content[other : other + end - start] = content[start:end]
        elif change == "double":
            content[start:start] = content[start:end]
        elif change == "delete":
            del content[start:end]
        elif change == "size":
            content[start : start + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"])
        elif change == "zero":
            content[start:end] = bytes(end - start)
    return bytes(content)


def members(content: bytes) -> dict[str, bytes]:
    """The files in an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of files, whose checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name.replace("\0", "?") or "empty", content)
    return buffer.getvalue()


def mutate_members(content: bytes, rng: random.Random) -> bytes:
    """An archive with right checksums, in which one file is damaged, missing, double or has another name."""
    entries = list(members(content).items())
    index = rng.randrange(len(entries))
    index = 0 if rng.random() < 0.5 else index  # the pickle of a checkpoint comes first
    name, inner = entries[index]
    change = rng.choice(["damage", "damage", "damage", "remove", "double", "rename", "add", "swap"])
    if change == "damage":
        entries[index] = name, mutate_bytes(inner, rng)
    elif change == "remove":
        del entries[index]
    elif change == "double":
        entries.append((name, mutate_bytes(inner, rng)))
    elif change == "rename":
        entries[index] = rng.choice(TRICKS), inner
    elif change == "add":
        entries.append((rng.choice(TRICKS) + rng.choice(["", ".npy", ".pkl"]), inner))
    elif change == "swap":
        other = rng.randrange(len(entries))
        entries[index], entries[other] = (name, entries[other][1]), (entries[other][0], inner)
    return packed(entries, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def bomb(names: list[str], head: bytes, size: int) -> bytes:
    """An archive whose files are a head and zeros, each of so many bytes (below 2^32), in a thousandth of that."""
    piece, squeezer = bytes(2**20), zlib.compressobj(9, zlib.DEFLATED, -15)
    first = squeezer.compress(head) + squeezer.flush(zlib.Z_FULL_FLUSH)
    block = squeezer.compress(piece) + squeezer.flush(zlib.Z_FULL_FLUSH)
    pieces, rest = divmod(size - len(head), len(piece))
    data = first + block * pieces + squeezer.compress(bytes(rest)) + squeezer.flush()
    archive, directory = b"", b""
    for name in map(str.encode, names):
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(archive)) + name
        archive += b"PK\3\4" + fields + name + data
    end = struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(directory), len(archive), 0)
    return archive + directory + b"PK\5\6" + end


# Trees


def paths(tree, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all entries of nested dicts and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, (dict, list)) and len(value) < 100:
            yield from paths(value, (*path, key))


def mutate_tree(tree: dict, junk: Callable[[], object], rng: random.Random) -> dict:
    """A copy in which some entries are missing, replaced, cut, or have come in."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 3])):
        every = list(paths(tree))
        if not every:
            break
        *folders, key = rng.choice(every)
        place = tree
        for folder in folders:
            place = place[folder]
        change = rng.choice(["delete", "replace", "replace", "cut", "add"])
        if change == "delete":
            del place[key]
        elif change == "add" and isinstance(place, dict):
            place[rng.choice([*TRICKS, 7, "more", "config.x"])] = junk()
        elif change == "cut" and torch.is_tensor(place[key]) and place[key].numel():
            place[key] = place[key].flatten()[:-1].clone()
        else:
            place[key] = junk()
    return tree


def doubled(depth: int, first=0) -> list:
    """A list of two lists that are the same one, and so on: small, and 2^depth values to whoever walks through it."""
    for _ in range(depth):
        first = [first, first]
    return first


def doubled_dict(depth: int) -> dict:
    """As `doubled`, of dicts."""
    value = {}
    for _ in range(depth):
        value = {"a": value, "b": value}
    return value


def nested(depth: int) -> list:
    """A list in a list in a list."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


UNREAD = {"bytes": mutate_bytes, "members": mutate_members}  # what is done to a file without reading what it holds


# Checkpoints


def checkpoints(good: bytes, canary: pathlib.Path, rng: random.Random) -> bytes:
    """A checkpoint that is probably none."""
    kind = rng.choice(["bytes", "members", "members", "tree", "tree", "tree", "harm"])
    if kind in UNREAD:
        return UNREAD[kind](good, rng)
    tree = torch.load(io.BytesIO(good), weights_only=True)
    if kind == "tree":
        return _saved(mutate_tree(tree, lambda: rng.choice(JUNK), rng))
    return _harmful(tree, good, canary, rng)


def _harmful(tree: dict, good: bytes, canary: pathlib.Path, rng: random.Random) -> bytes:
    """A checkpoint that is made to run code, or to take all memory or time."""
    place = rng.choice(["config", "agent_state_dict", "random_state", "more", "optims_state_dict"])
    trees = {
        "payload": {**tree, place: Payload(canary)},
        "doubled": {**tree, place: {"x": doubled(40)}},
        "doubled dicts": {**tree, place: doubled_dict(40)},
        "nested": {**tree, place: {"x": nested(200)}},
    }
    harm = rng.choice([*trees, "itself", "attributes", "sizes", "pickle", "legacy", "bytearray", "bomb"])
    if harm in trees:
        return _saved(trees[harm])
    elif harm == "itself":
        tree[place] = {"x": tree}
    elif harm == "attributes":
        tree["agent_state_dict"].get = 3
    elif harm == "sizes":
        _enlarge(tree, rng)
    elif harm == "pickle":
        return pickle.dumps(trees["payload"])
    elif harm == "legacy":
        return _saved(trees["payload"], _use_new_zipfile_serialization=False)
    elif harm == "bytearray":
        thirty_gigabytes = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (3 * 10**10).to_bytes(5, "little") + b"\x85R."
        return packed([(name, thirty_gigabytes if name.endswith(".pkl") else content) for name, content in members(good).items()])
    elif harm == "bomb":
        return bomb(["archive/data.pkl", "archive/data/0"], b"", 2**31)
    return _saved(tree)


def _enlarge(tree: dict, rng: random.Random) -> None:
    """Settings, and perhaps a space, of an agent that no memory could hold."""
    name = rng.choice(["dyn_deter", "units", "dyn_stoch", "size", "envs", "batch_length", "disag_models"])
    tree["config"][name] = [2**20, 2**20] if name == "size" else rng.choice([10**6, 10**9, 10**15])
    if rng.random() < 0.5:
        tree["spaces"]["observation"]["spaces"]["vector"]["shape"] = [rng.choice([10**7, 10**9, 10**13])]


def _saved(tree, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, **kwargs)
    return buffer.getvalue()


# Episodes


def episodes(good: bytes, canary: pathlib.Path, rng: random.Random) -> bytes:
    """An episode that is probably none."""
    kind = rng.choice(["bytes", "members", "members", "arrays", "arrays", "arrays", "harm"])
    if kind in UNREAD:
        return UNREAD[kind](good, rng)
    arrays = dict(np.load(io.BytesIO(good)))
    if kind == "arrays":
        return _zipped(_mutate_arrays(arrays, rng))
    harm = rng.choice(["payload", "announced", "bomb", "header", "version"])
    if harm == "payload":
        return _zipped({**arrays, rng.choice(list(arrays)): np.array([Payload(canary)] * len(arrays["reward"]), object)})
    if harm == "bomb":
        head = _npy_head((3 * 2**30 - 128,), "|u1")
        return bomb([f"{name}.npy" for name in ("reward", "action")], head, 3 * 2**30)
    entries = members(good)
    name = rng.choice(list(entries))
    if harm == "announced":
        entries[name] = _npy_head(rng.choice([(10**12,), (2**40, 2**40), (-1, -10), (0, 10**30)]), rng.choice(["<f4", "|V8", "<U99999999"]))
    elif harm == "header":
        entries[name] = rng.choice([b"(" * 9000, b"9" * 60000, b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\xff" * 100])
        entries[name] = b"\x93NUMPY\1\0" + struct.pack("<H", len(entries[name])) + entries[name]
    else:
        entries[name] = b"\x93NUMPY" + bytes([rng.randrange(256), rng.randrange(256)]) + entries[name][8:]
    return packed(list(entries.items()), zipfile.ZIP_DEFLATED)


def _npy_head(shape: tuple[int, ...], dtype: str) -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head


def _mutate_arrays(arrays: dict[str, np.ndarray], rng: random.Random) -> dict[str, np.ndarray]:
    for _ in range(rng.choice([1, 1, 3])):
        key = rng.choice(list(arrays))
        value, change = arrays[key], rng.choice(["type", "shape", "missing", "extra", "values", "length", "name"])
        if change == "type":
            arrays[key] = value.astype(rng.choice(["u1", "i8", "f2", "c16", "U9", "S3", "M8[s]", "?", "f8"]))
        elif change == "shape":
            arrays[key] = rng.choice([value[..., None], value.reshape(-1), value[:0], np.float32(1.0), value[:, None]])
        elif change == "missing" and len(arrays) > 1:
            del arrays[key]
        elif change == "extra":
            arrays[rng.choice(TRICKS[:-1]).replace("\0", "?")[:200] or "empty"] = value
        elif change == "values" and value.dtype.kind == "f":
            arrays[key] = np.full_like(value, rng.choice([np.nan, np.inf, 1e38, -1e38, 0.5]))
        elif change == "length":
            arrays[key] = np.concatenate([value, value]) if value.ndim else value
        elif change == "name":
            arrays[rng.choice(["image", "vector", "log_x", "position"])] = arrays.pop(key)
    return arrays


def _zipped(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asanyarray(value), allow_pickle=True)  # written, to be refused by every reader
    return buffer.getvalue()


# Settings


def configs(good: bytes, canary: pathlib.Path, rng: random.Random) -> bytes:
    """A config.yaml that is probably none."""
    kind = rng.choice(["bytes", "bytes", "lines", "lines", "harm"])
    if kind == "bytes":
        return mutate_bytes(good, rng)
    lines = good.decode().splitlines()
    index = rng.randrange(len(lines))
    if kind == "lines":
        name = lines[index].partition(":")[0]
        values = [
            *map(str, NUMBERS[:-5]),
            "9" * 5000,
            *TRICKS[:5],
            "[1, [2]]",
            "{a: {b: 1}}",
            "!!binary x",
            "2001-99-99",
            "!!set {a}",
            "*x",
        ]
        values += ["0o7777777777777777777777", "1e999", ".nan", "!!float x", "!!timestamp 1", "? a", "null", "|\n  text", "0x" + "f" * 3000]
        lines[index] = f"{name}: {rng.choice(values)}"
        return "\n".join(lines).encode("utf-8", "surrogateescape")
    harm = rng.choice(
        [
            f"units: !!python/object/apply:os.mkdir [{canary}]",
            f"units: !!python/object/new:os.mkdir [{canary}]",
            f"!!python/object/apply:os.mkdir [{canary}]: 1",
            "units: " + "[" * 20000,
            "units: " + "{a: " * 5000,
            "a0: &a0 [x, x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)),
            "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 40)),
            "units: &u [*u]",
            "logdir: ../../escaped\ntask: gym_../../escaped",
            f"import: {canary}",
            "- " * 3000,
            "? " * 3000,
            "x: " * 3000,
            "%YAML 9.9\n---\n",
            "--- a\n--- b",
            "<<: {units: 1}",
            "x: " + "y" * 10**6,
        ]
    )
    lines[index:index] = harm.splitlines()
    return (harm if rng.random() < 0.3 else "\n".join(lines)).encode()
