import pytest
import torch
from torch import nn

from fgbench import measure
from fgbench.errors import ConfigError


def test_unknown_and_absent_devices_are_refused_with_what_there_is():
    assert measure.resolve_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cpu:0", "cuda:x", "cuda:-1", ""):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
            measure.resolve_device(name)
    with pytest.raises(ConfigError, match="CUDA devices"):
        measure.resolve_device("cuda:99")


def test_step_memory_is_what_is_resident_plus_the_largest_increase():
    model = nn.Linear(256, 1024, bias=False)  # 1 MiB
    block = 2**18  # float32 entries of 1 MiB

    def step():
        first = torch.zeros(3 * block)
        del first
        second, third = torch.zeros(block), torch.zeros(block)
        del second, third

    assert measure.step_memory(step, model) == pytest.approx(4.0, abs=0.01)


def test_releasing_what_an_earlier_step_left_does_not_lower_the_peak():
    kept = []
    measure.step_memory(lambda: kept.append(torch.zeros(2**18)), nn.Identity())

    def step():
        kept.clear()
        torch.zeros(2**18)

    assert measure.step_memory(step, nn.Identity()) == pytest.approx(1.0, abs=0.01)


def test_gradients_made_anew_each_step_are_counted_once():
    model = nn.Linear(256, 1024, bias=False)

    def step():
        model.weight.grad = None
        model.weight.grad = torch.zeros_like(model.weight)

    step()
    assert measure.step_memory(step, model) == pytest.approx(2.0, abs=0.01)


def test_gradients_kept_while_new_ones_are_made_are_counted_twice():
    model = nn.Linear(256, 1024, bias=False)

    def step():
        model.weight.grad = torch.zeros_like(model.weight)

    assert measure.step_memory(step, model) == pytest.approx(3.0, abs=0.01)


def test_resident_bytes_count_parameters_gradients_and_optimizer_state_once():
    model = nn.Linear(4, 8, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert measure.resident_bytes(model, optimizer) == 128
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert measure.resident_bytes(model, optimizer) == 3 * 128


def test_profiler_writes_nothing_to_the_terminal(capfd):
    measure.step_memory(lambda: torch.zeros(8), nn.Identity())
    assert capfd.readouterr() == ("", "")


def test_environment_names_what_a_number_depends_on():
    environment = measure.describe_environment(torch.device("cpu"))
    assert {"torch", "cpu", "threads", "git_commit", "allocations_kept"} <= environment.keys()
    assert environment["threads"] == torch.get_num_threads()
    assert environment["gpu"] is None


def test_nvml_is_silent_where_there_is_none():
    if not torch.cuda.is_available():
        assert measure.nvml_process_memory_mib() is None


@pytest.mark.parametrize(
    ("steps", "note"),
    [
        ([(0.01, 0.01)] * 5 + [(30.0, 0.01)], "this process stood still for 30 s"),
        ([(0.01, 0.01), (30.0, 0.01)], "this process stood still for 30 s"),
        ([(0.01, 0.01)] * 5 + [(30.0, 20.0)], None),  # it worked
        ([(0.01, 0.01)] * 5 + [(0.9, 0.01)], None),  # short
        ([(5.0, 0.01)] * 5 + [(30.0, 0.01)], None),  # waits are long here
        ([(30.0, 0.01)], None),  # nothing to compare it with
    ],
)
def test_a_step_in_which_the_process_stood_still_is_noted(monkeypatch, steps, note):
    clocks = {"perf_counter": 0.0, "process_time": 0.0}
    monkeypatch.setattr("fgbench.measure.load._busy_cpu_s", lambda: None)
    for name in clocks:
        monkeypatch.setattr(f"fgbench.measure.load.time.{name}", lambda name=name: clocks[name])
    with measure.OtherLoad() as load:
        for seconds, cpu in steps:
            clocks["perf_counter"] += seconds
            clocks["process_time"] += cpu
            load.end_step()
    assert load.reason == note or load.reason.startswith(note)


def test_what_a_trainer_holds_between_steps_counts_once():
    class Holder:
        def __init__(self, model):
            self.model = model  # counted already
            self.matrices = {"a": [torch.zeros(2**18)]}  # 1 MiB
            self.network = nn.Linear(256, 1024, bias=False)  # 1 MiB
            self.again = self.matrices["a"][0].view(2, -1)
            self.itself = self

    model = nn.Linear(256, 1024, bias=False)
    assert measure.resident_bytes(model, None, Holder(model)) == 3 * measure.MIB
    assert measure.step_memory(lambda: None, model, None, Holder(model)) == 3.0


def test_operations_are_counted_where_a_leaf_is_the_input_of_a_module():
    layer, inputs = nn.Linear(5, 3), torch.randn(2, 5, requires_grad=True)

    def step() -> None:
        torch.autograd.grad(layer(inputs).sum(), [inputs])

    assert measure.count_operations(step) == 2 * 2 * (2 * 5 * 3)
