"""Reconstructed views beside nnU-Net's preprocessed data: their folders, their checks, and their dataset class.

A view of the data folder ``nnUNetPlans_3d_fullres`` is in the sibling folder ``nnUNetPlans_3d_fullres__fvae_<view>``,
which nnU-Net never scans. It holds ``<case>.b2nd`` (float32, (c, z, y, x), in nnU-Net's preprocessed format) and a
manifest (see ``manifest``). Segmentations and properties are those of the raw case.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.portable_names import check_folder_name
from fvae_nnunet.jobs.manifest import Manifest, differences

SEPARATOR = "__fvae_"
VIEW_VARIABLE = "nnUNet_fvae_view"

MADE_FOR_PLANS = {"settings": {"preprocessing": dict}, "made_with": {"parameters": dict}}
"""Required content of the manifest of a folder beside nnU-Net's preprocessed data."""

SYNTHETIC_NAME = "synthetic"
"""Name of the folder of synthetic cases, in place of a view's name (``synthetic_dataset``)."""


def view_folder(data_folder: Path, view: str) -> Path:
    """Folder of a view of nnU-Net's preprocessed ``data_folder``; UserError if the name is not allowed."""
    check_folder_name(view, "a view")
    if view == SYNTHETIC_NAME:
        raise UserError(f"{view!r} is the name of the folder of synthetic cases; give the view another name")
    return sibling_folder(data_folder, view)


def sibling_folder(data_folder: Path, name: str) -> Path:
    """Folder of this name beside nnU-Net's preprocessed ``data_folder``, which nnU-Net never scans."""
    return data_folder.with_name(data_folder.name + SEPARATOR + name)


def default_view_name(vae_name: str) -> str:
    """Name of the view for a VAE: the VAE's name, with characters that are not allowed replaced by a dash."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", vae_name).strip("-.")


def preprocessing_settings(plans: dict[str, Any], configuration: Any) -> dict[str, Any]:
    """Settings in nnU-Net's plans that affect the voxels of a preprocessed image, as JSON values.

    Args:
        plans: content of the plans file.
        configuration: nnU-Net's ConfigurationManager.
    """
    return {
        "spacing_mm": [float(value) for value in configuration.spacing],
        "transpose_forward": list(plans["transpose_forward"]),
        "normalization_schemes": list(configuration.normalization_schemes),
        "use_mask_for_norm": list(configuration.use_mask_for_norm),
        "foreground_intensity": plans["foreground_intensity_properties_per_channel"],
        "resampling_fn_data": configuration.configuration["resampling_fn_data"],
        "resampling_fn_data_kwargs": configuration.configuration["resampling_fn_data_kwargs"],
    }


def preprocessed_inputs(data_folder: Path, case: str) -> dict[str, str]:
    """Fingerprint of the preprocessed raw case to which a case of a view belongs.

    Computed from the content of arrays, because nnU-Net's multi-threaded compression gives different bytes for equal
    arrays: shape, three slices, crop box and spacing.
    """
    import blosc2
    from batchgenerators.utilities.file_and_folder_operations import load_pickle

    array = blosc2.open(str(data_folder / f"{case}.b2nd"), mode="r", dparams={"nthreads": 1})
    properties = load_pickle(str(data_folder / f"{case}.pkl"))
    box = np.asarray(properties["bbox_used_for_cropping"], dtype=np.int64)
    spacing_mm = np.asarray(properties["spacing"], dtype=np.float64)
    digest = hashlib.sha256(f"{array.shape} {box.tolist()} {spacing_mm.tolist()}".encode())
    slices = array.shape[1]
    for position in (slices // 4, slices // 2, (3 * slices) // 4):
        digest.update(np.asarray(array[:, position]).tobytes())
    return {"preprocessed": digest.hexdigest()}


def view_names(data_folder: Path) -> list[str]:
    """Names of the existing views of nnU-Net's preprocessed ``data_folder``, complete or not, sorted."""
    synthetic = sibling_folder(data_folder, SYNTHETIC_NAME)
    return sorted(
        folder.name.split(SEPARATOR, 1)[1]
        for folder in data_folder.parent.glob(f"{glob.escape(data_folder.name)}{SEPARATOR}*")
        if folder != synthetic and Manifest(folder).path.is_file()
    )


