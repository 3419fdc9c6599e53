"""Names and folders of a dataset in a workflow, relative to its work folder. Uses only the standard library."""

from __future__ import annotations

SMALL_PLANS = "nnUNetPlansSmall"
VIEW_SEPARATOR = "__fvae_"
"""Separator between the names of nnU-Net's data folder and of its view, as written by ``fvae-preprocess``."""


class DatasetFolders:
    """Names and folders common to all workflows; subclasses define the attributes.

    Attributes:
        dataset: name of the dataset in nnU-Net.
        configuration: nnU-Net's configuration.
        plans: plans made by nnU-Net.
        is_small: whether the network is shrunk.
    """

    dataset: str
    configuration: str
    plans: str
    is_small: bool

    @property
    def raw(self) -> str:
        return f"nnUNet_raw/{self.dataset}"

    @property
    def preprocessed(self) -> str:
        return f"nnUNet_preprocessed/{self.dataset}"

    @property
    def data_plans(self) -> str:
        """Plans in the name of the data folder; residual encoder plans share that of the default, except 3d_lowres."""
        return "nnUNetPlans" if self.configuration in ("2d", "3d_fullres") else self.plans

    @property
    def data_folder(self) -> str:
        return f"{self.preprocessed}/{self.data_plans}_{self.configuration}"

    def view_folder(self, view: str) -> str:
        return f"{self.data_folder}{VIEW_SEPARATOR}{view}"

    @property
    def trained_plans(self) -> str:
        return SMALL_PLANS if self.is_small else self.plans

    def model_folder(self, run: str, trainer: str) -> str:
        """nnU-Net's model folder below a folder for each run, since the same trainer may run on several views."""
        named = f"{trainer}__{self.trained_plans}__{self.configuration}"
        return f"nnUNet_results/{run}/{self.dataset}/{named}"
