"""fvae-train-ldm: a latent diffusion model of a dataset's lesions, in the latent space of a frozen VAE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.command import LoadedVAE, add_vae_options, load, run_command
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fvae_nnunet.synthesis.latent_draws import LatentDraws
    from fvae_nnunet.synthesis.latent_encoding import LatentSettings
    from fvae_nnunet.synthesis.model_folder import ModelSettings
    from fvae_nnunet.synthesis.source_cases import SourceDataset
    from fvae_nnunet.synthesis.training import Plan
    from fvae_nnunet.synthesis.training_inputs import Texts
    from fvae_nnunet.synthesis.training_settings import TrainingSettings

TRAINING_FOLDER = "training"
_CLAIM = "training"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvae-train-ldm",
        description="Train a latent diffusion model that makes lesions from masks, in the latent space of a frozen "
        "VAE, on the training cases of a raw dataset; for fvae-synthesize. The same command again goes on where it "
        "stopped. On several GPUs: accelerate launch -m fvae_nnunet.cli.train_ldm DATASET ...",
    )
    parser.add_argument("dataset", help="id or name of the dataset, such as 7 or Dataset007_Pancreas")
    _add_data_options(parser)
    _add_latent_options(parser)
    _add_training_options(parser)
    _add_output_options(parser)
    return run_command(parser, run, argv)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cases")
    group.add_argument(
        "--organ", metavar="SOURCE",
        help="where it is: label:NAME[,NAME], folder:PATH (masks named as the cases, such as TotalSegmentator's), "
        "folder:PATH:VALUE[,VALUE] (some of their values), lungs or body (by threshold), or none; default: all labels "
        "but the lesion's",
    )  # fmt: skip
    group.add_argument("--lesion", metavar="NAME", help="the lesion's label; default: the only one with such a name")
    group.add_argument(
        "--fold", type=int, metavar="F",
        help="train on the training cases of this fold alone, so that its validation cases are not seen; default: all",
    )  # fmt: skip
    group.add_argument("--leave-out", nargs="+", default=[], metavar="CASE", help="cases that are not used")
    group.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier; default nnUNetPlans")
    group.add_argument(
        "--reports", metavar="FILE", help="report texts: JSON {case: text} or CSV with the columns case and text"
    )
    group.add_argument(
        "--text-encoder", metavar="NAME",
        help="hub id or folder of its transformers encoder; default: microsoft/BiomedVLP-CXR-BERT-specialized",
    )  # fmt: skip


def _add_latent_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("latents")
    add_vae_options(group)
    group.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"),
        help="in which the VAE computes, and later the model; default float32",
    )  # fmt: skip
    group.add_argument(
        "--hu-window", nargs=2, type=float, default=(-1000.0, 1000.0), metavar=("LOWER", "UPPER"),
        help="HU mapped to [-1, 1]; values outside are clipped; default -1000 1000, the paper's",
    )  # fmt: skip
    group.add_argument(
        "--spacing", nargs=3, type=float, metavar=("Z", "Y", "X"),
        help="mm to which images are resampled before; default: as they are",
    )  # fmt: skip
    group.add_argument(
        "--window-slices", type=int, metavar="N",
        help="slices in a window; default: the VAE's own (Wan: 65), for image VAEs 16",
    )  # fmt: skip
    group.add_argument(
        "--inplane-pixels", type=int, metavar="N",
        help="side of the squares of pixels that are trained on; default by size 512, 256 or 96, but no more than the "
        "largest slice needs",
    )  # fmt: skip
    group.add_argument(
        "--mask-encoding", choices=("onehot", "vae"), default="onehot",
        help="onehot: the share of each class in a latent cell (default); vae: the map through the VAE, the paper's",
    )  # fmt: skip
    group.add_argument("--latents", metavar="NAME", help="name of the cache; default: VAE and mask encoding")
    group.add_argument("--overwrite-latents", action="store_true", help="encode everything anew")


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--size", choices=("paper", "small", "tiny"), default="small",
        help="of the network: 420 M, 36 M (default) or 1 M parameters",
    )  # fmt: skip
    group.add_argument(
        "--prediction", choices=("epsilon", "v_prediction", "flow"), default="epsilon",
        help="what the network predicts; default epsilon, the paper's",
    )  # fmt: skip
    group.add_argument(
        "--consistency", choices=("conv", "attention"), default="conv",
        help="what looks along the slices in stage 2; default conv, the paper's",
    )  # fmt: skip
    for stage, what, values in (
        (1, "of the 2D network", "100000, 20000 or 1000"),
        (2, "of the consistency along the slices; 0: none", "20000, 4000 or 200"),
    ):
        group.add_argument(f"--stage{stage}-steps", type=int, metavar="N", help=f"{what}; default by size {values}")
    group.add_argument(
        "--batch", type=int, metavar="N",
        help="latent slices of a step of stage 1, over all processes and passes; default by size 32, 32 or 16",
    )  # fmt: skip
    group.add_argument(
        "--window-batch",
        type=int,
        metavar="N",
        help="windows of a step of stage 2, likewise; default by size 4, 4 or 2",
    )
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N",
        help="passes over which a process gathers its part of a step; saves memory, changes rounding only; default 1",
    )  # fmt: skip
    group.add_argument("--lr", type=float, metavar="RATE", help="learning rate; default by size 1e-4, 1e-4 or 1e-3")
    group.add_argument(
        "--ema-decay", type=float, default=0.9999, metavar="D", help="of the weights' moving average; default 0.9999"
    )
    group.add_argument(
        "--condition-dropout", type=float, default=0.0, metavar="P",
        help="share of samples without condition; needed for guidance when sampling; default 0, the paper's",
    )  # fmt: skip
    group.add_argument(
        "--lesion-share", type=float, default=0.5, metavar="P", help="share of samples that hold lesion; default 0.5"
    )
    group.add_argument(
        "--lesion-weight", type=float, default=1.0, metavar="W",
        help="weight in the loss of a latent cell that is all lesion; others weigh 1; default 1, the paper's",
    )  # fmt: skip
    group.add_argument(
        "--mixed-precision", choices=("no", "bf16", "fp16"), help="default: bf16 where the GPU has it, else no"
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, about a third more time")
    group.add_argument("--seed", type=int, default=0, help="of everything random; default 0")
    group.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", metavar="FOLDER", help="default: fvae_ldm__<vae> in the dataset's folder in nnUNet_results"
    )
    group.add_argument(
        "--save-every", type=int, default=1000, metavar="N", help="steps between checkpoints; default 1000"
    )
    group.add_argument(
        "--samples-every", type=int, metavar="N",
        help="steps between pictures of what the model makes; 0: none; default: with each checkpoint",
    )  # fmt: skip
    group.add_argument("--tensorboard", action="store_true", help="events for TensorBoard beside progress.csv")
    group.add_argument("-np", type=int, default=2, metavar="N", help="processes that read and write latents; default 2")
    group.add_argument("--overwrite", action="store_true", help="train anew, with other settings if need be")


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.claims import Claims
    from fvae_nnunet.synthesis.latent_cache import cache_folder
    from fvae_nnunet.synthesis.source_cases import open_source_dataset
    from fvae_nnunet.synthesis.training import train
    from fvae_nnunet.synthesis.training_inputs import draws_and_model, read_texts
    from fvae_nnunet.synthesis.training_processes import connect
    from fvae_nnunet.vae.registry import is_control
    from fvae_nnunet.views import default_view_name

    _check_counts(arguments)
    if is_control(arguments.vae):
        raise UserError(f"{arguments.vae} is a plain denoiser and has no latent; --vae must name a VAE")
    dataset = open_source_dataset(
        arguments.dataset, organ=arguments.organ, lesion=arguments.lesion, fold=arguments.fold, plans_name=arguments.p
    ).without(arguments.leave_out)
    vae_name = default_view_name(arguments.vae)
    output = _output_folder(arguments, dataset, vae_name)
    accelerator = connect(
        device=arguments.device, mixed_precision=arguments.mixed_precision, accumulate=arguments.accumulate
    )
    is_main = accelerator.is_main_process
    settings = _training_settings(arguments, accelerator)
    texts = read_texts(arguments.reports, arguments.text_encoder, dataset, accelerator.device)
    loaded = _load_vae(arguments, str(accelerator.device))
    latent_settings = _latent_settings(arguments, dataset, loaded)
    cache = cache_folder(dataset, arguments.latents or f"{vae_name}_{arguments.mask_encoding}")
    with Claims([output], known=[_CLAIM]) as claims:
        if is_main and next(claims.each([_CLAIM]), None) is None:
            raise UserError(f"another process is training in {output}; wait for it, or give another -o")
        _encode(arguments, accelerator, dataset, loaded, latent_settings, cache)
        draws, model = draws_and_model(settings, dataset, loaded.vae, latent_settings, cache, texts)
        plan = _plan(arguments, output, settings, model, _record(arguments, dataset, settings))
        if is_main:
            _begin(arguments, plan, dataset, loaded, texts)
            _say(dataset, draws, settings, cache)
        show_samples = None
        if is_main and plan.samples_every:
            from fvae_nnunet.synthesis.training_samples import SamplePictures

            show_samples = SamplePictures(output / "samples", draws, model, loaded.vae, settings.seed)
        del loaded  # only the pictures need it from here on
        accelerator.wait_for_everyone()
        train(plan, draws, accelerator, show_samples)
    if is_main:
        print(f"model in {output}; make lesions with: fvae-synthesize {int(dataset.name[7:10])} --ldm {output}")
    accelerator.end_training()
    return 0


def _check_counts(arguments: argparse.Namespace) -> None:
    if arguments.np < 0:
        raise UserError(f"-np must not be negative, got {arguments.np}")
    if arguments.save_every < 1 or (arguments.samples_every or 0) < 0:
        raise UserError("--save-every is at least 1 and --samples-every not negative")
    if arguments.spacing is not None and min(arguments.spacing) <= 0:
        raise UserError(f"--spacing takes three positive numbers (z y x, mm), got {arguments.spacing}")
    if arguments.text_encoder and not arguments.reports:
        raise UserError("--text-encoder does nothing without --reports")


def _output_folder(arguments: argparse.Namespace, dataset: SourceDataset, vae_name: str) -> Path:
    from fvae_nnunet.nnunet_folders import nnunet_folder

    if arguments.o is not None:
        return Path(arguments.o).expanduser().resolve()
    fold = "" if arguments.fold is None else f"__fold{arguments.fold}"
    return nnunet_folder("nnUNet_results") / dataset.name / f"fvae_ldm__{vae_name}{fold}"


def _training_settings(arguments: argparse.Namespace, accelerator: Accelerator) -> TrainingSettings:
    from fvae_nnunet.synthesis.training_settings import DEFAULTS, TrainingSettings

    defaults = DEFAULTS[arguments.size]
    stage1, stage2 = (
        default if given is None else given
        for given, default in zip((arguments.stage1_steps, arguments.stage2_steps), defaults.steps, strict=True)
    )
    settings = TrainingSettings(
        size=arguments.size,
        prediction=arguments.prediction,
        consistency=arguments.consistency,
        steps=(stage1, stage2),
        batch=defaults.batch if arguments.batch is None else arguments.batch,
        window_batch=defaults.window_batch if arguments.window_batch is None else arguments.window_batch,
        accumulate=arguments.accumulate,
        learning_rate=defaults.learning_rate if arguments.lr is None else arguments.lr,
        ema_decay=arguments.ema_decay,
        condition_dropout=arguments.condition_dropout,
        lesion_share=arguments.lesion_share,
        lesion_weight=arguments.lesion_weight,
        mixed_precision=accelerator.mixed_precision,
        seed=arguments.seed,
    )
    settings.check_shares(accelerator.num_processes)
    return settings


def _load_vae(arguments: argparse.Namespace, device: str) -> LoadedVAE:
    """The VAE, with the options of reconstruction that do not matter for latents at their defaults."""
    others = {"scheme": "windows", "window_slices": None, "overlap_slices": None, "truncate": False, "strength": None}
    others |= {"match": None, "posterior_seed": None}
    return load(argparse.Namespace(**vars(arguments) | others | {"device": device}))


def _latent_settings(arguments: argparse.Namespace, dataset: SourceDataset, loaded: LoadedVAE) -> LatentSettings:
    from fvae_nnunet.synthesis.latent_encoding import LatentSettings, choose_inplane_pixels
    from fvae_nnunet.synthesis.latent_windows import choose_window_slices
    from fvae_nnunet.synthesis.training_settings import DEFAULTS

    spec = loaded.vae.spec
    spacing_mm = None if arguments.spacing is None else tuple(arguments.spacing)
    return LatentSettings(
        hu_window=loaded.settings.hu_window,
        window_slices=choose_window_slices(spec, arguments.window_slices),
        inplane_pixels=choose_inplane_pixels(
            dataset, spec, spacing_mm, wanted=arguments.inplane_pixels, usual=DEFAULTS[arguments.size].inplane_pixels
        ),
        spacing_mm=spacing_mm,
        mask_encoding=arguments.mask_encoding,
    )


def _encode(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    dataset: SourceDataset,
    loaded: LoadedVAE,
    settings: LatentSettings,
    cache: Path,
) -> None:
    from tqdm import tqdm

    from fvae_nnunet.synthesis.latent_cache import complete_cache, remove_cache

    if arguments.overwrite_latents and accelerator.is_main_process:
        remove_cache(cache)
    accelerator.wait_for_everyone()
    share = (accelerator.process_index, accelerator.num_processes)
    total = len(dataset.cases[share[0] :: share[1]])
    with tqdm(total=total, desc="latents", unit="case", disable=not accelerator.is_main_process) as bar:
        complete_cache(
            cache,
            dataset,
            loaded.vae,
            settings,
            made_with={"weights": loaded.vae.weights_source, "options": loaded.options},
            share=share,
            workers=arguments.np,
            on_case=lambda _: bar.update(),
        )
    accelerator.wait_for_everyone()


def _record(arguments: argparse.Namespace, dataset: SourceDataset, settings: TrainingSettings) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "fold": arguments.fold,
        "training_cases": dataset.cases,
        "lesion": dataset.lesion_name,
        **settings.recorded,
    }


def _plan(
    arguments: argparse.Namespace,
    output: Path,
    settings: TrainingSettings,
    model: ModelSettings,
    record: dict[str, Any],
) -> Plan:
    from fvae_nnunet.evaluation.picture import require_matplotlib
    from fvae_nnunet.synthesis.training import Plan

    samples_every = arguments.save_every if arguments.samples_every is None else arguments.samples_every
    if samples_every:
        try:
            require_matplotlib()
        except UserError:
            if arguments.samples_every is not None:
                raise
            samples_every = 0
    return Plan(
        output=output,
        settings=settings,
        model=model,
        record=record,
        save_every=arguments.save_every,
        samples_every=samples_every,
        gradient_checkpointing=arguments.gradient_checkpointing,
        tensorboard=arguments.tensorboard,
    )


def _begin(arguments: argparse.Namespace, plan: Plan, dataset: SourceDataset, loaded: LoadedVAE, texts: Texts) -> None:
    """Start the folder of the training, or check that it was started with the same settings."""
    from fvae_nnunet.manifest import Manifest
    from fvae_nnunet.synthesis.training_state import remove_training

    if arguments.overwrite:
        remove_training(plan.output)
    Manifest(plan.output / TRAINING_FOLDER).begin(
        "ldm_training",
        {
            "training": plan.settings.recorded,
            "model": asdict(plan.model),
            "dataset": dataset.name,
            "cases": dataset.cases,
            "reports_sha256": texts.digest,
        },
        {"weights": loaded.vae.weights_source, "options": loaded.options},
    )


def _say(dataset: SourceDataset, draws: LatentDraws, settings: TrainingSettings, cache: Path) -> None:
    print(f"{dataset.name}: {len(dataset.cases)} cases, {draws.cases_with_lesion} with {dataset.lesion_name}; {cache}")
    for stage, what in ((1, "slices"), (2, "windows")):
        if draws.share[stage] != settings.lesion_share and settings.steps[stage - 1]:
            which = "without" if draws.share[stage] else "with"
            print(f"stage {stage}: no {what} {which} {dataset.lesion_name}; --lesion-share has no effect")


if __name__ == "__main__":
    sys.exit(main())
