"""How far our PointRend is from Detectron2's: every stage of stored runs of the original, beside its tolerance.

Usage: python -m benchmarks.pointrend_parity [FOLDER]

FOLDER (default ``$CURATE_SHARED/goldens/pointrend``) holds a ``manifest.json`` that names cases, and for each
``<case>.npz`` (what the original gave, stage by stage) and ``<case>_weights.npz``; ``<case>_train.npz``,
``primitives.npz`` and ``zoo_format/`` where there are any. Exit code 0: all inside the tolerances; 1: something is
not; 2: the folder cannot be used.

The tolerances are five to ten times what the original shows against itself on another number of threads, in another
memory layout or without oneDNN. Points are compared as sets, rows of boxes by the nearest. A pixel of a final mask
may differ only where its logit is within the logits' tolerance of 0, or where a point was chosen that the original
did not choose (of nearly equal uncertainty), which the tolerance on points bounds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import parity_primitives
from benchmarks.parity_rows import Arrays, Row, UnusableError, close, firm_pixels, pixels, same_sets
from benchmarks.parity_stages import PointRend, inputs, instance_arrays, semantic_arrays
from benchmarks.shared import SHARED
from teachers import checkpoint
from teachers.backbone import network_size, normalise, pad, parse_config, resize, restore
from teachers.checkpoint import CheckpointError
from teachers.infer import infer_config, rename
from teachers.instance import InstanceConfig, build_instance
from teachers.semantic import SemanticConfig, SemanticPointRend, build

Case = Mapping[str, Any]

SEMANTIC_LOGIT, INSTANCE_LOGIT = 5e-3, 2e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """Of an array: the tolerance, and the share of its values that may be beyond it."""

    tolerance: float
    share: float = 0.0


#: Names of arrays -> limits, the first that matches; those of masks and points are compared elsewhere.
LIMITS: dict[str, Limit] = {
    r"resized\d+|(net_)?classes\d+|num_per_image": Limit(tolerance=0),
    r"p\d|res\d_stats|p\d_stats": Limit(tolerance=5e-4),
    r"coarse_logits": Limit(tolerance=2e-3),
    r"point_coords_step\d": Limit(tolerance=1e-6),
    r"(point_)?logits_step\d|final_(logits|top1_logit|person_logit)\d+": Limit(tolerance=SEMANTIC_LOGIT, share=2e-3),
    r"person_prob\d+": Limit(tolerance=5e-3, share=2e-3),
    r"rpn_p\d_(obj|delta)_stats": Limit(tolerance=1e-3),
    r"num_proposals\d+": Limit(tolerance=2),
    r"(proposals|objectness)\d+": Limit(tolerance=2e-2),
    r"box_features|cls_logits|bbox_deltas|coarse_mask_logits": Limit(tolerance=1e-2),
    r"(net_)?boxes\d+": Limit(tolerance=1e-2),
    r"(net_)?scores\d+": Limit(tolerance=1e-3),
    r"mask_logits_step\d": Limit(tolerance=INSTANCE_LOGIT, share=5e-3),
    r"mask_prob_step\d_u8": Limit(tolerance=2, share=5e-3),
}
#: Inputs, what is no output of ours, and sets and masks, which have their own comparison.
_ELSEWHERE = re.compile(
    r"image\d+|topk_margin_step\d|masks\d+(_shape)?|points_step\d|person_(mask|union)\d+|final_argmax\d+"
)


# --- Reading -----------------------------------------------------------------------------------------------------


def read_arrays(path: Path) -> Arrays:
    """All arrays of a `.npz`.

    Raises:
        UnusableError: It is absent or broken.
    """
    try:
        with np.load(path) as file:
            return {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UnusableError(f"{path}: cannot be read as arrays: {error}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        UnusableError: There is none, it is no JSON object, or it names no case.
    """
    path = folder / "manifest.json"
    try:
        parsed = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnusableError(f"{path}: cannot be read: {error}") from error
    if not isinstance(parsed, dict):
        raise UnusableError(f"{path}: must be an object of cases, got {type(parsed).__name__}")
    return parsed


def cases(manifest: Mapping[str, Any]) -> dict[str, Case]:
    """The runs that a manifest names, semantic and instance."""
    return {k: v for k, v in manifest.items() if isinstance(v, dict) and v.get("kind") in ("semantic", "instance")}


def load_model(folder: Path, name: str, case: Case) -> PointRend:
    """The network of a case with its weights.

    Raises:
        UnusableError: The manifest describes no network of ours, or the weights do not fit it.
    """
    state = {k: torch.from_numpy(v) for k, v in read_arrays(folder / f"{name}_weights.npz").items()}
    try:
        pixel = {k: case[k] for k in ("pixel_mean", "pixel_std") if k in case}
        values = {**pixel, **case["arch"], "person_classes": [case["person_class"]]}
        if case["kind"] == "semantic":
            model: PointRend = build(parse_config(SemanticConfig, values), 0)
        else:
            model = build_instance(parse_config(InstanceConfig, values), 0)
        checkpoint.match(rename(state), model)
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableError(f"{folder}: case {name} describes no network that can be built: {error!r}") from error
    return model.eval()


