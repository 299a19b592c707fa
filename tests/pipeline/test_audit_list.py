"""Laws of an audit of listed frames: these and no others, as the list orders them, and what is wrong is named."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.audit import load_audit, render_audit
from pipeline import cli
from pipeline.audit_draw import audit_of, draw, draw_audit
from pipeline.audit_list import MAX_BYTES, list_audit, read_list, take_listed
from pipeline.audit_pool import open_pool
from pipeline.errors import InputError
from pipeline.next_round import LIST_COLUMNS
from pipeline.release import write
from pipeline.step import run_step, write_tables
from tests.pipeline.test_audit_draw import POOL, contents, frame
from tests.pipeline.test_publish import Published, draw_published
from tests.pipeline.test_release import draw_run

IDS = [one.sample_id for one in POOL.frames]


def write_list(file: Path, ids: Sequence[str], columns: Sequence[str] = LIST_COLUMNS) -> Path:
    """A list with the columns of ``curate next-round``."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval='x, "y"', lineterminator="\n")
        writer.writeheader()
        writer.writerows({"sample_id": name} for name in ids)
    return file


# The list -------------------------------------------------------------------------------------------------------------


def test_a_list_is_read_in_its_order_whatever_else_it_says(tmp_path: Path) -> None:
    ids = IDS[7:2:-1]
    assert read_list(write_list(tmp_path / "a.csv", ids)) == tuple(ids)
    assert read_list(write_list(tmp_path / "b.csv", ids, ["sample_id"])) == tuple(ids)
    text = (tmp_path / "b.csv").read_text()
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode())  # as office tools do
    assert read_list(tmp_path / "c.csv") == tuple(ids)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"must name a column 'sample_id' once in its first line, which has nothing"),
        (b"rank,name\n1,a\n", r"which has 'rank', 'name'; give label_first.csv of next-round"),
        (b"sample_id,sample_id\n", r"must name a column 'sample_id' once"),
        (b"rank,sample_id\n", r"lists no frame, so there is nothing to draw"),
        (f"sample_id\n{IDS[0]}\nx\n".encode(), r"line 3: sample_id must be 32 hex digits, got 'x'"),
        (f"rank,sample_id\n1,{IDS[0]}\n2\n".encode(), r"line 3: sample_id must be 32 hex digits, got ''"),
        (f"sample_id\n{IDS[1]}\n{IDS[0]}\n{IDS[1]}\n".encode(), rf"line 4: sample {IDS[1]} is in line 2 already"),
        (b"sample_id\n\xff\n", r"is no CSV file in UTF-8"),
        (b'sample_id\n"a', r"is no CSV file in UTF-8"),
        (b"x" * (MAX_BYTES + 1), rf"at most {MAX_BYTES} bytes"),
    ],
)
def test_what_is_no_list_is_refused_and_the_line_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "l.csv").write_bytes(data)
    with pytest.raises(InputError, match=rf"--list .*l\.csv.*{message}"):
        read_list(tmp_path / "l.csv")


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--list .*absent.csv cannot be read: No such file"):
        read_list(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_list(tmp_path)


# The frames -----------------------------------------------------------------------------------------------------------


@given(st.permutations(IDS), st.integers(1, 60), st.integers(1, 70), st.integers(0, 9))
def test_the_first_frames_of_the_list_are_taken_and_no_others(
    order: list[str], length: int, size: int, seed: int
) -> None:
    listed = order[:length]
    drawn = take_listed(POOL.frames, listed, size, seed)
    assert {one.sample_id for one in drawn.frames} == set(listed[:size])
    assert not drawn.sampled
    audit = audit_of(POOL, drawn, size, seed)
    for name, stratum in audit.strata.items():
        assert stratum.population == sum(one.cluster == name for one in POOL.frames)
        assert stratum.drawn == sum(one.cluster == name for one in drawn.frames)
    assert any("and not" in note for note in drawn.notes) == (length < size)
    assert take_listed(POOL.frames[::-1], listed, size, seed) == drawn


@given(st.permutations(IDS), st.integers(0, 9))
def test_names_tell_nothing_of_the_place_in_the_list(order: list[str], seed: int) -> None:
    everything = [one.sample_id for one in draw(POOL.frames, len(IDS), seed).frames]
    taken = set(order[:20])
    drawn = [one.sample_id for one in take_listed(POOL.frames, order[:20], 20, seed).frames]
    assert drawn == [name for name in everything if name in taken]


def test_frames_without_pixels_make_room_for_the_next_and_are_named() -> None:
    frames = [replace(one, dropped=True, shown=False) if one.row in (1, 3) else one for one in POOL.frames]
    drawn = take_listed(frames, IDS[:8], 3, 0)
    assert sorted(one.row for one in drawn.frames) == [0, 2, 4]
    found = [note for note in drawn.notes if "no pixels" in note]
    assert len(found) == 1
    assert found[0].startswith(
        f"2 of 8 listed frames were dropped and have no pixels in the release: {IDS[1]}, {IDS[3]};"
    )
    assert any(note.startswith("6 frames were taken and not 8") for note in take_listed(frames, IDS[:8], 8, 0).notes)
    with pytest.raises(InputError, match="none of its frames has pixels here; draw from the label stage"):
        take_listed(frames, [IDS[1], IDS[3]], 8, 0)


def test_a_frame_that_the_pool_does_not_have_refuses_the_list() -> None:
    strange = [f"{number:032x}" for number in range(900, 905)]
    with pytest.raises(InputError) as caught:
        take_listed(POOL.frames, [*IDS[:4], *strange], 2, 0)
    text = str(caught.value)
    assert f"5 of its 9 frames have no label of a teacher here: {', '.join(strange[:3])} …;" in text
    assert "make it anew with 'curate next-round'" in text


# The folder -----------------------------------------------------------------------------------------------------------


def test_the_folder_says_that_it_is_no_sample_and_is_the_same_again(tmp_path: Path) -> None:
    audit, notes = list_audit(POOL, tmp_path / "a", listed=IDS[5:25], size=12, seed=1, coco=True)
    again, _ = list_audit(POOL, tmp_path / "b", listed=IDS[5:25], size=12, seed=1, coco=True)
    assert audit == again == load_audit(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "audit.json").read_bytes())["sampled"] is False
    assert {one.sample_id for one in audit.samples} == set(IDS[5:17])
    assert [one.name for one in audit.samples] == [f"{number:04}" for number in range(1, 13)]
    assert notes[0].startswith("the frames are chosen and no random sample")
    for one in audit.samples:
        assert (tmp_path / "a" / "images" / f"{one.name}.jpg").read_bytes() == b"picture " + one.sample_id.encode()
    whole, _ = list_audit(POOL, tmp_path / "c", listed=IDS[5:25])
    assert (whole.size, len(whole.samples)) == (20, 20)


