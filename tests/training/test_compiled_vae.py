"""A VAE under torch.compile: one graph whatever the batch, compiled before training and not in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_weights import put_on_gpu
from identity_vae import IdentityVAE
from patches_for_tests import PATCHES, batch_of
from tiny_models import tiny_wan, wan_vae
from torch._subclasses.fake_tensor import FakeTensorMode
from vaes_for_tests import MAKERS

from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.training.compiled_vae import CompiledVAE
from fvae_nnunet.training.online import Draw, PatchReconstruction
from fvae_nnunet.vae import FrozenVAE, load_vae


class Backend:
    """Counts the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def forget_what_was_compiled() -> None:
    torch._dynamo.reset()


def calls_of(vae: FrozenVAE, method: str, run: Any) -> list[tuple[Any, Any, Any]]:
    module: Any = vae._module  # type: ignore[attr-defined]
    original, calls = getattr(module, method), []

    def recorded(*arguments: Any, **keywords: Any) -> Any:
        calls.append((original, arguments, keywords))
        return original(*arguments, **keywords)

    setattr(module, method, recorded)
    try:
        run()
    finally:
        setattr(module, method, original)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2", "wf-vae", "iv-vae", "leanvae", "kl-grey"])
def test_a_network_is_one_graph_on_a_gpu(kind: str, tmp_path: Path) -> None:
    vae: Any = MAKERS[kind](tmp_path, dtype=torch.bfloat16)
    spec = vae.spec
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        put_on_gpu(vae._module)
        sides = 2 * spec.inplane_stride, 3 * spec.inplane_stride
        # of two volumes, for which the part of a tensor behind its past is not contiguous
        volume = torch.empty(2, 1, spec.padded_slices(9), *sides, device="cuda")
        if kind.startswith("wan"):
            vae._steps_of_a_chunk = lambda pixels: 2  # a first chunk and one with a past
        latents: list[torch.Tensor] = []
        calls = calls_of(vae, "encode", lambda: latents.append(vae.encode(volume)))
        calls += calls_of(vae, "decode", lambda: vae.decode(latents[0]))
        assert len(calls) == (4 if kind.startswith("wan") else 2)
        for method, arguments, keywords in calls:
            torch._dynamo.reset()
            found = torch._dynamo.explain(method)(*arguments, **keywords)
            assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.slow
def test_a_compiled_vae_gives_its_values_and_only_itself_is_compiled() -> None:
    eager, compiled, backend = load_vae("tiny"), load_vae("tiny"), Backend()
    assert CompiledVAE(compiled, backend=backend)
    assert not CompiledVAE(IdentityVAE())
    volume = torch.rand(1, 1, 2, 16, 16) * 2 - 1
    expected = eager.decode(eager.encode(volume))
    assert backend.graphs == 0
    torch.testing.assert_close(compiled.decode(compiled.encode(volume)), expected, rtol=0, atol=1e-5)
    assert backend.graphs == 2


@pytest.mark.slow
def test_no_batch_of_a_training_is_compiled_for_after_the_first_sample() -> None:
    """Whatever is drawn: a rank that drew no sample in the first step must not compile later, while others wait."""
    vae, eager, backend = wan_vae(tiny_wan()), wan_vae(tiny_wan()), Backend()
    settings = ReconstructionSettings.for_vae(vae.spec, window_slices=5, overlap_slices=1)
    reconstruction = PatchReconstruction(vae, PATCHES, settings)
    compiled = CompiledVAE(vae, backend=backend)
    reconstruction.warm_up((11, 8, 8), torch.device("cpu"), "mode")
    compiled.close()
    first, sizes = backend.graphs, compiled.sizes
    assert first >= sizes > 0
    batch = batch_of(3, 1, 11, 8, 8)
    for samples in ((0, 1, 2), (2,), (0, 1)):
        draw = Draw(samples, (1.0,) * len(samples))
        expected = PatchReconstruction(eager, PATCHES, settings).apply(batch, draw)
        torch.testing.assert_close(reconstruction.apply(batch, draw), expected, rtol=0, atol=1e-3)
    assert backend.graphs == first
    smaller = batch_of(1, 1, 5, 16, 16)  # as where memory lacks: another size runs, and is not compiled
    expected = PatchReconstruction(eager, PATCHES, settings).apply(smaller, Draw((0,), (1.0,)))
    assert torch.equal(reconstruction.apply(smaller, Draw((0,), (1.0,))), expected)
    assert (backend.graphs, compiled.sizes) == (first, sizes)
