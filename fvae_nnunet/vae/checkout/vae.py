"""Common parts of the VAEs that run from a checkout of the authors' code: code, weights, interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.checkout.importer import Checkout
from fvae_nnunet.vae.folders import WEIGHTS_FILES, open_folder
from fvae_nnunet.vae.module_vae import ModuleVAE, Placement
from fvae_nnunet.vae.weights import StateDict, filled, read_state_dict

if TYPE_CHECKING:
    from typing_extensions import Unpack

TRAINING_ONLY = ("loss.", "discriminator.", "gan_loss.", "perceptual_model.")
"""Prefixes of loss parameters, which some checkpoints hold besides those of the VAE."""


@dataclass(frozen=True)
class ResearchCode:
    """Location of the code of a VAE and of its weights.

    Attributes:
        repository: ``owner/name`` on GitHub.
        module, class_name: module and class of the model in the repository.
        weights: the file or folder that the user gives as weights, in words.
        nominal, replaced: see ``Checkout``.
    """

    repository: str
    module: str
    class_name: str
    weights: str
    nominal: tuple[str, ...] = ()
    replaced: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckoutWeights:
    """The weights that the user gave, and the checkout that they belong to.

    Attributes:
        vae: name of the VAE, for messages.
        path: file or folder of the weights.
        source: origin of the weights, in words.
        trust: see ``read_checkpoint``.
        checkout: checkout whose classes a trusted pickle may name.
    """

    vae: str
    path: Path
    source: str
    trust: bool
    checkout: Checkout

    def read(self, path: Path) -> StateDict:
        """The tensors of a file."""
        if not self.trust:
            return read_state_dict(path)
        with self.checkout.visible():  # pickle finds classes by the name of their module
            return read_state_dict(path, trust=True)

    def folder(self, class_name: str, subfolder: str = "") -> tuple[dict[str, Any], StateDict]:
        """Configuration and tensors of a folder in diffusers' format, given as the folder or its weights file."""
        path = self.path.parent if self.path.name in WEIGHTS_FILES else self.path
        folder = open_folder(path / subfolder if (path / subfolder).is_dir() else path)
        if folder.class_name != class_name:
            raise UserError(f"{self.vae}: {folder.path} holds a {folder.class_name}, not a {class_name}")
        return folder.config, self.read(folder.weights_file)

    def size(self, state: Mapping[str, torch.Tensor], key: str, dim: int) -> int:
        """Size of a tensor along ``dim``; UserError if these are the weights of another model."""
        if key not in state or state[key].ndim <= dim:
            raise UserError(f"{self.vae}: {self.source} does not fit {self.vae}: {key} is missing")
        return state[key].shape[dim]

    def fill(self, make: Callable[[], Any], state: Mapping[str, torch.Tensor]) -> Any:
        """The model built by ``make``, with these weights in float32, without those that only training needs.

        Raises:
            UserError: the code fails, or the weights are not exactly those of the model.
        """
        state = {key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY)}
        try:
            model = filled(make, state, f"{self.vae}: {self.source} does not fit {self.vae}")
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.vae}: the code in {self.checkout.folder} cannot build the model for {self.source}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
            # constants that are not in the state dict
            with torch.random.fork_rng(devices=[]):
                model = make()
            model.load_state_dict(state)
        return model


class CheckoutVAE(ModuleVAE):
    """A model from a checkout. Slices are its frames; the three colour channels are equal.

    Attributes:
        code: location of the model's code.
        slice_offset, window_slices: as in ``VAESpec``.
    """

    code: ClassVar[ResearchCode]
    slice_offset: ClassVar[int] = 1
    window_slices: ClassVar[int] = 65

    def __init__(self, name: str, model: Any, latent_channels: int, **placement: Unpack[Placement]) -> None:
        spec = VAESpec(
            name=name,
            inplane_stride=8,
            latent_channels=latent_channels,
            slice_stride=4,
            slice_offset=self.slice_offset,
            window_slices=self.window_slices,
        )
        super().__init__(model, spec, **placement)
        self._model = model

    @classmethod
    @abstractmethod
    def build(cls, model_class: Any, weights: CheckoutWeights) -> tuple[Any, int]:
        """The model with its weights, and the number of latent channels."""


def colours(volume: torch.Tensor) -> torch.Tensor:
    """(B, 1, D, H, W) to (B, 3, D, H, W) with equal channels."""
    return volume.expand(-1, 3, -1, -1, -1)
