"""Laws of the shipping trainer: the same bytes after any kill, no damaged byte trained on, a student that learns."""

import csv
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from manifests.image import decode_image
from manifests.release import ReleaseError, read_release
from manifests.schema import IMAGE
from manifests.shard import PIXELS, ShardError, encode_parquet
from manifests.signoff import UnsignedError
from students.appraisal import predict
from students.feed import Feed
from students.model import StudentConfig, build_student, load_student, read_metadata, save_student
from students.prior import PriorConfig
from students.recipe import TrainConfig, TrainError
from students.shards import open_shards
from students.trainer import LOSSES, TrainResult, _Plan, _Run, _steps, train
from students.views import SampleError, ViewConfig
from tests.students.releases import commit, draw, entry_of, sign_off, write_drawn, write_labelled
from training import files
from training.curve import columns
from training.devices import Devices, Report, spread

TINY = TrainConfig(
    preset="custom",
    model=StudentConfig(depths=(1, 1, 1, 1, 1), width=0.5),
    side=64,
    batch=4,
    steps=6,
    warm_up=2,
    labelled_first=0.6,
    labelled_last=0.3,
    validate_every=3,
    report_every=1,
    save_seconds=0.0,
)
NO_PRIOR = PriorConfig(empty=1.0, full=0, true=0, stale=0, shifted=0, scaled=0, torn=0, thick=0, thin=0, own=0)
SHORT = replace(TINY, steps=2, validate_every=100, held_out_most=1, save_seconds=60.0)
SAME = ("student.safetensors", "curve.csv", "result.json", "curve.png", "batch.jpg", "overlays.jpg")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root") / "releases" / "drawn"
    return write_drawn(folder, [draw(seed) for seed in range(14)], [draw(seed) for seed in range(90, 93)])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"), [draw(seed) for seed in range(50, 56)])


