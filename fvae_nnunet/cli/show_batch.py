"""fvae-show-batch: draw one training batch as the network receives it.

Draw one training batch exactly as the network receives it, with the segmentation, beside the raw image with the same
crop and augmentation; views are marked. Takes the arguments of nnUNetv2_train and works with the trainers of nnU-Net,
of this package and others. Nothing is trained. See docs/online.md for an example.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.cli.outputs import holds, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser, dataset_of, fold_number
from fvae_nnunet.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    # with -d, the first positional argument is the configuration
    if not any(re.match("-d(?!ev)", argument) for argument in (sys.argv[1:] if argv is None else argv)):
        parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("-d", nargs=1, metavar="DATASET", help="dataset, instead of the first positional argument")
    parser.add_argument("configuration", metavar="CONFIGURATION", help="configuration, such as 3d_fullres")
    parser.add_argument("fold", type=fold_number, metavar="FOLD", help="fold: a number, or all")
    add_common(parser, "trainer", default="nnUNetTrainerFVAE", help="trainer; default nnUNetTrainerFVAE")
    add_common(parser, "plans_name", "device")
    # fmt: off
    add_common(parser, "output", default=Path("batch.png"), metavar="FILE",
        help="PNG to write; default batch.png")
    # fmt: on
    add_common(parser, "seed", help="random seed; each seed shows another batch; default 0")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.jobs.devices import chosen_device
    from fvae_nnunet.training.batch import take_training_batch
    from fvae_nnunet.training.batch_picture import MADE_BY, batch_picture

    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be between 0 and 2^32 - 1, got {arguments.seed}")
    refuse_other_output(arguments.output, is_ours=holds(MADE_BY), ending=".png", command="fvae-show-batch")
    dataset = dataset_of(arguments)
    batch = take_training_batch(
        dataset,
        arguments.configuration,
        arguments.fold,
        trainer_name=arguments.trainer,
        plans_name=arguments.plans_name,
        device=chosen_device(arguments.device),
        seed=arguments.seed,
    )
    title = f"{arguments.trainer}, {dataset} {arguments.configuration} fold {arguments.fold}"
    batch_picture(batch, title=f"{title}, seed {arguments.seed}", path=arguments.output)
    print(f"written: {arguments.output}; {', '.join(f'{sample.case}: {sample.mark}' for sample in batch.samples)}")
    return 0
