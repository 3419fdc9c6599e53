"""Objects that hold volumes from one process to another: the arrays in memory that both see, the rest pickled.

The memory has no name: the kernel frees it with the last process that has it open, however that process ends, so
nothing is left behind and the size of ``/dev/shm`` does not matter. Only a descriptor of it and a few bytes go through
the pipe. On systems without anonymous memory it is a nameless temporary file; on Windows the arrays are pickled.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_ALIGNMENT = 64
_SHARES_MEMORY = os.name == "posix"


class _Pickler(pickle.Pickler):
    """Leaves every array's data out of the pickle, also that of volumes whose axes were put in another order."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not np.ndarray or obj.dtype.hasobject or obj.flags.forc:
            return NotImplemented
        order = tuple(np.argsort([-abs(stride) for stride in obj.strides], kind="stable"))
        return np.transpose, (np.ascontiguousarray(obj.transpose(order)), tuple(np.argsort(order)))


def compact(volume: np.ndarray) -> np.ndarray:
    """The volume in int16 where that loses nothing, else as it is; any shape with at least one axis."""
    if volume.dtype == np.int16:
        return volume
    with np.errstate(invalid="ignore"):
        small = volume.astype(np.int16)
    return small if all(map(np.array_equal, small, volume)) else volume


def send(connection: Connection, content: Any) -> None:
    """Send an object through one end of ``multiprocessing.Pipe(duplex=True)``; ``content`` may be dropped afterwards.

    Raises:
        OSError: the other end is gone, or there is no memory for the arrays.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append if _SHARES_MEMORY else None).dump(content)
    arrays = [buffer.raw() for buffer in buffers]
    header = (stream.getvalue(), [array.nbytes for array in arrays])
    if not arrays:
        connection.send(header)
        return
    descriptor = _nameless_memory()
    try:
        for array in arrays:
            _write(descriptor, array)
        connection.send(header)
        reduction.send_handle(connection, descriptor, None)  # type: ignore[attr-defined]
    finally:
        os.close(descriptor)


def receive(connection: Connection) -> Any:
    """The object that ``send`` sent. Its arrays are views of the shared memory, which is touched only when they are.

    Raises:
        EOFError: the other end is gone.
    """
    stream, sizes = connection.recv()
    if not sizes:
        return pickle.loads(stream)
    descriptor = reduction.recv_handle(connection)  # type: ignore[attr-defined]
    try:
        memory = memoryview(mmap.mmap(descriptor, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)
    arrays, start = [], 0
    for size in sizes:
        arrays.append(memory[start : start + size])
        start += _padded(size)
    return pickle.loads(stream, buffers=arrays)


def _padded(size: int) -> int:
    return max(1, -(-size // _ALIGNMENT)) * _ALIGNMENT


def _nameless_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fvae_nnunet")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, array: memoryview) -> None:
    """Write the bytes and fill up to the alignment; the interpreter is free for other threads meanwhile."""
    rest = array
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest) :]
    os.write(descriptor, bytes(_padded(array.nbytes) - array.nbytes))
