#!/usr/bin/env bash
# Installs RecBole into an environment of its own: .venv-recbole beside .venv.
# torch first, in exactly the version of the main environment: a range would pull a CUDA build.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv-recbole"
pins="$root/benchmarks/recbole-requirements.txt"
python="${PYTHON:-python3.11}"

if [[ -f "$venv/.installed" ]] && cmp --silent "$pins" "$venv/.installed"; then
    exit 0
fi
"$python" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "$(grep '^torch==' "$pins")"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$pins"
cd "$root" && "$venv/bin/python" -c "import benchmarks.peer_recbole"
cp "$pins" "$venv/.installed"