@pytest.fixture(scope="module")
def straight(release: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("straight")
    return output, train(release, labelled, output, TINY, seed=1, report=silent)


@pytest.fixture
def copy(straight: tuple[Path, TrainResult], tmp_path: Path) -> Path:
    """A finished folder to spoil."""
    return Path(shutil.copytree(straight[0], tmp_path / "copy"))


def silent(_: str) -> None:
    pass


def weights(result: TrainResult) -> dict[str, Tensor]:
    return load_student(result.checkpoint).state_dict()


def losses(folder: Path) -> list[float]:
    with (folder / "curve.csv").open() as file:
        return [float(row["loss_total"]) for row in csv.DictReader(file)]


# ── kills ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(release: Path, labelled: Path, output: Path, call: str, number: int) -> None:
    """Train in a process of its own, which is killed in the given call of flush, rename or report."""
    torch.set_num_threads(1)
    calls = 0

    def counted(original: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return die() if calls == number else original(*arguments)

    if call == "flush":
        files.os.fsync = partial(counted, os.fsync)  # type: ignore[attr-defined]
    original = Path.replace
    if call == "rename":
        Path.replace = lambda self, target: counted(original, self, target)  # type: ignore[method-assign,assignment,misc]
    train(release, labelled, output, TINY, seed=1, report=partial(counted, silent) if call == "report" else silent)


def check_same(found: Path, wanted: Path) -> None:
    for name in SAME:
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name


def child(*arguments: Any) -> Any:
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "lightning_fabric"])
    process = context.Process(target=train_and_die, args=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_killed_within_any_write_or_step_and_continued_a_run_ends_with_the_same_bytes(
    release: Path, labelled: Path, straight: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    """Each kill is a SIGKILL of a process of its own: within a flush, before a rename, between steps."""
    moments = (("flush", 1), ("rename", 2), ("flush", 4), ("report", 3), ("rename", 5), ("rename", 7), ("flush", 5))
    rests = 0
    for call, number in moments:
        process = child(release, labelled, tmp_path, call, number)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        rests += bool(list(tmp_path.glob(".*.tmp")))
    assert rests > 2
    assert not (tmp_path / "result.json").exists()
    found = train(release, labelled, tmp_path, TINY, seed=1, report=silent)
    check_same(tmp_path, straight[0])
    assert {path.name for path in tmp_path.iterdir()} == {*SAME, "state.pt"}
    assert found.sha256 == straight[1].sha256


@pytest.mark.slow
def test_killed_at_random_moments_and_continued_a_run_ends_with_the_same_bytes(
    release: Path, labelled: Path, straight: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    rng, state = np.random.default_rng(), tmp_path / "state.pt"
    for _ in range(4):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = child(release, labelled, tmp_path, "none", 0)
        while process.is_alive() and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join(120)
        assert process.exitcode in (-signal.SIGKILL, 0)
    assert state.exists()
    train(release, labelled, tmp_path, TINY, seed=1, report=silent)
    check_same(tmp_path, straight[0])


class KilledError(Exception):
    pass


def stop_at(step: int) -> Callable[[str], None]:
    def report(line: str) -> None:
        if line.startswith(f"step {step} "):
            raise KilledError

    return report


@pytest.mark.parametrize("stops", [(3,), (1, 2, 5), (6,)])
def test_interrupted_at_a_step_and_continued_a_run_ends_with_the_same_bytes(
    release: Path, labelled: Path, straight: tuple[Path, TrainResult], tmp_path: Path, stops: tuple[int, ...]
) -> None:
    for stop in stops:
        with pytest.raises(KilledError):
            train(release, labelled, tmp_path, TINY, seed=1, report=stop_at(stop))
        assert not (tmp_path / "result.json").exists()
    lines: list[str] = []
    train(release, labelled, tmp_path, TINY, seed=1, report=lines.append)
    assert lines[0] == f"going on from step {stops[-1]} of 6"
    check_same(tmp_path, straight[0])


def test_how_often_is_saved_and_said_changes_nothing(
    release: Path, labelled: Path, straight: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    config = replace(TINY, save_seconds=1e6, report_every=100)
    train(release, labelled, tmp_path, config, seed=1, report=silent)
    check_same(tmp_path, straight[0])


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_folder_holds_what_it_promises(straight: tuple[Path, TrainResult]) -> None:
    folder, result = straight
    assert {path.name for path in folder.iterdir()} == {*SAME, "state.pt"}
    with (folder / "curve.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == columns(LOSSES)
    assert [row[0] for row in rows[1:]] == [str(step) for step in range(1, 7)]
    assert [bool(row[-1]) for row in rows[1:]] == [False, False, True, False, False, True]
    assert result.held_out_iou == pytest.approx(max(float(row[-1]) for row in rows[1:] if row[-1]), abs=1e-6)
    assert [int(row[0]) for row in rows[1:] if row[-1]][[3, 6].index(result.best_step)] == result.best_step
    record = json.loads((folder / "result.json").read_text())
    for name in ("iou", "boundary_iou"):
        mean = np.mean([one[name] for one in record["held_out"].values()])
        assert mean == pytest.approx(getattr(result, f"held_out_{name}"))
    metadata = read_metadata(result.checkpoint)
    assert json.loads(metadata["training"]) == record["identity"]
    assert (metadata["step"], metadata["seed"], metadata["side"]) == (str(result.best_step), "1", "64")
    assert load_student(result.checkpoint).config == TINY.network()
    for name in ("curve.png", "overlays.jpg", "batch.jpg"):
        assert min(decode_image((folder / name).read_bytes()).pixels.shape[:2]) > 100


def test_a_finished_folder_returns_at_once(release: Path, labelled: Path, straight: tuple[Path, TrainResult]) -> None:
    folder, wanted = straight
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lines: list[str] = []
    assert train(release, labelled, folder, TINY, seed=1, report=lines.append) == wanted
    assert lines == []
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "seed", "named"),
    [
        ({"steps": 7}, 1, "steps is 7 and was 6"),
        ({"view": ViewConfig(flip=0.25)}, 1, "view.flip is 0.25 and was 0.5"),
        ({"model": replace(TINY.model, width=0.75)}, 1, "model.width is 0.75 and was 0.5"),
        ({}, 2, "seed is 2 and was 1"),
    ],
)
def test_the_folder_of_another_run_is_refused_with_what_differs(
    release: Path, labelled: Path, copy: Path, finished: bool, change: Any, seed: int, named: str
) -> None:
    if not finished:
        (copy / "result.json").unlink()
    with pytest.raises(TrainError, match=named):
        train(release, labelled, copy, replace(TINY, **change), seed=seed, report=silent)


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_is_another_run(labelled: Path, release: Path, copy: Path, finished: bool, tmp_path: Path) -> None:
    if not finished:
        (copy / "result.json").unlink()
    other = write_drawn(tmp_path / "other", [draw(seed) for seed in range(1, 15)])
    with pytest.raises(TrainError, match=r"release is '[0-9a-f]{64}' and was '[0-9a-f]{64}'"):
        train(other, labelled, copy, TINY, seed=1, report=silent)
    more = write_labelled(tmp_path / "more", [draw(seed) for seed in range(51, 57)])
    with pytest.raises(TrainError, match=r"labelled is '[0-9a-f]{64}' and was '[0-9a-f]{64}'"):
        train(release, more, copy, TINY, seed=1, report=silent)
    with pytest.raises(TrainError, match=r"labelled is '' and was"):
        train(release, None, copy, TINY, seed=1, report=silent)


def test_moved_data_is_the_same_run(
    release: Path, labelled: Path, straight: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    moved, images = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (release, labelled))
    assert train(moved, images, straight[0], TINY, seed=1, report=silent) == straight[1]


@pytest.mark.parametrize("name", ["state.pt", "result.json", "student.safetensors"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-50], lambda data: data[:0], lambda data: b"[1]" + data[3:]])
def test_a_broken_file_in_the_folder_is_refused_with_a_remedy(
    release: Path, labelled: Path, copy: Path, name: str, spoil: Callable[[bytes], bytes]
) -> None:
    if name == "state.pt":
        (copy / "result.json").unlink()
    (copy / name).write_bytes(spoil((copy / name).read_bytes()))
    with pytest.raises(TrainError, match=rf"{name}.*remove"):
        train(release, labelled, copy, TINY, seed=1, report=silent)


# ── damaged, unsigned and empty releases ──────────────────────────────────────────────────────────────────────────


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def refusal(release: Path, output: Path, error: type[Exception] = ShardError) -> str:
    """What a training says that must not take a step."""
    lines: list[str] = []
    with pytest.raises(error) as caught:
        train(release, None, output, TINY, seed=1, report=lines.append)
    assert not [line for line in lines if line.startswith("step")]
    assert not (output / "state.pt").exists()
    return str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "swapped"])
