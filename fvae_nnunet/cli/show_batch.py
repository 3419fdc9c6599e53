"""fvae-show-batch: one training batch as the network receives it, as a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.outputs import holds, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser, add_plans, dataset_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="fvae-show-batch",
        description="Draw one training batch exactly as the network receives it, with the segmentation, beside the raw "
        "image with the same crop and augmentation; views are marked. Takes the arguments of nnUNetv2_train and works "
        "for nnU-Net's trainers, those of this package and others. Nothing is trained. docs/online.md shows it.",
    )
    # with -d the words begin with the configuration
    if not {"-d"} & set(sys.argv[1:] if argv is None else argv):
        parser.add_argument("dataset", metavar="DATASET", help="id or name")
    parser.add_argument("-d", nargs=1, metavar="DATASET", help="instead of the first word")
    parser.add_argument("configuration", metavar="CONFIGURATION", help="such as 3d_fullres")
    parser.add_argument("fold", type=_fold, metavar="FOLD", help="a number, or all")
    parser.add_argument("-tr", default="nnUNetTrainerFVAE", metavar="TRAINER", help="default nnUNetTrainerFVAE")
    add_plans(parser)
    parser.add_argument(
        "-o", type=Path, default=Path("batch.png"), metavar="FILE", help="PNG to write; default batch.png"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another shows another batch; default 0")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")
    return run_command(parser, run, argv)


def _fold(text: str) -> int | str:
    return "all" if text == "all" else int(text)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.errors import UserError
    from fvae_nnunet.jobs.devices import chosen_device
    from fvae_nnunet.training.batch import take_training_batch
    from fvae_nnunet.training.batch_picture import MADE_BY, batch_picture

    if arguments.o.suffix.lower() != ".png":
        raise UserError(f"-o must name a file that ends in .png, got {arguments.o}")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must lie between 0 and 2^32 - 1, got {arguments.seed}")
    refuse_other_output(arguments.o, is_ours=holds(MADE_BY), command="fvae-show-batch")
    dataset = dataset_of(arguments)
    batch = take_training_batch(
        dataset, arguments.configuration, arguments.fold,
        trainer_name=arguments.tr, plans_name=arguments.p, device=chosen_device(arguments.device), seed=arguments.seed,
    )  # fmt: skip
    title = f"{arguments.tr}, {dataset} {arguments.configuration} fold {arguments.fold}"
    batch_picture(batch, title=f"{title}, seed {arguments.seed}", path=arguments.o)
    print(f"written: {arguments.o}; {', '.join(f'{sample.case}: {sample.mark}' for sample in batch.samples)}")
    return 0
