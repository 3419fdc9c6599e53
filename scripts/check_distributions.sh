#!/usr/bin/env bash
# Build the source distribution and the wheel, and try each in a new environment: commands, trainers, embedded VAE.
#
#   bash scripts/check_distributions.sh [FOLDER]     leaves both in FOLDER (default: dist)
#
# PYTHON chooses the interpreter, which must have build and twine (pip install '.[release]'). If FVAE_PACKAGES names a
# folder site-packages with all requirements of the package, nothing else is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
mkdir -p "${1:-dist}"
dist="$(cd "${1:-dist}" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work" build' EXIT
rm -rf build  # files left by an earlier installation would be packed again

"$python" -m build --quiet --outdir "$dist" .
version="$("$python" -c 'import fvae_nnunet; print(fvae_nnunet.__version__)')"
"$python" -m twine check --strict "$dist"/fvae_nnunet-"$version"*

cd "$work"  # outside of the clone, whose modules Python would find first
for distribution in "$dist"/fvae_nnunet-"$version"*.whl "$dist"/fvae_nnunet-"$version".tar.gz; do
    echo "== $(basename "$distribution")"
    rm -rf venv
    "$python" -m venv venv
    if [ -n "${FVAE_PACKAGES:-}" ]; then
        echo "$FVAE_PACKAGES" >"$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_base.pth"
    fi
    venv/bin/pip install --quiet --disable-pip-version-check ${FVAE_PACKAGES:+--no-deps} "$distribution"
    [ "$(venv/bin/fvae-setup --version)" = "fvae_nnunet $version" ]
    venv/bin/python -c 'import fvae_nnunet, sys; sys.exit(not fvae_nnunet.__file__.startswith(sys.prefix))'
    venv/bin/fvae-setup --check -device cpu
    (eval "$(venv/bin/fvae-setup --export)" && venv/bin/fvae-setup --show | tail -1)
done
