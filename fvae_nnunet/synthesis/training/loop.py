"""Train the latent denoiser: stage 1 on single latent slices, stage 2 the consistency along the slices on windows.

All processes of a training run this code together, connected by accelerate. For the same batch, the number of processes
and of accumulation passes changes a step only by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fvae_nnunet.device.memory import memory_explained
from fvae_nnunet.errors import UserError
from fvae_nnunet.pictures.training_curves import draw_training_curves
from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
from fvae_nnunet.synthesis.model.folder import ModelSettings, save_model
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.training.checkpoints import Checkpoint, choose_checkpoint, forget_after, save_checkpoint
from fvae_nnunet.synthesis.training.latent_draws import Batch, LatentDraws
from fvae_nnunet.synthesis.training.progress import FILE as PROGRESS_FILE
from fvae_nnunet.synthesis.training.progress import Progress
from fvae_nnunet.synthesis.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

LARGEST_GRADIENT_NORM = 1.0
"""Maximum norm to which gradients are clipped, as in diffusers' training scripts."""


@dataclass(frozen=True)
class Plan:
    """The configuration of a training run.

    Attributes:
        output: folder of the training.
        settings: settings of the training.
        model: settings of the resulting model.
        process: noise process, stored in the model.
        record: JSON values stored in the model, see ``save_model``.
        save_every: number of steps between checkpoints; each stage ends with one.
        samples_every: number of steps between pictures; 0: none.
        gradient_checkpointing: use less memory and more time.
        tensorboard: also write TensorBoard events.
    """

    output: Path
    settings: TrainingSettings
    model: ModelSettings
    process: NoiseProcess
    record: dict[str, Any]
    save_every: int
    samples_every: int = 0
    gradient_checkpointing: bool = False
    tensorboard: bool = False


ShowSamples = Callable[[LatentDenoiser, int], object]
"""Function that draws sample pictures with the averaged weights at a step; called in the main process only."""


class _Stage:
    """Network, optimizer and moving average of one stage.

    Args:
        plan: configuration of the training.
        accelerator: accelerator of this process.
        denoiser: network with the averaged weights of the checkpoint, or the initial ones.
        stage: 1 or 2.
        checkpoint: checkpoint to resume from; None at the start of the stage.
    """

    def __init__(
        self, plan: Plan, accelerator: Accelerator, denoiser: LatentDenoiser, stage: int, checkpoint: Checkpoint | None
    ) -> None:
        from diffusers.training_utils import EMAModel

        self.stage, self.accelerator, self.denoiser = stage, accelerator, denoiser
        denoiser.to(accelerator.device).train().requires_grad_(False)
        trained = {id(parameter) for parameter in denoiser.stage_parameters(stage)}
        self.trained = {name: parameter for name, parameter in denoiser.named_parameters() if id(parameter) in trained}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        if plan.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        self.average = EMAModel(self.parameters, decay=plan.settings.ema_decay, foreach=True)
        if checkpoint is not None:
            self.average.optimization_step = checkpoint.averaged
            checkpoint.load_trained(denoiser)
        optimizer = torch.optim.AdamW(self.parameters, lr=plan.settings.learning_rate)
        self.network, self.optimizer = accelerator.prepare(denoiser, optimizer)
        if checkpoint is not None:
            state = checkpoint.load_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])
            if accelerator.scaler is not None and state["scaler"] is not None:
                accelerator.scaler.load_state_dict(state["scaler"])

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.trained.values())

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    @contextmanager
    def averaged(self) -> Iterator[LatentDenoiser]:
        """The network with the averaged weights, within a ``with`` block."""
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            with torch.no_grad():
                yield self.denoiser
        finally:
            self.average.restore(self.parameters)

    def release(self) -> LatentDenoiser:
        """End the stage and return the network with the averaged weights."""
        self.average.copy_to(self.parameters)
        self.accelerator.free_memory(self.network, self.optimizer)
        return self.denoiser


def first_denoiser(plan: Plan) -> LatentDenoiser:
    """The initial network; its weights depend on the seed."""
    model = plan.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.settings.seed)
        return LatentDenoiser(
            model.latent_channels,
            model.mask_encoding,
            len(model.class_names),
            size=plan.settings.size,
            text_width=model.text_width,
            detail_channels=model.detail_channels,
            context=model.context,
        )


