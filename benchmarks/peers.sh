#!/usr/bin/env bash
# Installs the benchmark's peers into an environment of their own: .venv-peers beside .venv.
# torch first, in exactly the version of the main environment: a range would pull a CUDA build.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv-peers"
pins="$root/benchmarks/peers-requirements.txt"
python="${PYTHON:-python3.11}"

if [[ -f "$venv/.installed" ]] && cmp --silent "$pins" "$venv/.installed"; then
    exit 0
fi
"$python" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "$(grep '^torch==' "$pins")"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$pins"
"$venv/bin/python" -c "
from deepctr_torch.models import AutoInt
from fuxictr.preprocess import build_dataset
from torch_rechub.models.ranking import AutoInt
"
cp "$pins" "$venv/.installed"
