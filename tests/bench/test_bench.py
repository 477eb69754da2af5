import csv
import json

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from fgbench.bench import bench, cases
from fgbench.bench.backprop_forms import IN_BACKWARD, compiled_step, step_in_backward
from fgbench.bench.cases import TEXTBOOK
from fgbench.bench.report import BenchRow, noise, ratio
from fgbench.errors import ConfigError
from fgbench.models.build import build_model
from fgbench.registry import options_model


def no_compiler(*_):
    raise ConfigError("not here: it takes half a minute")


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
    slow = {"forward-gradient, rank-one, K=16"}
    assert set(rows) == {bench.FORWARD, TEXTBOOK, IN_BACKWARD, *bench.VARIANTS} - slow
    assert float(rows["backprop"]["time_to_backprop"]) == 1
    assert float(rows["forward only"]["memory_to_forward"]) == 1
    assert not rows.pop("local-forward-gradient")["peak_memory_mib"]  # it trains local-mixer alone
    for row in rows.values():
        parts = ("parameters", "gradients", "optimizer", "tangents", "activations")
        total = sum(float(row[f"{part}_mib"]) for part in parts)
        assert float(row["peak_memory_mib"]) == pytest.approx(total, abs=0.01)
    rank_one, full = rows["forward-gradient, rank-one"], rows["forward-gradient, normal"]
    assert float(rank_one["tangents_mib"]) < 0.1 * float(full["tangents_mib"])
    assert float(rank_one["gradients_mib"]) == 0
    assert float(rank_one["gflop"]) < float(full["gflop"]) <= 3 * float(rows[bench.FORWARD]["gflop"])
    in_backward = rows[IN_BACKWARD]
    assert {rows["backprop"]["uses_backwards"], in_backward["uses_backwards"]} == {"everything"}
    assert {rank_one["uses_backwards"], rows[bench.FORWARD]["uses_backwards"]} == {"nothing"}
    assert rows["feedback-alignment"]["uses_backwards"] == "fixed random matrices"
    assert "fixed random matrices" in told[0]
    assert float(in_backward["gradients_mib"]) == 0
    assert float(in_backward["peak_memory_mib"]) < float(rows["backprop"]["peak_memory_mib"])
    assert "memory without recomputation: backprop, optimizer in backward;" in rank_one["best_backprop"]
    fastest = rank_one["best_backprop"].removeprefix("time: ").partition(";")[0]
    assert float(rows[fastest]["time_to_best_backprop"]) == 1
    assert float(in_backward["memory_to_best_backprop"]) == 1
    assert f"best backprop: {rank_one['best_backprop']}" in told[0]
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["environment"]["torch"]
    assert len(document["rows"]) == len(rows) + 1
    assert written.startswith(f"written: {tmp_path}/bench.csv")
    assert len(told) == 1
    assert "forward-gradient, rank-one" in told[0]


@pytest.mark.parametrize("form", ["compiled", "in backward"])
def test_every_form_of_backprop_makes_the_same_step(form, monkeypatch):
    models = [
        build_model(options_model("model", "fc")(name="fc", hidden=4), (1, 4, 4), 3, 0, "cpu") for _ in "ab"
    ]
    inputs = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    torch.nn.functional.cross_entropy(models[0](inputs), labels).backward()
    torch.optim.SGD(models[0].parameters(), 0.1).step()
    if form == "compiled":
        monkeypatch.setattr(torch, "compile", lambda model: model)  # what compiling adds is torch's
        compiled_step(models[1], inputs, labels, 0.1)[0]()
    else:
        step_in_backward(models[1], inputs, labels, 0.1)()
    for mine, its in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.allclose(mine, its, rtol=1e-6)


def test_without_a_compiler_the_compiled_case_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "IMAGE_SHAPE", (1, 8, 8))
    monkeypatch.setattr(bench, "VARIANTS", {bench.BACKPROP: bench.VARIANTS[bench.BACKPROP]})
    monkeypatch.setattr(bench, "IN_LOOP", ())

    def none_there():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none_there)
    rows = {row.case: row for row in bench.bench_model("fc", 4, torch.device("cpu"), 2)}
    assert rows[bench.COMPILED].note.startswith("compiling needs a C++ compiler")
    assert not rows[bench.COMPILED].times_s


@pytest.mark.nightly
def test_the_compiled_case_is_timed(monkeypatch):
    monkeypatch.setattr(bench, "IMAGE_SHAPE", (1, 8, 8))
    monkeypatch.setattr(bench, "IN_LOOP", ())
    rows = {row.case: row for row in bench.bench_model("fc", 4, torch.device("cpu"), 2)}
    assert rows[bench.COMPILED].times_s
    assert rows[bench.COMPILED].columns()["gflop"] is None


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
    monkeypatch.setattr(cases, "compiled_step", no_compiler)
    rows = {row.case: row for row in bench.bench_model("fc", 4, torch.device("cpu"), 2)}
    for name in keep:
        row = rows[f"{name}, in the training loop"]
        assert row.bare_s == rows[name].times_s
        assert row.columns()["time_to_bare_step"] > 0
        assert "peak_memory_mib" not in row.columns()


def test_the_textbook_loop_takes_a_step_with_attention():
    torch.manual_seed(0)
    model = build_model(options_model("model", "vit")(name="vit", depth=1), (1, 28, 28), 10, 0, "cpu")
    case = cases.textbook_case(model, torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
    before = [param.detach().clone() for param in case.model.parameters()]
    case.step()
    assert any(not torch.equal(*both) for both in zip(before, case.model.parameters(), strict=True))


def test_trainers_that_refuse_a_model_are_listed_with_the_reason():
    row = BenchRow("vgg16", 64, "activity-forward-gradient", note="needs model.normalization: group")
    assert row.columns()["note"] == "needs model.normalization: group"


def test_mistakes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="batch size"):
        bench.run_bench(["fc"], [0], out=tmp_path / "bench")
    with pytest.raises(ConfigError, match="did you mean 'vgg16'"):
        bench.run_bench(["vgg"], [4], out=tmp_path / "bench")
    assert not (tmp_path / "bench").exists()
