"""Too little memory on a device: how it is told from other errors, cleared up, and answered by smaller calls.

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
"""What a call may need beyond its tensors: workspaces of kernels, and gaps between the blocks of torch's allocator."""

MOST_ELEMENTS = 2**31 - 1
"""Of a tensor: many kernels count in 32 bits."""

_SIGNS = (
    "out of memory",  # CUDA, HIP, MPS; also cudaErrorMemoryAllocation behind an asynchronous call
    "defaultcpuallocator: can't allocate memory",
    "unable to find an engine",  # cuDNN: no plan whose workspace fits
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "cudnn_status_not_initialized",  # the handles are made at the first call, and fail where nothing is left for them
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
    "cusolver_status_alloc_failed",
)

_Result = TypeVar("_Result")


class TooLittleMemory(UserError):
    """Not even the smallest call fits; the message says which, and the way out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a lack of memory, of torch's allocator or inside cuDNN or cuBLAS, whose errors have other names.

    A cuDNN that finds no engine for another reason looks the same; the smallest call then fails, and its error is kept.
    """
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS) or type(error).__name__ == "OutOfMemoryError"


def release(error: BaseException) -> None:
    """Let go of what the frames of a failed computation hold, and give it back to the device.

    Tensors that a traceback keeps alive would take the memory from what comes next. The traceback can still be printed.
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
        torch.cuda.empty_cache()  # does nothing where CUDA was not used
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()


@contextmanager
def memory_explained(lack: str) -> Iterator[None]:
    """Turn a lack of memory into ``TooLittleMemory`` with this message; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TooLittleMemory(lack) from error


def available_bytes(device: torch.device) -> int:
    """What torch could still allocate on a CUDA device: free, or reserved by torch and not in use."""
    import torch

    free = torch.cuda.mem_get_info(device)[0]
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def even_part(units: int, most: int) -> int:
    """The size of the first of as few, as equal parts as there can be with at most ``most`` units each."""
    return math.ceil(units / math.ceil(units / max(1, most)))


class CallSize:
    """How many units (images, windows, steps along the slices) one call of a network takes.

    As many as the caller and 32-bit indices allow, in even parts, until memory lacks. Then half as many, for the rest
    of the run: what was too much once is not tried again, whatever the size of a unit.

    Args:
        name: whose calls they are, for the warning.
        voxels_of_value: voxels of the volume that a value of one channel of the input stands for; 1 unless it is a
            latent.
        features: values per voxel in the widest feature map; 0 where it is not known.
        most_voxels: of a call that is fast, all units together; a single unit may have more.

    Attributes:
        most_voxels: of a call, all units together; less than at first where memory has lacked.
    """

    def __init__(
        self, name: str, *, voxels_of_value: int = 1, features: int = 0, most_voxels: float = math.inf
    ) -> None:
        self.most_voxels = most_voxels
        self._name, self._voxels_of_value, self._features = name, voxels_of_value, features
        self._has_lacked = False

    def over(self, code: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """``code`` over the first axis of ``x`` (units, C, ...), which must not make units depend on each other.

        Raises:
            RuntimeError: the lack of memory, where one unit is too much.
        """
        import torch

        voxels = x[0, 0].numel() * self._voxels_of_value
        parts = self.run(lambda start, stop: code(x[start:stop]), len(x), voxels)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def run(
        self, call: Callable[[int, int], _Result], units: int, voxels: int, most: int | None = None
    ) -> list[_Result]:
        """What ``call(start, stop)`` returns for runs of units that follow each other, all units together.

        Args:
            call: must leave everything as it was when it fails.
            units: how many there are.
            voxels: of a unit.
            most: of units in a call; None for all.

        Raises:
            RuntimeError: the lack of memory, where one unit is too much.
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
                f"{self._name}: {count * voxels} voxels in one call are too many for the memory of the device; going "
                "on with half of them, and fewer if need be",
                stacklevel=3,
            )
        self._has_lacked = True
        self.most_voxels = min(self.most_voxels, count // 2 * voxels)