def test_frames_of_earlier_audits_are_left_out_and_others_take_their_place(tmp_path: Path) -> None:
    draw_audit(POOL, tmp_path / "random", size=20, seed=1)
    seen = {one.sample_id for one in load_audit(tmp_path / "random").samples}
    audit, _ = list_audit(POOL, tmp_path / "a", listed=IDS, size=15, without=[tmp_path / "random"])
    assert {one.sample_id for one in audit.samples} == set([name for name in IDS if name not in seen][:15])
    with pytest.raises(InputError, match="all its frames are in the audits of --without"):
        list_audit(POOL, tmp_path / "b", listed=sorted(seen), without=[tmp_path / "random"])


def test_a_random_sample_of_the_same_frames_is_another_audit(tmp_path: Path) -> None:
    listed = [one.sample_id for one in draw(POOL.frames, 12, 0).frames]
    draw_audit(POOL, tmp_path / "a", size=12, seed=0)
    before = contents(tmp_path / "a")
    with pytest.raises(InputError, match="holds another audit"):
        list_audit(POOL, tmp_path / "a", listed=listed, size=12, seed=0)
    assert contents(tmp_path / "a") == before


def test_an_audit_of_a_curate_without_lists_is_still_the_same_audit(tmp_path: Path) -> None:
    audit, _ = draw_audit(POOL, tmp_path / "a", size=12, seed=0)
    older = render_audit(audit).replace(b'"sampled":true,', b"")
    (tmp_path / "a" / "audit.json").write_bytes(older)
    assert load_audit(tmp_path / "a") == audit
    assert draw_audit(POOL, tmp_path / "a", size=12, seed=0)[0] == audit


# A release ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return draw_published(tmp_path_factory.mktemp("listed") / "drawn")


@pytest.fixture(scope="module")
def release(made: Published) -> Path:
    return Path(write(str(made.drawn.folder), draw_run(made, made.run("publish")), made.shards)[0])


def test_a_list_of_a_release_gives_its_pictures_by_command(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = open_pool(release)
    shown = sorted(one.sample_id for one in pool.frames if one.shown)
    file = write_list(tmp_path / "l.csv", shown[::-1])
    argv = ["audit", str(release), "--list", str(file), "--output", str(tmp_path / "a")]
    assert cli.main([*argv, "--size", "3"]) == 0
    told = capsys.readouterr()
    assert f"{tmp_path / 'a'}: 3 listed frames of" in told.out
    assert "no random sample" in told.err
    audit = load_audit(tmp_path / "a")
    assert ({one.sample_id for one in audit.samples}, audit.sampled) == (set(shown[-3:]), False)
    pictures = dict(pool.pictures([one for one in pool.frames if one.sample_id in shown[-3:]]))
    for one in audit.samples:
        assert (tmp_path / "a" / "images" / f"{one.name}.jpg").read_bytes() == pictures[one.sample_id]
    assert cli.main(["audit", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert cli.main(["audit", str(tmp_path / "a"), "--list", str(file)]) == 2
    assert "--list is about drawing" in capsys.readouterr().err
    write_list(file, [*shown, f"{77:032x}"])
    assert cli.main([*argv[:-1], str(tmp_path / "b")]) == 1
    assert "have no label of a teacher here" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b").exists()


def test_frames_that_were_dropped_have_their_pixels_in_the_label_stage(
    made: Published, release: Path, tmp_path: Path
) -> None:
    stages = tmp_path / "out" / "stages"
    shutil.copytree(made.label.folder, stages / "label" / "abc")
    run_step(str(stages), "chosen", 1, None, [], [], lambda folder: write_tables(folder, [made.drawn.chosen]))
    gone = [one.sample_id for one in open_pool(release).frames if one.dropped]
    assert gone
    audit, notes = list_audit(open_pool(tmp_path / "out"), tmp_path / "a", listed=gone)
    assert {one.sample_id for one in audit.samples} == set(gone)
    assert len(notes) == 1


def test_frames_of_a_list_whose_cluster_has_others_count_in_its_population() -> None:
    frames = [frame(number, cluster="ab"[number % 2]) for number in range(10)]
    drawn = take_listed(frames, [frames[0].sample_id, frames[2].sample_id], 2, 0)
    assert {name: (s.population, s.drawn) for name, s in drawn.strata.items()} == {"a": (5, 2), "b": (5, 0)}
