"""Settings of a reconstruction that affect voxel values, and checks of their combinations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW, check_hu_window
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.combined_windows import TURNS, PlaneChange
from fvae_nnunet.reconstruction.windows import slice_windows
from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS

DEFAULT_OVERLAP_SLICES = 16
"""Default overlap of the windows of a video VAE, about a quarter of Wan's 65 slices."""

MOST_ENLARGED, LEAST_ENLARGED = 4.0, 0.25
"""Limits of the factor by which a slice is enlarged along each edge; 4 takes 16 times the memory and time."""

Scheme = Literal["windows", "paper", "stream"]


@dataclass(frozen=True)
class ReconstructionSettings:
    """Settings of a reconstruction; every field affects voxel values.

    Attributes:
        hu_window: lower and upper HU; values outside are clipped to its ends.
        inner_windows: narrower HU windows, each reconstructed separately and inserted where it applies
            (``combined_windows.fused``).
        window_slices: number of slices in a window.
        overlap_slices: number of slices that neighbouring windows share.
        scheme: see ``schemes``. ``paper`` uses the axes of the file as they are instead of the axial order.
        truncate: truncate to int16 towards zero, as the paper's scripts do, instead of rounding.
        posterior_seed: draw the latent from the posterior with this seed; None: use its mode.
        enlarge: factor by which slices are enlarged along each edge for the VAE.
        pixel_mm: pixel size for the VAE in mm, instead of ``enlarge``; None: use ``enlarge``.
        average: number of slice orientations (``combined_windows.TURNS``) to average, 1 to 8.
    """

    hu_window: tuple[float, float]
    window_slices: int
    overlap_slices: int
    scheme: Scheme = "windows"
    truncate: bool = False
    posterior_seed: int | None = None
    inner_windows: tuple[tuple[float, float], ...] = ()
    enlarge: float = 1.0
    pixel_mm: float | None = None
    average: int = 1

    @classmethod
    def for_vae(
        cls,
        spec: VAESpec,
        *,
        scheme: Scheme = "windows",
        hu_window: tuple[float, float] = PAPER_HU_WINDOW,
        window_slices: int | None = None,
        overlap_slices: int | None = None,
        truncate: bool = False,
        posterior_seed: int | None = None,
        inner_windows: Sequence[tuple[float, float]] = (),
        enlarge: float = 1.0,
        pixel_mm: float | None = None,
        average: int = 1,
    ) -> ReconstructionSettings:
        """Create settings, with the defaults of the scheme and the VAE for values that are not given.

        ``windows``: the VAE's window; for video VAEs an overlap of 16 slices. ``paper``: the script's window, no
        overlap. ``stream``: steps of the VAE's window.

        Raises:
            UserError: a setting is invalid, or not possible with the scheme.
        """
        if truncate and scheme != "paper":
            raise UserError("truncating to int16 (`truncate=True`) requires `scheme=paper`; the other schemes round")
        if scheme == "windows":
            window = spec.window_slices if window_slices is None else window_slices
            if overlap_slices is None:
                overlap_slices = 0 if spec.independent_slices else min(DEFAULT_OVERLAP_SLICES, window // 2)
        else:
            if overlap_slices:
                raise UserError(f"`scheme={scheme}` has no overlap; omit `overlap_slices`")
            window, overlap_slices = _window_of_scheme(spec, scheme, window_slices), 0
        if scheme == "paper" and check_hu_window(hu_window) not in PAPER_SCRIPTS[spec.name].hu_windows:
            windows = " or ".join(f"{lower:g} {upper:g}" for lower, upper in PAPER_SCRIPTS[spec.name].hu_windows)
            raise UserError(f"`scheme=paper` has the HU window {windows} for {spec.name}; omit `hu_windows`")
        slice_windows(1, window, overlap_slices)
        lower, upper = check_hu_window(hu_window)
        inner = tuple(check_hu_window(narrow) for narrow in inner_windows)
        for low, high in inner:
            if not (lower <= low and high <= upper and (low, high) != (lower, upper)):
                raise UserError(
                    f"the HU window {low:g} {high:g} is not inside {lower:g} {upper:g}; the first one must span all "
                    "others"
                )
        if not LEAST_ENLARGED <= enlarge <= MOST_ENLARGED:
            raise UserError(f"`enlarge` must be {LEAST_ENLARGED:g} to {MOST_ENLARGED:g}, got {enlarge:g}")
        if pixel_mm is not None and (enlarge != 1 or not 0 < pixel_mm < float("inf")):
            raise UserError(f"the pixel size must be above 0 mm and excludes `enlarge`, got {pixel_mm:g} mm")
        if posterior_seed is not None and posterior_seed < 0:
            raise UserError(f"the seed of the posterior (`sample_posterior`) must be at least 0, got {posterior_seed}")
        if average not in range(1, len(TURNS) + 1):
            raise UserError(f"1 to {len(TURNS)} slice orientations can be averaged, got {average}")
        return cls(
            (lower, upper), window, overlap_slices, scheme, truncate, posterior_seed, inner, enlarge, pixel_mm, average
        )

    @property
    def hu_windows(self) -> tuple[tuple[float, float], ...]:
        """All HU windows, the widest first."""
        return (self.hu_window, *self.inner_windows)

    def plane_changes(self, size: tuple[int, int], plane_mm: tuple[float, float] | None = None) -> list[PlaneChange]:
        """The in-plane changes to apply to slices, one per averaged orientation.

        Args:
            size: number of rows and columns of the slices.
            plane_mm: distance of rows and of columns in mm; required only with ``pixel_mm``.

        Raises:
            UserError: ``pixel_mm`` requires a factor above ``MOST_ENLARGED`` or below ``LEAST_ENLARGED``, or the
                spacing, which is not given.
        """
        factors = (self.enlarge, self.enlarge)
        if self.pixel_mm is not None:
            if plane_mm is None:
                raise UserError("a pixel size needs the spacing of the image, which is not known here")
            factors = plane_mm[0] / self.pixel_mm, plane_mm[1] / self.pixel_mm
            if not LEAST_ENLARGED <= min(factors) <= max(factors) <= MOST_ENLARGED:
                raise UserError(
                    f"pixels of {plane_mm[0]:.3g} x {plane_mm[1]:.3g} mm cannot be resampled to {self.pixel_mm:g} mm; "
                    f"choose {max(plane_mm) / MOST_ENLARGED:.3g} to {min(plane_mm) / LEAST_ENLARGED:.3g} mm"
                )
        resampled = tuple(max(1, round(edge * factor)) for edge, factor in zip(size, factors, strict=True))
        new_size = None if resampled == tuple(size) else resampled
        return [replace(turn, size=new_size) for turn in TURNS[: self.average]]  # type: ignore[arg-type]

    def recorded_with(self, vae: FrozenVAE) -> dict[str, Any]:
        """All properties of a reconstruction by ``vae`` that affect voxel values, for a manifest."""
        return {
            "vae": vae.spec.name,
            "weights_sha256": vae.weights_sha256,
            **({} if vae.strength is None else {"strength": vae.strength}),
            "precision": vae.precision,
            **({"tf32": True} if vae.tf32 else {}),
            **self._recorded(),
        }

    def _recorded(self) -> dict[str, Any]:
        """All fields except newer ones at their defaults, so that older records stay comparable."""
        later = {field.name: field.default for field in fields(self) if field.name in _LATER}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


_LATER = frozenset({"inner_windows", "enlarge", "pixel_mm", "average"})


def _window_of_scheme(spec: VAESpec, scheme: Scheme, window_slices: int | None) -> int:
    if scheme == "stream":
        return spec.window_slices if window_slices is None else window_slices
    script = PAPER_SCRIPTS.get(spec.name)
    if script is None:
        raise UserError(
            f"`scheme=paper`: the paper released no script for {spec.name}, only for {', '.join(PAPER_SCRIPTS)}. "
            "For windows without overlap give `window_slices=N` and `overlap_slices=0`"
        )
    if window_slices not in (None, script.window_slices):
        raise UserError(f"`scheme=paper` has windows of {script.window_slices} slices; omit `window_slices`")
    return script.window_slices
