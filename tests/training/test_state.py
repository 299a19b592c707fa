"""Laws of a stored state: what was written is read, another training's is refused by name, half of one never is."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.state import StateError, check_identity, read_state, write_state

values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
IDENTITY = {"steps": 5, "rate": 0.1, "view.flip": 0.5, "init": ""}


def test_what_was_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    weights = {"a": torch.rand(3, 2), "count": torch.tensor(7), "half": torch.rand(4).bfloat16()}
    rows = torch.tensor([[1.0, float("nan")], [0.1 + 0.2, 1e-300]], dtype=torch.float64)
    write_state(tmp_path / "state.pt", IDENTITY, {"model": weights, "rows": rows, "best": 0.1 + 0.2, "empty": {}})
    found = read_state(tmp_path / "state.pt", IDENTITY)
    assert found is not None
    assert all(torch.equal(value, found["model"][key]) for key, value in weights.items())
    assert torch.equal(rows.nan_to_num(-1), found["rows"].nan_to_num(-1))
    assert (found["best"], found["empty"]) == (0.1 + 0.2, {})


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_state(tmp_path / "state.pt", IDENTITY) is None


def test_a_channels_last_tensor_keeps_its_strides(tmp_path: Path) -> None:
    kernel = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    write_state(tmp_path / "state.pt", {}, {"kernel": kernel})
    found = read_state(tmp_path / "state.pt", {})
    assert found is not None
    assert found["kernel"].stride() == kernel.stride()


@given(st.dictionaries(st.text(), values, max_size=6))
def test_an_identity_equals_itself(identity: dict[str, Any]) -> None:
    check_identity(identity, dict(identity), Path("here/state.pt"))


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        ({**IDENTITY, "steps": 6}, "steps is 6 and was 5"),
        ({**IDENTITY, "rate": 0.2, "steps": 6}, "rate is 0.2 and was 0.1; steps is 6 and was 5"),
        ({key: value for key, value in IDENTITY.items() if key != "init"}, "init is None and was ''"),
        ({**IDENTITY, "more": 1}, "more is 1 and was None"),
    ],
)
def test_what_differs_is_named_with_a_remedy(tmp_path: Path, mine: dict[str, Any], named: str) -> None:
    write_state(tmp_path / "state.pt", IDENTITY, {})
    with pytest.raises(StateError, match=rf"another training: {named}; choose another output folder"):
        read_state(tmp_path / "state.pt", mine)


def test_no_part_of_a_state_is_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, IDENTITY, {"model": {"a": torch.rand(50)}})
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError, match=r"state\.pt cannot be read .*: remove it to start again"):
            read_state(path, IDENTITY)


class Planted:
    """What would run code when unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("planted"),)


def test_a_state_with_code_in_it_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (lambda: torch.save(Planted(), "state.pt"), lambda: Path("state.pt").write_bytes(b"\x80\x02}")):
        write()
        with pytest.raises(StateError, match="cannot be read"):
            read_state(Path("state.pt"), IDENTITY)
    Path("state.pt").write_bytes(pickle.dumps({"identity": "{}", "model": Planted()}))
    with pytest.raises(StateError, match="cannot be read"):
        read_state(Path("state.pt"), IDENTITY)
    assert not Path("planted").exists()


@pytest.mark.parametrize("stored", [None, [1], "text"])
def test_an_identity_that_is_no_mapping_is_refused(stored: object) -> None:
    with pytest.raises(StateError, match="not readable as a training's: remove here to start again"):
        check_identity(IDENTITY, stored, Path("here/result.json"))
