"""Lack of memory on a device: how to detect it, release memory, and continue with smaller calls.

Sources: ``c10/cuda/CUDACachingAllocator.cpp`` (torch), the status names of cuDNN and cuBLAS.
"""

from __future__ import annotations

import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    import torch

MARGIN = 1.15
"""Factor for memory beyond a call's tensors: workspaces of kernels, and gaps between blocks of torch's allocator."""

MOST_ELEMENTS = 2**31 - 1
"""Maximum number of elements of a tensor: many kernels use 32-bit indices."""

_SIGNS = (
    "out of memory",  # CUDA, HIP, MPS; also cudaErrorMemoryAllocation behind an asynchronous call
    "defaultcpuallocator: can't allocate memory",
    "unable to find an engine",  # cuDNN: no plan whose workspace fits
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "cudnn_status_not_initialized",  # handles are created at the first call, which fails if no memory is left
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
    "cusolver_status_alloc_failed",
)

_Result = TypeVar("_Result")


class TooLittleMemory(UserError):
    """Not even the smallest call fits into memory; the message names the call and a remedy."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, in torch's allocator or in cuDNN or cuBLAS, whose errors have other names.

    If cuDNN finds no engine for another reason, the error looks the same; then the smallest call fails with this error.
    """
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS) or type(error).__name__ == "OutOfMemoryError"


def release(error: BaseException) -> None:
    """Release the objects that the frames of a failed computation hold, and return their memory to the device.

    Otherwise, tensors kept alive by the traceback would occupy memory. The traceback can still be printed.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__]
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()  # does nothing if CUDA was not used
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()


@contextmanager
def memory_explained(lack: str) -> Iterator[None]:
    """Turn a lack of memory into ``TooLittleMemory`` with this message; other errors pass through."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TooLittleMemory(lack) from error


def available_bytes(device: torch.device) -> int:
    """Bytes that torch can still allocate on a CUDA device: free, or reserved by torch but not in use."""
    import torch

    free = torch.cuda.mem_get_info(device)[0]
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def even_part(units: int, most: int) -> int:
    """Size of the first part when dividing units into as few and as equal parts as possible, at most ``most`` each."""
    return math.ceil(units / math.ceil(units / max(1, most)))


class CallSize:
    """Number of units (images, windows, steps along the slices) in one call of a network.

    At first as many units as the caller and 32-bit indices allow, in even parts. After a lack of memory half as many,
    for the rest of the run: a size that was once too large is not tried again, for units of any size.

    Args:
        name: name of the network, for the warning.
        voxels_of_value: voxels of the volume per value of one channel of the input; 1 unless the input is a latent.
        features: values per voxel in the widest feature map; 0 if unknown.
        most_voxels: maximum number of voxels of an efficient call, all units together; a single unit may have more.

    Attributes:
        most_voxels: current maximum number of voxels of a call, all units together; reduced after a lack of memory.
    """

    def __init__(
        self, name: str, *, voxels_of_value: int = 1, features: int = 0, most_voxels: float = math.inf
    ) -> None:
        self.most_voxels = most_voxels
        self._name, self._voxels_of_value, self._features = name, voxels_of_value, features
        self._has_lacked = False

    def over(self, code: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Apply ``code`` along the first axis of ``x`` (units, C, ...); it must process units independently.

        Raises:
            RuntimeError: lack of memory for a single unit.
        """
        import torch

        voxels = x[0, 0].numel() * self._voxels_of_value
        parts = self.run(lambda start, stop: code(x[start:stop]), len(x), voxels)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def run(
        self, call: Callable[[int, int], _Result], units: int, voxels: int, most: int | None = None
    ) -> list[_Result]:
        """Call ``call(start, stop)`` for consecutive ranges that cover all units, and return the results.

        Args:
            call: function of a range; must leave everything unchanged when it fails.
            units: number of units.
            voxels: number of voxels of a unit.
            most: maximum number of units in a call; None for all.

        Raises:
            RuntimeError: lack of memory for a single unit.
        """
        results: list[_Result] = []
        done = 0
        while done < units:
            count = even_part(units - done, self._most(units if most is None else most, voxels))
            try:
                results.append(call(done, done + count))
                done += count
            except RuntimeError as error:
                if count == 1 or not is_out_of_memory(error):
                    raise
                release(error)
                self._halve(count, voxels)
        return results

    def _most(self, most: int, voxels: int) -> int:
        if self._features:
            most = min(most, MOST_ELEMENTS // (voxels * self._features))
        return max(1, int(min(most, self.most_voxels // voxels)))

    def _halve(self, count: int, voxels: int) -> None:
        if not self._has_lacked:
            warnings.warn(
                f"{self._name}: {count * voxels} voxels in one call are too many for the memory of the device; "
                "continuing with half as many, or fewer if necessary",
                stacklevel=3,
            )
        self._has_lacked = True
        self.most_voxels = min(self.most_voxels, count // 2 * voxels)
