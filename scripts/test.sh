#!/usr/bin/env bash
# Install the package and its test requirements into a virtual environment and run the tests.
#
#   bash scripts/test.sh [pytest options]
#
# PYTHON chooses the interpreter (3.10 or later), FVAE_VENV the environment (default .venv-test, reused if it exists).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
venv="${FVAE_VENV:-.venv-test}"
"$python" -c 'import sys; sys.exit("Python 3.10 or later is required, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
rm -rf build  # files left by an earlier installation would be packed again
"$venv/bin/pip" install --quiet --disable-pip-version-check '.[test,fast]'
exec "$venv/bin/pytest" --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
