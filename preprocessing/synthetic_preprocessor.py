"""nnU-Net's own preprocessing of a synthetic case, with foreground sampled from its new lesion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from fvae_nnunet.errors import UserError


class SyntheticPreprocessor(DefaultPreprocessor):
    """DefaultPreprocessor that restricts the foreground locations of the lesion label to the new lesion.

    Image, segmentation and all other properties are those of nnU-Net. Foreground is sampled only from voxels of the
    lesion label that do not have it in the source case; otherwise a real lesion in the same case, often a hundred times
    as large, would get nearly all patches. If no new voxel is left at the spacing of the plans, nnU-Net's locations are
    kept.

    Args:
        source_label: segmentation of the source case.
        lesion_value: value of the lesion label.

    Attributes:
        own_lesion_voxels: number of voxels of the new lesion in the case that was preprocessed last.
    """

    def __init__(self, source_label: Path, lesion_value: int) -> None:
        super().__init__(verbose=False)
        self.source_label = source_label
        self.lesion_value = lesion_value
        self.own_lesion_voxels = 0

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        data, seg, properties = super().run_case(
            image_files, seg_file, plans_manager, configuration_manager, dataset_json
        )
        new = self._new_lesion(str(seg_file), plans_manager).transpose(plans_manager.transpose_forward)
        own = self._at_plans_spacing(new, seg.shape[1:], properties) & (seg[0] == self.lesion_value)
        self.own_lesion_voxels = int(own.sum())
        if self.own_lesion_voxels:
            places = self._sample_foreground_locations(own[None].astype(np.int8), [1])[1]
            for key in (self.lesion_value, (self.lesion_value,)):
                if key in properties["class_locations"]:
                    properties["class_locations"][key] = places
        return data, seg, properties

    def _new_lesion(self, seg_file: str, plans_manager: PlansManager) -> np.ndarray:
        """Voxels with the lesion label in the case but not in its source: bool (z, y, x) as read by the reader."""
        reader = plans_manager.image_reader_writer_class()
        after, before = (reader.read_seg(file)[0][0] for file in (seg_file, str(self.source_label)))
        if after.shape != before.shape:
            raise UserError(
                f"{seg_file} has shape {after.shape}, but the label of its source case, {self.source_label}, has "
                f"{before.shape}; a synthetic case must have the geometry of its source: run fvae-synthesize again"
            )
        return (after == self.lesion_value) & (before != self.lesion_value)

    @staticmethod
    def _at_plans_spacing(mask: np.ndarray, shape: tuple[int, ...], properties: dict[str, Any]) -> np.ndarray:
        """Voxels that contain centres of the voxels of a transposed mask after cropping and resampling; bool."""
        box = np.asarray(properties["bbox_used_for_cropping"])
        scale = np.asarray(shape) / np.asarray(properties["shape_after_cropping_and_before_resampling"])
        places = np.floor((np.argwhere(mask) - box[:, 0] + 0.5) * scale).astype(int)
        inside = ((places >= 0) & (places < np.asarray(shape))).all(axis=1)
        found = np.zeros(shape, dtype=bool)
        found[tuple(places[inside].T)] = True
        return found
