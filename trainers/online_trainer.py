"""nnU-Net's trainer with the VAE inside the training step."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fvae_nnunet import __version__
from fvae_nnunet.files.portable_names import portable_name
from fvae_nnunet.trainers.recording_trainer import RecordingTrainer

if TYPE_CHECKING:
    import torch

    from fvae_nnunet.training.online import Draw, PatchReconstruction


class nnUNetTrainerFVAEOnline(RecordingTrainer):
    """Trainer that reconstructs training patches on the device, in the training step, without a stored view.

    Samples of a training batch are randomly reconstructed, after nnU-Net's augmentation and before the network.
    Validation and inference use raw images. With probability 0 this is nnU-Net's trainer. The choice of samples depends
    only on ``draw_seed``, rank, epoch and iteration. See docs/online.md.

    Attributes:
        view: name of the view whose VAE to use; takes precedence over all variables.
        view_probability: probability that a training sample is reconstructed.
        view_blend: lowest and highest weight of the view in ``raw + weight * (view - raw)``, drawn for each sample.
        posterior: ``mode``, or ``sample`` to draw from the encoder's posterior, so that each view is new.
        draw_seed: random seed of all these draws.
        hu_window: HU window of the VAE; None for that of the view which names the VAE, or -1000 to 1000 HU without a
            view.
        vae_precision: ``float32``, ``bfloat16`` or ``float16``; None for bfloat16 on GPUs with native support (Ampere
            and later) and float32 elsewhere.
        ct_channels: channels to reconstruct; None for those of the view which names the VAE, or those named CT without
            a view.
        hu_as_is: reconstruct even if the foreground cannot be in HU; also true if the view was made so.
        last_draw: random choices for the last training batch.
    """

    view_probability = 0.5
    view_blend = (1.0, 1.0)
    posterior: Literal["mode", "sample"] = "mode"
    draw_seed = 0
    hu_window: tuple[float, float] | None = None
    vae_precision: str | None = None
    ct_channels: tuple[int, ...] | None = None
    hu_as_is = False
    online_settings: dict[str, Any] | None = None
    last_draw: Draw | None = None
    iteration_of_epoch = 0
    _reconstruction: PatchReconstruction | None = None

    def on_train_start(self) -> None:
        if self.view_probability > 0:
            self._reconstruction = self._load_reconstruction()
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        self.iteration_of_epoch = 0
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.view_probability > 0:
            if self._reconstruction is None:
                self._reconstruction = self._load_reconstruction()
            data: torch.Tensor = batch["data"].to(self.device, non_blocking=True)
            self.last_draw = self._draw(len(data))
            batch = {**batch, "data": self._reconstruction.apply(data, self.last_draw)}
            self.iteration_of_epoch += 1
        return super().train_step(batch)

    def on_train_end(self) -> None:
        self._reconstruction = None
        gc.collect()  # a compiled VAE is part of a reference cycle; nnU-Net then empties the device's cache
        super().on_train_end()

    def training_record(self) -> dict[str, Any]:
        return {**super().training_record(), "online": self.online_settings}

    def _draw(self, batch_size: int) -> Draw:
        from fvae_nnunet.training.online import Draw

        return Draw.random(
            batch_size,
            probability=self.view_probability,
            blend=self.view_blend,
            posterior=self.posterior,
            entropy=(self.draw_seed, self.local_rank, self.current_epoch, self.iteration_of_epoch),
        )

    def _load_reconstruction(self) -> PatchReconstruction:
        """Load the VAE on this rank's device, check that it fits the plans, and log and record its settings."""
        from fvae_nnunet.errors import UserError
        from fvae_nnunet.training.compiled_vae import CompiledVAE
        from fvae_nnunet.training.ct_patches import CTPatches
        from fvae_nnunet.training.online import PatchReconstruction, check_draw_settings
        from fvae_nnunet.training.online_vae import load_training_vae

        check_draw_settings(self.view_probability, self.view_blend, self.posterior)
        loaded = load_training_vae(
            Path(self.preprocessed_dataset_folder),
            self.preprocess_command,
            device=self.device,
            view=self.view,
            hu_window=self.hu_window,
            precision=self.vae_precision,
        )
        hu_as_is = self.hu_as_is or loaded.hu_as_is
        patches = CTPatches.of_plans(
            self.plans_manager.plans,
            self.configuration_name,
            self.dataset_json,
            channels=self.ct_channels or loaded.ct_channels,
            hu_as_is=hu_as_is,
        )
        vae = loaded.vae
        reconstruction = PatchReconstruction(vae, patches, loaded.settings)
        if self.posterior == "sample" and not reconstruction.has_posterior():
            raise UserError(f"{vae.spec.name} has no posterior to draw from; use posterior = 'mode'")
        sizes = 0
        if self._do_i_compile() and len(self.configuration_manager.patch_size) == 3:
            compiled = CompiledVAE(vae)
            reconstruction.warm_up(self.configuration_manager.patch_size, self.device, self.posterior)
            compiled.close()
            sizes = compiled.sizes
        made_with = {
            **loaded.settings.recorded_with(vae),
            "ct_channels": [channel.index for channel in patches.channels],
        }
        drawn_with = {
            "probability": self.view_probability,
            "blend": list(self.view_blend),
            "posterior": self.posterior,
            "draw_seed": self.draw_seed,
        }
        self.refuse_to_go_on(
            self.changed_since_checkpoint({"view": made_with, "online": drawn_with}),
            f"Use that VAE and these settings (the variables of docs/online.md, the class {type(self).__name__})",
        )
        if self.view_settings is None:
            self.view_settings, self.view_hu_as_is = made_with, hu_as_is
            self.online_settings = {
                **drawn_with,
                "vae_named_by": loaded.named_by,
                "weights": portable_name(vae.weights_source),
                "compiled": sizes > 0,
            }
            self.print_to_log_file(
                f"fvae_nnunet {__version__}: training patches pass through {vae.spec.name} (named by "
                f"{loaded.named_by}) on {vae.device} in the training step, {json.dumps(self.online_settings)}, made "
                f"with {json.dumps(self.view_settings)}; not in validation"
            )
        return reconstruction