def test_a_damaged_shard_is_refused_by_name_before_the_first_step(
    release: Path, tmp_path: Path, damage: str, split: str
) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "copy"))
    path = min((folder / "shards" / split).iterdir())
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "swapped":
        other = sorted((folder / "shards" / "train").iterdir())[1]
        shutil.copy(other, path)
    else:
        path.write_bytes(data[:-100] if damage == "truncated" else flipped(data, data.index(b"\xff\xd8\xff") + 40))
    said = refusal(folder, tmp_path / "out")
    assert path.name in said
    assert "copy the file again" in said


def test_a_flipped_bit_under_a_forged_digest_is_found_when_its_row_group_is_read(release: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "copy"))
    listing = read_release(folder)
    path = min((folder / "shards" / "train").iterdir())
    column = pq.read_metadata(path).row_group(1).column(0)
    place = column.data_page_offset + column.total_compressed_size // 2
    path.write_bytes(flipped(path.read_bytes(), place))
    name = f"shards/train/{path.name}"
    forged = [
        entry if entry.path != name else entry_of(folder, name, [f"{number:032x}" for number in range(6)])
        for entry in listing.files
    ]
    commit(folder, forged, listing.splits)
    config = replace(TINY, steps=4)
    with pytest.raises(ShardError, match=rf"{path.name}: row group 1: .*copy the file again"):
        train(folder, None, tmp_path / "out", config, seed=1, report=silent)
    assert not (tmp_path / "out" / "student.safetensors").exists()


def test_two_shards_that_changed_places_are_refused(release: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "copy"))
    first, second = sorted((folder / "shards" / "train").iterdir())[:2]
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert first.name in refusal(folder, tmp_path / "out")


def test_no_release_is_refused(tmp_path: Path) -> None:
    assert "no release is here" in refusal(tmp_path, tmp_path / "out", ReleaseError)


def test_an_unsigned_release_is_refused_where_a_sign_off_is_asked_for(release: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "root" / "releases" / "drawn"))
    config = replace(TINY, steps=1)
    with pytest.raises(UnsignedError, match="no sign-off"):
        train(folder, None, tmp_path / "out", config, seed=1, require_signoff=True, report=silent)
    sign_off(folder)
    assert train(folder, None, tmp_path / "out", config, seed=1, require_signoff=True, report=silent).steps == 1


