"""The options of fvae-train-ldm."""

from __future__ import annotations

import argparse

from fvae_nnunet.cli.command import add_channels_option, add_hu_as_is_option, add_vae_options
from fvae_nnunet.cli.parsers import add_dataset, add_plans
from fvae_nnunet.cli.verify import add_verify_option


def add_ldm_options(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    add_dataset(parser)
    _add_data_options(parser)
    _add_latent_options(parser)
    _add_training_options(parser)
    _add_output_options(parser)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cases")
    group.add_argument(
        "--organ", metavar="SOURCE",
        help="where it is: structures[:FOLDER] (a class for each of many structures; default folder: structuresTr of "
        "the dataset), label:NAME[,NAME], folder:PATH (masks named as the cases, such as TotalSegmentator's), "
        "folder:PATH:VALUE[,VALUE] (some of their values), lungs or body (by threshold), or none; default: all labels "
        "but those of lesions",
    )  # fmt: skip
    group.add_argument(
        "--lesion", nargs="+", metavar="NAME",
        help="labels of lesions, a class for each, or none; default: the only one with such a name, and all labels of "
        "a dataset with reports.json, whose labels are diseases",
    )  # fmt: skip
    group.add_argument(
        "--fold", type=int, metavar="F",
        help="train on the training cases of this fold alone, so that its validation cases are not seen; default: all",
    )  # fmt: skip
    group.add_argument("--leave-out", nargs="+", default=[], metavar="CASE", help="cases that are not used")
    add_plans(group)
    add_channels_option(group)
    add_hu_as_is_option(group)
    group.add_argument(
        "--reports", nargs="?", const="", metavar="FILE",
        help="report texts: the dataset's reports.json where no file is named, else JSON {case: text}, a reports.json, "
        "or CSV with the columns case and text; default: no text",
    )  # fmt: skip
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
        help="side of the squares of pixels that are trained on; default by size 512, 256 or 64, but no more than the "
        "largest slice needs",
    )  # fmt: skip
    group.add_argument(
        "--mask-encoding", choices=("outline", "onehot", "vae"),
        help="outline (lesion): the share of each class in a latent cell, the lesions' outline at full resolution, how "
        "they look, and the spacing; onehot: the shares alone; vae (paper): the map through the VAE",
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
        "--recipe", choices=("lesion", "paper"), default="lesion",
        help="what is learnt and how it is sampled: made for lesions (default), or the paper's; it sets --prediction, "
        "--loss, --mask-encoding, --context, --lesion-share, --lesion-weight, --decay-share, --sampling-steps and "
        "--sampling-eta where they are not given",
    )  # fmt: skip
    group.add_argument(
        "--prediction", choices=("sample", "epsilon", "v_prediction", "flow"),
        help="what the network predicts: the latent (lesion), the noise (paper), or a velocity",
    )  # fmt: skip
    group.add_argument("--loss", choices=("l1", "mse"), help="of the prediction; l1 (lesion) or mse (paper)")
    group.add_argument(
        "--context", choices=("none", "masked", "draft"),
        help="what the network sees of the latent: nothing (paper), what is known of it, or that and a draft of the "
        "lesion in HU, which it completes (lesion)",
    )  # fmt: skip
    group.add_argument(
        "--consistency", choices=("conv", "attention"), default="conv",
        help="what looks along the slices in stage 2; default conv, the paper's",
    )  # fmt: skip
    for stage, what, values in (
        (1, "of the 2D network", "100000, 100000 or 1200"),
        (2, "of the consistency along the slices; 0: none", "20000, 20000 or 120"),
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
        "--accumulate", type=int, metavar="N",
        help="passes over which a process gathers its part of a step; saves memory, changes rounding only; default 1, "
        "for --size paper 4 shared out over the processes",
    )  # fmt: skip
    group.add_argument("--lr", type=float, metavar="RATE", help="learning rate; default by size 1e-4, 1e-4 or 1e-3")
    group.add_argument(
        "--decay-share", type=float, metavar="P",
        help="last part of each stage over which the learning rate falls to 0; 0.3 (lesion) or 0 (paper)",
    )  # fmt: skip
    group.add_argument(
        "--ema-decay", type=float, default=0.9999, metavar="D", help="of the weights' moving average; default 0.9999"
    )
    group.add_argument(
        "--condition-dropout", type=float, default=0.0, metavar="P",
        help="share of samples without condition; needed for guidance when sampling; default 0, the paper's",
    )  # fmt: skip
    group.add_argument(
        "--lesion-share", type=float, metavar="P",
        help="share of samples that hold lesion; 0.9 (lesion), 0.5 (paper), without lesions 0",
    )  # fmt: skip
    group.add_argument(
        "--lesion-weight", type=float, metavar="W",
        help="weight in the loss of a latent cell that is all lesion; others weigh 1; 8 (lesion) or 1 (paper)",
    )  # fmt: skip
    group.add_argument(
        "--sampling-steps", type=int, metavar="N",
        help="steps of sampling, for pictures and for fvae-synthesize unless it is told otherwise; 4 (lesion) or 20",
    )  # fmt: skip
    group.add_argument(
        "--sampling-eta", type=float, metavar="ETA",
        help="1 (paper): DDPM-like sampling, 0 (lesion): deterministic; likewise",
    )  # fmt: skip
    group.add_argument(
        "--mixed-precision", choices=("no", "bf16", "fp16"), help="default: bf16 where the GPU has it, else no"
    )
    group.add_argument(
        "--gradient-checkpointing", action=argparse.BooleanOptionalAction,
        help="less memory, about a third more time; default for --size paper",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of everything random; default 0")
    group.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", metavar="FOLDER",
        help="default: fvae_ldm__<vae>, with --fold F fvae_ldm__<vae>__foldF, in the dataset's folder in "
        "nnUNet_results",
    )  # fmt: skip
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
    add_verify_option(group)
