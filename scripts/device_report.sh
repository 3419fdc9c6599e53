#!/usr/bin/env bash
# Test the VAEs on this machine's device and write one page, with all problems at the top. See device_report.py.
#
#   bash scripts/device_report.sh [-device cuda|mps|cpu] [-o device_report.md] [--small]
#
# PYTHON chooses the interpreter, which must have fvae_nnunet. No network access is needed. Meant to take less than 8
# minutes on a GPU, and with --small a few minutes on a CPU.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/device_report.py" "$@"
