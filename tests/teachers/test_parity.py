"""The parity command: passes on the stored runs, fails where one array is another, and says what it cannot use."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.parity_rows import close, firm_pixels, pixels, same_sets
from benchmarks.pointrend_parity import main

CASES = ("sem_r50_c19", "sem_r50_c2_each", "inst_r50_coco")


@pytest.fixture(scope="module")
def folder(goldens: Path) -> Path:
    return goldens / "pointrend"


def run(folder: Path) -> tuple[int, list[str]]:
    lines: list[str] = []
    return main([str(folder)], lines.append), lines


def copy(source: Path, target: Path, *cases: str, **extra: Any) -> Path:
    """A folder with some of the cases only."""
    manifest = json.loads((source / "manifest.json").read_text())
    for name in cases:
        for file in source.glob(f"{name}*"):
            shutil.copyfile(file, target / file.name)
    (target / "manifest.json").write_text(json.dumps({k: manifest[k] for k in cases} | extra))
    return target


def change(path: Path, name: str, how: Callable[[Any], Any]) -> None:
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files}
    arrays[name] = how(arrays[name])
    np.savez(path, **arrays)


def test_the_command_passes_on_the_stored_runs_and_names_every_stage(folder: Path) -> None:
    code, lines = run(folder)
    assert [x for x in lines if " OUT" in x] == []
    assert code == 0
    text = "\n".join(lines)
    for name in (*CASES, "primitives", "zoo_format"):
        assert name in text
    for case in CASES:
        with np.load(folder / f"{case}.npz") as file:
            stages = [k for k in file.files if not k.startswith(("image", "topk_margin")) and "_shape" not in k]
        shown = {x.split()[1] for x in lines if x.startswith(case)}
        assert set(stages) <= {x.rstrip(",") for x in shown}
    assert "not compared" not in text
    assert lines[-1].startswith("all 15")


def flip(packed: Any) -> Any:
    out = packed.copy()
    out[0, 60, 9] ^= 255
    return out


WRONG: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "a feature": (CASES[1], "p4", lambda x: x + np.eye(x.shape[-2], x.shape[-1]) * 1e-3, "p4"),
    "a refined value": (CASES[1], "logits_step2", lambda x: x * 1.01, "logits_step2"),
    "a chosen point": (CASES[1], "points_step1", lambda x: (x + 40) % (64 * 48), "points_step1"),
    "half a pixel": (CASES[1], "point_coords_step1", lambda x: x + 0.5 / 64, "point_coords_step1"),
    "a final value that is no number": (CASES[1], "final_logits1", lambda x: x * np.nan, "final_logits1"),
    "few but sure pixels": (CASES[2], "masks0", flip, "masks0, logit where it differs"),
    "a box": (CASES[2], "boxes0", lambda x: x + 0.02, "boxes0"),
    "a proposal": (CASES[2], "proposals0", lambda x: np.roll(x, 5, axis=0), "proposals0"),
    "a class": (CASES[2], "classes0", lambda x: x + (x == 64), "classes0"),
    "a loss": (f"{CASES[1]}_train", "loss_sem_seg_point", lambda x: x * 1.001, "loss_sem_seg_point"),
    "a gradient": (f"{CASES[1]}_train", "grad_norms", lambda x: x * 1.05, "norms of gradients"),
    "fewer detections": (CASES[2], "net_boxes0", lambda x: x[:4], "net_boxes0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_one_array_that_is_another_is_out_of_tolerance(folder: Path, tmp_path: Path, what: str) -> None:
    file, name, how, stage = WRONG[what]
    copy(folder, tmp_path, file.removesuffix("_train"))
    change(tmp_path / f"{file}.npz", name, how)
    code, lines = run(tmp_path)
    assert code == 1
    assert any(stage in x and " OUT" in x for x in lines)
    assert lines[-1].startswith("OUT OF TOLERANCE")


def test_other_weights_are_out_of_tolerance(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path, CASES[2])
    key = "roi_heads.mask_head.point_head.predictor.bias"
    change(tmp_path / f"{CASES[2]}_weights.npz", key, lambda x: x + np.float16(0.5))
    code, lines = run(tmp_path)
    assert code == 1
    out = [x.split()[1] for x in lines if " OUT" in x]
    assert "mask_logits_step0" in out
    assert "coarse_mask_logits" not in out


def test_one_wrong_primitive_is_out_of_tolerance(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path, "primitives")
    change(tmp_path / "primitives.npz", "ra_out", lambda x: x + 1e-4)
    code, lines = run(tmp_path)
    assert code == 1
    assert [x.split()[1] for x in lines if " OUT" in x] == ["ra_out"]


def test_an_array_without_a_rule_is_shown(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path, CASES[1])
    with np.load(tmp_path / f"{CASES[1]}.npz") as file:
        arrays = {k: file[k] for k in file.files}
    np.savez(tmp_path / f"{CASES[1]}.npz", **arrays, entropy0=np.zeros(3))
    code, lines = run(tmp_path)
    assert code == 0
    assert any("entropy0" in x and "not compared" in x for x in lines)


def _absent(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def _no_case(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"_versions": {"torch": "2"}}')


def _no_weights(folder: Path) -> None:
    (folder / f"{CASES[1]}_weights.npz").unlink()


def _broken(folder: Path) -> None:
    (folder / f"{CASES[1]}.npz").write_bytes(b"PK\x03\x04 no archive")


def _unknown_architecture(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[CASES[1]]["arch"]["dilation"] = 2
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _other_weights(folder: Path) -> None:
    shutil.copyfile(folder / f"{CASES[1]}.npz", folder / f"{CASES[1]}_weights.npz")


def _no_image(folder: Path) -> None:
    with np.load(folder / f"{CASES[1]}.npz") as file:
        arrays = {k: file[k] for k in file.files if k != "image0"}
    np.savez(folder / f"{CASES[1]}.npz", **arrays)


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "absent": (_absent, "manifest.json: cannot be read"),
    "no JSON": (_no_json, "manifest.json: cannot be read"),
    "no case": (_no_case, "names no case"),
    "no weights": (_no_weights, "weights.npz: cannot be read"),
    "broken": (_broken, f"{CASES[1]}.npz: cannot be read"),
    "unknown architecture": (_unknown_architecture, "dilation"),
    "weights that do not fit": (_other_weights, "missing: "),
    "no image": (_no_image, "lacks 'image0'"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_folder_that_cannot_be_used_is_named_with_the_reason(folder: Path, tmp_path: Path, what: str) -> None:
    spoil, message = UNUSABLE[what]
    copy(folder, tmp_path, CASES[1])
    spoil(tmp_path)
    code, lines = run(tmp_path)
    assert code == 2
    assert lines[-1].startswith("cannot compare: ")
    assert message in lines[-1]


def test_the_command_gives_its_exit_code_to_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.pointrend_parity"]
    environment = os.environ | {"CURATE_SHARED": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert str(tmp_path / "goldens" / "pointrend" / "manifest.json") in done.stdout


# --- Rows --------------------------------------------------------------------------------------------------------


def test_values_of_16_bits_are_allowed_their_rounding_and_no_more() -> None:
    exact = np.linspace(-900, 900, 4001)
    assert close("c", "s", exact.astype(np.float16), exact, 1e-9).ok
    assert not close("c", "s", exact.astype(np.float16), exact * (1 + 2.0**-9), 1e-3).ok


def test_a_share_may_be_beyond_and_a_nan_is_beyond_unless_it_is_a_gap() -> None:
    wanted, ours = np.zeros(1000), np.zeros(1000)
    ours[:2] = 5.0
    assert close("c", "s", wanted, ours, 0.1, 2e-3).ok
    assert not close("c", "s", wanted, ours, 0.1, 1e-3).ok
    ours[:2] = np.nan
    assert not close("c", "s", wanted, ours, 0.1).ok
    assert close("c", "s", wanted, ours, 0.1, gaps=True).ok
    assert not close("c", "s", wanted, ours * np.nan, 0.1, gaps=True).ok


def test_sets_do_not_care_for_order_and_masks_for_little_but_sure_pixels() -> None:
    assert same_sets("c", "s", np.array([[1, 2, 3]]), np.array([[3, 1, 2]]), 0).ok
    assert same_sets("c", "s", np.array([[1, 2, 3]]), np.array([[3, 1, 9]]), 0).worst == 1
    wanted, ours = np.zeros((50, 40), bool), np.zeros((50, 40), bool)
    ours[3, 4] = True
    assert pixels("c", "s", wanted, ours, 1e-3).ok
    assert firm_pixels("c", "s", wanted, ours, np.full((50, 40), 1e-3), 1e-2).ok
    assert not firm_pixels("c", "s", wanted, ours, np.full((50, 40), 0.1), 1e-2).ok
    assert not firm_pixels("c", "s", wanted, ours[1:], np.full((50, 40), 0.1), 1e-2).ok
