"""Names, the hub and its cache, and what is said when weights are missing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from tiny_models import tiny_kl, tiny_wan

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import is_available_offline, known_vaes, load_vae

COMMIT = "0" * 40
WAN21_HUB_ID = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no hub: nobody listens at its address."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return cache


def snapshot(cache: Path, hub_id: str) -> Path:
    """The folder where the hub's client looks for the files of a repository."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def test_known_names_are_unique_and_described() -> None:
    vaes = known_vaes()
    names = [vae.name for vae in vaes]
    paper = ["wan2.1", "wan2.2", "videovae+", "iv-vae", "cv-vae", "wf-vae", "leanvae", "medvae", "maisi"]
    assert names[:11] == ["tiny", *paper, "taef2"]
    assert len(set(names)) == len(names)
    assert all(vae.description and vae.licence for vae in vaes)
    assert {vae.name: vae.hub_id for vae in vaes if "wan" in vae.name} == {
        "wan2.1": WAN21_HUB_ID,
        "wan2.2": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    }
    assert [vae.hub_id for vae in vaes if vae.name in ("tiny", "taef2")] == [None, None]


def test_unknown_name_lists_the_known_ones_and_close_matches() -> None:
    for use in (load_vae, is_available_offline):
        with pytest.raises(UserError, match=r"unknown VAE 'wan2.3'. Did you mean wan2.[12] or wan2.[12]\?") as caught:
            use("wan2.3")
        for name in ("tiny", "wan2.1", "wan2.2", "taef2", "diffusers:<hub id"):
            assert name in str(caught.value)
    with pytest.raises(UserError, match="Did you mean diffusers:stabilityai/sdxl-vae"):
        load_vae("stabilityai/sdxl-vae")
    for place in ("", "one", "/no/such/folder", "a/b/c", "./absent", "../absent", "a/b--c"):
        with pytest.raises(UserError, match="neither a local folder nor a hub id"):
            load_vae(f"diffusers:{place}")


def test_weights_that_do_not_exist_are_named(tmp_path: Path) -> None:
    for name in ("wan2.1", "taef2", "diffusers:stabilityai/sdxl-vae"):
        with pytest.raises(UserError, match=f"{name}: `weights`: no such file or folder: .*absent"):
            load_vae(name, weights=tmp_path / "absent")


@pytest.mark.slow
def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_kl().save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_vae("diffusers:~/mine").spec.name == "diffusers:mine"
    assert load_vae("diffusers:stabilityai/sdxl-vae", weights="~/mine").weights_source == str(tmp_path / "mine")


def test_cached_models_are_found_without_the_network(hub_cache: Path) -> None:
    assert not is_available_offline("wan2.1")
    tiny_wan().save_pretrained(snapshot(hub_cache, WAN21_HUB_ID) / "vae")
    assert is_available_offline("wan2.1")
    assert not is_available_offline("wan2.2")
    assert load_vae("wan2.1").weights_source == f"hub {WAN21_HUB_ID}"

    assert not is_available_offline("diffusers:stabilityai/sdxl-vae")
    tiny_kl().save_pretrained(snapshot(hub_cache, "stabilityai/sdxl-vae"))
    assert is_available_offline("diffusers:stabilityai/sdxl-vae")
    assert load_vae("diffusers:stabilityai/sdxl-vae").spec.latent_channels == 4


def test_a_cache_with_half_of_the_files_does_not_count(hub_cache: Path) -> None:
    folder = snapshot(hub_cache, WAN21_HUB_ID) / "vae"
    tiny_wan().save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert not is_available_offline("wan2.1")


