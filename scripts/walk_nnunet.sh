#!/usr/bin/env bash
# Run the whole nnU-Net workflow with this package on phantoms, in minutes on two CPU cores: plan, preprocess, all trainers
# (a few iterations each), --c, --val, prediction with and without this package, ensemble, find_best_configuration, export
# and install. Checks the status of every step, and what it must write, print or refuse.
#
#   bash scripts/walk_nnunet.sh [FOLDER]
#
# An environment with the project must be active. FOLDER (default: a temporary folder, deleted at the end) holds the data
# and a log for each step. The exit status is 0 if everything was as expected.
set -uo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -gt 0 ]; then
    mkdir -p "$1" && work=$(cd "$1" && pwd)
    [ -z "$(ls -A "$work")" ] || { echo "walk_nnunet.sh: $work is not empty" >&2; exit 1; }
else
    work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
fi
export nnUNet_raw="$work/raw" nnUNet_preprocessed="$work/preprocessed" nnUNet_results="$work/results"
export OMP_NUM_THREADS=1 nnUNet_compile=f nnUNet_def_n_proc=1 CUDA_VISIBLE_DEVICES=
unset nnUNet_extTrainer nnUNet_fvae_view nnUNet_fvae_vae nnUNet_fvae_weights nnUNet_fvae_code
mkdir -p "$work"/{raw,preprocessed,results,logs,trainers,without/fvae_nnunet,installed}
cd "$work" || exit 1

ID=901 NAME=Dataset901_Walk PLANS=nnUNetPlansSmall
raw="$nnUNet_raw/$NAME" data="$nnUNet_preprocessed/$NAME" results="$nnUNet_results/$NAME"
steps=0 unexpected=0 log=

say() { printf '%s\n' "$*"; }
wrong() { unexpected=$((unexpected + 1)); say "    NOT AS EXPECTED: $*"; }

# step NAME STATUS COMMAND...: run a command and compare its status (0, or "not 0"); the walk ends if a command that must
# succeed fails, since the others need it
step() {
    local name=$1 expected=$2 status start=$SECONDS
    shift 2
    steps=$((steps + 1)) log="$work/logs/$(printf %02d $steps)-${name// /_}.log"
    "$@" >"$log" 2>&1
    status=$?
    printf '%2d %-58s %4d s  status %d\n' $steps "$name" $((SECONDS - start)) $status
    if { [ "$expected" = 0 ] && [ $status -ne 0 ]; } || { [ "$expected" != 0 ] && [ $status -eq 0 ]; }; then
        wrong "status $status instead of $expected; the end of $log:"
        tail -15 "$log"
        [ "$expected" = 0 ] && finish
    fi
}
prints() { grep -qF -- "$1" "$log" || wrong "does not print: $1"; }
writes() { local path; for path in "$@"; do [ -s "$path" ] || wrong "does not write $path"; done; }
same() { # same FOLDER FOLDER: the segmentations are identical byte by byte
    local file
    [ -n "$(ls "$1"/*.nii.gz 2>/dev/null)" ] || wrong "no segmentation in $1"
    for file in "$1"/*.nii.gz; do cmp -s "$file" "$2/${file##*/}" || wrong "$file differs from that in $2"; done
}
finish() {
    say ""
    if [ $unexpected -eq 0 ]; then
        say "$steps steps in $SECONDS s, all as expected (nnU-Net $nnunet)"
        exit 0
    fi
    say "$steps steps in $SECONDS s, $unexpected NOT as expected (nnU-Net $nnunet)"
    exit 1
}

nnunet=$(python -c 'from importlib.metadata import version; print(version("nnunetv2"))') && command -v fvae-setup >/dev/null ||
    { echo "walk_nnunet.sh: activate an environment with this project first" >&2; exit 1; }

train() { # train TRAINER FOLD [OPTIONS]
    local trainer=$1 fold=$2
    shift 2
    env nnUNet_n_proc_DA=0 nnUNetv2_train $ID 3d_fullres "$fold" -tr "$trainer" -p $PLANS -device cpu "$@"
}
model() { echo "$results/${1}__${PLANS}__3d_fullres"; }
predict() { # predict TRAINER FOLD OUTPUT [OPTIONS]
    local trainer=$1 fold=$2 output=$3
    shift 3
    nnUNetv2_predict -i "$raw/imagesTs" -o "$output" -d $ID -c 3d_fullres -tr "$trainer" -p $PLANS -f "$fold" -device cpu \
        --disable_tta -npp 1 -nps 1 "$@"
}
without_package() { env -u nnUNet_extTrainer PYTHONPATH="$work/without" "$@"; }
export -f train predict
export ID PLANS raw
echo 'raise ModuleNotFoundError("hidden", name="fvae_nnunet")' >without/fvae_nnunet/__init__.py

