"""Laws of a draw: the sums and floors hold, nothing tells a cluster or a verdict, and nobody's masks are ever lost."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.audit import AUDIT_FILE, load_audit, read_audit
from pipeline import audit_draw, storage
from pipeline.audit_draw import (
    FLOOR,
    allocate,
    capacity,
    coco_of,
    draw,
    draw_audit,
    dropped_numbers,
    in_turn,
)
from pipeline.audit_pool import Frame, Pool
from pipeline.clip_formats import ClipConfig
from pipeline.coco import read_coco
from pipeline.errors import CurateError, InputError, StorageError

# Numbers --------------------------------------------------------------------------------------------------------------

POPULATIONS = st.dictionaries(
    st.text("0123456789", min_size=1, max_size=3), st.integers(1, 300), min_size=1, max_size=9
)


@st.composite
def rooms(draw_: st.DrawFn) -> tuple[dict[str, int], dict[str, int], int]:
    """Populations, the room in them, and a size."""
    population = draw_(POPULATIONS)
    room = {name: draw_(st.integers(0, number)) for name, number in population.items()}
    return population, room, draw_(st.integers(0, 700))


@given(rooms())
def test_an_allocation_adds_up_and_stays_below_the_room(case: tuple[dict[str, int], dict[str, int], int]) -> None:
    population, room, size = case
    given_ = allocate(population, size, room)
    assert list(given_) == list(population)
    assert sum(given_.values()) == min(size, sum(room.values()))
    assert all(0 <= given_[name] <= room[name] for name in population)


@given(rooms())
def test_every_cluster_has_its_floor_before_any_has_more(case: tuple[dict[str, int], dict[str, int], int]) -> None:
    population, room, size = case
    given_ = allocate(population, size, room)
    least = {name: min(FLOOR, room[name]) for name in population}
    if size >= sum(least.values()):
        assert all(given_[name] >= least[name] for name in population)
        return
    assert max(given_.values()) <= FLOOR
    level = min(given_[name] for name in population if given_[name] < least[name])
    assert all(given_[name] in (least[name], level, level + 1) for name in population)
    assert max(given_.values()) <= level + 1


@given(POPULATIONS, st.integers(0, 700))
def test_what_is_above_the_floors_is_shared_in_proportion(population: dict[str, int], size: int) -> None:
    given_ = allocate(population, size)
    floors = {name: min(FLOOR, number) for name, number in population.items()}
    above = {name: population[name] - floors[name] for name in population}
    rest = min(size, sum(population.values())) - sum(floors.values())
    if rest < 0:
        return
    for name in population:
        quota = Fraction(rest * above[name], max(1, sum(above.values())))
        assert abs(given_[name] - floors[name] - quota) < 1


@given(POPULATIONS, st.integers(0, 400), st.randoms(use_true_random=False))
def test_an_allocation_knows_no_order(population: dict[str, int], size: int, random: object) -> None:
    names = list(population)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert allocate({name: population[name] for name in names}, size) == allocate(population, size)


@pytest.mark.parametrize(
    ("population", "size", "wanted"),
    [
        ({"0": 1000, "1": 100, "2": 5}, 200, {"0": 12 + 157, "1": 12 + 14, "2": 5}),
        ({"0": 1000, "1": 1000}, 10, {"0": 5, "1": 5}),
        ({"0": 3, "1": 2}, 200, {"0": 3, "1": 2}),
    ],
)
def test_allocations_by_hand(population: dict[str, int], size: int, wanted: dict[str, int]) -> None:
    assert allocate(population, size) == wanted


@st.composite
def judged(draw_: st.DrawFn) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Drawn numbers, populations and dropped ones of clusters."""
    population = draw_(POPULATIONS)
    dropped = {name: draw_(st.integers(0, number)) for name, number in population.items()}
    shown = {name: draw_(st.integers(0, number)) for name, number in dropped.items()}
    room = {name: capacity(population[name], dropped[name], shown[name]) for name in population}
    numbers = allocate(population, draw_(st.integers(1, 400)), room)
    assert all(math.ceil(Fraction(numbers[n] * dropped[n], population[n])) <= shown[n] for n in population)
    return numbers, population, dropped


@given(judged(), st.integers(0, 50))
def test_dropped_frames_have_their_share_of_every_cluster_and_of_all(
    case: tuple[dict[str, int], dict[str, int], dict[str, int]], seed: int
) -> None:
    numbers, population, dropped = case
    found = dropped_numbers(numbers, population, dropped, seed)
    shares = {name: Fraction(numbers[name] * dropped[name], population[name]) for name in numbers}
    for name in numbers:
        assert 0 <= found[name] <= min(numbers[name], dropped[name])
        assert abs(found[name] - shares[name]) < 1
        assert numbers[name] - found[name] <= population[name] - dropped[name]
    assert abs(sum(found.values()) - sum(shares.values())) < 1


