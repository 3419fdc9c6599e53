import json

import pytest

from fvae_nnunet.command_lines import options_of
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.jobs.recorded_options import parameters_in

OPTIONS = (
    "--vae diffusers:x --weights '/data/my weights' --trust-weights --strength 0.5 --scheme windows "
    "--hu-window -1000 1000 --hu-window -200 300 --average 2 --window-slices 8 --overlap 0 --precision float32 "
    "--hu-as-is --sample-posterior 0 --channels 0 2 --view x"
)


def test_a_manifest_of_before_has_the_parameters_of_its_options(tmp_path):
    content = {"schema": 1, "kind": "view", "settings": {}, "made_with": {"options": OPTIONS, "weights": "hub"}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    made_with = Manifest(tmp_path).read({"made_with": {"parameters": dict}})["made_with"]
    assert made_with == {"parameters": parameters_in(OPTIONS), "weights": "hub"}
    assert made_with["parameters"] == {
        "vae": "diffusers:x",
        "weights": "/data/my weights",
        "trust_weights": True,
        "strength": 0.5,
        "scheme": "windows",
        "hu_windows": [[-1000.0, 1000.0], [-200.0, 300.0]],
        "average": 2,
        "window_slices": 8,
        "overlap_slices": 0,
        "precision": "float32",
        "hu_as_is": True,
        "posterior_seed": 0,
        "channels": [0, 2],
        "view": "x",
    }


@pytest.mark.parametrize("options", [OPTIONS, "", "--vae control:nlm --strength auto", "--synthetic '/data/a b'"])
def test_parameters_say_the_same_as_options(options):
    parameters = parameters_in(options)
    assert parameters_in(" ".join(f"'{word}'" for word in options_of(parameters))) == parameters
