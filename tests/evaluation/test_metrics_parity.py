"""The parity command passes on the goldens, and sees it when one number of them is changed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.metrics_parity import Tally, compare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(goldens: Path, tmp_path: Path) -> Path:
    """A small copy: every 40th region case, the first video, and all of the rest."""
    source = goldens / "evaluation"
    with np.load(source / "masks_boundary_davis.npz") as file:
        arrays = {name: file[name] for name in file.files}
    chosen, ends = range(0, len(arrays["h"]), 40), arrays["bits_offset"]
    for name, column in arrays.items():
        if "_bits" in name:
            arrays[name] = np.concatenate([column[ends[i] : ends[i + 1]] for i in chosen])
        elif len(column) == len(ends) - 1 and name != "bits_offset":
            arrays[name] = column[list(chosen)]
    arrays["bits_offset"] = np.cumsum([0, *(ends[i + 1] - ends[i] for i in chosen)])
    np.savez(tmp_path / "masks_boundary_davis.npz", **arrays)
    (tmp_path / "temporal.npz").write_bytes((source / "temporal.npz").read_bytes())
    about = json.loads((source / "temporal.json").read_text())
    about["videos"] = about["videos"][8:9]
    (tmp_path / "temporal.json").write_text(json.dumps(about))
    return tmp_path


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.metrics_parity", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(path, **arrays)


def test_every_metric_equals_the_official_one(goldens: Path) -> None:
    tallies = compare(goldens / "evaluation")
    assert {name: tally for name, tally in tallies.items() if tally.mismatches} == {}
    assert tallies["IoU"].compared == tallies["F, void"].compared == 684
    assert tallies["bil: pixels, inside"].compared == 48 * 4 * 2
    assert len(tallies) == 33


def test_agreement_is_shown_and_exits_0(copy: Path) -> None:
    done = _run(copy)
    assert done.returncode == 0, done.stderr
    assert "Boundary IoU, raw" in done.stdout
    assert "soft dtSSD" in done.stdout


@pytest.mark.parametrize(
    ("file", "array", "by", "metric"),
    [
        ("masks_boundary_davis.npz", "davis_F", 1e-9, "F, 0.008 of the diagonal"),
        ("masks_boundary_davis.npz", "boundary_inter", 1, "band pixels"),
        ("masks_boundary_davis.npz", "gt_boundary_bits_r002", 1, "bands, pixel by pixel"),
        ("temporal.npz", "v008/bil_iu", 1, "bil: pixels, inside"),
        ("temporal.npz", "vc0/vc8", 1e-6, "VC8"),
        ("temporal.npz", "a1/dtssd", 1e-3, "soft dtSSD"),
        ("temporal.npz", "st6/MRD", 1e-6, "statistics mean"),
    ],
)
def test_a_changed_number_is_found(copy: Path, file: str, array: str, by: float, metric: str) -> None:
    def change(arrays: dict[str, Any]) -> None:
        column = arrays[array].copy()
        place = (-1,) if array != "st6/MRD" else (0,)
        column[place] = column[place] + np.asarray(by).astype(column.dtype)
        arrays[array] = column

    _change(copy / file, change)
    assert [name for name, tally in compare(copy).items() if tally.mismatches] == [metric]


def test_a_mismatch_exits_1(copy: Path) -> None:
    _change(copy / "masks_boundary_davis.npz", lambda arrays: arrays.update(davis_J=arrays["davis_J"] - 0.1))
    done = _run(copy)
    assert done.returncode == 1
    assert "IoU " in done.stdout


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("temporal.json", "{"),
        ("temporal.json", "{}"),
        ("temporal.npz", "no archive"),
        ("masks_boundary_davis.npz", ""),
        ("masks_boundary_davis.npz", None),
    ],
)
def test_an_unusable_folder_exits_2_and_says_why(copy: Path, file: str, content: str | None) -> None:
    if content is None:
        _change(copy / file, lambda arrays: arrays.pop("davis_F"))
    else:
        (copy / file).write_text(content)
    done = _run(copy)
    assert done.returncode == 2
    assert done.stderr.startswith("unusable: ")
    assert "Traceback" not in done.stderr


def test_a_missing_folder_exits_2(tmp_path: Path) -> None:
    assert _run(tmp_path / "none").returncode == 2


def test_nan_equals_nan_and_nothing_else() -> None:
    tally = Tally()
    tally.add([np.nan, 1.0, 2.0, np.nan], [np.nan, 1.0, 2.5, 0.0], 0.5)
    assert (tally.compared, tally.mismatches, tally.worst) == (4, 1, np.inf)
    tally.add([1.0], [1.0, 2.0], 0.0)
    assert tally.mismatches == 3
