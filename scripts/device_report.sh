#!/bin/sh
# What this machine's GPU (or, in small, its CPU) makes of fvae_nnunet: one command, no network, some minutes, one page.
#
#     sh scripts/device_report.sh                   # writes device_report.md
#     sh scripts/device_report.sh -o page.md --small
#
# PYTHON chooses the interpreter of the environment in which fvae_nnunet is installed.
set -eu

python=${PYTHON:-python}
"$python" -c 'import fvae_nnunet' 2>/dev/null || {
    echo "device_report.sh: $python has no fvae_nnunet; activate its environment, or set PYTHON to its interpreter" >&2
    exit 1
}
exec "$python" "$(dirname -- "$0")/device_report.py" "$@"