def test_a_class_that_is_rare_in_every_cluster_is_drawn_as_often_as_it_is() -> None:
    clusters = [str(number) for number in range(17)]
    numbers, population = dict.fromkeys(clusters, 12), dict.fromkeys(clusters, 100)
    dropped = dict.fromkeys(clusters, 3)  # .36 of 12: rounding each cluster alone would draw none
    drawn = [dropped_numbers(numbers, population, dropped, seed) for seed in range(400)]
    assert {sum(one.values()) for one in drawn} == {6, 7}
    for name in clusters:
        mean = sum(one[name] for one in drawn) / len(drawn)
        assert abs(mean - 0.36) < 4.5 * math.sqrt(0.36 * 0.64 / len(drawn))


# Frames ---------------------------------------------------------------------------------------------------------------


def frame(number: int, cluster: str = "0", group: str = "", *, dropped: bool = False, shown: bool = True) -> Frame:
    return Frame(
        sample_id=f"{number:032x}",
        content_sha256=f"{number:064x}",
        width=40 + number % 3,
        height=36,
        cluster=cluster,
        group=group or f"g{number}",
        dropped=dropped,
        shown=shown,
        shard="",
        row=number,
    )


@st.composite
def pools(draw_: st.DrawFn) -> list[Frame]:
    """Frames of a few clusters and groups; pixels of some dropped ones are missing."""
    facts = st.tuples(st.sampled_from("012"), st.sampled_from("abcd"), st.sampled_from(["kept", "dropped", "gone"]))
    return [
        frame(number, cluster, group, dropped=kind != "kept", shown=kind != "gone")
        for number, (cluster, group, kind) in enumerate(draw_(st.lists(facts, min_size=1, max_size=80)))
    ]


@given(pools(), st.integers(1, 60), st.integers(0, 20), st.randoms(use_true_random=False))
def test_a_draw_is_what_the_numbers_say_whatever_the_order(
    frames: list[Frame], size: int, seed: int, random: object
) -> None:
    try:
        drawn = draw(frames, size, seed)
    except InputError:
        for name in {one.cluster for one in frames}:
            lost = [one.shown for one in frames if one.cluster == name and one.dropped]
            assert capacity(sum(one.cluster == name for one in frames), len(lost), sum(lost)) == 0
        return
    ids = [one.sample_id for one in drawn.frames]
    assert len(set(ids)) == len(ids) <= size
    assert all(one.shown for one in drawn.frames)
    for name, stratum in drawn.strata.items():
        members = [one for one in frames if one.cluster == name]
        mine = [one for one in drawn.frames if one.cluster == name]
        assert (stratum.population, stratum.drawn) == (len(members), len(mine))
        share = Fraction(len(mine) * sum(one.dropped for one in members), len(members))
        assert abs(sum(one.dropped for one in mine) - share) < 1
    assert bool(drawn.notes) == (len(ids) < size or any("publish.audit" in note for note in drawn.notes))
    shuffled = list(frames)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw(shuffled, size, seed) == drawn


@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(0, 40), st.integers(0, 9),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3)),
)  # fmt: skip
def test_no_group_gives_again_before_every_other_gave(
    groups: list[str], number: int, seed: int, before: dict[str, int]
) -> None:
    frames = [frame(i, group=group) for i, group in enumerate(groups)]
    number = min(number, len(frames))
    taken = Counter(before)
    chosen = in_turn(frames, number, seed, taken)
    assert len({one.sample_id for one in chosen}) == number
    gave, held = Counter(one.group for one in chosen), Counter(groups)
    assert taken == Counter(before) + gave
    left = {group for group in held if gave[group] < held[group]}
    for group in gave:
        assert all(taken[group] <= taken[other] + 1 for other in left)


def test_within_a_group_every_frame_is_as_likely() -> None:
    frames = [frame(number, group="one") for number in range(10)]
    found = Counter(in_turn(frames, 1, seed, Counter())[0].row for seed in range(1000))
    assert sum((found[row] - 100) ** 2 / 100 for row in range(10)) < 33.7  # chi-squared, 9 degrees, 1 in 10,000


@given(pools(), st.integers(0, 20), st.randoms(use_true_random=False))
def test_names_tell_neither_cluster_nor_group_nor_verdict(frames: list[Frame], seed: int, random: object) -> None:
    frames = [replace(one, dropped=False, shown=True) for one in frames]
    facts = [(one.cluster, one.group) for one in frames]
    random.shuffle(facts)  # type: ignore[attr-defined]
    other = [replace(one, cluster=cluster, group=group) for one, (cluster, group) in zip(frames, facts, strict=True)]
    drawn = [one.sample_id for one in draw(frames, len(frames), seed).frames]
    assert sorted(drawn) == sorted(one.sample_id for one in frames)
    assert [one.sample_id for one in draw(other, len(frames), seed).frames] == drawn
    flipped = [replace(one, dropped=not one.dropped) for one in frames]
    assert [one.sample_id for one in draw(flipped, len(frames), seed).frames] == drawn


