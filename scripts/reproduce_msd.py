"""From a downloaded task of the Medical Segmentation Decathlon (lung, pancreas) to the paper's Table 2 with intervals.

nnU-Net is trained on the raw images and on the reconstructions of each VAE, on the same five folds. The official test
labels are not public, so what is compared are the predictions of the training cases by the fold that did not see them;
the paper does not state its split.

    python scripts/reproduce_msd.py /data/Task07_Pancreas                        # all of it on this machine
    python scripts/reproduce_msd.py /data/Task07_Pancreas --dry-run              # print the commands, run nothing
    python scripts/reproduce_msd.py /data/Task07_Pancreas --slurm > submit.sh    # jobs for a cluster

Every step is a command line that is printed and can be run by hand; its output goes to a log file in WORK/steps. The
same call again skips what is complete and goes on where it was interrupted. Guide: docs/reproduce.md
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from crossval_splits import FOLDS
from msd_setting import (
    CONFIGURATIONS,
    LENGTHS,
    PLANNERS,
    RAW,
    TRAINERS,
    Setting,
    check_dataset_id,
    check_task,
    check_task_name,
    parse_arms,
)
from msd_steps import Steps, plan_steps
from steps import SCRIPTS, Runner, Step, command_environment, cores, small_machine_settings

from fvae_nnunet.errors import UserError

PHASES = ("prepare", "view", "train", "finish")
ARRAY_VARIABLE = "SLURM_ARRAY_TASK_ID"
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="reproduce_msd.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("task", type=Path, metavar="TASK_FOLDER", help="the extracted Task06_Lung or Task07_Pancreas")
    parser.add_argument(
        "--work", type=Path, default=Path("reproduce_msd"), metavar="FOLDER",
        help="where everything is made; both tasks can share it; default ./reproduce_msd",
    )  # fmt: skip
    parser.add_argument("-overwrite_id", type=int, metavar="ID", help="id of the dataset; default: the task's, 6 or 7")

    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--vaes", nargs="+", default=["wan2.1", "wan2.2"], metavar="NAME",
        help="see fvae-setup --vaes; also control:NAME@STRENGTH, or control:NAME@VAE to remove as much noise as that "
        "VAE; default wan2.1 wan2.2. The raw images are always trained on, as the reference",
    )  # fmt: skip
    compared.add_argument(
        "--weights", nargs="+", default=[], metavar="NAME=PATH", help="of VAEs; default: the hub's cache or the hub"
    )
    compared.add_argument("--vae-code", nargs="+", default=[], metavar="NAME=FOLDER", help="checkouts of their code")
    compared.add_argument(
        "--scheme", choices=("paper", "windows", "stream"),
        help="how VAEs reconstruct; default: as the paper's script does, for a VAE without one in overlapping windows",
    )  # fmt: skip
    compared.add_argument(
        "--protocol", choices=list(TRAINERS), default="recon-only",
        help="recon-only: trained and validated on the reconstruction, as in the paper (default); mix: raw or view by "
        "chance; blend: a random mix of both; these two are validated on the raw image",
    )  # fmt: skip
    compared.add_argument(
        "--folds", nargs="+", type=int, choices=range(FOLDS), default=list(range(FOLDS)), metavar="FOLD",
        help=f"of nnU-Net's {FOLDS}; default all. With fewer, only their validation cases are compared",
    )  # fmt: skip
    compared.add_argument(
        "--epochs", type=int, choices=LENGTHS, default=1000, metavar="N",
        help=f"default 1000, nnU-Net's own; others: {', '.join(map(str, LENGTHS))}",
    )  # fmt: skip
    compared.add_argument("-c", choices=CONFIGURATIONS, default="3d_fullres", help="default 3d_fullres")
    compared.add_argument("-p", choices=list(PLANNERS), default="nnUNetPlans", help="plans; default nnUNetPlans")
    compared.add_argument(
        "--network", choices=("default", "small"), default="default",
        help="default: as nnU-Net plans it; small: shrunk for two CPU cores, for trying this script out",
    )  # fmt: skip
    compared.add_argument(
        "--tolerance", nargs="+", type=float, default=[2.0, 5.0], metavar="MM",
        help="of the NSD in mm; default 2 5. The paper does not state its own; the Decathlon's are 2 for lung and 5 "
        "for pancreas",
    )  # fmt: skip

    work = parser.add_argument_group("work")
    work.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")
    work.add_argument("-np", type=int, metavar="N", help="processes that read and write; default: cores, at most 8")
    work.add_argument("--phase", choices=PHASES, help="do only this; default: all, one after the other")
    work.add_argument("--vae", metavar="NAME", help=f"with --phase view or train: only this one of --vaes, or {RAW}")
    work.add_argument("--fold", type=int, metavar="F", help="with --phase train: only this one of --folds")
    work.add_argument(
        "--array-index", type=int, metavar="I",
        help="with --phase view or train: only the I-th of its jobs, from 0 (view: one for each VAE; train: one for "
        f"each VAE and fold); default: {ARRAY_VARIABLE} where that is set",
    )  # fmt: skip
    work.add_argument("--dry-run", action="store_true", help="print a shell script of the commands, run nothing")
    work.add_argument("--slurm", action="store_true", help="print a shell script that submits all phases to SLURM")
    args = parser.parse_args(argv)

    selects = {"--vae": args.vae, "--fold": args.fold, "--array-index": args.array_index}
    given = [option for option, value in selects.items() if value is not None]
    if given and args.phase not in ("view", "train"):
        parser.error(f"{given[0]} needs --phase view or --phase train")
    if args.fold is not None and args.phase != "train":
        parser.error("--fold needs --phase train")
    if args.array_index is not None and len(given) > 1:
        parser.error(f"--array-index and {given[0]} exclude each other")
    if args.slurm and (args.phase or args.dry_run):
        parser.error("--slurm is of all phases and prints only; leave --phase and --dry-run out")
    if args.np is not None and args.np < 1:
        parser.error(f"-np must be at least 1, got {args.np}")
    if not given and args.phase in ("view", "train") and os.environ.get(ARRAY_VARIABLE):
        args.array_index = int(os.environ[ARRAY_VARIABLE])
    return args


def setting_of(args: argparse.Namespace, *, device: str) -> Setting:
    """What the options mean; UserError where they cannot be met."""
    task = args.task.expanduser().absolute()
    check_task_name(task)
    if args.overwrite_id is not None and args.overwrite_id < 1:
        raise UserError(f"-overwrite_id: nnU-Net's ids begin with 1, got {args.overwrite_id}")
    if min(args.tolerance) < 0:
        raise UserError(f"--tolerance must not be negative, got {min(args.tolerance):g}")
    arms = parse_arms(
        args.vaes,
        scheme=args.scheme,
        weights=_by_name("--weights", args.weights),
        code=_by_name("--vae-code", args.vae_code),
        check_files=args.phase not in ("train", "finish"),
    )
    return Setting(
        task=task,
        number=args.overwrite_id or int(task.name[4:6]),
        work=args.work.expanduser().resolve(),
        arms=arms,
        folds=tuple(sorted(set(args.folds))),
        protocol=args.protocol,
        epochs=args.epochs,
        configuration=args.c,
        plans=args.p,
        network=args.network,
        tolerances_mm=tuple(args.tolerance),
        device=device,
        processes=args.np or min(cores(), 8),
    )


def _by_name(option: str, given: Sequence[str]) -> dict[str, Path]:
    pairs = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UserError(f"{option} takes NAME=PATH, such as wan2.1=/models/wan2.1; got {text!r}")
        pairs[name] = Path(path).expanduser().absolute()
    return pairs


def view_jobs(setting: Setting) -> list[list[str]]:
    """Names of the views that each job of the phase makes: a VAE's, and the controls matched to it."""
    views = [arm for arm in setting.arms if arm.name != RAW]
    return [
        [arm.name, *(other.name for other in views if other.needs == arm.name)] for arm in views if arm.needs is None
    ]


