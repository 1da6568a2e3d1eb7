#!/usr/bin/env bash
# Install dudi, editable, into .venv. Usage: scripts/install.sh [EXTRA...]   (extras: test, dev, peer)
# PYTHON: the interpreter to use. TORCH_CPU_INDEX: where the CPU build of torch comes from on Linux without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0 # the CPU build that the tests are run with; pyproject.toml says what the package accepts
CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

say() { echo "install: $*"; }
fail() { echo "install: error: $*" >&2; exit 1; }
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local name
  for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if new_enough "$name"; then
      "$name" -c 'import venv, ensurepip' 2>/dev/null \
        || fail "$name has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)"
      python=$name
      return
    fi
  done
  name=${PYTHON:-python3}
  fail "Python 3.11 or newer is needed; $name is $("$name" --version 2>/dev/null || echo none); set PYTHON=/path/to/python3.11"
}

has_torch() {
  .venv/bin/python - 2>/dev/null <<'PY'
from importlib.metadata import version
raise SystemExit(tuple(map(int, version("torch").split(".")[:2])) < (2, 11))
PY
}

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

if ! new_enough .venv/bin/python; then
  find_python
  say "new environment .venv from $("$python" --version 2>&1) ($python)"
  "$python" -m venv --clear .venv
fi

# From PyPI, torch for Linux brings gigabytes of CUDA libraries: without a GPU the CPU build is put there first, from
# what pip is set up to read, else from PyTorch's own index. Where neither has it, the usual build does as well.
if [[ $(uname) == Linux ]] && ! has_gpu && ! has_torch; then
  say "torch $TORCH, CPU build (no GPU here)"
  if [[ -n ${TORCH_CPU_INDEX:-} ]] || ! pip install -qq --retries 1 "torch==$TORCH+cpu" 2>/dev/null; then
    pip install -qq --retries 1 --timeout 20 --index-url "$CPU_INDEX" "torch==$TORCH+cpu" 2>/dev/null \
      || say "no CPU build of torch to be had; taking the usual one, a large download"
  fi
fi

extras=$(IFS=,; echo "$*")
say "dudi${extras:+[$extras]} and what it needs"
pip install -qq --editable ".${extras:+[$extras]}"

touch .venv/.installed
for extra in "$@"; do
  touch ".venv/.installed-$extra"
done