# --- Comparing ---------------------------------------------------------------------------------------------------


def compare_case(folder: Path, name: str, case: Case) -> list[Row]:
    """One case, stage by stage.

    Raises:
        UnusableError: Its files are absent, broken or describe no network.
    """
    golden = read_arrays(folder / f"{name}.npz")
    model = load_model(folder, name, case)
    try:
        if isinstance(model, SemanticPointRend):
            rows = _semantic_rows(name, golden, *semantic_arrays(model, golden))
        else:
            rows = _instance_rows(name, golden, *instance_arrays(model, golden))
        return rows + list(_training_rows(folder, name, case, model, golden))
    except (KeyError, IndexError) as error:
        raise UnusableError(f"{folder}: case {name} lacks {error}, or holds it in another layout") from error


def stage_rows(case: str, golden: Arrays, ours: Arrays) -> Iterator[Row]:
    """The stages whose arrays are compared value by value; a name without a rule is shown as such."""
    for key, wanted in golden.items():
        if _ELSEWHERE.fullmatch(key):
            continue
        limit = next((v for k, v in LIMITS.items() if re.fullmatch(k, key)), None)
        if limit is not None and key in ours:
            yield close(case, key, wanted, ours[key], limit.tolerance, limit.share, gaps=key.startswith("point_"))
        else:
            known = limit is not None
            note = "ours has none" if known else "no rule for this name: not compared"
            yield Row(case=case, stage=key, worst=np.nan, tolerance=np.nan, ok=not known, note=note)


