"""The benchmark of pages runs, at sizes that measure nothing, and says what it should."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_the_table_of_pages_is_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    pages: Any = importlib.import_module("benchmarks.pages")
    output = tmp_path / "pages.json"
    pages.main(["--quick", "--repeats", "1", "--warmup", "0", "--threads", "1", "--xray", "--output", str(output)])
    found = json.loads(output.read_text("utf-8"))["pages"]["xray"]
    assert found["bytes"] > 10_000 and found["tokens"] == 200
    assert found["ms"].keys() == found["summary"].keys() == {"open", *pages.ACTIONS}
    assert all(len(one) == 1 and one[0] > 0 for one in found["ms"].values())
    assert capsys.readouterr().out.count("| xray") == len(found["ms"])
