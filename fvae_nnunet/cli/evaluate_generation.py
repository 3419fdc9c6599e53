"""fvae-evaluate-generation: evaluate the quality of a folder of generated CT.

Compare generated CT with real CT: Fréchet and kernel distances of features (FVD, FID 2.5D, KID) with intervals and the
distance expected by chance, CT-CLIP's cosines with real images and with texts, agreement with the requested masks, and
copies of training cases. Prints a table and writes generation.json, a CSV with a row for each generated case, and a
picture. You provide the feature networks as files. docs/generation_quality.md defines each figure and says where to get
the networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, from_options
from fvae_nnunet.cli.outputs import check_output_folder, is_json_of, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser, named_paths
from fvae_nnunet.cli.verify import verify_finished
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.choices import METRICS
from fvae_nnunet.optional_packages import needed_for

if TYPE_CHECKING:
    from tqdm import tqdm


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    # fmt: off
    parser.add_argument("real", type=Path, metavar="REAL",
        help="real CT that the generator has not seen: a folder of images, or a raw dataset of nnU-Net (its imagesTr)")
    parser.add_argument("fake", type=Path, metavar="FAKE",
        help="generated CT: a folder as for REAL, or the output of fvae-synthesize")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, metavar="METRIC",
        help=f"any of {', '.join(METRICS)}; default: all that the given files allow")
    parser.add_argument("--train", type=Path, metavar="FOLDER",
        help="training images of the generator, to look for copies of them")
    networks = parser.add_argument_group("feature networks")
    networks.add_argument("--ct-clip", type=Path, metavar="FILE",
        help="TorchScript of CT-CLIP's vision part, for FVD")
    networks.add_argument("--radimagenet", type=Path, metavar="FILE",
        help="RadImageNet's ResNet-50, weights or TorchScript, for FID 2.5D")
    networks.add_argument("--features", nargs="+", default=[], metavar="NAME=FILE",
        help="other TorchScript networks; a .json file beside each FILE describes its input")
    networks.add_argument("--slice-step", type=int, metavar="N",
        help="use only every N-th slice for slice-wise networks; default 1")
    add_common(networks, "trust_weights",
        help="run the TorchScript files, which can read and write files, and read a pickled --radimagenet file that "
        "holds more than tensors, which can run code")
    texts = parser.add_argument_group("texts")
    texts.add_argument("--reports", type=Path, metavar="FILE",
        help="texts of the generated cases: a reports.json, JSON or CSV; default: those in fvae-synthesize's records")
    texts.add_argument("--text-encoder", type=Path, metavar="FILE",
        help="TorchScript of CT-CLIP's text part, for the text-image cosine")
    texts.add_argument("--tokenizer", metavar="NAME",
        help="hub id or folder of the text encoder's tokenizer; default: that of CXR-BERT, as in CT-CLIP")
    masks = parser.add_argument_group("masks")
    masks.add_argument("--masks", type=Path, metavar="FOLDER",
        help="label maps CASE.nii.gz that the images were generated from; default: the labels in FAKE, or its "
        "structures if the labels name none")
    masks.add_argument("--segmentations", type=Path, metavar="FOLDER", help="segmentations CASE.nii.gz of FAKE")
    add_common(masks, "segmenter", help="instead of --segmentations: folder of an nnU-Net model that segments FAKE")
    masks.add_argument("--groups", type=Path, metavar="FILE",
        help='JSON of structures to merge, {"ribs": ["rib_left_1", ...], ...}; only these groups are scored')
    add_common(parser, "output", metavar="FOLDER", help="folder of the results; default: generation_quality in FAKE")
    parser.add_argument("--cache", type=Path, metavar="FOLDER",
        help="folder of cached features, which runs may share; default: features in the folder of -o")
    # fmt: on
    add_common(
        parser, "resamples", default=1000, help="resamples for intervals and for distances by chance; default 1000"
    )
    add_common(parser, "seed", help="random seed of the resamples; default 0")
    add_common(parser, "verify", "device")
    add_common(parser, "processes", help="number of images to read ahead; default 2, 0: none")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.evaluation.generation.evaluate import evaluate_generation
    from fvae_nnunet.evaluation.generation.evaluation import Evaluation
    from fvae_nnunet.evaluation.generation.feature_networks import load_feature_networks
    from fvae_nnunet.evaluation.generation.image_sets import read_image_set
    from fvae_nnunet.evaluation.generation.picture import generation_picture
    from fvae_nnunet.evaluation.generation.similarity import TextNetwork
    from fvae_nnunet.evaluation.generation.summary import case_rows, format_table
    from fvae_nnunet.evaluation.results_files import write_results
    from fvae_nnunet.jobs.devices import chosen_device
    from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER

    check_output_folder(arguments.output)
    check_output_folder(arguments.cache, option="--cache")
    _check(arguments)
    device = chosen_device(arguments.device)
    output = arguments.output or arguments.fake / "generation_quality"
    path = output / "generation.json"
    refuse_other_output(
        path,
        is_ours=is_json_of("generation_quality"),
        beside=[path.with_suffix(".csv"), path.with_suffix(".png")],
        command="fvae-evaluate-generation",
    )
    text = None
    if arguments.text_encoder is not None:
        text = TextNetwork(
            arguments.text_encoder, tokenizer=arguments.tokenizer, trust_weights=arguments.trust_weights, device=device
        )
    features = dict(named_paths("--features", arguments.features))
    if len(features) < len(arguments.features):
        raise UserError(f"--features gives a name twice: {' '.join(arguments.features)}; give each network its own")
    evaluation = from_options(
        Evaluation,
        arguments,
        real=read_image_set(arguments.real),
        fake=read_image_set(arguments.fake, reports=arguments.reports),
        train=None if arguments.train is None else read_image_set(arguments.train),
        networks=load_feature_networks(
            ct_clip=arguments.ct_clip,
            radimagenet=arguments.radimagenet,
            features=features,
            slice_step=arguments.slice_step,
            trust_weights=arguments.trust_weights,
            device=device,
        ),
        text=text,
        output=output,
        device=device,
    )
    if arguments.segmenter is not None:
        segmentations = output / "segmentations" / MANIFEST_FOLDER
        verify_finished(arguments, [segmentations], [case.name for case in evaluation.fake.cases], anew=None)
    bars = _Bars()
    try:
        evaluated = evaluate_generation(evaluation, bars.begin)
    finally:
        bars.close()
    title = f"{arguments.fake.resolve().name} (generated) and {arguments.real.resolve().name} (real)"
    table = path.with_suffix(".csv")
    try:
        write_results(evaluated.results, path, {table: case_rows(evaluated.results)})
        picture = generation_picture(evaluated, path.with_suffix(".png"), title=title)
    finally:
        print(format_table(evaluated.results))
    print(f"written: {path} and {table}")
    if picture is not None:
        print(f"picture: {picture}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    with needed_for("fvae-evaluate-generation"):
        import torchmetrics  # noqa: F401
    if arguments.tokenizer is not None and arguments.text_encoder is None:
        raise UserError("--tokenizer requires --text-encoder; give both")
    if arguments.text_encoder is not None and arguments.ct_clip is None:
        raise UserError("--text-encoder requires --ct-clip; give both")
    if arguments.groups is not None and arguments.segmentations is None and arguments.segmenter is None:
        raise UserError("--groups requires --segmentations or --segmenter; give one of them")


class _Bars:
    """A tqdm bar for each stage in turn."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def begin(self, stage: str, steps: int) -> Callable[[], object]:
        from fvae_nnunet.jobs.progress_bar import progress_bar

        self.close()
        self._bar = progress_bar(desc=stage, total=steps, leave=False)
        return self._bar.update

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