def select_steps(args: argparse.Namespace, setting: Setting, steps: Steps) -> list[Step]:
    """The steps of this call, in order; UserError where it selects something that there is not."""
    if args.phase is None:
        return steps.all()
    if args.phase == "prepare":
        return steps.prepare
    if args.phase == "finish":
        return steps.finish
    if args.phase == "view":
        jobs: Sequence[Sequence[Step]] = [[steps.views[name] for name in names] for names in view_jobs(setting)]
    else:
        jobs = [[step] for step in steps.trainings.values()]
    if args.array_index is not None:
        if not 0 <= args.array_index < len(jobs):
            raise UserError(f"job {args.array_index} of phase {args.phase}: there are jobs 0 to {len(jobs) - 1}")
        return list(jobs[args.array_index])
    if args.vae is not None:
        names = [name for arm in setting.arms for name in (arm.spec, arm.name)]
        if args.vae not in names or (args.phase == "view" and args.vae == RAW):
            raise UserError(f"--vae {args.vae} is not among {', '.join(dict.fromkeys(names))}")
    if args.fold is not None and args.fold not in setting.folds:
        raise UserError(f"--fold {args.fold} is not among --folds {' '.join(map(str, setting.folds))}")
    wanted = next((arm.name for arm in setting.arms if args.vae in (arm.spec, arm.name)), None)
    if args.phase == "view":
        return [step for name, step in steps.views.items() if wanted in (None, name)]
    return [
        step for (name, fold), step in steps.trainings.items() if wanted in (None, name) and args.fold in (None, fold)
    ]


def variables_of(setting: Setting) -> dict[str, str]:
    folders = {name: str(setting.work / name) for name in NNUNET_FOLDERS}
    return folders | small_machine_settings(setting.device)


