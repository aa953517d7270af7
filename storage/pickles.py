"""Reads pickles of numpy arrays and plain values, from strangers too.

A pickle is a program for a stack machine that can import and call anything. Here is such a machine, with only the opcodes that arrays and
plain values need. What it imports stays a name, what it calls is a placeholder, and arrays are made of their shape, dtype and bytes.

The standard library's unpickler is not enough, even if it imports nothing: a few bytes can make it allocate gigabytes (places in the memo)
or overflow the stack (hashes of nested keys).
"""

import dataclasses
import math
import os
import pathlib
import pickle  # names of opcodes
import re
import struct
from typing import BinaryIO

import numpy as np

from storage.archives import MOST_DEPTH, MOST_NAME, MOST_VALUES, Unsafe

MOST_BYTES = 2**33  # an agent of 400 million parameters has 5 GB: weights and two moments
MOST_AXES, MOST_LENGTH = 32, 2**31  # of an array
# All that numpy 1 (numpy.core) and 2 (numpy._core) call for an array; _frombuffer since protocol 5.
CALLED = re.compile(r"numpy (ndarray|dtype)|numpy\._?core\.multiarray _reconstruct|numpy\._?core\.numeric _frombuffer")
DTYPES = "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split()

# Opcodes with the format of their argument, and those with a fixed number of values that they take off the stack.
NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
STRINGS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I"}
BYTES = {pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I", pickle.BINBYTES8: "<Q", pickle.BYTEARRAY8: "<Q"}
GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
ARGUMENTS = {pickle.PROTO: "<B", pickle.FRAME: "<Q", pickle.LONG1: "<B", **NUMBERS, **STRINGS, **BYTES, **GETS}
TAKEN = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3, pickle.APPEND: 1, pickle.SETITEM: 2}
CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}


