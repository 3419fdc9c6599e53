"""What ``reproduce_msd.py`` is asked to do: task, what is trained on, and how; and whether that can be done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.training.views import SEPARATOR, default_view_name

TASKS = {"Task06_Lung": "lung", "Task07_Pancreas": "pancreas"}
"""Folder of the download -> name of the dataset in the paper's tables."""

RAW = "raw"
TRAINERS = {
    "recon-only": "nnUNetTrainerFVAEReconOnly",
    "mix": "nnUNetTrainerFVAE",
    "blend": "nnUNetTrainerFVAEBlend",
}
LENGTHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 1000, 2000, 4000, 8000)
"""Epochs for which there are trainers; 1000 is nnU-Net's own."""

PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
CONFIGURATIONS = ("3d_fullres", "3d_lowres", "2d")
SMALL_PLANS = "nnUNetPlansSmall"


@dataclass(frozen=True)
class Arm:
    """One way to train: on the raw images, or on a view.

    Attributes:
        spec: as given to --vaes, or ``raw``.
        name: of the arm, its view and its folder of results.
        options: of ``fvae-preprocess``; empty for ``raw``.
        needs: name of the arm whose view this control is matched to.
    """

    spec: str
    name: str
    options: tuple[str, ...] = ()
    needs: str | None = None


@dataclass(frozen=True)
class Setting:
    """Everything that decides which commands run.

    Attributes:
        task: folder of the download; only read.
        number: id of the dataset in nnU-Net.
        work: folder of everything that is made.
        arms: what is trained, ``raw`` first.
        folds, protocol, epochs, configuration, plans, network, tolerances_mm: see the options of the script.
        device: for reconstruction and training.
        processes: for reading and writing.
    """

    task: Path
    number: int
    work: Path
    arms: tuple[Arm, ...]
    folds: tuple[int, ...]
    protocol: str
    epochs: int
    configuration: str
    plans: str
    network: str
    tolerances_mm: tuple[float, ...]
    device: str
    processes: int

    @property
    def dataset(self) -> str:
        """As nnU-Net's converter names it."""
        return f"Dataset{self.number:03d}_{self.task.name.split('_')[1]}"

    @property
    def raw(self) -> Path:
        return Path("nnUNet_raw") / self.dataset

    @property
    def preprocessed(self) -> Path:
        return Path("nnUNet_preprocessed") / self.dataset

    @property
    def data_folder(self) -> Path:
        """nnU-Net's preprocessed data; residual encoder plans share that of the default plans, except 3d_lowres."""
        plans = "nnUNetPlans" if self.configuration in ("2d", "3d_fullres") else self.plans
        return self.preprocessed / f"{plans}_{self.configuration}"

    def view_folder(self, arm: Arm) -> Path:
        return self.data_folder.with_name(f"{self.data_folder.name}{SEPARATOR}{arm.name}")

    @property
    def trained_plans(self) -> str:
        return SMALL_PLANS if self.network == "small" else self.plans

    def trainer(self, arm: Arm) -> str:
        trainer = "nnUNetTrainer" if arm.name == RAW else TRAINERS[self.protocol]
        return trainer if self.epochs == 1000 else f"{trainer}_{self._length.replace(' ', '')}"

    def model(self, arm: Arm) -> str:
        """Folder of a model, as nnU-Net names it."""
        return f"{self.trainer(arm)}__{self.trained_plans}__{self.configuration}"

    @property
    def _length(self) -> str:
        return f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"

    @property
    def title(self) -> str:
        """Of tables and reports."""
        return (
            f"{self.task.name}: {self.protocol}, {self.configuration}, {self.trained_plans}, {self._length}, "
            f"folds {' '.join(map(str, self.folds))}"
        )

    @property
    def comparison(self) -> Path:
        """Where the outcome of this setting lies."""
        return Path("comparison") / self.dataset / self.model(self.arms[1])


