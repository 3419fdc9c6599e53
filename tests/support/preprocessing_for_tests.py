"""A view against nnU-Net's own preprocessing."""

from __future__ import annotations

import blosc2
import numpy as np


def arrays(folder):
    return {path.name: blosc2.open(str(path), mode="r")[:] for path in folder.glob("*.b2nd") if "_seg" not in path.name}


def assert_view_is_nnunets_own(folders, dataset):
    for configuration, folder in folders.items():
        raw = arrays(dataset.preprocessed / f"nnUNetPlans_{configuration}")
        view = arrays(folder)
        assert view.keys() == raw.keys()
        for name in raw:
            assert view[name].dtype == raw[name].dtype == np.float32
            assert np.array_equal(view[name], raw[name]), (configuration, name)
