"""Models in diffusers' format, from a local folder or the Hugging Face hub."""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.files.checked_json import read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
VAE_SUBFOLDER = "vae"
REACH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ModelFolder:
    """A folder with ``config.json`` and weights, as diffusers saves a model.

    Attributes:
        path: the folder that holds both files.
        config: the parsed ``config.json``.
        weights_file: the weights file in the folder.
    """

    path: Path
    config: dict[str, Any]
    weights_file: Path

    @property
    def class_name(self) -> str:
        """The diffusers class that the configuration names, or "model of no named class"."""
        return str(self.config.get("_class_name") or "model of no named class")


def has_model(folder: Path) -> bool:
    """Whether ``open_folder`` would find a configuration and weights."""
    return _with_model(folder, (VAE_SUBFOLDER, "")) is not None


def _with_model(folder: Path, subfolders: Sequence[str]) -> Path | None:
    """The first of the subfolders (empty string: the folder itself) with a configuration and weights."""
    for place in (folder / subfolder for subfolder in subfolders):
        if (place / CONFIG_FILE).is_file() and any((place / name).is_file() for name in WEIGHTS_FILES):
            return place
    return None


def open_folder(folder: Path) -> ModelFolder:
    """The VAE of a local folder: its subfolder ``vae`` if that has a ``config.json`` (a pipeline), else the folder.

    Raises:
        UserError: no such folder, a file is missing, or the configuration is not JSON.
    """
    if not folder.is_dir():
        raise UserError(f"weights: no such folder: {folder}")
    path = folder / VAE_SUBFOLDER if (folder / VAE_SUBFOLDER / CONFIG_FILE).is_file() else folder
    if not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"weights: {folder} has no {CONFIG_FILE}, nor does a subfolder {VAE_SUBFOLDER}{_other_weights(folder)}"
        )
    weights_file = next((path / name for name in WEIGHTS_FILES if (path / name).is_file()), None)
    if weights_file is None:
        raise UserError(f"weights: {path} has {CONFIG_FILE} but no {WEIGHTS_FILES[0]}{_other_weights(path)}")
    config = read_json(path / CONFIG_FILE, {}, remedy="Download the folder of the model again")
    return ModelFolder(path, config, weights_file)


def _other_weights(folder: Path) -> str:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".pth"))
    return f"; if one of these files holds the VAE, name it: {some_of(others, 5)}" if others else ""


@dataclass(frozen=True)
class HubModel:
    """A VAE on the Hugging Face hub.

    Attributes:
        hub_id: ``owner/name``.
        subfolders: where to look for its files, in this order; an empty string is the top of the repository.
        size_mb: size of the download, for messages; None if unknown.
    """

    hub_id: str
    subfolders: tuple[str, ...] = (VAE_SUBFOLDER, "")
    size_mb: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*", self.hub_id):
            raise UserError(
                f"{self.hub_id!r} is neither a local folder nor a hub id of the form owner/name; if it names a folder "
                "elsewhere, give its path as `weights`"
            )

    def wanted_files(self) -> str:
        """Names of the files, for messages."""
        places = [
            f"{_in(folder, CONFIG_FILE)} and {_in(folder, WEIGHTS_FILES[0])}" for folder in reversed(self.subfolders)
        ]
        size = f" ({self.size_mb} MB)" if self.size_mb else ""
        return " (or ".join(places) + ")" * (len(places) - 1) + size

    def cached(self) -> Path | None:
        """Folder in the local cache of the hub, or None if the files are not there; never connects."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self._snapshot(local_files_only=True)
        except LocalEntryNotFoundError:
            return None

    def fetch(self, vae_name: str) -> Path:
        """Folder in the local cache of the hub, downloaded if necessary. Cached files are not checked for updates.

        Raises:
            UserError: not in the cache and the hub cannot be reached, no such repository, or no access to it.
        """
        from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

        folder = self.cached()
        if folder is not None:
            return folder
        try:
            reach_hub()
            folder = self._snapshot()
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, HubUnreachable) as error:
            raise UserError(
                f"{vae_name}: the weights are not on this machine and the hub cannot be reached "
                f"({error.__cause__ or error}). Needed from {self.hub_id}: {self.wanted_files()}. Connect and run this "
                "again, or copy these files from another machine into one folder and give it as `weights`; to try "
                "things out without a download, use `vae=tiny`."
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{vae_name}: the hub has no repository {self.hub_id} that you can access. Check the name; if it is "
                "private or gated, accept the terms on its page and run `hf auth login`."
            ) from error
        if folder is None:
            raise UserError(
                f"{vae_name}: {self.hub_id} is not a VAE in diffusers' format: it has no {self.wanted_files()}"
            )
        return folder

    def _snapshot(self, *, local_files_only: bool = False) -> Path | None:
        """Folder of the first of the wanted files that the repository (or the cache) has; None if it has none."""
        from huggingface_hub import snapshot_download

        for subfolder, weights in product(self.subfolders, WEIGHTS_FILES):
            wanted = [_in(subfolder, name) for name in (CONFIG_FILE, weights)]
            snapshot = snapshot_download(self.hub_id, allow_patterns=wanted, local_files_only=local_files_only)
            found = _with_model(Path(snapshot), (subfolder,))
            if found is not None:
                return found
        return None


class HubUnreachable(Exception):
    """The hub cannot be reached, or must not be; the message is the reason."""


def _in(subfolder: str, name: str) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def reach_hub() -> None:
    """Raise HubUnreachable within seconds; the hub's own client would retry for half a minute.

    Uses the proxies of the environment. Any response counts as reachable, and so does a failed TLS handshake, which the
    client explains better.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnreachable("HF_HUB_OFFLINE is set")
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):
            raise HubUnreachable(f"{constants.ENDPOINT}: {reason}") from None
