#!/usr/bin/env bash
# What both images do: the package in a virtual environment, nnU-Net's trainer folder, weights, and a check.
#
#   install.sh SOURCE VENV [VAE ...]
#
# SOURCE is the project's folder. VAEs, such as wan2.1, are downloaded from the hub to HF_HOME. TORCH_INDEX names the index
# of torch, such as https://download.pytorch.org/whl/cpu (default: PyPI's, with CUDA); EXTRAS the extras, such as fast,cluster.
set -euo pipefail
source="$1" venv="$2"
shift 2

python3 -m venv "$venv"
export PATH="$venv/bin:$PATH" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
if [ -n "${TORCH_INDEX:-}" ]; then
    pip install --index-url "$TORCH_INDEX" torch torchvision
fi
pip install "$source${EXTRAS:+[$EXTRAS]}"
fvae-setup --write
if [ "$#" -gt 0 ]; then
    python -c 'import sys; from fvae_nnunet import load_vae; [load_vae(name) for name in sys.argv[1:]]' "$@"
fi
fvae-setup --check -device cpu