def test_nothing_to_train_on_is_refused(tmp_path: Path, labelled: Path) -> None:
    empty = write_drawn(tmp_path / "empty", [], [draw(1)])
    for release in (None, empty):
        with pytest.raises(TrainError, match="nothing to train on"):
            train(release, None, tmp_path / "out", TINY, seed=1, report=silent)
    config = replace(TINY, steps=1)
    assert train(empty, labelled, tmp_path / "out", config, seed=1, report=silent).steps == 1


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """Its bytes are those that were published, so its decoder alone can tell."""
    folder = write_drawn(tmp_path / "release", [draw(1)])
    path = next((folder / "shards" / "train").iterdir())
    table = pq.read_table(path)
    image = table.column("image")[0].as_py()
    whole = image["bytes"]
    image["bytes"] = whole[: len(whole) // 3]
    place = table.schema.get_field_index("image")
    broken = table.set_column(place, table.schema.field(place), pa.array([image], IMAGE))
    path.write_bytes(encode_parquet(broken, row_group_rows=3, plain=PIXELS))
    commit(folder, [entry_of(folder, f"shards/train/{path.name}", ["0" * 32])], read_release(folder).splits)
    assert f"sample '{'0' * 32}'" in refusal(folder, tmp_path / "out", SampleError)


# ── what is learnt ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("person", [False, True])
def test_all_background_and_all_person_are_learnt(tmp_path: Path, person: bool) -> None:
    release = write_drawn(tmp_path / "release", [draw(seed, person=person) for seed in range(6)])
    config = replace(TINY, steps=25, ema=0.8, learning_rate=0.2, validate_every=100, save_seconds=60)
    result = train(release, None, tmp_path / "out", config, seed=0, report=silent)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "out"))
    student = load_student(result.checkpoint).eval()
    for seed in range(20, 23):
        share = float((predict(student, draw(seed, person=person).image, config.sizes()) >= 0.5).mean())
        assert (share > 0.99) if person else (share < 0.01)


def test_a_release_of_one_image_is_learnt(tmp_path: Path) -> None:
    one = draw(3)
    release = write_drawn(tmp_path / "release", [one])
    config = replace(TINY, steps=30, ema=0.8, learning_rate=0.2, validate_every=100, save_seconds=60)
    result = train(release, None, tmp_path / "out", config, seed=0, report=silent)
    assert (result.held_out_iou, result.held_out_boundary_iou, result.best_step) == (None, None, 30)
    found = predict(load_student(result.checkpoint).eval(), one.image, config.sizes()) >= 0.5
    assert (found & one.mask).sum() / (found | one.mask).sum() > 0.7


@pytest.mark.slow
def test_a_student_learns_persons_that_it_has_not_seen(tmp_path: Path) -> None:
    """From a release and labelled images, better than the best constant mask by far."""
    release = write_drawn(tmp_path / "release", [draw(seed) for seed in range(40)])
    labelled = write_labelled(tmp_path / "labelled", [draw(seed) for seed in range(100, 124)])
    config = replace(TINY, steps=60, batch=8, ema=0.9, learning_rate=0.05, validate_every=60, save_seconds=60)
    result = train(release, labelled, tmp_path / "out", config, seed=0, report=silent)
    masks = [draw(seed).mask for seed in range(100, 124)]
    everything = float(np.mean([mask.mean() for mask in masks]))
    assert result.held_out_iou is not None
    assert result.held_out_iou > everything + 0.4
    assert result.held_out_iou > 0.75


def plain(**changes: Any) -> TrainConfig:
    """Without a mask channel and augmentation, so that a mask enters the loss alone."""
    return replace(SHORT, mask_channel=False, view=ViewConfig.plain(), strong=False, steps=3, **changes)


@pytest.mark.parametrize("changed", ["small", "none"])
def test_a_sample_of_weight_zero_has_no_say(tmp_path: Path, changed: str) -> None:
    """Two releases that differ only in the mask of such a row give the same student, bit by bit.

    The first weights find nobody, so that the row has a boundary only where its own mask has one.
    """
    student = build_student(plain().network(), 0)
    with torch.no_grad():
        student.head.bias.fill_(-6.0)  # type: ignore[union-attr]
    save_student(tmp_path / "blind.safetensors", student, plain().network(), {})
    config = plain(init=str(tmp_path / "blind.safetensors"))
    drawn = [replace(draw(seed), weight=0.0 if seed == 2 else 1.0) for seed in range(4)]
    mask = np.zeros_like(drawn[2].mask)
    mask[10:14, 10:14] = changed == "small"
    releases = [drawn, [*drawn[:2], replace(drawn[2], mask=mask), drawn[3]]]
    found = []
    for number, rows in enumerate(releases):
        folder = write_drawn(tmp_path / f"release{number}", rows)
        found.append(weights(train(folder, None, tmp_path / f"out{number}", config, seed=1, report=silent)))
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_sample_of_more_weight_has_more_say(tmp_path: Path) -> None:
    found = []
    for weight in (1.0, 3.0):
        rows = [replace(draw(seed), weight=weight if seed == 2 else 1.0) for seed in range(4)]
        folder = write_drawn(tmp_path / f"release{weight}", rows)
        train(folder, None, tmp_path / f"out{weight}", plain(), seed=1, report=silent)
        found.append(losses(tmp_path / f"out{weight}")[0])
    assert found[1] > found[0]


