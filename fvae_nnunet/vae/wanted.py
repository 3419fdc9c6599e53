"""What a loader of a VAE is asked for."""

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
    """A VAE's name, its weights, and where and in what precision it shall compute.

    Attributes:
        name: in the registry, for messages.
        weights: file or folder; None for the VAE's own place on the hub.
        trust: read a pickled file that holds more than tensors; it can then run code.
        device, dtype: where and in what precision to compute.
    """

    name: str
    weights: Path | None = None
    trust: bool = False
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32

    def placement(self, source: object) -> Placement:
        """What ``ModuleVAE`` takes; ``source`` says where the weights came from."""
        return {"source": str(source), "device": self.device, "dtype": self.dtype}

    def file(self, where_to_get_it: str) -> Path:
        """The weights; UserError that says where to get them where they are not given."""
        if self.weights is None:
            raise UserError(f"{self.name}: {where_to_get_it}")
        return self.weights

    def folder(self, hub: HubModel | None) -> tuple[ModelFolder, str]:
        """The folder of the weights, the hub's where they are not given, and where it came from, in words.

        Raises:
            UserError: it is none in diffusers' format, or cannot be had.
        """
        if self.weights is None:
            assert hub is not None
            return open_folder(hub.fetch(self.name)), f"hub {hub.hub_id}"
        found = open_folder(self.weights)
        return found, str(found.path)

    def downloaded_file(self, hub_id: str, file: str, terms: str) -> Path:
        """The weights, where they are one file on the hub that the user downloads.

        Args:
            hub_id, file: where.
            terms: size and licence.

        Raises:
            UserError: they are not given.
        """
        download = f"hf download {hub_id} {file} --local-dir ."
        return self.file(f"get its weights ({terms}) with `{download}` and give the file as `weights`")

    @contextmanager
    def sizes_in(self, misfit: str) -> Iterator[None]:
        """Around reading sizes from tensors: a KeyError, which names one that is missing, becomes a UserError.

        Args:
            misfit: what to say before the name.
        """
        try:
            yield
        except KeyError as error:
            raise UserError(f"{self.name}: {misfit}: {error.args[0]} is missing") from error

    def read_state_dict(self, path: Path) -> StateDict:
        return read_state_dict(path, trust=self.trust)

    def read_checkpoint(self, path: Path) -> dict:
        return read_checkpoint(path, trust=self.trust)
