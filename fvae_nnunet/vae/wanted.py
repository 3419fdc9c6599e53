"""Request for a VAE, passed to the loaders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.folders import HubModel, ModelFolder, open_folder
from fvae_nnunet.vae.module_vae import Placement
from fvae_nnunet.vae.weights import StateDict, read_checkpoint, read_state_dict


@dataclass(frozen=True)
class Wanted:
    """Name and weights of a VAE, and device and precision for computing.

    Attributes:
        name: name in the registry, for messages.
        weights: file or folder; None for the VAE's repository on the hub.
        trust: read a pickled file that holds more than tensors; it can then run code.
        device, dtype: device and precision for computing.
    """

    name: str
    weights: Path | None = None
    trust: bool = False
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32

    def placement(self, source: object) -> Placement:
        """Arguments for ``ModuleVAE``; ``source`` is the origin of the weights."""
        return {"source": str(source), "device": self.device, "dtype": self.dtype}

    def file(self, where_to_get_it: str) -> Path:
        """The weights; UserError that says where to get them if they are not given."""
        if self.weights is None:
            raise UserError(f"{self.name}: {where_to_get_it}")
        return self.weights

    def folder(self, hub: HubModel | None) -> tuple[ModelFolder, str]:
        """The folder of the weights (from the hub if not given), and its origin in words.

        Raises:
            UserError: it is not in diffusers' format, or not available.
        """
        if self.weights is None:
            assert hub is not None
            return open_folder(hub.fetch(self.name)), f"hub {hub.hub_id}"
        found = open_folder(self.weights)
        return found, str(found.path)

    def downloaded_file(self, hub_id: str, file: str, terms: str) -> Path:
        """The weights, if they are one file that the user downloads from the hub.

        Args:
            hub_id, file: repository on the hub, and path of the file in it.
            terms: size and licence, in words.

        Raises:
            UserError: the weights are not given.
        """
        download = f"hf download {hub_id} {file} --local-dir ."
        return self.file(f"get its weights ({terms}) with `{download}` and give the file as `weights`")

    @contextmanager
    def sizes_in(self, misfit: str) -> Iterator[None]:
        """Context for reading sizes from tensors: turns a KeyError with the name of a missing one into a UserError.

        Args:
            misfit: beginning of the message, before the name.
        """
        try:
            yield
        except KeyError as error:
            raise UserError(f"{self.name}: {misfit}: {error.args[0]} is missing") from error

    def read_state_dict(self, path: Path) -> StateDict:
        return read_state_dict(path, trust=self.trust)

    def read_checkpoint(self, path: Path) -> dict:
        return read_checkpoint(path, trust=self.trust)