cat >trainers/walk_trainers.py <<'PYTHON'
import os
import torch
from fvae_nnunet import trainers
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ.get("WALK_EPOCHS", "1"))
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1


class WalkRaw(Short, nnUNetTrainer):
    pass


class WalkMixed(Short, trainers.nnUNetTrainerFVAE):
    view_probability = float(os.environ.get("WALK_PROBABILITY", "0.5"))


class WalkRecon(Short, trainers.nnUNetTrainerFVAEReconOnly):
    pass


class WalkBlend(Short, trainers.nnUNetTrainerFVAEBlend):
    pass


class WalkOnline(Short, trainers.nnUNetTrainerFVAEOnline):
    pass


class WalkSynth(Short, trainers.nnUNetTrainerFVAESynth):
    pass


class WalkSynthRaw(Short, trainers.nnUNetTrainerFVAESynthRaw):
    pass
PYTHON

say "== nnU-Net finds the trainers"
if fvae-setup --export >/dev/null 2>&1; then
    step "fvae-setup before the export" "not 0" fvae-setup
    prints "nnU-Net does not find the trainers"
    eval "$(tail -1 "$log")" # the printed line, pasted
    export nnUNet_extTrainer="$nnUNet_extTrainer:$work/trainers"
    step "fvae-setup after the export" 0 fvae-setup --show
else # before nnU-Net 2.8: files in its own folder, removed at the end
    own=$(python -c "import nnunetv2; print(nnunetv2.__path__[0] + '/training/nnUNetTrainer')")
    trap 'rm -f "$own/walk_trainers.py"; fvae-setup --remove; [ $# -gt 0 ] || rm -rf "$work"' EXIT
    cp trainers/walk_trainers.py "$own"
    step "fvae-setup writes its file" 0 fvae-setup
fi
prints "nnU-Net finds the trainers of fvae_nnunet through"

say "== data"
step "phantoms" 0 python "$project/scripts/phantoms.py" "$raw" --n-train 4 --n-test 2 --shape 24 48 48
step "nnUNetv2_plan_and_preprocess" 0 nnUNetv2_plan_and_preprocess -d $ID -c 3d_fullres -npfp 1 -np 1
step "small plans" 0 python "$project/scripts/small_plans.py" "$data" --name $PLANS
python - "$data" <<'PYTHON' || exit 1
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
cases = sorted(path.stem for path in (folder / "nnUNetPlans_3d_fullres").glob("*.pkl"))
folds = [cases[:2], cases[2:]]
(folder / "splits_final.json").write_text(json.dumps([{"train": folds[1 - n], "val": folds[n]} for n in (0, 1)]))
PYTHON
step "train without a view" "not 0" train WalkMixed 0
prints "has no reconstructed view. Make it with: fvae-preprocess $ID -c 3d_fullres -p $PLANS"
step "fvae-preprocess" 0 fvae-preprocess $ID -p $PLANS --vae tiny -np 0
prints "4 cases done"
prints "nnUNetv2_train $ID 3d_fullres 0 -tr nnUNetTrainerFVAE -p $PLANS"
step "fvae-preprocess again" 0 fvae-preprocess $ID -p $PLANS --vae tiny -np 0
prints "4 already complete"
step "fvae-train-ldm" 0 fvae-train-ldm $ID --vae tiny --size tiny --stage1-steps 2 --stage2-steps 1 --batch 2 \
    --samples-every 0 -device cpu -o "$work/ldm"
step "fvae-synthesize" 0 fvae-synthesize $ID --ldm "$work/ldm" -n 3 --diameter-mm 6 12 --steps 20 --no-filter -device cpu -np 0
step "fvae-preprocess --synthetic" 0 fvae-preprocess $ID -p $PLANS -c 3d_fullres \
    --synthetic "$nnUNet_raw/fvae_synthetic/$NAME" -np 0
prints "3 synthetic cases done"

say "== training"
for trainer in WalkRaw WalkMixed; do
    for fold in 0 1; do
        step "nnUNetv2_train $trainer $fold --npz" 0 train $trainer $fold --npz
        writes "$(model $trainer)/fold_$fold/checkpoint_final.pth" "$(model $trainer)/fold_$fold/validation/summary.json"
    done
done
prints "with view 'tiny'"
for trainer in WalkRecon WalkBlend WalkSynth WalkSynthRaw; do
    step "nnUNetv2_train $trainer 0" 0 train $trainer 0
    writes "$(model $trainer)/fold_0/checkpoint_final.pth" "$(model $trainer)/fold_0/validation/summary.json"
    if [ $trainer = WalkRecon ]; then
        prints "this model has seen only the view"
        printed=$(grep '^fvae-predict' "$log")
    elif grep -q '^fvae-predict' "$log"; then
        wrong "$trainer has seen raw images, and its log says that it has not"
    fi
