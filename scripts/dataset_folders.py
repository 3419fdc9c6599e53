"""Names and folders of one dataset in a workflow, relative to its work folder. Needs the standard library only."""

from __future__ import annotations

SMALL_PLANS = "nnUNetPlansSmall"
VIEW_SEPARATOR = "__fvae_"
"""Between the names of nnU-Net's data folder and of a view of it, as ``fvae-preprocess`` writes it."""


class DatasetFolders:
    """What is the same in all workflows; each says the attributes.

    Attributes:
        dataset: its name in nnU-Net.
        configuration: of nnU-Net.
        plans: those that nnU-Net makes.
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
        """Plans that name the data: those with residual encoders share that of the default plans, except 3d_lowres."""
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
        """As nnU-Net names it, below one for each run: trainers on several views have the same name."""
        named = f"{trainer}__{self.trained_plans}__{self.configuration}"
        return f"nnUNet_results/{run}/{self.dataset}/{named}"