def read(path: pathlib.Path, most: int = MOST_BYTES) -> object:
    """What a pickle of protocol 4 or 5 holds. Nothing in it can run code, or take much more memory than the file is large.

    It may hold dicts with names as keys, lists, tuples, names, numbers, None, and arrays of booleans, integers and floats, each container
    and array in one place only. A name is a printable string of at most MOST_NAME characters. Arrays are read-only, in native byte order.

    Raises:
        Unsafe: if it holds anything else, or has more than `most` bytes.
        ValueError: if it is damaged.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Unsafe(f"it has {size:,} bytes; allowed are {most:,}")
        return _plain(_Machine(file, size).run())


@dataclasses.dataclass(eq=False, slots=True)
class _Made:
    """A placeholder for a function, dtype or array: its kind, and what is known of it."""

    kind: str
    value: object = None


class _Machine:
    """Runs a pickle. The memo gives out no containers and no arrays, so that no value is larger than the opcodes that made it."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left, self._room = file, size, size  # bytes to be read, and to become arrays
        self._stack, self._marks, self._memo = [], [], []

    def run(self) -> object:
        for _ in range(MOST_VALUES):
            code = self._read(1)
            if code == pickle.STOP:
                value = self._pop(object)
                if self._stack or self._left:
                    raise ValueError("it goes on after its end")
                return value
            form = ARGUMENTS.get(code, "")
            self._step(code, *struct.unpack(form, self._read(struct.calcsize(form))))
        raise Unsafe(f"it has more than {MOST_VALUES:,} opcodes")

    def _step(self, code: bytes, argument=None) -> None:
        push = self._stack.append
        if code in CONSTANTS:
            push(CONSTANTS[code])
        elif code in NUMBERS:
            push(argument)
        elif code == pickle.LONG1:
            push(int.from_bytes(self._read(argument), "little", signed=True))
        elif code in STRINGS:
            push(self._name(argument))
        elif code in BYTES:
            push(self._read(argument))
        elif code in GETS:
            push(self._get(argument))
        elif code == pickle.MEMOIZE:
            self._memo.append(self._top(object))
        elif code == pickle.MARK:
            self._marks.append(len(self._stack))
        elif code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
            push(tuple(self._take(code)))
        elif code in (pickle.EMPTY_LIST, pickle.EMPTY_DICT):
            push([] if code == pickle.EMPTY_LIST else {})
        elif code in (pickle.APPEND, pickle.APPENDS):
            values = self._take(code)
            self._top(list).extend(values)
        elif code in (pickle.SETITEM, pickle.SETITEMS):
            values = self._take(code)
            self._set(self._top(dict), keys=values[::2], values=values[1::2])
        elif code == pickle.STACK_GLOBAL:
            name, module = self._pop(str), self._pop(str)
            push(_function(module, name))
        elif code == pickle.REDUCE:
            arguments, function = self._pop(tuple), self._pop(_Made)
            push(self._call(function, arguments))
        elif code == pickle.BUILD:
            state = self._pop(tuple)
            self._build(self._top(_Made), state)
        elif code == pickle.PROTO and argument not in (4, 5):
            raise ValueError(f"it is a pickle of protocol {argument}; 4 and 5 can be read")
        elif code not in (pickle.PROTO, pickle.FRAME):  # FRAME only helps buffered readers
            raise Unsafe(f"it holds more than arrays and plain values (opcode {code!r})")

    def _read(self, size: int) -> bytes:
        content = self._file.read(size) if size <= self._left else b""
        if len(content) < size:
            raise ValueError("it ends too early")
        self._left -= size
        return content

    def _name(self, size: int) -> str:
        # UTF-8 has at most 4 bytes per character. What is no UTF-8 becomes surrogates, which cannot be printed.
        text = self._read(size).decode(errors="surrogateescape") if size <= 4 * MOST_NAME else "\0"
        if len(text) > MOST_NAME or not text.isprintable():
            raise Unsafe(f"it holds a name of more than {MOST_NAME} characters, or one that cannot be printed")
        return text

    def _top(self, kind: type):
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise ValueError("its parts do not fit each other")
        return self._stack[-1]

    def _pop(self, kind: type):
        self._top(kind)
        return self._stack.pop()

    def _take(self, code: bytes) -> list:
        start = len(self._stack) - TAKEN[code] if code in TAKEN else self._marks.pop() if self._marks else -1
        if start < 0:
            raise ValueError("its parts do not fit each other")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _get(self, index: int):
        value = self._memo[index] if index < len(self._memo) else None
        if not isinstance(value, (str, bytes, _Made)) or (isinstance(value, _Made) and value.kind == "array"):
            raise Unsafe("it holds a container or array in more than one place")
        return value

    def _set(self, place: dict, *, keys: list, values: list) -> None:
        if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
            raise ValueError("it holds a dict with keys that are no names")
        place.update(zip(keys, values))

    def _call(self, made: _Made, arguments: tuple) -> _Made:
        function = made.value if made.kind == "function" else f"a made {made.kind}"
        if function == "_reconstruct":  # with the same arguments for every array, which _build makes
            return _Made("array")
        elif function == "dtype" and arguments and arguments[0] in DTYPES:
            return _Made("dtype", np.dtype(arguments[0]))
        elif function == "_frombuffer" and len(arguments) == 4:
            content, dtype, shape, order = arguments
            return _Made("array", self._array(content, dtype, shape, order))
        raise Unsafe(f"it calls {function} for more than an array of booleans, integers or floats")

    def _build(self, made: _Made, state: tuple) -> None:
        if made.kind == "array" and len(state) == 5:
            _, shape, dtype, fortran, content = state
            made.value = self._array(content, dtype, shape, "F" if fortran is True else "C")
        elif made.kind == "dtype" and len(state) == 8 and state[1] in ("<", ">", "|") and state[2:5] == (None, None, None):
            made.value = made.value.newbyteorder(state[1])  # numpy repeats no names, fields and alignment here
        else:
            raise Unsafe("it holds an array of an unknown kind")

    def _array(self, content, dtype, shape, order) -> np.ndarray:
        typed = isinstance(content, bytes) and isinstance(dtype, _Made) and dtype.kind == "dtype" and order in ("C", "F")
        shaped = isinstance(shape, tuple) and len(shape) <= MOST_AXES and all(type(n) is int and 0 <= n < MOST_LENGTH for n in shape)
        if not typed or not shaped:
            raise ValueError("it holds an array without bytes, dtype or shape")
        dtype = dtype.value
        if math.prod(shape) * dtype.itemsize != len(content):
            raise Unsafe(f"it holds an array of shape {shape!s:.100} and {len(content):,} bytes")
        self._room -= len(content)
        if self._room < 0:
            raise Unsafe("its arrays repeat their numbers")
        if dtype.kind == "b" and np.frombuffer(content, np.uint8).max(initial=0) > 1:  # numpy counts those wrongly
            raise Unsafe("it holds booleans that are neither true nor false")
        array = np.frombuffer(content, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array


def _function(module: str, name: str) -> _Made:
    if not CALLED.fullmatch(f"{module} {name}"):
        raise Unsafe(f"it holds more than arrays and plain values ({module:.50} {name:.50})")
    return _Made("function", name)


def _plain(value, depth: int = 0) -> object:
    """The same tree, with arrays for placeholders."""
    if depth > MOST_DEPTH:
        raise Unsafe("its containers hold each other too deeply")
    if isinstance(value, dict):
        return {key: _plain(part, depth + 1) for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        return type(value)(_plain(part, depth + 1) for part in value)
    elif isinstance(value, _Made) and value.kind == "array" and value.value is not None:
        return value.value
    elif value is None or isinstance(value, (str, int, float)):
        return value
    raise Unsafe("it holds more than arrays and plain values")