def test_clusters_lie_in_any_order_of_names() -> None:
    frames = [frame(number, cluster=str(number % 2)) for number in range(400)]
    ranks = [i for i, one in enumerate(draw(frames, 400, 1).frames) if one.cluster == "0"]
    z = (sum(ranks) - 200 * 399 / 2) / math.sqrt(200 * 200 * 401 / 12)
    assert abs(z) < 4
    assert ranks != [i for i, one in enumerate(draw(frames, 400, 2).frames) if one.cluster == "0"]


def test_where_pixels_of_dropped_frames_lack_a_cluster_gives_fewer_and_it_is_said() -> None:
    kept = [frame(number) for number in range(50)]
    lost = [frame(number, dropped=True, shown=number < 52) for number in range(50, 100)]
    drawn = draw(kept + lost, 20, 0)
    assert (sum(not one.dropped for one in drawn.frames), sum(one.dropped for one in drawn.frames)) == (2, 2)
    first, second = drawn.notes
    assert "cluster 0 gives 4 frames and not 20: pixels of 2 of its 50 dropped frames are in the release" in first
    assert second.startswith("4 frames were drawn and not 20")
    with pytest.raises(InputError, match="no labelled frame can be drawn"):
        draw([replace(one, shown=False) for one in lost], 20, 0)
    with pytest.raises(InputError, match="no labelled frame can be drawn"):
        draw([], 20, 0)


# The folder -----------------------------------------------------------------------------------------------------------


def pool_of(frames: Sequence[Frame], *, stop: int = 1 << 30) -> Pool:
    """A pool of small pictures; after ``stop`` of them the process ends as if it were killed."""

    def pictures(wanted: Sequence[Frame]) -> Iterator[tuple[str, bytes]]:
        for number, one in enumerate(wanted):
            if number == stop:
                os._exit(9)
            yield one.sample_id, b"picture " + one.sample_id.encode()

    folder = Path("/nowhere")
    return Pool(origin="release", fingerprint="f" * 64, folder=folder, frames=tuple(frames), pictures=pictures)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


POOL = pool_of([frame(number, cluster=str(number % 3)) for number in range(60)])