@pytest.mark.parametrize("why", ["nobody answers", "HF_HUB_OFFLINE"])
def test_missing_weights_offline_are_one_quick_message(
    why: str, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_vae("wan2.2")
    assert time.monotonic() - started < 30
    message = str(caught.value)
    for part in (
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers: vae/config.json and vae/diffusion_pytorch_model.safetensors (2820 MB)",
        "`weights`",
        "`vae=tiny`",
        "HF_HUB_OFFLINE is set" if why == "HF_HUB_OFFLINE" else "127.0.0.1:9",
    ):
        assert part in message
    assert caught.value.__cause__ is not None
    with pytest.raises(UserError, match=r"config.json and .*safetensors \(or vae/config.json and vae/.*`weights`"):
        load_vae("diffusers:stabilityai/sd-vae-ft-mse")


def test_other_failures_of_the_download_are_not_disguised(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fvae_nnunet.vae.folders.reach_hub", lambda: None)
    monkeypatch.setattr("huggingface_hub._snapshot_download.HfApi.repo_info", disk_full)
    with pytest.raises(OSError, match="No space left"):
        load_vae("wan2.1")


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does: lists and files with commit and etag, 404 with an error code in a header."""

    root: Path

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        repository, _, name = path.partition(f"/resolve/{COMMIT}/")
        body = b"" if path == "" else None
        if path.startswith("api/models/"):
            repository, what = re.fullmatch(r"api/models/(.*)/(revision|tree)/[^/]*", path).groups()
            folder = self.root / repository
            if folder.is_dir():
                files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": COMMIT}
                    for name, file in files.items()
                ]
                siblings = [{"rfilename": name} for name in files]
                info = {"id": repository, "sha": COMMIT, "siblings": siblings}
                body = json.dumps(tree if what == "tree" else info).encode()
        elif (file := self.root / repository / name).is_file():
            body = file.read_bytes()
        if body is not None:
            self.send_response(200)
            self.send_header("ETag", f'"{abs(hash(self.path))}"')
            self.send_header("X-Repo-Commit", COMMIT)
        else:
            self.send_response(404)
            known = (self.root / repository).is_dir()
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a hub on this machine and the folder with its repositories."""
    root = tmp_path / "repositories"
    handler = type("Handler", (FakeHub,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root
    server.shutdown()
    server.server_close()


LOAD_ALL = """
import json, sys
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import is_available_offline, load_vae
for name in sys.argv[1:]:
    try:
        before = is_available_offline(name)
        print(json.dumps([before, load_vae(name).weights_sha256, is_available_offline(name)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_a_checkout_that_is_not_needed_is_not_used(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"tiny needs no checkout, so .* is ignored; videovae\+, cv-vae need one"):
        assert load_vae("tiny", code=tmp_path).spec.name == "tiny"


@pytest.mark.slow
def test_downloads_from_the_hub_then_needs_it_no_more(hub: tuple[str, Path], tmp_path: Path) -> None:
    address, root = hub
    tiny_wan().save_pretrained(root / WAN21_HUB_ID / "vae")
    tiny_kl(seed=1).save_pretrained(root / "lab" / "plain")
    tiny_kl(seed=2).save_pretrained(root / "lab" / "pipeline" / "vae")
    (root / "lab" / "empty").mkdir()
    names = ["wan2.1", "diffusers:lab/plain", "diffusers:lab/pipeline", "diffusers:lab/empty", "diffusers:lab/absent"]

    def load(address: str) -> list:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
        process = subprocess.run(
            [sys.executable, "-c", LOAD_ALL, *names], env=environment, capture_output=True, text=True, timeout=100
        )
        assert process.returncode == 0, process.stderr
        return [json.loads(line) for line in process.stdout.splitlines()]

    first = load(address)
    for place, loaded in ((WAN21_HUB_ID + "/vae", first[0]), ("lab/plain", first[1]), ("lab/pipeline/vae", first[2])):
        name = "wan2.1" if "Wan" in place else f"diffusers:{root / place}"
        weights = root / place if "Wan" in place else None
        assert loaded == [False, load_vae(name, weights=weights).weights_sha256, True]
    assert "lab/empty is not a VAE in diffusers' format" in first[3]
    assert "the hub has no repository lab/absent that you can access" in first[4]

    second = load("http://127.0.0.1:9")
    assert [(loaded[0], loaded[1]) for loaded in second[:3]] == [(True, loaded[1]) for loaded in first[:3]]
    assert "the hub cannot be reached" in second[3]
