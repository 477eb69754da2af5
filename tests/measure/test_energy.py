"""The energy a GPU takes: by the driver's counter, empty where there is none, never guessed."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from fgbench.measure import GpuEnergy
from fgbench.measure.energy import _find_counter

CUDA = torch.device("cuda", 0)


class FakeNvml:
    """A driver with one GPU, whose counter gives these readings in turn; an error for None."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *readings):
        self.readings, self.asked = list(readings), []

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        reading = self.readings.pop(0)
        if reading is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return reading


@pytest.fixture
def driver(monkeypatch):
    def install(*readings):
        nvml = FakeNvml(*readings)
        monkeypatch.setattr("fgbench.measure.energy.load_nvml", lambda: nvml)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1f-ab"))
        return nvml

    return install


def test_the_fake_has_the_names_of_the_real_bindings():
    for name in ("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption", "NVMLError"):
        assert hasattr(pynvml, name)


def test_joules_are_what_the_counter_moved_by_in_thousandths(driver):
    nvml = driver(5_000_000, 5_012_500)
    with GpuEnergy(CUDA) as energy:
        assert energy.joules is None
    assert energy.joules == 12.5
    assert set(nvml.asked) == {"GPU-1f-ab"}, "the GPU is found by its UUID, whatever CUDA calls it"


def test_what_is_taken_in_a_pause_does_not_count(driver):
    driver(1000, 3000, 9000, 10_000)
    with GpuEnergy(CUDA) as energy, energy.paused():
        pass
    assert energy.joules == 3.0


@pytest.mark.parametrize(
    "readings",
    [(None, 5), (5, None), (7, 7), (7, 5), (1000, 2000, 1500, None), (None, 1, 2, 3), (1, None, 5, 6)],
)
def test_there_is_no_number_where_a_reading_is_missing_or_stands_still(readings, driver):
    driver(*readings)
    with GpuEnergy(CUDA) as energy:
        if len(readings) > 2:
            with energy.paused():
                pass
    assert energy.joules is None


def test_there_is_no_number_without_a_driver_or_on_a_cpu(driver, monkeypatch):
    driver(1, 2)
    with GpuEnergy(torch.device("cpu")) as energy:
        pass
    assert energy.joules is None
    monkeypatch.setattr("fgbench.measure.energy.load_nvml", lambda: None)
    assert _find_counter(CUDA)() is None