def test_equal_arguments_give_equal_bytes_and_other_seeds_other_frames(tmp_path: Path) -> None:
    first, _ = draw_audit(POOL, tmp_path / "a", size=30, seed=1, coco=True)
    again, _ = draw_audit(POOL, tmp_path / "deep" / "b", size=30, seed=1, coco=True)
    other, _ = draw_audit(POOL, tmp_path / "c", size=30, seed=2, coco=True)
    assert first == again == load_audit(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(tmp_path / "deep" / "b")
    assert {s.sample_id for s in first.samples} != {s.sample_id for s in other.samples}
    assert draw_audit(POOL, tmp_path / "a", size=30, seed=1, coco=True)[0] == first
    assert contents(tmp_path / "a") == contents(tmp_path / "deep" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "deep"]


def test_a_folder_holds_images_of_all_names_and_no_mask(tmp_path: Path) -> None:
    audit, notes = draw_audit(POOL, tmp_path / "a", size=30, seed=1)
    assert notes == ()
    assert [sample.name for sample in audit.samples] == [f"{number:04}" for number in range(1, 31)]
    names = {"audit.json", *(f"images/{sample.name}.jpg" for sample in audit.samples)}
    assert set(contents(tmp_path / "a")) == names
    for sample in audit.samples:
        picture = (tmp_path / "a" / "images" / f"{sample.name}.jpg").read_bytes()
        assert picture == b"picture " + sample.sample_id.encode()
    assert read_audit(tmp_path / "a") == ((), 30)
    assert (audit.seed, audit.size, audit.origin, audit.fingerprint) == (1, 30, "release", "f" * 64)


def test_more_than_9999_frames_have_names_of_one_length() -> None:
    drawn = draw([frame(number) for number in range(10_001)], 10_001, 0)
    audit = audit_draw.audit_of(POOL, drawn, 10_001, 0)
    assert (audit.samples[0].name, audit.samples[-1].name) == ("00001", "10001")


def test_frames_of_earlier_audits_are_not_drawn_again(tmp_path: Path) -> None:
    seen: set[str] = set()
    folders: list[Path] = []
    for number in range(3):
        folder = tmp_path / str(number)
        audit, _ = draw_audit(POOL, folder, size=20, seed=1, without=folders)
        ids = {sample.sample_id for sample in audit.samples}
        assert len(ids) == 20
        assert not ids & seen
        assert sum(stratum.population for stratum in audit.strata.values()) == 60 - len(seen)
        seen |= ids
        folders.append(folder)
    with pytest.raises(InputError, match="no labelled frame can be drawn"):
        draw_audit(POOL, tmp_path / "more", size=20, seed=1, without=folders)
    with pytest.raises(InputError, match=r"--without: .*absent.* no audit is here"):
        draw_audit(POOL, tmp_path / "more", size=20, seed=1, without=[tmp_path / "absent"])
    assert not (tmp_path / "more").exists()


def begun(folder: Path) -> None:
    (folder / "masks" / "0001.png").write_bytes(b"hours of work")


def ignored(folder: Path) -> None:
    (folder / "ignore").mkdir()
    (folder / "ignore" / "0001.png").write_bytes(b"work")


@pytest.mark.parametrize(
    ("change", "seed", "message"),
    [
        (begun, 1, r"is an audit with masks, and they are never overwritten; give another --output, or check"),
        (begun, 2, r"is an audit with masks"),
        (ignored, 1, r"is an audit with masks"),
        (Path.exists, 2, r"holds another audit, whose images may be with people already"),
        (lambda folder: (folder / "notes.txt").write_text("mine"), 1, r"holds 'notes.txt'; give another --output"),
        (lambda folder: (folder / AUDIT_FILE).unlink(), 1, r"must be a new or empty folder, it holds 'images'"),
    ],
)
def test_nothing_that_is_there_is_ever_lost(tmp_path: Path, change: object, seed: int, message: str) -> None:
    draw_audit(POOL, tmp_path / "a", size=30, seed=1)
    change(tmp_path / "a")  # type: ignore[operator]
    before = contents(tmp_path / "a")
    with pytest.raises(InputError, match=message):
        draw_audit(POOL, tmp_path / "a", size=30, seed=seed)
    assert contents(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_masks_that_appear_while_pictures_are_fetched_are_kept(tmp_path: Path) -> None:
    draw_audit(POOL, tmp_path / "a", size=30, seed=1)

    def pictures(wanted: Sequence[Frame]) -> Iterator[tuple[str, bytes]]:
        begun(tmp_path / "a")
        yield from POOL.pictures(wanted)

    with pytest.raises(InputError, match="is an audit with masks"):
        draw_audit(replace(POOL, pictures=pictures), tmp_path / "a", size=30, seed=1)
    assert (tmp_path / "a" / "masks" / "0001.png").read_bytes() == b"hours of work"


def test_an_output_may_be_empty_but_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    draw_audit(POOL, tmp_path / "empty", size=3, seed=1)
    assert len(contents(tmp_path / "empty")) == 4
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is no folder"):
        draw_audit(POOL, tmp_path / "file", size=3, seed=1)
    with pytest.raises(CurateError, match="a part of the path is a file"):
        draw_audit(POOL, tmp_path / "file" / "below", size=3, seed=1)


@pytest.mark.parametrize("stop", [0, 1, 29])
def test_killed_it_leaves_nothing_and_the_same_command_makes_it_whole(tmp_path: Path, stop: int) -> None:
    child = os.fork()
    if child == 0:
        draw_audit(pool_of(POOL.frames, stop=stop), tmp_path / "a", size=30, seed=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "a").exists()
    draw_audit(POOL, tmp_path / "a", size=30, seed=1)
    draw_audit(POOL, tmp_path / "b", size=30, seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, writes = os.fsync, iter(range(1000))

    def full(descriptor: int) -> None:
        if next(writes) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", full)
        with pytest.raises(StorageError, match=r"No space left on device .*free some space"):
            draw_audit(POOL, tmp_path / "a", size=30, seed=1)
    assert not list(tmp_path.iterdir())


def test_the_file_for_tools_lists_every_image_and_nobody(tmp_path: Path) -> None:
    audit, _ = draw_audit(POOL, tmp_path / "a", size=30, seed=1, coco=True)
    value = json.loads((tmp_path / "a" / audit_draw.ANNOTATIONS).read_bytes())
    assert (tmp_path / "a" / audit_draw.ANNOTATIONS).read_bytes() == coco_of(audit)
    assert value["annotations"] == []
    assert [entry["file_name"] for entry in value["images"]] == [f"{s.name}.jpg" for s in audit.samples]
    assert [(e["width"], e["height"]) for e in value["images"]] == [(s.width, s.height) for s in audit.samples]
    images = [{**entry, "file_name": f"v/{entry['file_name']}"} for entry in value["images"]]
    coco = read_coco({**value, "images": images}, ClipConfig().category)
    assert len(coco.videos["v"]) == 30
    assert coco.regions == {}
