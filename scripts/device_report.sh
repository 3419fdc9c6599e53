#!/usr/bin/env bash
# One page on what this machine's device does with the VAEs: what is wrong stands at its top. See device_report.py.
#
#   bash scripts/device_report.sh [-device cuda|mps|cpu] [-o device_report.md] [--small]
#
# PYTHON chooses the interpreter, which must have fvae_nnunet. No network; meant for under 8 minutes on a GPU, and --small for a few on a CPU.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/device_report.py" "$@"