def dry_run(setting: Setting, runner: Runner, selected: Sequence[Step]) -> None:
    """Print what `run_steps` would do as a shell script that does it."""
    print("set -eu")
    programs = Path(sysconfig.get_path("scripts"))
    if shutil.which("fvae-preprocess") != str(programs / "fvae-preprocess"):
        print(f"export PATH={shlex.quote(str(programs))}:$PATH")
    print(f"mkdir -p {shlex.join(str(setting.work / name) for name in NNUNET_FOLDERS)}")
    print(f"cd {shlex.quote(str(setting.work))}")
    for name, value in variables_of(setting).items():
        print(f"export {name}={shlex.quote(value)}")
    for step in selected:
        if runner.is_complete(step):
            print(f"\n# {step.name}: complete, skipped\n# {step.line}")
        else:
            print(f"\n# {step.name}\n{step.line}")


def run_steps(setting: Setting, runner: Runner, steps: Steps, selected: Sequence[Step]) -> None:
    for name in NNUNET_FOLDERS:
        (setting.work / name).mkdir(parents=True, exist_ok=True)
    runner.log_of(selected[0]).parent.mkdir(parents=True, exist_ok=True)
    print(f"cd {shlex.quote(str(setting.work))}")
    for name, value in variables_of(setting).items():
        print(f"export {name}={shlex.quote(value)}")
    for step in selected:
        if step is steps.finish[0]:
            check_trainings(runner, steps)
        runner.run(step)


def check_trainings(runner: Runner, steps: Steps) -> None:
    """UserError naming all trainings that are not complete."""
    missing = [
        f"{index} ({name}, fold {fold})"
        for index, ((name, fold), step) in enumerate(steps.trainings.items())
        if not runner.is_complete(step)
    ]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(steps.trainings)} trainings are not complete: {'; '.join(missing)}. "
            "Run --phase train --array-index with each of these numbers first"
        )


def slurm_script(setting: Setting, steps: Steps, argv: Sequence[str]) -> str:
    """A shell script that submits a job or an array of jobs for each phase, each after the one before."""
    options = [argument for argument in argv if argument != "--slurm"]
    # jobs may start in another folder
    command = [sys.executable, str(SCRIPTS / "reproduce_msd.py"), *options, "--work", str(setting.work)]
    log = setting.work / "steps" / "slurm"
    lines = [
        "#!/bin/sh",
        "# Submits everything to SLURM: sh submit.sh. Set times, partitions and accounts here; sbatch also takes them",
        "# from SBATCH_PARTITION, SBATCH_ACCOUNT and the like. After a failure or a time limit submit it all again:",
        "# what is complete is skipped, trainings go on from their last checkpoint.",
        "set -eu",
        "cpu='--cpus-per-task=8 --mem=64G --time=1-00:00:00'",
        "gpu='--cpus-per-task=12 --mem=64G --gres=gpu:1 --time=2-00:00:00'",
        f"mkdir -p {shlex.quote(str(log))}",
        f"cd {shlex.quote(str(Path.cwd()))}",
    ]
    counts = {"prepare": None, "view": len(view_jobs(setting)), "train": len(steps.trainings), "finish": None}
    before = None
    for phase, count in counts.items():
        name = f"msd{setting.number}-{phase}"
        wait = f' --dependency="afterok:${{{before}%%;*}}"' if before else ""
        array = "" if count is None else f" --array=0-{count - 1}"
        output = shlex.quote(str(log / f"{name}-%A_%a.out" if count else log / f"{name}-%j.out"))
        wrapped = shlex.quote(shlex.join([*command, "--phase", phase]))
        machine = "$gpu" if count else "$cpu"
        lines.append(
            f"{phase}=$(sbatch --parsable {machine}{wait}{array} --job-name={name} --output={output} --wrap={wrapped})"
        )
        lines.append(f'echo "{phase}: job ${phase}"')
        before = phase
    return "\n".join(lines)


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    import torch

    setting = setting_of(args, device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    work = setting.work
    if work.is_dir() and any(work.iterdir()) and not (work / "steps").is_dir():
        raise UserError(f"{work} holds other things than a reproduction; name an empty or a new folder with --work")
    steps = plan_steps(setting)
    runner = Runner(work, command_environment(variables_of(setting)), work / "steps" / setting.dataset)
    convert = steps.prepare[0]
    if args.phase in (None, "prepare") and not runner.is_complete(convert):
        check_task(setting.task)
        check_dataset_id(setting, is_ours=runner.log_of(convert).is_file())
    if args.slurm:
        print(slurm_script(setting, steps, argv))
        return
    selected = select_steps(args, setting, steps)
    if args.dry_run:
        dry_run(setting, runner, selected)
        return
    run_steps(setting, runner, steps, selected)
    if args.phase in (None, "finish"):
        table = next(step for step in steps.finish if step.name.startswith("table-"))
        print(f"\n{runner.log_of(table).read_text().strip()}\n\neverything is in {work / setting.comparison}")


def _stop(number: int, frame: FrameType | None) -> None:
    """A job that is cancelled or preempted ends as if interrupted, so that its commands end with it."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        run(args, argv)
    except UserError as error:
        print(f"\nreproduce_msd.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nreproduce_msd.py: interrupted; run it again to go on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
