"""How far a view is, from its records and the sizes of its files."""

from __future__ import annotations

from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.training.view_states import ViewState, view_states


def test_whole_damaged_and_missing_cases_are_counted(tmp_path):
    data_folder = tmp_path / "Dataset007_Pancreas" / "nnUNetPlans_3d_fullres"
    data_folder.mkdir(parents=True)
    for case in "abcd":
        (data_folder / f"{case}.pkl").touch()
    view = data_folder.with_name(f"{data_folder.name}__fvae_wan2.1")
    manifest = Manifest(view)
    manifest.begin("view", {"vae": "wan2.1"}, {})
    for case in "abc":
        (view / f"{case}.b2nd").write_bytes(b"voxels")
        manifest.write_case(case, inputs={}, outputs=[view / f"{case}.b2nd"], results={})
    (view / "b.b2nd").write_bytes(b"voxel")
    assert list(view_states(tmp_path)) == [ViewState(data_folder, "wan2.1", "wan2.1", whole=2, recorded=3, cases=4)]

    manifest.path.write_text("{")
    (state,) = view_states(tmp_path)
    assert (state.name, state.whole) == ("wan2.1", 0)
    assert state.fault is not None and str(manifest.path) in state.fault


def test_there_may_be_none(tmp_path):
    assert list(view_states(tmp_path)) == []
