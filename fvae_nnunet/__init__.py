"""Training views for nnU-Net v2, reconstructed from CT with a frozen foundation VAE.

    import fvae_nnunet as fvae

    ct = fvae.read_ct("case.nii.gz")
    view = fvae.reconstruct(ct, fvae.load_vae("tiny"))
    view.save("view.nii.gz")

The names in ``__all__`` are the public interface; each is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvae_nnunet.ct.volume import CT, read_ct
    from fvae_nnunet.errors import UserError
    from fvae_nnunet.evaluation.segmentation.one_case import score
    from fvae_nnunet.reconstruction.settings import ReconstructionSettings
    from fvae_nnunet.reconstruction.volume import reconstruct
    from fvae_nnunet.synthesis.generation.one_lesion import InsertedLesion, insert_lesion, load_diffusion
    from fvae_nnunet.vae.registry import load_vae

__version__ = "0.2.0.dev0"

__all__ = [
    "CT",
    "InsertedLesion",
    "ReconstructionSettings",
    "UserError",
    "insert_lesion",
    "load_diffusion",
    "load_vae",
    "read_ct",
    "reconstruct",
    "score",
]

_MODULES = {
    "CT": "ct.volume",
    "InsertedLesion": "synthesis.generation.one_lesion",
    "ReconstructionSettings": "reconstruction.settings",
    "UserError": "errors",
    "insert_lesion": "synthesis.generation.one_lesion",
    "load_diffusion": "synthesis.generation.one_lesion",
    "load_vae": "vae.registry",
    "read_ct": "ct.volume",
    "reconstruct": "reconstruction.volume",
    "score": "evaluation.segmentation.one_case",
}

_clone = Path(__file__).resolve().parents[1]
if (_clone / "setup.cfg").is_file() and (_clone / "trainers").is_dir():
    __path__.append(str(_clone))  # in a clone, trainers and preprocessing are beside the package


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
