"""nnU-Net's own preprocessing steps for a reconstruction, with the crop box of the raw case."""

from __future__ import annotations

from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


class ViewPreprocessor(DefaultPreprocessor):
    """DefaultPreprocessor with the crop box of the raw case, so that view and raw data have the same voxel grid."""

    def __init__(self) -> None:
        super().__init__(verbose=False)

    def run_view(
        self,
        view: np.ndarray,
        raw_properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        *,
        raw: np.ndarray | None = None,
        seg: np.ndarray | None = None,
    ) -> np.ndarray:
        """Transpose, crop, normalise and resample as nnU-Net does (``DefaultPreprocessor.run_case_npy``).

        Args:
            view: (c, z, y, x) in the reader's axis order, with all channels of the case. Not changed.
            raw_properties: properties that nnU-Net saved with the preprocessed raw case.
            plans_manager, configuration_manager: managers of the plans in use.
            raw, seg: image and segmentation of the raw case, (c, z, y, x) and (1, z, y, x); required only if a channel
                is normalised inside the nonzero mask, which is that of the raw case.

        Returns:
            (c, z, y, x) float32, in the form of nnU-Net's ``.b2nd`` of the case.
        """
        axes = [0, *[axis + 1 for axis in plans_manager.transpose_forward]]
        crop = (slice(None), *bounding_box_to_slice(raw_properties["bbox_used_for_cropping"]))
        data = view.transpose(axes)[crop].astype(np.float32)
        if any(configuration_manager.use_mask_for_norm):
            if raw is None or seg is None:
                raise ValueError("a channel is normalised inside the nonzero mask, so raw and seg are required")
            _, seg, _ = crop_to_nonzero(raw.transpose(axes), np.copy(seg.transpose(axes)))
        else:
            seg = np.zeros((1, *data.shape[1:]), dtype=np.int8)

        original_spacing = [raw_properties["spacing"][axis] for axis in plans_manager.transpose_forward]
        target_spacing = list(configuration_manager.spacing)
        if len(target_spacing) < len(original_spacing):
            target_spacing = [original_spacing[0], *target_spacing]
        new_shape = compute_new_shape(data.shape[1:], original_spacing, target_spacing)

        data = self._normalize(
            data, seg, configuration_manager, plans_manager.foreground_intensity_properties_per_channel
        )
        resampled = configuration_manager.resampling_fn_data(data, new_shape, original_spacing, target_spacing)
        return np.asarray(resampled, dtype=np.float32)
