#!/usr/bin/env bash
# Run mypy on the package as installed, with trainers and preprocessing inside it.
#
#   bash scripts/types.sh [mypy options]
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cp -r "$project/fvae_nnunet" "$folder"
cp -r "$project/trainers" "$project/preprocessing" "$folder/fvae_nnunet"
cd "$folder"
MYPYPATH="$folder" mypy --config-file "$project/pyproject.toml" --cache-dir "$project/.mypy_cache" -p fvae_nnunet "$@"
