"""Compare recipes of fvae-train-ldm by how closely their lesions resemble real ones.

    python scripts/compare_recipes.py                                             # two CPU cores: about two hours
    python scripts/compare_recipes.py --data Dataset511_Sarcoma --organ body      # of nnUNet_raw

For each dataset, seed, recipe and number of steps, a model is trained, and lesions of the sizes of real ones are
inserted into the same cases. Each seed has its own phantoms. Verdicts and measurements of quality control are collected
in ``recipes.json`` and printed as a table. Complete steps are skipped when the script runs again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from command_chain import Runner, Step, script
from command_environment import NNUNET_FOLDERS, command_environment, command_variables
from phantoms import LABELS, LESION_PLACES

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases

RECIPES = {
    "draft": (),
    "masked context": ("--context", "masked", "--lesion-share", "0.6"),
    "outline": ("--context", "none", "--lesion-share", "0.6"),
    "shares": ("--context", "none", "--lesion-share", "0.6", "--mask-encoding", "onehot"),
    "paper": ("--recipe", "paper"),
}
"""Options of ``fvae-train-ldm``; ``draft`` is the default, the next recipes each leave out one more part of it."""

SHAPE, SPACING_MM, CASES = (32, 192, 192), (3, 1, 1), 12
"""Of the phantoms."""

FIRST_ID = 920


@dataclass(frozen=True)
class Comparison:
    """One model.

    Attributes:
        data: ``lung`` or ``pancreas`` for phantoms, or the name of a dataset.
        seed: random seed of phantoms, training and synthesis.
        recipe: key of ``RECIPES``.
        steps: steps of stage 1; stage 2 has a tenth of them.
    """

    data: str
    seed: int
    recipe: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.data}_{self.seed}_{self.recipe.replace(' ', '_')}_{self.steps}"

    @property
    def dataset(self) -> str:
        if self.data not in LABELS:
            return self.data
        return f"Dataset{FIRST_ID + 20 * list(LABELS).index(self.data) + self.seed}_{self.data.capitalize()}"

    @property
    def output(self) -> Path:
        return Path("synthetic") / self.name

    def planned(self, arguments: argparse.Namespace) -> Iterator[Step]:
        """The steps that make the lesions."""
        device = ("-device", arguments.device)
        weights = ("--weights", str(arguments.weights.resolve())) if arguments.weights else ()
        organ = ("lungs",) if self.data == "lung" else (arguments.organ,) if self.data not in LABELS else ()
        data = f"phantoms-{self.dataset}"
        if self.data in LABELS:
            raw = Path("nnUNet_raw") / self.dataset
            make = script(
                "phantoms.py", raw, "--kind", self.data, "--n-train", CASES, "--n-test", 0, "--seed", self.seed,
                "--shape", *SHAPE, "--spacing", *SPACING_MM,
            )  # fmt: skip
            yield Step(data, make, raw / "dataset.json", (raw,), after=())
        model = Path("models") / self.name
        train = (
            "fvae-train-ldm", self.dataset, "--vae", arguments.vae, *weights, "--size", "tiny", *RECIPES[self.recipe],
            *(("--organ", *organ) if organ else ()), "--stage1-steps", str(self.steps), "--stage2-steps",
            str(self.steps // 10), "--seed", str(self.seed), "--samples-every", "0", "-o", str(model),
        )  # fmt: skip
        after = (data,) if self.data in LABELS else ()
        result = model / "manifest.json"
        yield Step(f"train-{self.name}", train, result, (model,), resumes=True, options=device, after=after)
        synthesize = (
            "fvae-synthesize", self.dataset, "--ldm", str(model), *weights, "-n", str(arguments.n), "--seed",
            str(self.seed), "--sizes", "real", *LESION_PLACES.get(self.data, ()), "-o", str(self.output),
        )  # fmt: skip
        # 1: no place was found for some lesions
        yield Step(
            f"synthesize-{self.name}", synthesize, self.output / "dataset.json", (self.output,), resumes=True,
            shows="cases accepted", options=device, after=(f"train-{self.name}",), statuses=(0, 1),
        )  # fmt: skip


def judged(output: Path) -> dict[str, Any]:
    """Verdicts and measurements of the lesions in a folder, and of the real lesions."""
    lesions, accepted = [], 0
    for state in (True, False):
        for case in read_synthetic_cases(output, accepted=state):
            accepted += state
            for lesion, quality in zip(case.record["lesions"], case.record["quality"]["lesions"], strict=True):
                lesions.append(quality | {"asked": lesion["appearance"], "diameter_mm": lesion["diameter_mm"]})
    real = read_json(output / "real_lesions.json")["lesions"]
    return {"cases": len(lesions), "accepted": accepted, "lesions": lesions, "real": real}


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown table with a line for each dataset, recipe and number of steps, over all seeds."""
    lines = [
        "| data | recipe | steps | accepted | core SD, HU (real) | texture, HU (real) | texture gained for 1 HU more "
        "asked | core mean minus asked, HU (quartiles) | contrast, HU (real) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for data, recipe, steps in dict.fromkeys((one["data"], one["recipe"], one["steps"]) for one in results):
        runs = [one for one in results if (one["data"], one["recipe"], one["steps"]) == (data, recipe, steps)]
        made, real = ([lesion for one in runs for lesion in one[kind]] for kind in ("lesions", "real"))
        accepted = ", ".join(f"{one['accepted']} of {one['cases']}" for one in runs)
        unplaced = sum(one["tried"] - one["cases"] for one in runs)
        if unplaced:
            accepted += f" ({unplaced} found no place)"
        pairs = [(lesion["asked"]["texture_sd_hu"], lesion["texture_sd_hu"]) for lesion in made if lesion["asked"]]
        known = np.array([pair for pair in pairs if None not in pair], float)
        gain = f"{np.polyfit(*known.T, 1)[0]:.2f}" if len(known) and np.ptp(known[:, 0]) else "none"
        missed = [lesion["core_mean_hu"] - lesion["asked"]["core_mean_hu"] for lesion in made if lesion["asked"]]
        quartiles = np.percentile(missed, (50, 25, 75)) if missed else ()
        followed = "{:.0f} ({:.0f} to {:.0f})".format(*quartiles) if missed else "not told"
        core_sd, texture, contrast = (
            f"{_median(made, measure)} ({_median(real, measure)})"
            for measure in ("core_sd_hu", "texture_sd_hu", "contrast_hu")
        )
        lines.append(
            f"| {data} | {recipe} | {steps} | {accepted} | {core_sd} | {texture} | {gain} | {followed} | {contrast} |"
        )
    return lines


def _median(lesions: Sequence[dict[str, Any]], measure: str) -> str:
    values = [lesion[measure] for lesion in lesions if lesion[measure] is not None]
    return f"{np.median(values):.0f}" if values else "none"


def run(arguments: argparse.Namespace) -> int:
    if arguments.organ is None and any(data not in LABELS for data in arguments.data):
        raise UserError("datasets need --organ, the source of the organ, as for fvae-train-ldm")
    work = arguments.work.resolve()
    for folder in NNUNET_FOLDERS:
        (work / folder).mkdir(parents=True, exist_ok=True)
    for data in arguments.data:
        target = work / "nnUNet_raw" / data
        if data in LABELS or target.exists():
            continue
        source = nnunet_folder("nnUNet_raw") / data
        if not source.is_dir():
            raise UserError(f"--data {data} is neither {' nor '.join(LABELS)} nor a folder of nnUNet_raw ({source})")
        target.symlink_to(source.resolve())
    print(f"cd {shlex.quote(str(work))}")
    runner = Runner(work, command_environment(command_variables(work, arguments.device)))
    results = []
    for data in arguments.data:
        for steps in arguments.steps:
            for recipe in arguments.recipes:
                for seed in arguments.seeds:
                    one = Comparison(data, seed, recipe, steps)
                    for step in one.planned(arguments):
                        runner.run(step)
                    results.append(vars(one) | {"tried": arguments.n} | judged(work / one.output))
                    write_json(work / "recipes.json", results)
    print("\n".join(["", *table(results)]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="compare_recipes.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", nargs="+", default=list(LABELS), metavar="DATA",
        help=f"phantoms ({', '.join(LABELS)}), or datasets of nnUNet_raw; default: the phantoms",
    )  # fmt: skip
    parser.add_argument("--organ", metavar="SOURCE", help="source of the organ in the datasets, as for fvae-train-ldm")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), help="default: all")
    parser.add_argument("--steps", nargs="+", type=int, default=[400, 1200], metavar="N", help="default 400 and 1200")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default 0, 1 and 2")
    parser.add_argument("-n", type=int, default=12, metavar="N", help="lesions of each model; default 12")
    parser.add_argument("--vae", default="tiny", help="default tiny")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="weights of the VAE")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--work", type=Path, default=Path("compare_recipes"), metavar="FOLDER")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
