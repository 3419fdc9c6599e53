"""Find the array axis that runs along the body, so that the VAE always sees axial slices."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np

AxisOrder = tuple[int, int, int]


def axial_order(direction: np.ndarray) -> AxisOrder:
    """The axes of an array in the order body axis, front-back, left-right.

    Args:
        direction: (3, 3) direction cosines as SimpleITK gives them: column j is the direction, in patient space
            (left-right, front-back, foot-head), of image axis j, where the image axes (x, y, z) are the array's
            axes (2, 1, 0). Signs do not matter: no axis is flipped.

    Returns:
        ``order`` for ``array.transpose(order)``: the assignment of array axes to patient axes with the largest sum of
        absolute cosines: (0, 1, 2) for an axial volume, the nearest order for an oblique one.
    """
    cosines = np.abs(np.asarray(direction, dtype=np.float64).reshape(3, 3))[:, ::-1]
    orders: list[AxisOrder] = [(a, b, c) for a, b, c in permutations(range(3))]
    return max(orders, key=lambda order: cosines[2, order[0]] + cosines[1, order[1]] + cosines[0, order[2]])


def direction_of_nnunet(properties: dict[str, Any]) -> np.ndarray | None:
    """The direction cosines, as SimpleITK gives them, of an image loaded by one of nnU-Net's readers.

    SimpleITK and NiBabel readers are supported; images of other readers have no direction: None.
    """
    if "sitk_stuff" in properties:
        direction = np.asarray(properties["sitk_stuff"]["direction"], dtype=np.float64)
        return direction.reshape(3, 3) if direction.size == 9 else None
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=np.float64)[:3, :3]
        return np.diag([-1.0, -1.0, 1.0]) @ affine / np.linalg.norm(affine, axis=0)
    return None


def axial_order_of_nnunet(properties: dict[str, Any]) -> AxisOrder:
    """``axial_order`` of an image loaded by one of nnU-Net's readers, from the reader's properties.

    Without a direction (``direction_of_nnunet``) the first axis counts as the body axis.
    """
    direction = direction_of_nnunet(properties)
    return (0, 1, 2) if direction is None else axial_order(direction)
