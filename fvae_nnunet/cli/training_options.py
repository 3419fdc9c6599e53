"""The options of fvae-train-ldm."""

from __future__ import annotations

import argparse

from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.cli.parsers import add_dataset
from fvae_nnunet.cli.reconstruction_options import add_vae_options
from fvae_nnunet.cli.submit import add_submit_options
from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW


def add_ldm_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of fvae-train-ldm."""
    add_dataset(parser)
    _add_data_options(parser.add_argument_group("cases"))
    _add_latent_options(parser.add_argument_group("latents"))
    _add_training_options(parser.add_argument_group("training"))
    _add_output_options(parser.add_argument_group("output"))
    add_submit_options(parser)


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    group.add_argument("--organ", metavar="SOURCE",
        help="source of the organ: structures[:FOLDER] (one class per structure; default folder: structuresTr of the "
        "dataset), label:NAME[,NAME], folder:PATH (masks named like the cases, such as TotalSegmentator's), "
        "folder:PATH:VALUE[,VALUE] (some values of these masks), lungs or body (by threshold), or none; default: all "
        "labels except those of lesions")
    group.add_argument("--lesion", nargs="+", metavar="NAME",
        help="labels of lesions, one class for each, or none; default: the only label with a lesion's name, or all "
        "labels of a dataset with a reports.json, whose labels are diseases")
    add_common(group, "fold", "leave_out", "plans_name", "channels", "hu_as_is")
    group.add_argument("--reports", nargs="?", const="", metavar="FILE",
        help="train with report texts: those of the dataset's reports.json, or of FILE (JSON {case: text}, a "
        "reports.json, or CSV with the columns case and text); default: no text")
    group.add_argument("--text-encoder", metavar="NAME",
        help="hub id or folder of the transformers text encoder; default: microsoft/BiomedVLP-CXR-BERT-specialized")
    # fmt: on


def _add_latent_options(group: argparse._ArgumentGroup) -> None:
    add_vae_options(group)
    add_common(
        group, "precision", help="precision of the VAE, and of the whole model when it generates; default float32"
    )
    add_common(group, "hu_window", default=PAPER_HU_WINDOW)
    add_common(group, "spacing_mm", help="resample the images to this spacing in mm first; default: no resampling")
    add_common(group, "window_slices", help="slices in a window; default: the VAE's own (Wan: 65), for image VAEs 16")
    # fmt: off
    group.add_argument("--inplane-pixels", type=int, metavar="N",
        help="side of the square training patches in pixels; default by --size 512, 256 or 64, but no more than the "
        "largest slice needs")
    group.add_argument("--mask-encoding", choices=("outline", "onehot", "vae"),
        help="outline (lesion): the share of each class in a latent cell, the lesions' outline at full resolution, "
        "their appearance, and the spacing; onehot: only the shares; vae (paper): the label map encoded by the VAE")
    # fmt: on
    group.add_argument("--latents", metavar="NAME", help="name of the latent cache; default: VAE and mask encoding")
    group.add_argument("--overwrite-latents", action="store_true", help="encode all latents again")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    group.add_argument("--size", choices=("paper", "small", "tiny"), default="small",
        help="size of the network: 420 M, 36 M (default) or 1 M parameters")
    group.add_argument("--recipe", choices=("lesion", "paper"), default="lesion",
        help="defaults for training and sampling: lesion (default), designed for lesions, or those of the paper; sets "
        "--prediction, --loss, --mask-encoding, --context, --lesion-share, --lesion-weight, --decay-share, "
        "--sampling-steps and --sampling-eta if they are not given")
    group.add_argument("--prediction", choices=("sample", "epsilon", "v_prediction", "flow"),
        help="what the network predicts: the latent (lesion), the noise (paper), or a velocity")
    group.add_argument("--loss", choices=("l1", "mse"), help="loss of the prediction; l1 (lesion) or mse (paper)")
    group.add_argument("--context", choices=("none", "masked", "draft"),
        help="part of the latent that the network receives: none (paper); masked: the known part; draft (lesion): the "
        "known part and a draft of the lesion in HU, which it completes")
    group.add_argument("--consistency", choices=("conv", "attention"), default="conv",
        help="layers along the slices in stage 2; default conv, the paper's")
    for stage, what, values in (
        (1, "training steps of the 2D network", "100000, 100000 or 1200"),
        (2, "training steps of the layers along the slices; 0: none", "20000, 20000 or 120"),
    ):
        group.add_argument(f"--stage{stage}-steps", type=int, metavar="N", help=f"{what}; default by --size {values}")
    add_common(group, "batch",
        help="latent slices per step of stage 1, over all processes and passes; default by --size 32, 32 or 16")
    group.add_argument("--window-batch", type=int, metavar="N",
        help="windows per step of stage 2, over all processes and passes; default by --size 4, 4 or 2")
    group.add_argument("--accumulate", type=int, metavar="N",
        help="passes into which a process divides its part of a step; saves memory, changes only rounding; default 1, "
        "for --size paper 4 divided among the processes")
    add_common(group, "learning_rate", help="learning rate; default by --size 1e-4, 1e-4 or 1e-3")
    group.add_argument("--decay-share", type=float, metavar="P",
        help="share at the end of each stage in which the learning rate falls to 0; 0.3 (lesion) or 0 (paper)")
    group.add_argument("--ema-decay", type=float, default=0.9999, metavar="D",
        help="decay of the moving average of the weights; default 0.9999")
    group.add_argument("--condition-dropout", type=float, default=0.0, metavar="P",
        help="share of samples without condition; required for guidance when sampling; default 0, the paper's")
    group.add_argument("--lesion-share", type=float, metavar="P",
        help="share of samples with a lesion; 0.9 (lesion) or 0.5 (paper); 0 for a dataset without lesions")
    group.add_argument("--lesion-weight", type=float, metavar="W",
        help="weight in the loss of a latent cell that is entirely lesion; cells without lesion weigh 1; 8 (lesion) or "
        "1 (paper)")
    group.add_argument("--sampling-steps", type=int, metavar="N",
        help="sampling steps, for pictures and for fvae-synthesize unless overridden there; 4 (lesion) or 20 (paper)")
    group.add_argument("--sampling-eta", type=float, metavar="ETA",
        help="1 (paper): DDPM-like sampling, 0 (lesion): deterministic; used like --sampling-steps")
    group.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"),
        help="precision of the training; default: bf16 if the GPU supports it, otherwise no")
    group.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction,
        help="use less memory and about a third more time; default with --size paper")
    # fmt: on
    add_common(group, "seed", "device")


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    add_common(group, "output", metavar="FOLDER",
        help="folder of the model; default: fvae_ldm__<vae>, or fvae_ldm__<vae>__foldF with --fold F, in the dataset's "
        "folder in nnUNet_results")
    add_common(group, "save_every", default=1000, help="steps between checkpoints; default 1000")
    group.add_argument("--samples-every", type=int, metavar="N",
        help="steps between sample pictures; 0: none; default: with each checkpoint")
    # fmt: on
    group.add_argument("--tensorboard", action="store_true", help="also write events for TensorBoard")
    add_common(group, "processes", "verify")
    add_common(group, "overwrite", help="train from scratch, also with different settings")
    group.add_argument("--encode-only", action="store_true", help="encode the latents and stop")