def find_views(data_folder: Path, make: Callable[..., str], of_trainer: str | None = None) -> dict[str, float]:
    """Views to train with and their weights: from the trainer, else from ``nnUNet_fvae_view``, else the only one.

    Several views are separated by commas, with optional weights after colons: ``wan2.1:2,control-nlm``; the default
    weight is 1.

    Args:
        data_folder: nnU-Net's preprocessed data.
        make: returns the command that makes a view with the given parameters, for messages.
        of_trainer: value of the trainer's class attribute ``view``.

    Raises:
        UserError: there is no view, there are several and none is chosen, a chosen view does not exist, or a weight is
            not valid.
    """
    names = view_names(data_folder)
    asked = of_trainer or os.environ.get(VIEW_VARIABLE)
    if asked:
        wanted = _weighted(asked)
        for name in wanted:
            if name not in names:
                raise UserError(
                    f"{'the trainer' if of_trainer else VIEW_VARIABLE} asks for the view {name!r} of {data_folder}, "
                    f"which does not exist; existing views: {', '.join(names) or 'none'}. {_way_to(name, names, make)}"
                )
        return wanted
    if len(names) == 1:
        return {names[0]: 1.0}
    if names:
        raise UserError(
            f"{data_folder} has the views {', '.join(names)}; choose one: export {VIEW_VARIABLE}={names[0]}, or "
            f"several: export {VIEW_VARIABLE}={','.join(names)}"
        )
    raise UserError(f"{data_folder} has no reconstructed view. Make it with: {make()}")


def find_view(data_folder: Path, make: Callable[..., str], of_trainer: str | None = None) -> str:
    """As ``find_views``, but for a single view; UserError if several are requested."""
    views = find_views(data_folder, make, of_trainer)
    if len(views) > 1:
        raise UserError(f"only one view can be used here, not {', '.join(views)}; name one of them")
    return next(iter(views))


def _weighted(text: str) -> dict[str, float]:
    views: dict[str, float] = {}
    for part in text.split(","):
        name, found, number = part.strip().partition(":")
        try:
            weight = float(number) if found else 1.0
        except ValueError:
            weight = math.nan
        if not name or name in views or not 0 < weight < math.inf:
            raise UserError(f"expected views as NAME or NAME:WEIGHT, each once, separated by commas; got {text!r}")
        views[name] = weight
    return views


def _way_to(view: str, names: list[str], make: Callable[..., str]) -> str:
    """Remedy for a missing view: the command that makes it if it has a VAE's name, else an existing view."""
    from fvae_nnunet.vae import known_vaes
    from fvae_nnunet.vae.denoisers import CONTROLS

    for name in (*(vae.name for vae in known_vaes()), *CONTROLS):
        if default_view_name(name) == view:
            has_strength = name in CONTROLS and CONTROLS[name].has_strength
            strength = ", with the strength that you want" if has_strength else ""
            return f"Make it with: {make(vae=name, view=view)}{strength}"
    if names:
        return f"Choose an existing one: export {VIEW_VARIABLE}={names[0]}"
    return f"Make one of the default VAE with: {make()} ({command_line('fvae-setup', vaes=True)} lists others)"


def check_view(
    folder: Path, data_folder: Path, cases: list[str], preprocessing: dict[str, Any], make: Callable[..., str]
) -> dict[str, Any]:
    """Check that a view is complete and still fits nnU-Net's preprocessed data, and return its manifest.

    Args:
        folder: folder of the view.
        data_folder: folder of nnU-Net's preprocessed data.
        cases: identifiers of the required cases.
        preprocessing: ``preprocessing_settings`` of the plans in use.
        make: returns the command that makes a view with the given parameters, for messages.

    Raises:
        UserError: the view was made with other plans, or cases are missing, incomplete or older than the data.
    """
    manifest = Manifest(folder)
    content = manifest.read(MADE_FOR_PLANS)
    if content is None:
        raise UserError(f"{folder} does not hold a view. {_way_to(folder.name.split(SEPARATOR, 1)[1], [], make)}")
    make_again = partial(make, **content["made_with"]["parameters"])
    refuse_other_plans(content, preprocessing, f"the view {folder} was made", make_again)
    missing, stale = [], []
    for case in cases:
        record = manifest.read_case(case)
        if record is None or not manifest.is_whole(case, [folder / f"{case}.b2nd"]):
            missing.append(case)
        elif any(
            record["inputs"].get(name) != digest for name, digest in preprocessed_inputs(data_folder, case).items()
        ):
            stale.append(case)
    problems = [
        f"{len(names)} of {len(cases)} cases are {what} (first: {names[0]})"
        for names, what in ((missing, "missing or incomplete"), (stale, "older than nnU-Net's preprocessed data"))
        if names
    ]
    if problems:
        raise UserError(f"in the view {folder}, {' and '.join(problems)}. Complete it with: {make_again()}")
    return content