def _semantic_rows(case: str, golden: Arrays, ours: Arrays, extra: Arrays) -> list[Row]:
    rows = list(stage_rows(case, golden, ours))
    for key, wanted in golden.items():
        j = re.sub(r"\D", "", key)
        if key.startswith("points_step"):
            rows.append(same_sets(case, key, wanted, ours.get(key), max(2, wanted.shape[1] // 200)))
        elif key.startswith("final_argmax"):
            rows.append(pixels(case, key, wanted, ours[key], 1e-3))
        elif key.startswith("person_mask"):
            rows.append(pixels(case, key, wanted, ours[key], 1e-3))
            # a margin is the difference of two logits
            firm = np.where(extra[f"touched{j}"] > 0, 0.0, np.abs(extra[f"margin{j}"]))
            rows.append(firm_pixels(case, key, wanted, ours[key], firm, 2 * SEMANTIC_LOGIT))
    return rows


def _instance_rows(case: str, golden: Arrays, ours: Arrays, extra: Arrays) -> list[Row]:
    rows = list(stage_rows(case, golden, ours))
    for key, wanted in golden.items():
        j = re.sub(r"\D", "", key)
        if key.startswith("points_step"):
            rows.append(same_sets(case, key, wanted, ours.get(key), max(2, round(wanted.shape[1] * 0.051))))
        elif re.fullmatch(r"masks\d+", key):
            masks = np.unpackbits(wanted, axis=-1)[..., : int(golden[f"{key}_shape"][-1])]
            rows.append(pixels(case, key, masks, ours.get(key), 2e-3))
            firm = np.where(extra[f"touched{j}"] > 0, 0.0, np.abs(extra[f"logit{j}"]))
            rows.append(firm_pixels(case, key, masks, ours[key], firm, INSTANCE_LOGIT))
        elif key.startswith("person_union"):
            rows.append(pixels(case, key, wanted, ours.get(key), 2e-3))
            firm = np.where(extra[f"union_touched{j}"] > 0, 0.0, np.abs(extra[f"union_logit{j}"]))
            rows.append(firm_pixels(case, key, wanted, ours[key], firm, INSTANCE_LOGIT))
    return rows


def _training_rows(folder: Path, name: str, case: Case, model: PointRend, golden: Arrays) -> Iterator[Row]:
    """Losses and norms of gradients, relative, where the case stores them."""
    if "train" not in case or not isinstance(model, SemanticPointRend):
        return
    train, wanted = case["train"], read_arrays(folder / f"{name}_train.npz")
    _, _, batch = inputs(golden, model.config)
    labels = torch.full((len(batch), *batch.shape[2:]), train["ignore"], dtype=torch.uint8)
    for j in range(len(batch)):
        label = torch.from_numpy(wanted[f"sem_seg{j}"])
        labels[j, : label.shape[0], : label.shape[1]] = label
    losses = model.train().losses(
        batch, labels, num_points=train["TRAIN_NUM_POINTS"], oversample=train["OVERSAMPLE_RATIO"],
        importance=train["IMPORTANCE_SAMPLE_RATIO"],
        generator=torch.Generator().manual_seed(train["torch_manual_seed"]),
    )  # fmt: skip
    sum(losses.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    for key, loss in losses.items():
        yield close(name, key, np.ones(1), loss.detach().numpy()[None] / wanted[key], 1e-4)
    found = {k: p.grad.norm().item() for k, p in model.named_parameters() if p.grad is not None}
    norms = np.array([found.get(k, np.nan) for k in wanted["grad_names"].tolist()])
    scale = np.maximum(wanted["grad_norms"], 1e-2)
    yield close(name, "norms of gradients", wanted["grad_norms"] / scale, norms / scale, 2e-2)


def compare_zoo(folder: Path) -> Iterator[Row]:
    """Files in the zoo's format: good ones give the original's logits, bad ones are refused.

    Raises:
        UnusableError: The folder lacks a file that it should hold.
    """
    try:
        info = json.loads((folder / "README.json").read_text())
        golden = read_arrays(folder / "expected.npz")
        config = parse_config(SemanticConfig, info["arch"])
        old = [f for f in ("old_style_protocol2.pkl",) if (folder / f).is_file()]
        for file in (info["zoo_file"], *old):
            final = _zoo_logits(folder / file, golden["image"], config)
            yield close("zoo_format", f"{file}, logits", golden["final_logits"], final, SEMANTIC_LOGIT, 2e-3)
            yield pixels("zoo_format", f"{file}, argmax", golden["argmax"], final.argmax(axis=0), 1e-3)
    except (OSError, KeyError, ValueError) as error:
        raise UnusableError(f"{folder}: {error!r}") from error
    for file in ("refuse_me.pkl", "wrong_shape_and_missing.pkl"):
        if (folder / file).is_file():
            refused = _refused(folder / file, config)
            note = "refused" if refused else "must be refused"
            yield Row(
                case="zoo_format", stage=file, worst=0.0 if refused else np.inf, tolerance=0, ok=refused, note=note
            )


@torch.no_grad()
def _zoo_logits(path: Path, bgr: NDArray[np.uint8], wanted: SemanticConfig) -> NDArray[Any]:
    state = rename(checkpoint.load_state(path))
    config = infer_config(state)
    if not isinstance(config, SemanticConfig):
        raise UnusableError(f"{path}: must hold a semantic model, got an {config.architecture} one")
    config = replace(
        config,
        subdivision_num_points=wanted.subdivision_num_points,
        min_size_test=wanted.min_size_test,
        max_size_test=wanted.max_size_test,
    )
    model = build(config, 0).eval()
    checkpoint.match(state, model)
    image = np.ascontiguousarray(bgr[:, :, ::-1])
    size = network_size(*image.shape[:2], shortest=model.config.min_size_test, longest=model.config.max_size_test)
    logits = model(pad([normalise(resize(image, size), model.config)]))[0]
    return restore(logits, size, image.shape[:2]).numpy()


def _refused(path: Path, config: SemanticConfig) -> bool:
    try:
        checkpoint.match(checkpoint.load_state(path), build(config, 0))
    except CheckpointError:
        return True
    return False


# --- The command -------------------------------------------------------------------------------------------------


def compare_folder(folder: Path) -> list[Row]:
    """Everything that a folder holds.

    Raises:
        UnusableError: It holds nothing that can be compared, or something broken.
    """
    manifest = read_manifest(folder)
    rows = []
    for name, case in cases(manifest).items():
        rows += compare_case(folder, name, case)
    if "primitives" in manifest:
        try:
            rows += parity_primitives.compare(read_arrays(folder / "primitives.npz"), manifest["primitives"])
        except (KeyError, IndexError) as error:
            raise UnusableError(f"{folder}: primitives lack {error}") from error
    if (folder / "zoo_format").is_dir():
        rows += compare_zoo(folder / "zoo_format")
    if not rows:
        raise UnusableError(
            f"{folder / 'manifest.json'}: names no case of kind semantic or instance, and no primitives"
        )
    return rows


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Print the table and the verdict; the exit code."""
    default = SHARED / "goldens" / "pointrend"
    parser = argparse.ArgumentParser(description="Our PointRend beside Detectron2's.", allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path, default=default, help=f"runs of the original ({default})")
    folder = parser.parse_args(argv).folder
    try:
        rows = compare_folder(folder)
    except UnusableError as error:
        show(f"cannot compare: {error}")
        return 2
    width, name = max(len(r.stage) for r in rows), max(len(r.case) for r in rows)
    show(f"{'case':{name}}  {'stage':{width}}  {'worst':>9}  {'tolerance':>9}")
    for row in rows:
        verdict = "" if row.ok else "  OUT"
        figures = f"{row.worst:9.2e}  {row.tolerance:9.2e}{verdict}"
        show(f"{row.case:{name}}  {row.stage:{width}}  {figures}  {row.note}".rstrip())
    bad = [r for r in rows if not r.ok]
    show(f"OUT OF TOLERANCE: {len(bad)} of {len(rows)} comparisons" if bad else f"all {len(rows)} inside tolerance")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