def denoising_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    lesion: torch.Tensor,
    lesion_weight: float,
    *,
    loss: str = "mse",
    generated: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a prediction, and its error in lesions.

    The weight of a cell is ``1 + (lesion_weight - 1) * share of lesion``, normalised to mean 1 in each sample, so that
    samples with and without lesion count equally. With ``mse`` and ``lesion_weight`` 1 this is the paper's loss.

    Args:
        prediction, target: (B, C, d, h, w).
        lesion: (B, d, h, w), share of lesion in [0, 1].
        lesion_weight: see above.
        loss: ``mse`` or ``l1``.
        generated: bool (B, d, h, w), the cells that count, at least one per sample; None: all.

    Returns:
        The loss, and a tensor (2,) without gradients: the sum of the error (mean over channels) weighted by lesion, and
        the sum of lesion.
    """
    difference = prediction.float() - target.float()
    error = (difference.abs() if loss == "l1" else difference.square()).mean(dim=1)
    in_lesion = torch.stack([(error.detach() * lesion).sum(), lesion.sum()])
    if lesion_weight == 1 and generated is None:
        return error.mean(), in_lesion
    weights = 1 + (lesion_weight - 1) * lesion
    if generated is not None:
        weights = weights * generated
    weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True)
    return (weights * error).mean(), in_lesion


def train(plan: Plan, draws: LatentDraws, accelerator: Accelerator, show_samples: ShowSamples | None = None) -> None:
    """Train to the end, resuming from the last checkpoint if there is one, and write the model into ``plan.output``.

    On the CPU, in one process and in float32, a resumed training gives exactly the same model as an uninterrupted one.
    On a GPU the order of summation is not deterministic.

    Args:
        plan: configuration, the same in all processes.
        draws: training samples.
        accelerator: accelerator of this process.
        show_samples: see ``ShowSamples``.

    Raises:
        UserError: the checkpoints do not fit the numbers of steps, the samples of a step cannot be divided evenly among
            processes and passes, or the loss is not finite.
    """
    settings, total = plan.settings, sum(plan.settings.steps)
    settings.check_shares(accelerator.num_processes)
    accelerator.gradient_accumulation_steps = settings.accumulate
    say = print if accelerator.is_main_process else _say_nothing
    checkpoint = choose_checkpoint(plan.output, settings.steps, say)
    done = checkpoint.step if checkpoint else 0
    if checkpoint is not None:
        say(f"resuming from step {done}")
    accelerator.wait_for_everyone()
    progress = None
    if accelerator.is_main_process:
        forget_after(plan.output, done)
        progress = Progress(plan.output, done=done, total=total, tensorboard=plan.tensorboard)
    try:
        denoiser = checkpoint.load_averaged() if checkpoint else first_denoiser(plan)
        for number, last in ((1, settings.steps[0]), (2, total)):
            if done >= last:
                continue
            within = checkpoint if checkpoint is not None and checkpoint.stage == number else None
            if number == 2 and within is None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(settings.seed)
                    denoiser = denoiser.insert_consistency(settings.consistency)
            stage = _Stage(plan, accelerator, denoiser, number, within)
            with memory_explained(_LACK):
                _run_stage(plan, draws, stage, done, last, progress, show_samples)
            denoiser, done = stage.release(), last
        if accelerator.is_main_process:
            record = plan.record | {"steps": list(settings.steps)}
            save_model(plan.output, denoiser, plan.model, record, process=plan.process)
        accelerator.wait_for_everyone()
    finally:
        if progress is not None:
            progress.close()


_LACK = (
    "the device is out of memory; use a larger `accumulate`, `gradient_checkpointing=True`, a smaller "
    "`inplane_pixels`, or `mixed_precision='bf16'`, and run this again: it resumes from the last checkpoint"
)


def _say_nothing(text: str) -> None:
    """Print nothing, in all processes except the main one."""


_RECORD_EVERY = 10
"""Number of steps after which the processes combine their figures."""


def _run_stage(
    plan: Plan,
    draws: LatentDraws,
    stage: _Stage,
    done: int,
    last: int,
    progress: Progress | None,
    show_samples: ShowSamples | None,
) -> None:
    settings, accelerator = plan.settings, stage.accelerator
    process = plan.process
    began = 0 if stage.stage == 1 else settings.steps[0]
    pending: list[tuple[int, torch.Tensor, torch.Tensor, float]] = []
    batches = _batches(plan, draws, stage.stage, range(done - began, last - began), process, accelerator)
    for step in range(done + 1, last + 1):
        learning_rate = settings.learning_rate_at(step - began, settings.steps[stage.stage - 1])
        stage.set_learning_rate(learning_rate)
        figures = torch.zeros(3, device=accelerator.device)
        norm = torch.zeros((), device=accelerator.device)
        for _ in range(settings.accumulate):
            batch = next(batches).to(accelerator.device)
            with accelerator.accumulate(stage.network):
                prediction = stage.network(
                    process.noisy(batch.latent, batch.noise, batch.timesteps),
                    batch.timesteps,
                    batch.condition,
                    batch.text,
                    batch.text_mask,
                    batch.drop,
                    batch.context,
                )
                loss, in_lesion = denoising_loss(
                    prediction,
                    process.target(batch.latent, batch.noise, batch.timesteps),
                    batch.lesion,
                    settings.lesion_weight,
                    loss=settings.loss,
                    generated=batch.generated,
                )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(stage.parameters, LARGEST_GRADIENT_NORM)
                stage.optimizer.step()
                stage.optimizer.zero_grad()
            figures += torch.cat([loss.detach()[None], in_lesion]) / settings.accumulate
        stage.average.step(stage.parameters)
        pending.append((step, figures, norm, learning_rate))
        saves = step == last or step % plan.save_every == 0
        shows = plan.samples_every > 0 and (step == last or step % plan.samples_every == 0)
        if saves or shows or len(pending) == _RECORD_EVERY:
            _record(pending, stage, progress)
            pending = []
        if not accelerator.is_main_process:
            continue
        if saves or (shows and show_samples is not None):
            with stage.averaged() as denoiser:
                if saves:
                    _save(plan, stage, step, denoiser)
                    title = f"step {step} of {sum(settings.steps)}, stage {stage.stage}"
                    draw_training_curves(plan.output / PROGRESS_FILE, title=title)
                if shows and show_samples is not None:
                    show_samples(denoiser, step)


def _batches(
    plan: Plan, draws: LatentDraws, stage: int, steps: range, process: NoiseProcess, accelerator: Accelerator
) -> Iterator[Batch]:
    """The batches of this process, pass by pass; the next one is prepared while the network works."""
    settings = plan.settings
    share = settings.share(stage, accelerator.num_processes)

    def make(step: int, number: int) -> Batch:
        first = (number * accelerator.num_processes + accelerator.process_index) * share
        return draws.batch(
            stage,
            step,
            range(first, first + share),
            seed=settings.seed,
            process=process,
            condition_dropout=settings.condition_dropout,
        )

    passes = [(step, number) for step in steps for number in range(settings.accumulate)]
    with ThreadPoolExecutor(max_workers=1) as thread:
        ahead = thread.submit(make, *passes[0])
        for following in passes[1:]:
            batch = ahead.result()
            ahead = thread.submit(make, *following)
            yield batch
        yield ahead.result()


def _record(
    pending: list[tuple[int, torch.Tensor, torch.Tensor, float]], stage: _Stage, progress: Progress | None
) -> None:
    """Combine the figures of the last steps from all processes, and record them."""
    figures = stage.accelerator.reduce(torch.stack([figures for _, figures, _, _ in pending]), reduction="mean")
    for (step, _, norm, learning_rate), (loss, error, lesion) in zip(pending, figures.tolist(), strict=True):
        if not torch.isfinite(torch.tensor(loss)):
            raise UserError(
                f"the loss of step {step} is not finite; use a lower `learning_rate`, or `mixed_precision='bf16'` or "
                "'no', and run this again: it resumes from the last checkpoint"
            )
        if progress is not None:
            progress.add(
                step,
                stage.stage,
                loss=loss,
                lesion_loss=error / lesion if lesion > 0 else None,
                gradient_norm=float(norm),
                learning_rate=learning_rate,
            )
    if progress is not None:
        progress.flush()


def _save(plan: Plan, stage: _Stage, step: int, averaged: LatentDenoiser) -> None:
    scaler = stage.accelerator.scaler
    assert stage.average.temp_stored_params is not None
    save_checkpoint(
        plan.output,
        step=step,
        stage=stage.stage,
        steps=plan.settings.steps,
        averaged_steps=stage.average.optimization_step,
        denoiser=averaged,
        trained=dict(zip(stage.trained, stage.average.temp_stored_params, strict=True)),
        optimizer=stage.optimizer.state_dict(),
        scaler=None if scaler is None else scaler.state_dict(),
        settings=plan.model,
        training=plan.record | {"steps": list(plan.settings.steps), "step": step},
        process=plan.process,
    )
