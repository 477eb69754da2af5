"""Properties of state files."""

import io
import pickle
from pathlib import Path

import pytest
import torch

from fgbench.storage.state import StateError, load_state, save_state, state_files

RUN = "s0-12345678"


def state(number: int) -> dict:
    return {"run": RUN, "weights": torch.full((3,), float(number)), "epoch": number}


def test_the_newest_state_is_loaded_and_older_ones_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        save_state(tmp_path, state(number), keep=3)
    assert [path.name for path in state_files(tmp_path)] == ["state.pt", "state-1.pt", "state-2.pt"]
    loaded, warnings = load_state(tmp_path, RUN)
    assert loaded["epoch"] == 4
    assert torch.equal(loaded["weights"], state(4)["weights"])
    assert warnings == []


def test_files_of_the_users_own_are_no_states(tmp_path: Path) -> None:
    for name in ("state-best.pt", "state-.pt", "state--1.pt"):
        (tmp_path / name).write_bytes(b"mine")
    save_state(tmp_path, state(1), keep=1)
    assert state_files(tmp_path) == [tmp_path / "state.pt"]
    assert (tmp_path / "state-best.pt").exists()


def test_a_folder_without_saved_states_has_none(tmp_path: Path) -> None:
    assert load_state(tmp_path, RUN) == (None, [])


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "replace"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    save_state(tmp_path, state(1), keep=2)
    save_state(tmp_path, state(2), keep=2)
    newest = tmp_path / "state.pt"
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncate": content[:-9], "empty": b"", "replace": b"hello", "flip": content}[damage])
    loaded, warnings = load_state(tmp_path, RUN)
    assert loaded["epoch"] == 1
    assert len(warnings) == 1
    assert "state.pt" in warnings[0]


def test_with_no_usable_state_left_a_run_does_not_start_over_silently(tmp_path: Path) -> None:
    save_state(tmp_path, state(1), keep=2)
    (tmp_path / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(StateError, match="--no-resume"):
        load_state(tmp_path, RUN)


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, state(1), keep=2)
    with pytest.raises(StateError, match="another run"):
        load_state(tmp_path, "s1-12345678")


def test_a_hostile_state_runs_no_code(tmp_path: Path) -> None:
    import hashlib

    marker = tmp_path / "owned"

    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    buffer = io.BytesIO()
    torch.save({"run": RUN, "bad": Hostile()}, buffer, pickle_module=pickle)
    (tmp_path / "state.pt").write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(StateError):
        load_state(tmp_path, RUN)
    assert not marker.exists()


def test_a_failed_write_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, state(1), keep=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        save_state(tmp_path, state(2), keep=2)
    monkeypatch.undo()
    assert load_state(tmp_path, RUN)[0]["epoch"] == 1