def refuse_other_plans(
    content: dict[str, Any], preprocessing: dict[str, Any], made: str, make_again: Callable[..., str]
) -> None:
    """Raise UserError if a folder beside the data was made for other plans.

    Args:
        content: content of its manifest.
        preprocessing: settings of the current plans.
        made: start of the message, such as ``the view x was made``.
        make_again: returns the command that makes it, with further parameters.
    """
    changed = differences(content["settings"]["preprocessing"], preprocessing)
    if changed:
        raise UserError(
            f"{made} for other plans:\n  "
            + "\n  ".join(changed)
            + f"\nMake it again with: {make_again(overwrite=True)}"
        )


def check_shares(probability: float, blend: tuple[float, float]) -> None:
    """Raise UserError unless probability, lowest and highest weight of the view are in [0, 1]."""
    if not 0 <= probability <= 1 or not 0 <= blend[0] <= blend[1] <= 1:
        raise UserError(
            f"view_probability and view_blend must be in [0, 1], lowest first; got {probability} and {blend}"
        )


class BlendedArray:
    """Lazy ``raw + weight * (view - raw)`` of two arrays of the same shape, computed only for the requested region.

    Has the interface that nnU-Net's loader needs: ``shape``, ``dtype`` and slicing. Like the loader, use only boxes
    that intersect the array.
    """

    def __init__(self, raw: Any, view: Any, weight: float) -> None:
        self.raw, self.view, self.weight = raw, view, np.float32(weight)
        self.shape, self.dtype, self.ndim = raw.shape, raw.dtype, raw.ndim

    def __getitem__(self, region: Any) -> np.ndarray:
        raw = np.asarray(self.raw[region])
        return raw + self.weight * (np.asarray(self.view[region]) - raw)


class DatasetAround:
    """Wrapper of nnU-Net's dataset with the interface of its loader; subclasses change ``load_case``.

    Args:
        inner: nnU-Net's dataset, or another wrapper of it.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.identifiers = inner.identifiers
        self.source_folder = inner.source_folder
        self.folder_with_segs_from_previous_stage = inner.folder_with_segs_from_previous_stage

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return (data, seg, seg_prev, properties) like nnU-Net's dataset."""
        raise NotImplementedError


class ViewDataset(DatasetAround):
    """nnU-Net's dataset that randomly replaces the image of a case by one of its views.

    Everything else is that of the inner dataset. Random numbers come from ``np.random``, which nnU-Net seeds in every
    worker; with probability 0 or 1, a fixed weight and one view, nothing is drawn. Picklable: no array stays open.

    Args:
        inner: nnU-Net's dataset of the preprocessed raw cases.
        folders: folder of each view -> its relative frequency.
        probability: probability of a view, in [0, 1].
        blend: lowest and highest weight of the view, drawn uniformly for each sample; (1, 1) is the view itself.
    """

    def __init__(
        self,
        inner: Any,
        folders: Mapping[Path, float],
        *,
        probability: float,
        blend: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        check_shares(probability, blend)
        super().__init__(inner)
        self.folders = tuple(folders)
        self.shares = np.array(list(folders.values())) / sum(folders.values())
        self.probability = probability
        self.blend = blend

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return (data, seg, seg_prev, properties) like nnU-Net's dataset; data may be those of the view."""
        data, seg, seg_prev, properties = self.inner.load_case(identifier)
        if self._draw_view():
            view = self._open_view(identifier)
            weight = self._draw_weight()
            data = view if weight == 1 else BlendedArray(data, view, weight)
        return data, seg, seg_prev, properties

    def _draw_view(self) -> bool:
        if self.probability in (0, 1):
            return self.probability == 1
        return bool(np.random.uniform() < self.probability)

    def _draw_weight(self) -> float:
        lowest, highest = self.blend
        return lowest if lowest == highest else np.random.uniform(lowest, highest)

    def _open_view(self, identifier: str) -> Any:
        import blosc2

        folder = (
            self.folders[0]
            if len(self.folders) == 1
            else self.folders[np.random.choice(len(self.folders), p=self.shares)]
        )
        path = folder / f"{identifier}.b2nd"
        # opened like nnU-Net's own arrays, without memory mapping on Windows; nnU-Net 2.6 has no ``mmap_kwargs``
        mmap_kwargs = getattr(self.inner, "mmap_kwargs", {} if os.name == "nt" else {"mmap_mode": "r"})
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mmap_kwargs)