done
prints "synthetic cases from"
step "nnUNetv2_train WalkOnline 0" 0 env nnUNet_fvae_vae=tiny bash -c 'train WalkOnline 0'
prints "training patches pass through tiny"
writes "$(model WalkOnline)/fold_0/checkpoint_final.pth"

say "== resuming, validation only"
export WALK_EPOCHS=2
step "nnUNetv2_train WalkMixed 0 --c --npz" 0 train WalkMixed 0 --c --npz
prints "Epoch 1"
export WALK_EPOCHS=3
step "--c with another probability" "not 0" env WALK_PROBABILITY=0.9 bash -c 'train WalkMixed 0 --c'
prints "view_probability: 0.5, now 0.9"
step "another view" 0 fvae-preprocess $ID -p $PLANS --vae tiny --hu-window -300 300 --view narrow -np 0
step "--c with another view" "not 0" env nnUNet_fvae_view=narrow bash -c 'train WalkRecon 0 --c'
prints 'view_name: "tiny", now "narrow"'
prints "view.hu_window: [-1000.0, 1000.0], now [-300.0, 300.0]"
export WALK_EPOCHS=2 nnUNet_fvae_view=tiny
rm -r "$(model WalkRecon)/fold_0/validation"
step "nnUNetv2_train WalkRecon 0 --val" 0 train WalkRecon 0 --val
writes "$(model WalkRecon)/fold_0/validation/summary.json"
prints "this model has seen only the view"

say "== prediction"
step "nnUNetv2_predict WalkMixed" 0 predict WalkMixed 0 "$work/mixed" --save_probabilities
step "nnUNetv2_predict WalkMixed without the package" 0 without_package bash -c \
    "predict WalkMixed 0 $work/mixed_without"
same "$work/mixed" "$work/mixed_without"
step "nnUNetv2_predict WalkRaw" 0 predict WalkRaw 0 "$work/raw_only" --save_probabilities
step "fvae-predict, as the log of WalkRecon printed it" 0 bash -c "$printed -device cpu --disable_tta -npp 0 -nps 0"
prints "2 cases predicted on view"
step "fvae-reconstruct" 0 fvae-reconstruct -i "$raw/imagesTs" -o "$work/images_view" --vae tiny -np 0
step "nnUNetv2_predict of it" 0 nnUNetv2_predict -i "$work/images_view" -o "$work/two_steps" -d $ID -c 3d_fullres \
    -tr WalkRecon -p $PLANS -f 0 -device cpu --disable_tta -npp 1 -nps 1
same "$work/predictions" "$work/two_steps"
step "fvae-evaluate" 0 fvae-evaluate "$raw/labelsTs" "$work/predictions"

say "== ensemble, best configuration, export and install"
step "nnUNetv2_ensemble" 0 nnUNetv2_ensemble -i "$work/mixed" "$work/raw_only" -o "$work/ensemble" -np 1
writes "$work"/ensemble/*.nii.gz
step "nnUNetv2_find_best_configuration" 0 nnUNetv2_find_best_configuration $ID -p $PLANS -c 3d_fullres -tr WalkRaw WalkMixed \
    -f 0 1 -np 1
writes "$results/inference_instructions.txt" "$results/inference_information.json"
step "nnUNetv2_export_model_to_zip" 0 nnUNetv2_export_model_to_zip -d $ID -o "$work/mixed.zip" -c 3d_fullres -tr WalkMixed \
    -p $PLANS -f 0
step "the same of WalkRecon" 0 nnUNetv2_export_model_to_zip -d $ID -o "$work/recon.zip" -c 3d_fullres -tr WalkRecon -p $PLANS -f 0
export nnUNet_results="$work/installed"
for zip in mixed recon; do
    step "nnUNetv2_install_pretrained_model_from_zip $zip" 0 nnUNetv2_install_pretrained_model_from_zip "$work/$zip.zip"
done
step "predict with the installed one, without the package" 0 without_package bash -c \
    "predict WalkMixed 0 $work/mixed_installed"
same "$work/mixed" "$work/mixed_installed"
step "fvae-predict with the installed one" 0 fvae-predict -i "$raw/imagesTs" -o "$work/recon_installed" -d $NAME \
    -c 3d_fullres -tr WalkRecon -p $PLANS -f 0 -device cpu --disable_tta -npp 0 -nps 0
prints "2 cases predicted on view"
same "$work/predictions" "$work/recon_installed"
finish