def test_the_curve_is_of_full_batches_where_the_last_of_an_epoch_is_not(tmp_path: Path) -> None:
    """Five equal images in batches of 4 and 1, at a rate that changes nothing, have one loss."""
    release = write_drawn(tmp_path / "release", [draw(3)] * 5)
    config = plain(batch=4, learning_rate=1e-9)
    train(release, None, tmp_path / "out", config, seed=1, report=silent)
    found = losses(tmp_path / "out")
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_pixels_to_ignore_teach_nothing(tmp_path: Path) -> None:
    found = []
    for fill in (False, True):
        rows = []
        for seed in range(4):
            one = draw(seed)
            ignore = np.zeros_like(one.mask)
            ignore[:, :20] = True
            rows.append(replace(one, mask=np.where(ignore, fill, one.mask), ignore=ignore))
        folder = write_drawn(tmp_path / f"release{fill}", rows)
        result = train(folder, None, tmp_path / f"out{fill}", plain(fit="square"), seed=1, report=silent)
        found.append(weights(result))
    # A pixel beside an ignored one is blended with it where an image is enlarged; it is ignored then, too.
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_the_release_does_not_matter_where_all_steps_are_labelled(
    release: Path, labelled: Path, tmp_path: Path
) -> None:
    config = replace(SHORT, labelled_first=1.0, labelled_last=1.0)
    both = train(release, labelled, tmp_path / "both", config, seed=1, report=silent)
    alone = train(None, labelled, tmp_path / "alone", config, seed=1, report=silent)
    one, other = weights(both), weights(alone)
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert both.held_out_iou == alone.held_out_iou


