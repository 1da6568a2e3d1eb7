#!/usr/bin/env bash
# Install dudi, editable, into .venv, with the versions and hashes of requirements/ (raised by `make lock`).
# Usage: scripts/install.sh [EXTRA...]            extras: test, dev, peer, docs (with dev)
#        scripts/install.sh --latest [EXTRA...]   the newest of everything instead, into a new .venv-latest
# PYTHON: the interpreter to use. UV: the uv to use, by default the one on PATH; where it is empty, pip does the work.
# TORCH_CPU_INDEX: where the CPU build of torch comes from on Linux without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
newest=13 # the versions in requirements/ are for Python 3.11 to 3.13
wanted="Python 3.11 to 3.13"
if [[ ${1:-} == --latest ]]; then
  shift
  venv=.venv-latest
  newest=99
  wanted="Python 3.11 or newer"
fi
UV=${UV-$(command -v uv || true)}
CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
if [[ -n $UV ]]; then index=--default-index; else index=--index-url; fi

say() { echo "install: $*"; }
fail() { echo "install: error: $*" >&2; exit 1; }
fits() { "$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; }
has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

find_python() {
  local name
  for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if fits "$name"; then
      python=$("$name" -c 'import sys; print(sys.executable)')
      return
    fi
  done
  if [[ -n $UV && -z ${PYTHON:-} ]]; then
    python=3.13 # uv knows where to get one
    return
  fi
  name=${PYTHON:-python3}
  fail "$wanted is needed; $name is $("$name" --version 2>/dev/null || echo none); set PYTHON=/path/to/python3.11"
}

new_venv() {
  find_python
  say "new environment $venv from $("$python" --version 2>/dev/null || echo "uv's Python") ($python)"
  if [[ -n $UV ]]; then
    "$UV" venv --quiet --clear --python "$python" "$venv"
  else
    "$python" -c 'import venv, ensurepip' 2>/dev/null \
      || fail "$python has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)"
    "$python" -m venv --clear "$venv"
  fi
}

# The options that are passed on here mean the same to both.
install() {
  if [[ -n $UV ]]; then
    "$UV" pip install --quiet --python "$venv/bin/python" "$@"
  else
    "$venv/bin/python" -m pip --disable-pip-version-check install -qq "$@"
  fi
}

# For what may well not be there: one more try, no long wait, and the errors into a file.
attempt() {
  PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=20 UV_HTTP_RETRIES=1 UV_HTTP_TIMEOUT=20 install "$@" 2>>"$venv/torch-cpu.log"
}

torch_here() {
  "$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true
}

# From PyPI, torch for Linux brings gigabytes of CUDA libraries: without a GPU the CPU build is put there first, from
# what pip or uv is set up to read, else from PyTorch's own index alone.
cpu_torch() {
  : >"$venv/torch-cpu.log"
  if [[ -z ${TORCH_CPU_INDEX:-} && $venv == .venv ]]; then
    attempt --no-deps "$@" && return
  fi
  PIP_EXTRA_INDEX_URL=$CPU_INDEX UV_INDEX="" attempt --no-deps $index "$CPU_INDEX" "$@"
}

# Which torch: sets `torch` to cpu or cuda.
choose_torch() {
  local locked
  locked=$(sed -n 's/^torch===\([^ ]*\).*/\1/p' requirements/torch-cuda.txt)
  torch=cpu
  if has_gpu; then
    torch=cuda
  elif [[ $(uname) != Linux || $(torch_here) == "$locked+cpu" ]]; then
    return
  elif [[ $(torch_here) == "$locked" ]]; then
    torch=cuda # an earlier run found no CPU build
  else
    say "torch $locked, CPU build (no GPU here)"
    if ! cpu_torch --require-hashes --only-binary :all: -r requirements/torch-cpu.txt; then
      if grep -qi 'hash' "$venv/torch-cpu.log"; then
        fail "the CPU build of torch found is not the one in requirements/torch-cpu.txt; see $venv/torch-cpu.log"
      fi
      say "no CPU build of torch to be had ($venv/torch-cpu.log); taking CUDA's, a download of several gigabytes"
      torch=cuda
    fi
  fi
}

install_locked() {
  local part files=()
  choose_torch
  for part in "torch-$torch" run "$@"; do files+=(-r "requirements/$part.txt"); done
  say "dudi and what it needs, as in requirements/: torch-$torch run${*:+ $*}"
  install --require-hashes --only-binary :all: "${files[@]}"
  # The lock has what builds dudi, too: nothing else is fetched for it.
  install --no-deps --no-build-isolation --editable .
  for part in "" "$@"; do touch ".venv/.installed${part:+-$part}"; done
}

# Only the names in pyproject.toml count here: the point is to see what the next releases break.
install_latest() {
  local names
  names=$("$venv/bin/python" - "$@" <<'PY'
import re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = [line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]]
print(*(re.match(r"[\w.-]+", line)[0] for line in ["setuptools", *project["dependencies"], *extras]))
PY
  )
  if [[ $(uname) == Linux ]] && ! has_gpu; then
    cpu_torch torch || say "no CPU build of torch to be had; taking the usual one, a large download"
  fi
  say "the newest of what dudi needs"
  # shellcheck disable=SC2086  # a list of names
  install $names
  install --no-deps --no-build-isolation --editable .
}

if [[ $venv == .venv-latest ]] || ! fits "$venv/bin/python"; then
  new_venv
elif [[ -z $UV ]] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$venv/bin/python" -m ensurepip >/dev/null # uv made this one, and uv is gone
fi

if [[ $venv == .venv ]]; then
  install_locked "$@"
else
  install_latest "$@"
fi
