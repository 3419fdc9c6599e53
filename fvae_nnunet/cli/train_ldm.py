"""fvae-train-ldm: train a latent diffusion model of a dataset's lesions, in the latent space of a frozen VAE.

Train a latent diffusion model for fvae-synthesize. It generates lesions from masks in the latent space of a frozen VAE,
and is trained on the training cases of a raw dataset. The same command resumes where it stopped. On several GPUs:
accelerate launch -m fvae_nnunet.cli.train_ldm DATASET ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.cases import submit_cases
from fvae_nnunet.cli.command import LoadedVAE, load, run_command
from fvae_nnunet.cli.common_options import from_options
from fvae_nnunet.cli.outputs import check_output_folder
from fvae_nnunet.cli.parsers import CommandParser, dataset_of
from fvae_nnunet.cli.training_options import add_ldm_options
from fvae_nnunet.cli.verify import verify_finished
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fvae_nnunet.synthesis.model.latent_encoding import LatentSettings
    from fvae_nnunet.synthesis.sources.cases import SourceDataset
    from fvae_nnunet.synthesis.training.inputs import Texts
    from fvae_nnunet.synthesis.training.latent_draws import LatentDraws
    from fvae_nnunet.synthesis.training.loop import Plan
    from fvae_nnunet.synthesis.training.settings import TrainingSettings


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    add_ldm_options(parser)
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.files.recorded import damage_of
    from fvae_nnunet.jobs.locks import CaseLocks
    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.nnunet.folders import dataset_id
    from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
    from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
    from fvae_nnunet.synthesis.training.checkpoints import check_is_ours
    from fvae_nnunet.synthesis.training.inputs import draws_and_model, read_texts
    from fvae_nnunet.synthesis.training.latent_cache import cache_folder
    from fvae_nnunet.synthesis.training.loop import Plan, train
    from fvae_nnunet.synthesis.training.processes import connect
    from fvae_nnunet.training.views import default_view_name
    from fvae_nnunet.vae.registry import is_control

    check_output_folder(arguments.output)
    _check_counts(arguments)
    if is_control(arguments.vae):
        raise UserError(f"{arguments.vae} is a plain denoiser and has no latent space; name a VAE with --vae")
    dataset = from_options(
        open_source_dataset, arguments, id_or_name=dataset_of(arguments), lesions=arguments.lesion
    ).without(arguments.leave_out)
    vae_name = default_view_name(arguments.vae)
    output = _output_folder(arguments, dataset, vae_name)
    check_is_ours(output)
    _complete(arguments, has_lesions=bool(dataset.lesions))
    cache = cache_folder(dataset, arguments.latents or f"{vae_name}_{arguments.mask_encoding}")
    if arguments.submit is not None:
        if not arguments.encode_only:
            raise UserError(
                "`submit` requires `encode_only=True`; to train on several GPUs, use accelerate launch --multi_gpu"
            )
        return submit_cases(arguments, cases=dataset.cases, folders=[cache])
    accelerator = connect(device=arguments.device, mixed_precision=arguments.mixed_precision)
    is_main = accelerator.is_main_process
    settings = _training_settings(arguments, accelerator)
    process = NoiseProcess(settings.prediction, steps=arguments.sampling_steps, eta=arguments.sampling_eta)
    process.check_steps(process.steps)
    texts = read_texts(arguments.reports, arguments.text_encoder, dataset, accelerator.device)
    loaded = _load_vae(arguments, str(accelerator.device))
    latent_settings = _latent_settings(arguments, dataset, loaded)
    if arguments.encode_only:
        _encode(arguments, accelerator, dataset, loaded, latent_settings, cache)
        print(f"latents of {counted(len(dataset.cases), 'case')}, in {cache}")
        return 0
    if is_main and arguments.verify:
        for path, what in damage_of(Manifest(output).files()).items():
            print(f"DAMAGED, will be made again: {path} {what}", file=sys.stderr)
    with CaseLocks([output]) as locks:
        if is_main and not locks.take("training"):
            raise UserError(f"another process is training in {output}; wait for it, or use another -o")
        _encode(arguments, accelerator, dataset, loaded, latent_settings, cache)
        draws, model = draws_and_model(settings, dataset, loaded.vae, latent_settings, cache, texts)
        plan = from_options(
            Plan,
            arguments,
            output=output,
            settings=settings,
            model=model,
            process=process,
            record=_record(arguments, dataset, settings, texts),
            samples_every=arguments.save_every if arguments.samples_every is None else arguments.samples_every,
        )
        if is_main:
            _begin(arguments, plan, dataset, loaded, texts)
            _say(dataset, draws, plan, cache)
        show_samples = None
        if is_main and plan.samples_every:
            from fvae_nnunet.synthesis.training.samples import SamplePictures

            show_samples = SamplePictures(
                output / "samples", draws, model, process, loaded.vae, dataset.axial_direction, settings.seed
            )
        del loaded  # only the pictures need it from here on
        accelerator.wait_for_everyone()
        train(plan, draws, accelerator, show_samples)
    if is_main:
        what = "to make lesions" if len(dataset.lesions) == 1 else "to generate volumes"
        how = {"n": 100} if len(dataset.lesions) == 1 else {"mode": "full", "list": "list.csv"}
        command = command_line(
            "fvae-synthesize", dataset_id(dataset.name), ldm=output, fold=arguments.fold, **how,
            channels=arguments.channels, hu_as_is=arguments.hu_as_is,
        )  # fmt: skip
        print(f"model in {output}; {what}: {command}")
    accelerator.end_training()
    return 0


def _check_counts(arguments: argparse.Namespace) -> None:
    if arguments.save_every < 1 or (arguments.samples_every or 0) < 0:
        raise UserError("--save-every must be at least 1, and --samples-every must not be negative")
    if arguments.spacing_mm is not None and min(arguments.spacing_mm) <= 0:
        raise UserError(f"--spacing takes three positive numbers (z y x, mm), got {arguments.spacing_mm}")
    if arguments.text_encoder and arguments.reports is None:
        raise UserError("--text-encoder has no effect without --reports; add --reports, or leave it out")


def _output_folder(arguments: argparse.Namespace, dataset: SourceDataset, vae_name: str) -> Path:
    from fvae_nnunet.nnunet.folders import nnunet_folder

    if arguments.output is not None:
        output: Path = arguments.output.expanduser().resolve()
        return output
    fold = "" if arguments.fold is None else f"__fold{arguments.fold}"
    return nnunet_folder("nnUNet_results") / dataset.name / f"fvae_ldm__{vae_name}{fold}"


def _complete(arguments: argparse.Namespace, *, has_lesions: bool) -> None:
    """Set options that are not given to the values of the recipe and the size."""
    from fvae_nnunet.synthesis.training.recipes import RECIPES
    from fvae_nnunet.synthesis.training.settings import DEFAULTS

    size = DEFAULTS[arguments.size]
    defaults = asdict(RECIPES[arguments.recipe]) | {
        "stage1_steps": size.steps[0],
        "stage2_steps": size.steps[1],
        "batch": size.batch,
        "window_batch": size.window_batch,
        "learning_rate": size.learning_rate,
        "gradient_checkpointing": size.gradient_checkpointing,
    }
    if not has_lesions:
        defaults["lesion_share"] = 0.0
    encoding = arguments.mask_encoding or defaults["mask_encoding"]
    if encoding != "outline" or arguments.prediction not in (None, "sample"):
        if arguments.context == "draft" or (encoding != "outline" and arguments.context == "masked"):
            raise UserError(
                "--context masked and draft require --mask-encoding outline; draft also requires --prediction sample"
            )
        defaults["context"] = "none"
    for name, value in defaults.items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)


def _training_settings(arguments: argparse.Namespace, accelerator: Accelerator) -> TrainingSettings:
    from fvae_nnunet.synthesis.training.settings import DEFAULTS, TrainingSettings

    accumulate = arguments.accumulate
    if accumulate is None:
        accumulate = max(1, DEFAULTS[arguments.size].passes // accelerator.num_processes)
    settings = from_options(
        TrainingSettings,
        arguments,
        steps=(arguments.stage1_steps, arguments.stage2_steps),
        accumulate=accumulate,
        mixed_precision=accelerator.mixed_precision,
    )
    settings.check_shares(accelerator.num_processes)
    return settings


def _load_vae(arguments: argparse.Namespace, device: str) -> LoadedVAE:
    """Load the VAE, with defaults for the reconstruction options that do not affect latents."""
    others: dict[str, Any] = dict.fromkeys(
        ("window_slices", "overlap_slices", "strength", "match", "posterior_seed", "named_windows", "pixel_mm")
    ) | {"scheme": "windows", "truncate": False, "hu_windows": [arguments.hu_window], "enlarge": 1.0, "average": 1}
    return load(argparse.Namespace(**vars(arguments) | others | {"device": device}))


def _latent_settings(arguments: argparse.Namespace, dataset: SourceDataset, loaded: LoadedVAE) -> LatentSettings:
    from fvae_nnunet.synthesis.model.latent_encoding import LatentSettings, choose_inplane_pixels
    from fvae_nnunet.synthesis.model.latent_windows import choose_window_slices
    from fvae_nnunet.synthesis.training.settings import DEFAULTS

    spec = loaded.vae.spec
    spacing_mm = None if arguments.spacing_mm is None else tuple(arguments.spacing_mm)
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
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.synthesis.training.latent_cache import complete_cache, remove_cache

    if accelerator.is_main_process:
        verify_finished(arguments, [cache], dataset.cases, anew="overwrite_latents")
        if arguments.overwrite_latents:
            remove_cache(cache)
    accelerator.wait_for_everyone()
    share = (accelerator.process_index, accelerator.num_processes)
    total = len(dataset.cases[share[0] :: share[1]])
    with progress_bar(total=total, desc="latents", unit="case", disable=not accelerator.is_main_process) as bar:
        complete_cache(
            cache,
            dataset,
            loaded.vae,
            settings,
            made_with=loaded.made_with,
            share=share,
            workers=arguments.processes,
            on_case=lambda _: bar.update(),
        )
    accelerator.wait_for_everyone()


def _record(
    arguments: argparse.Namespace, dataset: SourceDataset, settings: TrainingSettings, texts: Texts
) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "fold": arguments.fold,
        "training_cases": dataset.cases,
        "lesions": list(dataset.lesions),
        "recipe": arguments.recipe,
        "samples_without_text": settings.condition_dropout > 0 or not texts.embeddings.keys() >= set(dataset.cases),
        **settings.recorded,
    }


def _begin(arguments: argparse.Namespace, plan: Plan, dataset: SourceDataset, loaded: LoadedVAE, texts: Texts) -> None:
    """Start the training folder, or check that it was started with the same settings."""
    from fvae_nnunet.files.portable_names import portable_name, portable_parameters
    from fvae_nnunet.synthesis.training.checkpoints import KIND, remove_training, training_manifest

    if arguments.overwrite:
        remove_training(plan.output)
    training_manifest(plan.output).begin(
        KIND,
        {
            "training": plan.settings.recorded,
            "model": asdict(plan.model),
            "dataset": dataset.name,
            "cases": dataset.cases,
            "reports_sha256": texts.digest,
        },
        {"weights": portable_name(loaded.vae.weights_source), "parameters": portable_parameters(loaded.parameters)},
    )


def _say(dataset: SourceDataset, draws: LatentDraws, plan: Plan, cache: Path) -> None:
    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.synthesis.model.folder import needs_text

    settings = plan.settings
    lesions = ", ".join(dataset.lesions) or "lesions"
    organs = len(dataset.organ.class_names)
    print(
        f"{dataset.name}: {counted(len(dataset.cases), 'case')}, {draws.cases_with_lesion} with {lesions}; "
        f"classes: {organs} of organs, {len(dataset.lesions)} of lesions; {cache}"
    )
    print(f"latents: {Manifest(cache).check_sample(dataset.cases, 'the same command and --verify')}")
    for stage, what in ((1, "slices"), (2, "windows")):
        if draws.share[stage] != settings.lesion_share and settings.steps[stage - 1]:
            which = "without" if draws.share[stage] else "with"
            print(f"stage {stage}: no {what} {which} {lesions}; --lesion-share has no effect")
    if needs_text(plan.model, plan.record):
        print("every case has a report, so fvae-synthesize will require texts unless --condition-dropout is above 0")


if __name__ == "__main__":
    sys.exit(main())
