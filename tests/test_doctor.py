"""The doctor finds what would not work, says what to do, and never breaks itself."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from selfdistill import doctor
from selfdistill.doctor import Check, diagnose, exit_code, render, summary

PYPROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_working_environment_has_no_failure(tmp_path: Path) -> None:
    checks = diagnose(tmp_path)
    assert exit_code(checks) == 0, [check for check in checks if check.status == "failure"]
    names = {"Python", "torch", "transformers", "peft", "datasets", "math-verify", "maths verifier", "embedded model"}
    assert names | {"threads", "disk", "run folder"} <= by_name(checks).keys()
    assert not list(tmp_path.iterdir())


def test_every_finding_that_is_not_ok_has_a_remedy(tmp_path: Path) -> None:
    assert all(check.remedy for check in diagnose(tmp_path) if check.status != "ok")


def test_a_library_outside_its_range_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(doctor.REQUIRED, "transformers", ">=99")
    monkeypatch.setitem(doctor.REQUIRED, "no-such-library", ">=1")
    checks = by_name(diagnose(tmp_path))
    assert checks["transformers"].status == "failure" and "outside of >=99" in checks["transformers"].detail
    assert checks["no-such-library"].remedy == "pip install 'no-such-library>=1'"
    assert exit_code(list(checks.values())) == 1


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("no embedded model\nsecond line")

    monkeypatch.setattr("selfdistill.models.embedded.embedded_path", broken)
    checks = by_name(diagnose(tmp_path))
    assert checks["embedded model"].detail == "RuntimeError: no embedded model"
    assert checks["disk"].detail


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            doctor.tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(PermissionError(13, "denied"))
        )
        check = by_name(diagnose(tmp_path))["run folder"]
    assert check.status == "failure" and "denied" in check.detail and check.remedy


def test_little_disk_space_warns_and_none_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []
    for gib in (0.5, 5, 500):
        usage = type("Usage", (), {"free": int(gib * doctor.GIB)})
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, usage=usage: usage)
        found.append(by_name(diagnose(tmp_path))["disk"].status)
    assert found == ["failure", "warning", "ok"]


def test_more_threads_than_cores_warn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: doctor.available_cores() + 1)
    check = by_name(diagnose(tmp_path))["threads"]
    assert check.status == "warning" and f"OMP_NUM_THREADS={doctor.available_cores()}" in check.remedy


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert doctor._without_cuda(None).status == doctor._without_cuda("13.0").status == "warning"
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor._without_cuda(None).status == "ok"


CHECKS = [Check("torch", "ok", "2.13.0"), Check("disk", "failure", "0.1 GiB [free]", "free some space")]


def test_away_from_a_terminal_the_output_is_one_plain_line_per_check() -> None:
    stream = io.StringIO()
    render(CHECKS, stream)
    assert stream.getvalue().splitlines() == [
        "ok       torch  2.13.0",
        "failure  disk   0.1 GiB [free]  -> free some space",
        summary(CHECKS),
    ]


def test_the_report_prints_and_returns_the_exit_code() -> None:
    stream = io.StringIO()
    assert doctor.report(stream) == 0
    assert stream.getvalue().count("\n") == len(diagnose()) + 1


def test_on_a_terminal_the_output_is_a_table() -> None:
    stream = Terminal()
    render(CHECKS, stream)
    assert "\x1b[" in stream.getvalue() and "0.1 GiB [free]" in stream.getvalue() and "remedy" in stream.getvalue()


def test_the_summary_counts() -> None:
    assert summary(CHECKS).startswith("1 of 2 checks failed")
    assert summary(CHECKS[:1]) == "Ready: 1 checks, no failure, 0 warned."


def test_the_doctor_asks_for_what_pyproject_asks_for() -> None:
    declared = {Requirement(line).name: Requirement(line).specifier for line in PYPROJECT["project"]["dependencies"]}
    assert {name: declared[name] for name in doctor.REQUIRED} == {
        name: SpecifierSet(wanted) for name, wanted in doctor.REQUIRED.items()
    }
