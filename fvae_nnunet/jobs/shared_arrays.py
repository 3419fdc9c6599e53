"""Transfer of objects with volumes between processes: arrays in shared memory, the rest pickled.

The memory has no name. The kernel frees it with the last process that has it open, even if that process is killed, so
nothing is left behind and the size of ``/dev/shm`` does not matter. Only a file descriptor and a few bytes go through
the pipe. Systems without anonymous memory use an unnamed temporary file; on Windows the arrays are pickled.
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
    """Pickler that keeps the data of all arrays out of band, also those of transposed volumes."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not np.ndarray or obj.dtype.hasobject or obj.flags.forc:
            return NotImplemented
        order = tuple(np.argsort([-abs(stride) for stride in obj.strides], kind="stable"))
        return np.transpose, (np.ascontiguousarray(obj.transpose(order)), tuple(np.argsort(order)))


def compact(volume: np.ndarray) -> np.ndarray:
    """Convert a volume to int16 if that is lossless, else return it unchanged; any shape with at least one axis."""
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
    """Receive an object from ``send``. Its arrays are views of the shared memory, which is not read before they are.

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
    """Write the bytes and pad to the alignment; releases the interpreter lock meanwhile."""
    rest = array
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest) :]
    os.write(descriptor, bytes(_padded(array.nbytes) - array.nbytes))
