"""The benchmarks run, at sizes that measure nothing, and say what they should; also where no peer is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TIMED = {"median", "low", "high"}

Bench = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Return a function that runs a benchmark with ``--quick`` and returns its JSON file and what it printed."""
    monkeypatch.syspath_prepend(str(ROOT))

    def run(name: str, *options: str) -> tuple[dict[str, Any], str]:
        output = tmp_path / f"{name}.json"
        threads = torch.get_num_threads()
        module = importlib.import_module(f"benchmarks.{name}")
        shared = ["--quick", "--device", "cpu", "--threads", "1", "--repeats", "1", "--warmup", "0"]
        try:
            module.main([*shared, "--output", str(output), *options])
        finally:
            torch.set_num_threads(threads)
        return json.loads(output.read_text("utf-8")), capsys.readouterr().out

    return run


@pytest.fixture
def no_peers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that neither TRL nor Liger is installed."""
    monkeypatch.setattr("benchmarks.peers.installed", lambda package: None)


def rows(printed: str) -> list[list[str]]:
    """Return the cells of every line of every table."""
    lines = [line for line in printed.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def check_document(document: dict[str, Any], name: str) -> None:
    assert document["benchmark"] == name
    assert {"torch", "transformers", "trl", "liger-kernel", "selfdistill", "commit"} <= document["versions"].keys()
    assert {"processor", "cores", "threads"} <= document["machine"].keys()
    assert document["arguments"]["run"]["quick"] is True
    assert str(ROOT) not in json.dumps(document)


@pytest.mark.usefixtures("no_peers")
def test_the_head_table_is_complete_without_peers(bench: Bench) -> None:
    document, printed = bench("head", "--without-memory")
    check_document(document, "head")
    table = rows(printed)[1:]
    described = document["contestants"]
    assert [cells[1] for cells in table] == [one["label"] for one in described.values()]
    for name, one in described.items():
        if one["library"] in ("trl", "liger"):
            assert one["unavailable"] == "not installed"
        else:
            assert len(document["seconds"][name]) == 1 and document["summary"][name]["seconds"].keys() == TIMED
    absent = [cells for cells in table if cells[0] in ("TRL", "Liger")]
    assert len(absent) == 9 and all(cells[2] == "not installed" for cells in absent)
    assert set(document["floors"]) == {"2", "3", "4"}


@pytest.mark.usefixtures("no_peers")
def test_the_memory_of_the_head_is_measured_in_processes_of_its_own(bench: Bench) -> None:
    document, printed = bench("head", "--only", "ours_forward_kl")
    assert document["memory"]["ours_forward_kl"]["at_n"] >= 0
    assert [probe["idle"] for probe in document["probes"]] == [False, True]
    assert any("GiB" in cell for cells in rows(printed) for cell in cells)


@pytest.mark.usefixtures("no_peers")
def test_every_head_of_ours_agrees_with_float64(bench: Bench) -> None:
    document, _ = bench("head", "--without-memory")
    compared = document["exactness"]
    assert {name for name in document["contestants"] if name.startswith("ours_")} <= compared.keys()
    for name, found in compared.items():
        assert found["hidden_cosine"] > 0.9999, name
        assert found["value_error"] < 1e-3, name
        assert found.get("weight_cosine", 1.0) > 0.9999, name


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (extra `bench`)")
def test_the_peers_heads_compute_the_same(bench: Bench) -> None:
    document, _ = bench("head", "--without-memory", "--only", "trl_,liger_,ours_forward_kl,ours_jsd")
    peers = {name: one for name, one in document["contestants"].items() if name.startswith(("trl", "liger"))}
    able = [name for name, one in peers.items() if one["unavailable"] is None]
    assert {"trl_chunked_kl", "trl_chunked_jsd", "trl_full_jsd"} <= set(able)
    assert all(document["exactness"][name]["hidden_cosine"] > 0.9999 for name in able)
    assert document["summary"]["trl_chunked_kl"]["against_ours"].keys() == TIMED


@pytest.mark.usefixtures("no_peers")
def test_the_update_table_is_complete_without_peers(bench: Bench) -> None:
    document, printed = bench("update", "--without-memory")
    check_document(document, "update")
    table = rows(printed)[1:]
    assert len(table) == len(document["contestants"]) == 8
    assert all(cells[3] == "not installed" for cells in table if cells[0] == "TRL")
    ours = [name for name, one in document["contestants"].items() if one["library"] == "ours"]
    assert set(document["seconds"]) == set(ours)
    loss = {name: found["loss"] for name, found in document["equality"].items()}
    assert loss["ours_topk_all"] == pytest.approx(loss["readable_topk_all"], rel=1e-4)


@pytest.mark.usefixtures("no_peers")
def test_the_step_tables_are_complete(bench: Bench) -> None:
    document, printed = bench("step")
    check_document(document, "step")
    steps = {f"{method}/{path}" for method in ("paint", "sc_sdpo") for path in ("fast", "readable")}
    assert set(document["steps"]) == steps
    assert {"with reuse", "without reuse"} == set(document["teacher"])
    assert document["difference"] < 1e-4
    assert len(rows(printed)) == 1 + 4 + 1 + 2


@pytest.mark.usefixtures("no_peers")
def test_the_scaling_table_is_complete(bench: Bench) -> None:
    document, printed = bench("scaling", "--without-memory")
    check_document(document, "scaling")
    assert [cells[0] for cells in rows(printed)[1:]] == ["head, forward KL"] * 2 + ["update phase, SC-SDPO"] * 2
    assert all(document["summary"][name]["against_smallest"].keys() == TIMED for name in document["seconds"])


@pytest.mark.usefixtures("no_peers")
def test_the_table_of_checkpoints_is_complete(bench: Bench) -> None:
    document, printed = bench("checkpoint_stall", "--layers", "1")
    check_document(document, "checkpoint_stall")
    assert [cells[0] for cells in rows(printed)[1:]] == ["embedded, PAINT", "random Qwen3"] == list(document["runs"])
    for one in document["runs"].values():
        assert one["bytes"] > 0 and one["first"] > 0
        assert len(one["background"]) == len(one["alone"]) == len(one["step"]) == 1
        assert all(figure.keys() == TIMED for figure in one["summary"].values())


@pytest.mark.usefixtures("no_peers")
def test_processes_take_the_same_steps_in_turns(bench: Bench) -> None:
    document, printed = bench("processes", "--cases", "tiny:paint")
    check_document(document, "processes")
    assert [cells[1] for cells in rows(printed)[1:]] == ["1 x 1", "2 x 1"]
    (rounds,) = document["rounds"].values()
    (one,), (more,) = rounds["one"], rounds["more"]
    for tokens in ("sampling_tokens", "update_tokens"):
        assert one[tokens] == pytest.approx(more[tokens])
    assert document["summary"]["tiny:paint"]["ratio"]["wall"].keys() == TIMED


@pytest.mark.usefixtures("no_peers")
def test_the_memory_of_several_processes_is_what_the_arithmetic_says(bench: Bench) -> None:
    document, printed = bench("sharded_memory")
    check_document(document, "sharded_memory")
    assert [cells[1:3] for cells in rows(printed)[1:]] == [["2", "step"], ["2", "layer"]]
    for case in document["cases"]:
        exact = case["ranks"][0]["exact"]
        stays = exact["weights"] + exact["moments"] + exact["teacher"]
        assert stays == pytest.approx(case["expected"]["stays"], rel=0.02)
        assert exact["gradients"] == pytest.approx(exact["weights"], rel=0.02)
        assert case["ranks"][0]["peak"] > 0


@pytest.mark.usefixtures("no_peers")
def test_the_tables_of_the_cost_model_are_complete(bench: Bench) -> None:
    document, printed = bench("cost_model", "--models", "tiny")
    check_document(document, "cost_model")
    assert [(one["processes"], one["part"]) for one in document["fits"]] == [
        (count, part) for count in (1, 2) for part in ("sampling", "scoring", "update")
    ]
    assert {row["held_out"] for one in document["fits"] for row in one["rows"]} == {True, False}
    assert document["lines"]["exchange"]["per_byte"] >= 0
    assert "on paper" in printed and "H100" in printed


def test_the_cost_model_finds_the_coefficients_that_made_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.cost_fit")
    line, true = module.Line(1e-4, 1e-9), [0.01, 2e-4, 1e-10, 3e-5]
    rows = [
        {"processes": 2, "parameters": n, "layers": layers, "longest": longest, "sampled": longest * count}
        for n, layers in ((1e6, 4), (5e6, 6), (2e7, 7))
        for count in (8, 64)
        for longest in (16, 64)
    ]
    for row in rows:
        row["sampling"] = module.predict("sampling", row, true, line)
    assert module.fit("sampling", rows, line) == pytest.approx(true, rel=1e-3)
    assert module.least_squares([[1.0, 1.0], [1.0, 2.0]], [2.0, 1.0])[1] == 0.0  # nothing costs less than nothing


def test_on_paper_the_longest_response_bounds_a_step_however_many_gpus_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.cost_paper")
    found = [module.cost(module.SC_SDPO, module.H100, count) for count in (8, 64, 512, 4096)]
    assert [one.drawing for one in found] == [8, 32, 32, 32]
    assert {one.bound for one in found} == {"sampling"}
    weights = 2 * module.QWEN3_8B.parameters / module.H100.memory
    assert all(one.sampling > module.SC_SDPO.longest * weights for one in found)
    assert module.enough(module.SC_SDPO, module.H100) == 32


def test_a_soak_run_shows_what_the_process_held(bench: Bench) -> None:
    document, printed = bench("soak")
    check_document(document, "soak")
    assert [cells[0] for cells in rows(printed)[1:]][:3] == ["unique memory", "of it, written", "resident memory"]
    assert set(document["summary"]) == {"unique", "dirty", "resident", "files", "threads", "folder"}
    assert all(look["unique"] > 0 and look["files"] > 2 for look in document["looks"])


def test_a_process_that_ends_while_it_is_looked_at_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    soak = importlib.import_module("benchmarks.soak")
    process = subprocess.Popen(["sleep", "60"])
    seen = soak.looked(process.pid, tmp_path, 1.0, 1)
    assert seen is not None and seen.unique > 0 and seen.files == len(os.listdir(f"/proc/{process.pid}/fd"))
    names = os.listdir

    def ends(place: Path) -> list[str]:
        found = names(place)
        if place.name == "task":
            process.kill()
            process.wait()
        return found

    monkeypatch.setattr(soak.os, "listdir", ends)
    assert soak.looked(process.pid, tmp_path, 2.0, 2) is None


def test_growth_is_that_of_a_straight_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    soak = importlib.import_module("benchmarks.soak")
    looks = [soak.Look(step, step, 100 + step, 0, 0, 9, 3, 0) for step in range(0, 101)]
    found = soak.summary(soak.SoakSettings(steps=100), looks)
    assert found["unique"]["line"] == pytest.approx([110, 200])
    assert found["unique"]["growth_percent"] == pytest.approx(100 * 90 / 110)
    assert found["files"]["growth_percent"] == 0
    assert soak.sparkline([1.0, 1.0, 3.0]) == "▁▁█"


def test_a_killed_run_is_compared_file_by_file(bench: Bench, tmp_path: Path) -> None:
    document, printed = bench("kills", "--kills", "1", "--phases", "update")
    check_document(document, "kills")
    (one,) = document["runs"]
    assert one["same"] and one["kills"][0].startswith("update ") and one["differences"] == []
    assert rows(printed)[1][3] == "yes"


def test_lengths_are_log_normal_with_a_median_of_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    lengths = importlib.import_module("benchmarks.update_batch").log_normal_lengths(32, 220)
    assert max(lengths) == 220 and sorted(lengths)[15] <= 55 <= sorted(lengths)[16]
    assert sum(lengths) == pytest.approx(2184, rel=0.02)


def test_rollouts_say_what_is_missing_where_vllm_is_not_installed(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.rollouts")
    monkeypatch.setattr(module, "find_vllm", lambda: None)
    threads = torch.get_num_threads()
    try:
        module.main(["--quick", "--threads", "1", "--output", str(tmp_path / "rollouts.json")])
    finally:
        torch.set_num_threads(threads)
    assert "make vllm" in capsys.readouterr().out
    assert not (tmp_path / "rollouts.json").exists()


def test_the_tables_of_rollouts_take_ratios_within_a_round_and_show_what_was_lost(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.rollouts")
    speed = {
        "vLLM, bare": [{"tokens": 100, "seconds": 1.0}, {"tokens": 100, "seconds": 2.0}],
        "ours, server": [{"tokens": 90, "seconds": 1.0}, {"tokens": 90, "seconds": 2.0}],
    }
    assert module.speed_rows(speed)[1][2] == "0.90x (0.90-0.90)"
    report = {"bytes": 2_000_000, "seconds": 0.5}
    sync = {"m": {"dtype": "float32", "rank": 8, "adapter": [report], "weights": [report], "times_less_data": 1.0}}
    assert module.sync_rows(sync)[0][1:4] == ["2.0", "2.0", "1.0x"]
    outcome = {"fault": "f", "ended": "a | b", "finished_before": 3, "lost": 0, "seconds": 1.0, "limit": 2.0}
    assert module.fault_row(outcome) == ["f", "a / b", "3", "0", "1.0", "2"]
