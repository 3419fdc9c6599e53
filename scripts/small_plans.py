"""Write a plans file beside nnU-Net's own, with a network and patch small enough to train on two CPU cores.

The network keeps the first stages of nnU-Net's network, with its kernels and strides but few features; the patch keeps
its proportions. The preprocessed data are used unchanged. For trying out the software, not for results.

    python scripts/small_plans.py nnUNet_preprocessed/Dataset900_PhantomPancreas
    nnUNetv2_train 900 3d_fullres 0 -p nnUNetPlansSmall
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import write_bytes

FEATURES_PER_STAGE = (8, 16, 32, 64)
PATCH_VOXELS = 56_000
BATCH_SIZE = 2


def small_plans(
    plans: dict[str, Any],
    *,
    configuration: str = "3d_fullres",
    name: str,
    patch_voxels: int = PATCH_VOXELS,
    features_per_stage: Sequence[int] = FEATURES_PER_STAGE,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Copy nnU-Net's plans under another name, with a smaller network and patch for one configuration.

    Args:
        plans: content of nnU-Net's plans file.
        configuration: configuration to shrink; the only one that is kept.
        name: plans identifier of the copy.
        patch_voxels: approximate maximum size of the patch; each axis is a multiple of the network's total stride.
        features_per_stage: features of each stage, for at most as many stages as nnU-Net's network has; each stage has
            one convolution.
        batch_size: samples in a batch.

    Raises:
        UserError: the plans do not define this configuration, or its network does not consist of stages.
    """
    known = plans["configurations"]
    if configuration not in known or "architecture" not in known[configuration]:
        raise UserError(f"plans {plans['plans_name']} do not describe {configuration}; they have {', '.join(known)}")
    small = json.loads(json.dumps(known[configuration]))
    network = small["architecture"]["arch_kwargs"]
    if "n_conv_per_stage" not in network:
        raise UserError(f"{small['architecture']['network_class_name']} cannot be shrunk; use nnU-Net's default plans")
    stages = min(len(features_per_stage), network["n_stages"])
    network.update(
        n_stages=stages,
        features_per_stage=list(features_per_stage[:stages]),
        n_conv_per_stage=[1] * stages,
        n_conv_per_stage_decoder=[1] * (stages - 1),
        kernel_sizes=network["kernel_sizes"][:stages],
        strides=network["strides"][:stages],
    )
    total_stride = [prod(axis) for axis in zip(*network["strides"], strict=True)]
    small["patch_size"] = small_patch(small["patch_size"], total_stride, patch_voxels=patch_voxels)
    small["batch_size"] = batch_size
    return {**plans, "plans_name": name, "configurations": {configuration: small}}


def small_patch(patch: Sequence[int], total_stride: Sequence[int], *, patch_voxels: int) -> list[int]:
    """Patch scaled down to about ``patch_voxels`` at most, with every axis rounded to a multiple of its stride."""
    scale = min(1.0, (patch_voxels / prod(patch)) ** (1 / len(patch)))
    return [
        max(stride, min(size // stride, round(size * scale / stride)) * stride)
        for size, stride in zip(patch, total_stride, strict=True)
    ]


def one_validation_case(cases: Sequence[str]) -> list[dict[str, list[str]]]:
    """Content of ``splits_final.json`` with a single fold, whose only validation case is the last one.

    After training, nnU-Net predicts every validation case with eight mirrorings, which takes minutes on two cores.
    """
    *training, validation = sorted(cases)
    return [{"train": training, "val": [validation]}]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="small_plans.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the dataset's folder in nnUNet_preprocessed")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans to start from; default nnUNetPlans")
    parser.add_argument("--name", default="nnUNetPlansSmall", help="plans to write; default nnUNetPlansSmall")
    parser.add_argument(
        "--patch-voxels", type=int, default=PATCH_VOXELS, metavar="N", help=f"size of the patch; default {PATCH_VOXELS}"
    )
    parser.add_argument(
        "--features", type=int, nargs="+", default=FEATURES_PER_STAGE, metavar="N",
        help=f"features of the network's stages; default {' '.join(map(str, FEATURES_PER_STAGE))}",
    )  # fmt: skip
    parser.add_argument(
        "--one-validation-case", action="store_true",
        help="also write splits_final.json with one fold that validates on one case; refused if the file exists",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        source = args.folder / f"{args.p}.json"
        if not source.is_file():
            raise UserError(f"{source} is missing; run nnUNetv2_plan_and_preprocess first")
        splits = args.folder / "splits_final.json"
        if args.one_validation_case and splits.exists():
            raise UserError(f"{splits} exists; move it away or leave out --one-validation-case")
        plans = small_plans(
            json.loads(source.read_text()), configuration=args.c, name=args.name, patch_voxels=args.patch_voxels,
            features_per_stage=args.features,
        )  # fmt: skip
    except UserError as error:
        print(f"small_plans.py: {error}", file=sys.stderr)
        return 1
    target = args.folder / f"{args.name}.json"
    write_bytes(target, (json.dumps(plans, indent=4) + "\n").encode())
    small = plans["configurations"][args.c]
    if args.one_validation_case:
        cases = [path.name.removesuffix(".pkl") for path in (args.folder / small["data_identifier"]).glob("*.pkl")]
        write_bytes(splits, (json.dumps(one_validation_case(cases), indent=1) + "\n").encode())
    features = small["architecture"]["arch_kwargs"]["features_per_stage"]
    print(f"{target}: patch {small['patch_size']}, batch {small['batch_size']}, features {features}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
