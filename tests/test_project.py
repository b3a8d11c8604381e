"""The project as a newcomer meets it: two commands, pinned versions, nothing of the machine that it was written on."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import selfdistill

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in ``folder`` as from a shell, whatever the make that may have started this suite was given."""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "ARGS", "PYTHON")
    }
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)


def dry_run(*arguments: str) -> str:
    """Return what make would do if no environment had been made yet."""
    return make(ROOT, "--dry-run", "--always-make", *arguments).stdout


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "docs", "smollm2", "reasoning-gym", "ray"])
def test_each_command_makes_the_environment_first(target: str) -> None:
    steps = dry_run(target)
    venv, torch, project = steps.index("-m venv"), steps.index("torch==2.13.0"), steps.index("-c constraints.txt -e")
    assert venv < torch < project < steps.index("touch .venv/.ready")


@needs_make
def test_the_two_commands_run_the_demo_and_the_suite() -> None:
    assert dry_run("demo").strip().splitlines()[-1].strip() == ".venv/bin/selfdistill demo"
    last = dry_run("test").strip().splitlines()[-1].strip()
    assert "OMP_NUM_THREADS=1" in last and last.endswith(".venv/bin/python -m pytest -n 2")


@needs_make
def test_a_made_environment_is_not_made_again(tmp_path: Path) -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    steps = make(tmp_path, "--dry-run", "test").stdout
    assert "pip" not in steps and "-m pytest" in steps


@needs_make
def test_a_machine_without_a_new_enough_python_is_told_what_to_do(tmp_path: Path) -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    answer = make(tmp_path, "test", f"PYTHON={tmp_path}/no python")
    assert answer.returncode != 0
    assert "No Python 3.11 or newer" in answer.stderr and "make test PYTHON=" in answer.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_ends_with_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text().strip().splitlines()
    assert script[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in script and script[-1] == "make test"


def test_constraints_pin_every_version_exactly() -> None:
    assert "torch==2.13.0" in map(str, CONSTRAINTS)
    for requirement in CONSTRAINTS:
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
    names = [canonicalize_name(requirement.name) for requirement in CONSTRAINTS]
    assert len(names) == len(set(names))


def test_constraints_cover_and_satisfy_what_the_project_asks_for() -> None:
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in CONSTRAINTS}
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = PYPROJECT["project"]["dependencies"] + extras["dev"] + extras["docs"]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_extras_exist() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert {"vllm", "ray", "trackers", "report", "bench", "dev", "docs", "smollm2", "reasoning-gym"} <= extras.keys()


def test_the_version_is_the_same_everywhere() -> None:
    assert selfdistill.__version__ == PYPROJECT["project"]["version"] == "0.1.0"
    assert f"## {selfdistill.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, selfdistill; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_embedded_model_is_part_of_the_package_and_small() -> None:
    weights = list((ROOT / "src" / "selfdistill" / "models" / "embedded").glob("*.safetensors"))
    assert weights and sum(file.stat().st_size for file in weights) <= 4_000_000
    assert (ROOT / "src" / "selfdistill" / "py.typed").is_file()


def tracked_files() -> list[Path]:
    """Return what git tracks or would track, or every file outside of hidden folders where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = [
            "git",
            "-c",
            f"safe.directory={ROOT}",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    files = [path for path in ROOT.rglob("*") if path.is_file()]
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])]


def test_no_file_names_a_folder_of_the_machine_that_it_was_written_on() -> None:
    home = "|".join(("work", "root", "home"))
    absolute = re.compile(rf"(?<![\w.~>:/-])/({home})/[\w.]")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) < 2_000_000 and (match := absolute.search(text)):
            found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert not found


def test_nothing_large_is_committed() -> None:
    large = [f"{path.relative_to(ROOT)}" for path in tracked_files() if path.stat().st_size > 4_000_000]
    assert not large


@pytest.mark.skipif(not (ROOT / ".venv" / ".ready").exists(), reason="the environment was not made by make")
def test_the_command_is_installed() -> None:
    scripts = {script.name: script.value for script in importlib.metadata.entry_points(group="console_scripts")}
    assert scripts.get("selfdistill") == "selfdistill.cli:main"
