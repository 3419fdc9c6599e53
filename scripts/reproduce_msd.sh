#!/bin/sh
# From a downloaded task of the Medical Segmentation Decathlon to the paper's Table 2: runs scripts/reproduce_msd.py with
# all arguments, in the environment whose fvae-preprocess is found first.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

fail() {
    echo "reproduce_msd.sh: $1" >&2
    exit 1
}

program=$(command -v fvae-preprocess) ||
    fail "fvae-preprocess was not found; activate the environment that fvae_nnunet is installed in, or make one:
    python3 -m venv .venv && . .venv/bin/activate && pip install '$project[picture,controls]'"
python=$(dirname -- "$program")/python
[ -x "$python" ] || python=python3
"$python" -c 'import fvae_nnunet' 2>/dev/null || fail "$python does not find fvae_nnunet, although $program is there"
exec "$python" "$project/scripts/reproduce_msd.py" "$@"