def parse_arm(
    spec: str,
    *,
    scheme: str | None,
    weights: dict[str, Path],
    code: dict[str, Path],
    check_files: bool = True,
) -> Arm:
    """An arm from ``NAME`` or, for a plain denoiser, ``control:NAME@STRENGTH`` or ``control:NAME@VIEW``.

    Args:
        spec: see above.
        scheme: how VAEs reconstruct; None: as the paper's script of this VAE, or overlapping windows if there is none.
        weights, code: by the name of the VAE.
        check_files: whether to look for weights and code.

    Raises:
        UserError: unknown name, or something that the VAE needs is not given or not there.
    """
    from fvae_nnunet.vae.known import KNOWN
    from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS
    from fvae_nnunet.vae.registry import is_available_offline, is_control

    vae, _, strength = spec.partition("@") if is_control(spec) else (spec, "", "")
    is_available_offline(vae)
    name = default_view_name(spec)
    if is_control(vae):
        if (vae == "control:identity") == bool(strength):
            raise UserError(
                f"{spec}: write control:NAME@STRENGTH, or control:NAME@VIEW to match a view, or control:identity"
            )
        if not strength:
            return Arm(spec, name, ("--vae", vae))
        try:
            return Arm(spec, name, ("--vae", vae, "--strength", str(float(strength))))
        except ValueError:
            return Arm(spec, name, ("--vae", vae), needs=strength)
    usual = "paper" if vae in PAPER_SCRIPTS else "windows"
    options = ["--vae", vae, "--scheme", scheme or usual]
    name = name if scheme in (None, usual) else f"{name}-{scheme}"
    known = next((known for known in KNOWN if known.name == vae), None)
    for option, paths, needed in (
        ("--weights", weights, known is not None and known.hub_id is None and known.download_mb > 0),
        ("--vae-code", code, known is not None and known.code is not None),
    ):
        if vae in paths:
            options += [option, str(paths[vae])]
        if check_files and vae in paths and not paths[vae].exists():
            raise UserError(f"{vae}: {option}: no such file or folder: {paths[vae]}")
        if check_files and needed and vae not in paths:
            raise UserError(f"{vae} needs {option} {vae}=PATH (docs/backbones.md says where to get it)")
    return Arm(spec, name, tuple(options))


def parse_arms(
    specs: Sequence[str],
    *,
    scheme: str | None,
    weights: dict[str, Path],
    code: dict[str, Path],
    check_files: bool = True,
) -> tuple[Arm, ...]:
    """``raw`` and an arm for each of --vaes, see `parse_arm`. A control follows the arm that it is matched to.

    Raises:
        UserError: as `parse_arm`; or one is named twice, weights are for none of them, or a matched view is not made.
    """
    made = [parse_arm(spec, scheme=scheme, weights=weights, code=code, check_files=check_files) for spec in specs]
    views = [arm for arm in made if arm.needs is None]
    arms = [Arm(RAW, RAW), *views]
    for arm in made:
        if arm.needs is not None:
            matched = next((view for view in views if arm.needs in (view.spec, view.name)), None)
            if matched is None:
                raise UserError(f"{arm.spec}: {arm.needs} is neither a number nor one of --vaes ({', '.join(specs)})")
            arms.append(replace(arm, needs=matched.name))
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise UserError(f"--vaes names one of them twice: {', '.join(specs)}")
    for option, paths in (("--weights", weights), ("--vae-code", code)):
        unused = sorted(paths.keys() - set(specs))
        if unused:
            raise UserError(f"{option} {unused[0]}=...: {unused[0]} is none of --vaes ({', '.join(specs)})")
    return tuple(arms)


def check_task(folder: Path) -> None:
    """Check that a folder is a complete download of the task.

    Files that macOS left in the archive (``._lung_001.nii.gz``) are ignored, here as by nnU-Net's converter.

    Raises:
        UserError: what is missing or different.
    """
    for part in ("dataset.json", "imagesTr", "labelsTr", "imagesTs"):
        if not (folder / part).exists():
            raise UserError(
                f"{folder} has no {part}; it must be the extracted download of the Medical Segmentation Decathlon"
            )
    try:
        described = json.loads((folder / "dataset.json").read_text())
        modality, cases = described["modality"], [(case["image"], case["label"]) for case in described["training"]]
        labels = {str(name) for name in described["labels"].values()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'dataset.json'} is not that of the Medical Segmentation Decathlon: {error!r}"
        ) from error
    if modality != {"0": "CT"} or "cancer" not in labels:
        raise UserError(f"{folder}: expected CT with a label 'cancer', got {modality} with {', '.join(sorted(labels))}")
    missing = [file for case in cases for file in case if not (folder / file).is_file()]
    if missing or not cases:
        raise UserError(
            f"{folder}: {len(missing)} of {2 * len(cases)} files of dataset.json are missing"
            f"{f' (first: {missing[0]})' if missing else ''}; extract the archive again"
        )


def check_task_name(folder: Path) -> None:
    """UserError where a folder is not named as one of the tasks, which is how nnU-Net's converter knows them."""
    if folder.name not in TASKS:
        raise UserError(f"{folder} must be a folder named {' or '.join(TASKS)}, as the archive of the Decathlon has it")


def check_dataset_id(setting: Setting, *, is_ours: bool) -> None:
    """UserError where the work folder holds another dataset with this id, or one that we did not convert."""
    work = setting.work
    places = [work / "nnUNet_raw", work / "nnUNet_preprocessed", *(work / "nnUNet_results").glob("*")]
    found = sorted({folder for place in places for folder in place.glob(f"Dataset{setting.number:03d}_*")})
    others = [folder for folder in found if folder.name != setting.dataset or not is_ours]
    if others:
        raise UserError(
            f"{others[0]} exists: id {setting.number} is taken. Choose another with -overwrite_id, or another --work"
        )
