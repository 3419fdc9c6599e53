#!/bin/sh
# Quickstart on a fresh machine: creates .venv-quickstart beside the work folder, installs the project into it and runs
# scripts/quickstart.py with all arguments. PYTHON=python3.12 scripts/quickstart.sh uses another interpreter than python3.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}

fail() {
    echo "quickstart.sh: $1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 || fail "$python was not found; install Python 3.10 or later, or set PYTHON to one"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version 2>&1) is too old; install Python 3.10 or later, or set PYTHON to one"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv; on Debian or Ubuntu run: sudo apt install python3-venv"

work=quickstart
take=no
for argument in "$@"; do
    if [ "$take" = yes ]; then
        work=$argument
        take=no
    fi
    case $argument in
        --work) take=yes ;;
        --work=*) work=${argument#--work=} ;;
    esac
done
environment=$(dirname -- "$work")/.venv-quickstart
mkdir -p -- "$(dirname -- "$work")"

"$environment/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$environment"
echo "installing fvae_nnunet into $environment (the first time this downloads nnU-Net and PyTorch)"
rm -rf "$project/build"  # files left by an earlier installation would be packed again
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$project" ||
    fail "the installation failed; see the error above"
exec "$environment/bin/python" "$project/scripts/quickstart.py" "$@"
