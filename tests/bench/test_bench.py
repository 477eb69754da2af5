import csv
import json

import pytest
import torch

from fgbench.bench import bench
from fgbench.bench.report import BenchRow, noise, ratio
from fgbench.errors import ConfigError


def test_ratio_pairs_the_times_of_a_round():
    assert ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == 2.0


def test_spread_of_backprop_or_a_busy_machine_is_called_noise():
    quiet = BenchRow("fc", 64, "backprop", times_s=(1.0, 1.01, 0.99, 1.0))
    wild = BenchRow("fc", 64, "backprop", times_s=(1.0, 2.0, 0.5, 1.7))
    assert noise([quiet], None) is None
    assert "spreads over" in noise([wild], None)
    assert noise([quiet], "other processes kept 1.0 of 2 CPU cores busy").startswith("other processes")


def test_bench_writes_every_case_with_its_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "IMAGE_SHAPE", (1, 8, 8))
    told: list[str] = []
    written = bench.run_bench(["fc"], [4], quick=True, rounds=2, out=tmp_path, device="cpu", say=told.append)
    assert {each.name for each in tmp_path.iterdir()} == {"bench.csv", "bench.json", "bench.png", "bench.svg"}
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "bench.csv").open())}
    assert set(rows) == {bench.FORWARD, bench.TEXTBOOK, *bench.VARIANTS} - {
        "forward-gradient, rank-one, K=16"
    }
    assert float(rows["backprop"]["time_to_backprop"]) == 1
    assert float(rows["forward only"]["memory_to_forward"]) == 1
    for row in rows.values():
        parts = ("parameters", "gradients", "optimizer", "tangents", "activations")
        total = sum(float(row[f"{part}_mib"]) for part in parts)
        assert float(row["peak_memory_mib"]) == pytest.approx(total, abs=0.01)
    rank_one, full = rows["forward-gradient, rank-one"], rows["forward-gradient, normal"]
    assert float(rank_one["tangents_mib"]) < 0.1 * float(full["tangents_mib"])
    assert float(rank_one["gradients_mib"]) == 0
    assert float(rank_one["gflop"]) < float(full["gflop"]) <= 3 * float(rows[bench.FORWARD]["gflop"])
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["environment"]["torch"]
    assert len(document["rows"]) == len(rows)
    assert written.startswith(f"written: {tmp_path}/bench.csv")
    assert len(told) == 1
    assert "forward-gradient, rank-one" in told[0]


def test_bench_writes_what_is_done_before_the_next_model(tmp_path, monkeypatch):
    def measure(model, *_, **__):
        if model == "cnn":
            raise KeyboardInterrupt
        times = dict.fromkeys(("times_s", "forward_s", "backprop_s"), (1.0, 1.0))
        return [BenchRow(model, 4, "backprop", **times, peak_memory_mib=1.0)]

    monkeypatch.setattr(bench, "bench_model", measure)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        bench.run_bench(["fc", "cnn"], [4], out=tmp_path, device="cpu", say=told.append)
    assert [row["model"] for row in csv.DictReader((tmp_path / "bench.csv").open())] == ["fc"]
    assert len(told) == 1


def test_what_the_training_loop_adds_is_measured_against_the_bare_step(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "IMAGE_SHAPE", (1, 8, 8))
    keep = dict.fromkeys(bench.IN_LOOP)
    monkeypatch.setattr(bench, "VARIANTS", {name: bench.VARIANTS[name] for name in keep})
    rows = {row.case: row for row in bench.bench_model("fc", 4, torch.device("cpu"), 2)}
    for name in keep:
        row = rows[f"{name}, in the training loop"]
        assert row.bare_s == rows[name].times_s
        assert row.columns()["time_to_bare_step"] > 0
        assert "peak_memory_mib" not in row.columns()


def test_trainers_that_refuse_a_model_are_listed_with_the_reason():
    row = BenchRow("vgg16", 64, "activity-forward-gradient", note="needs model.normalization: group")
    assert row.columns()["note"] == "needs model.normalization: group"


def test_mistakes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="batch size"):
        bench.run_bench(["fc"], [0], out=tmp_path / "bench")
    with pytest.raises(ConfigError, match="did you mean 'vgg16'"):
        bench.run_bench(["vgg"], [4], out=tmp_path / "bench")
    assert not (tmp_path / "bench").exists()
