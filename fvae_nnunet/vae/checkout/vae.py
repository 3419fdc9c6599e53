"""What the VAEs that run from a checkout of their authors' code have in common: code, weights, contract."""

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
"""What the parameters of losses start with; some checkpoints hold them beside those of the VAE."""


@dataclass(frozen=True)
class ResearchCode:
    """Where the code of a VAE is, and its weights.

    Attributes:
        repository: ``owner/name`` on GitHub.
        module, class_name: the model in it.
        weights: what the user gives as weights, in words.
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
    """The weights that the user named, and the checkout that they are for.

    Attributes:
        vae: its name, for messages.
        path: file or folder.
        source: where they came from, in words.
        trust: see ``read_checkpoint``.
        checkout: whose classes a trusted pickle may name.
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
        with self.checkout.visible():  # pickled classes are found by the name of their module
            return read_state_dict(path, trust=True)

    def folder(self, class_name: str, subfolder: str = "") -> tuple[dict[str, Any], StateDict]:
        """Configuration and tensors of a folder in diffusers' format, or of its file with the weights."""
        path = self.path.parent if self.path.name in WEIGHTS_FILES else self.path
        folder = open_folder(path / subfolder if (path / subfolder).is_dir() else path)
        if folder.class_name != class_name:
            found = folder.class_name or "model of no named class"
            raise UserError(f"{self.vae}: {folder.path} holds a {found}, not a {class_name}")
        return folder.config, self.read(folder.weights_file)

    def size(self, state: Mapping[str, torch.Tensor], key: str, dim: int) -> int:
        """A size of a tensor; raises UserError where these are the weights of something else."""
        if key not in state or state[key].ndim <= dim:
            raise UserError(f"{self.vae}: {self.source} does not fit {self.vae}: {key} is missing")
        return state[key].shape[dim]

    def fill(self, make: Callable[[], Any], state: Mapping[str, torch.Tensor]) -> Any:
        """The model that ``make`` builds, with these weights in float32; what only training needs is left out.

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
    """A model of a checkout. Slices are its frames; the three channels are equal.

    Attributes:
        code: of the model.
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
        """The model with its weights, and the channels of its latent."""


def colours(volume: torch.Tensor) -> torch.Tensor:
    """(B, 1, D, H, W) to (B, 3, D, H, W), the channels all equal."""
    return volume.expand(-1, 3, -1, -1, -1)
