#!/usr/bin/env bash
# Run the fast tests with the lowest versions that setup.cfg allows, on the lowest Python found.
#
#   bash scripts/test_lowest.sh [pytest options]
#
# PYTHON chooses the interpreter, FVAE_VENV the environment (default .venv-lowest, updated to these versions if it exists).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${FVAE_VENV:-.venv-lowest}"
for python in ${PYTHON:-python3.10 "$HOME"/.pyenv/versions/3.10.*/bin/python python3.11 python3}; do
    "$python" -c '' 2>/dev/null && break
done
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check uv
export UV_COMPILE_BYTECODE=1  # like pip; otherwise, in a read-only environment, every worker compiles its imports again
"$venv/bin/uv" pip compile --quiet --python "$venv/bin/python" --resolution lowest-direct --extra test \
    --output-file "$venv/lowest.txt" setup.cfg
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --requirement "$venv/lowest.txt"
rm -rf build  # files left by an earlier installation would be packed again
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --reinstall-package fvae_nnunet .
exec "$venv/bin/pytest" --numprocesses auto --maxprocesses 4 --dist loadfile -m "not slow" "$@"