@pytest.fixture(scope="module")
def usual(release: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of a short run on the release alone."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("usual")
    train(release, None, output, SHORT, seed=1, report=silent)
    return losses(output)


@pytest.mark.parametrize(
    "change",
    [
        {"mask_channel": False},
        {"fit": "square", "side": 96},
        {"dice": 0.5},
        {"boundary": 0.0},
        {"two_sided": False},
        {"padding": "zeros", "preset": "nano", "model": StudentConfig()},
        {"strong": False},
        {"view": ViewConfig.plain()},
        {"prior": NO_PRIOR},
    ],
)
def test_each_choice_changes_what_is_learnt_and_ends_with_finite_weights(
    release: Path, usual: list[float], tmp_path: Path, change: Any
) -> None:
    config = replace(SHORT, **change)
    result = train(release, None, tmp_path, config, seed=1, report=silent)
    assert all(torch.isfinite(value).all() for value in weights(result).values())
    assert load_student(result.checkpoint).config == config.network()
    assert losses(tmp_path) != usual


def test_lower_precision_trains_to_nearly_the_same(release: Path, usual: list[float], tmp_path: Path) -> None:
    train(release, None, tmp_path, replace(SHORT, precision="bf16-mixed"), seed=1, report=silent)
    assert losses(tmp_path) != usual
    assert losses(tmp_path) == pytest.approx(usual, rel=0.02)


# ── first weights ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_starts_from_the_weights_of_a_student(
    release: Path, straight: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    given = weights(straight[1])
    config = replace(TINY, steps=1, init=str(straight[1].checkpoint), learning_rate=1e-9)
    found = weights(train(release, None, tmp_path / "out", config, seed=7, report=silent))
    kernels = [key for key, value in given.items() if value.dim() > 1]
    assert all(torch.allclose(found[key], given[key], atol=1e-6) for key in kernels)
    drawn = build_student(TINY.network(), 7).state_dict()
    assert not all(torch.allclose(found[key], drawn[key], atol=1e-3) for key in kernels)
    moved = shutil.copy(straight[1].checkpoint, tmp_path / "moved.safetensors")
    again = replace(config, init=str(moved))
    assert train(release, None, tmp_path / "out", again, seed=7, report=silent).steps == 1
    other = tmp_path / "other.safetensors"
    save_student(other, build_student(TINY.network(), 9), TINY.network(), {})
    with pytest.raises(TrainError, match="init is '"):
        train(release, None, tmp_path / "out", replace(config, init=str(other)), seed=7, report=silent)


def test_first_weights_that_do_not_fit_are_refused(release: Path, tmp_path: Path) -> None:
    other = replace(TINY.network(), width=0.75)
    path = tmp_path / "other.safetensors"
    save_student(path, build_student(other, 0), other, {})
    rgb = tmp_path / "rgb.safetensors"
    save_student(
        rgb, build_student(replace(TINY.network(), in_channels=3), 0), replace(TINY.network(), in_channels=3), {}
    )
    rubbish = tmp_path / "rubbish.safetensors"
    rubbish.write_bytes(b"rubbish")
    for init, named in (
        (path, "width=0.75.* is to be trained"),
        (rgb, "in_channels=3.* is to be trained"),
        (rubbish, "needs? student.encoder|no readable"),
        (tmp_path / "absent.pt", "cannot be read: No such file"),
    ):
        with pytest.raises(TrainError, match=rf"train\.init .*{named}"):
            train(release, None, tmp_path / "out", replace(TINY, init=str(init)), seed=1, report=silent)


def test_training_leaves_the_global_generator_and_the_threads_alone(release: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    train(release, None, tmp_path, replace(TINY, steps=1), seed=1, report=silent)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


# ── several devices ───────────────────────────────────────────────────────────────────────────────────────────────


def train_and_keep(release: Path, folder: Path, fabric: Any, report: Report) -> None:
    """What a process of a training does, and each leaves its weights and the number of its rows."""
    plan = _Plan(
        config=TINY,
        seed=3,
        release=release,
        labelled=(),
        held_out=frozenset(),
        digests={},
        threads=1,
        output=folder / "out",
    )
    run = _Run(plan, fabric, report)
    feed = Feed([], open_shards(release), TINY, seed=3, rank=fabric.global_rank, world=fabric.world_size)
    _steps(run, feed, [], report)
    feed.close()
    kept = {name: value.detach() for name, value in run.student.named_parameters()}
    torch.save({"parameters": kept, "rows": run.rows}, folder / f"{fabric.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_agree_and_the_first_alone_writes(release: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lines: list[str] = []
    spread(partial(train_and_keep, release, tmp_path), Devices(devices=2), lines.append)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(value, second["parameters"][name]) for name, value in first["parameters"].items())
    assert (len(first["rows"]), len(second["rows"])) == (TINY.steps, 0)
    assert sum(line.startswith("step 1 ") for line in lines) == 1


@pytest.mark.slow
def test_two_processes_train_as_one_where_batch_normalisation_sees_the_same(tmp_path: Path) -> None:
    """A release of one image: the second process has it too, at no weight, so only the rounding of sums is left."""
    release = write_drawn(tmp_path / "release", [draw(3)])
    found = []
    for devices in (1, 2):
        output = tmp_path / f"out{devices}"
        result = train(release, None, output, replace(TINY, devices=devices), seed=3, report=silent)
        found.append(weights(result))
        assert {path.name for path in output.iterdir()} == {*SAME, "state.pt"} - {"overlays.jpg"}
    floats = [key for key, value in found[0].items() if value.is_floating_point()]
    apart = sum(float((found[0][key] - found[1][key]).square().sum()) for key in floats)
    assert (apart / sum(float(found[0][key].square().sum()) for key in floats)) ** 0.5 < 1e-3
    assert losses(tmp_path / "out1")[0] == pytest.approx(losses(tmp_path / "out2")[0], rel=1e-5)


def test_a_broken_held_out_image_is_named_before_the_first_step(tmp_path: Path) -> None:
    labelled = write_labelled(tmp_path / "labelled", [draw(seed) for seed in range(4)])
    for path in (labelled / "images").iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
    lines: list[str] = []
    with pytest.raises(SampleError, match="sample '"):
        train(None, labelled, tmp_path / "out", TINY, seed=0, report=lines.append)
    assert not lines


def test_another_number_of_threads_is_another_training(tmp_path: Path) -> None:
    release = write_drawn(tmp_path / "release", [draw(0)])
    train(release, None, tmp_path / "out", SHORT, seed=0, report=print)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        with pytest.raises(TrainError, match=f"threads is {before + 1} and was {before}"):
            train(release, None, tmp_path / "out", SHORT, seed=0, report=print)
    finally:
        torch.set_num_threads(before)
