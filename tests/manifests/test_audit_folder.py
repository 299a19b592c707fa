"""Laws of an audit folder: whole or refused, nothing is read beyond its limits, and the digest names its content."""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.audit import (
    AUDIT_FILE,
    MAX_BYTES,
    Audit,
    AuditedMask,
    AuditError,
    Drawn,
    Stratum,
    audit_sha256,
    is_audit,
    load_audit,
    load_mask,
    parse_audit,
    read_audit,
    render_audit,
)
from manifests.mask import encode_mask
from manifests.release import canonical_json

SIZES = {"0001": (40, 48), "0002": (48, 40), "0003": (36, 36)}
"""Height and width by name."""


def drawn_frame(name: str, height: int = 40, width: int = 48) -> Drawn:
    number = int(name)
    return Drawn(name=name, sample_id=f"{number:032x}", content_sha256=f"{number:064x}", width=width, height=height)


def drawn_audit() -> Audit:
    return Audit(
        seed=3,
        size=5,
        origin="release",
        fingerprint="a" * 64,
        samples=tuple(drawn_frame(name, *size) for name, size in SIZES.items()),
        strata={"0": Stratum(population=9, drawn=2), "12": Stratum(population=1, drawn=1)},
    )


def half(name: str, value: int = 255) -> bytes:
    """A mask of a frame's size, person above."""
    height, width = SIZES[name]
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = value
    good, data = cv2.imencode(".png", mask)
    assert good
    return data.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An audit of three frames: one done in gray, one in ones with an ignore, one not done."""
    (tmp_path / AUDIT_FILE).write_bytes(render_audit(drawn_audit()))
    (tmp_path / "masks").mkdir()
    (tmp_path / "ignore").mkdir()
    (tmp_path / "masks" / "0001.png").write_bytes(half("0001"))
    (tmp_path / "masks" / "0002.png").write_bytes(half("0002", 1))
    (tmp_path / "ignore" / "0002.png").write_bytes(encode_mask(np.eye(48, 40, dtype=np.bool_)))
    return tmp_path


# The file -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=8, unique=True),
    st.integers(0, 9),
    st.sampled_from(["release", "stage"]),
)
def test_what_is_written_is_read_again(numbers: list[int], seed: int, origin: Any) -> None:
    samples = tuple(drawn_frame(f"{number:09}") for number in sorted(numbers))
    strata = {"1": Stratum(population=99, drawn=len(numbers)), "2": Stratum(population=5, drawn=0)}
    audit = Audit(seed=seed, size=20, origin=origin, fingerprint="0" * 64, samples=samples, strata=strata)
    data = render_audit(audit)
    assert parse_audit(data) == audit
    assert render_audit(parse_audit(data)) == data


def changed(path: tuple[str | int, ...], value: Any) -> bytes:
    """The file with one value replaced; an Ellipsis removes it."""
    whole = json.loads(render_audit(drawn_audit()))
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return canonical_json(whole)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"\xff\xfe{}", "no valid JSON"),
        (b"[]", "must be an object, got list"),
        (b"{}", "missing fields"),
        (b"NaN", "no valid JSON"),
        (b" " + render_audit(drawn_audit()), "not in canonical form"),
        (render_audit(drawn_audit()).replace(b'"seed":3', b'"seed":4,"seed":3'), "not in canonical form"),
        (changed(("format",), 2), "has format 2, this curate reads 1"),
        (changed(("seed",), ...), "missing fields"),
        (changed(("more",), 1), "surplus fields"),
        (changed(("seed",), True), "seed must be an integer >= 0, got True"),
        (changed(("seed",), -1), "seed must be an integer >= 0, got -1"),
        (changed(("size",), 0), "size must be an integer >= 1, got 0"),
        (changed(("from",), "web"), "from must be one of"),
        (changed(("from",), ["release"]), "from must be one of"),
        (changed(("fingerprint",), "A" * 64), "fingerprint must be 64 hex digits"),
        (changed(("fingerprint",), "a" * 64 + "\n"), "fingerprint must be 64 hex digits"),
        (changed(("samples",), {}), "samples must be a list"),
        (changed(("samples",), []), "at least one"),
        (changed(("samples", 0), 7), "samples: an entry must be an object"),
        (changed(("samples", 0, "name"), "../../x"), "name must match"),
        (changed(("samples", 0, "name"), "0001\n"), "name must match"),
        (changed(("samples", 0, "name"), "٠٠٠١"), "name must match"),
        (changed(("samples", 0, "name"), "0002"), "ascending names"),
        (changed(("samples", 0, "name"), 1), "name must match"),
        (changed(("samples", 0, "sample_id"), f"{2:032x}"), "distinct sample ids"),
        (changed(("samples", 0, "sample_id"), "x"), "sample_id must match"),
        (changed(("samples", 0, "content_sha256"), None), "content_sha256 must match"),
        (changed(("samples", 0, "width"), 0), "width must be an integer >= 1"),
        (changed(("samples", 0, "width"), 1.0), "width must be an integer >= 1"),
        (changed(("samples", 0, "width"), 1 << 40), "at most 268435456 pixels"),
        (changed(("samples", 0, "cluster"), "3"), "surplus fields"),
        (changed(("sampled",), 1), "sampled must be true or false, got 1"),
        (changed(("sampled",), None), "sampled must be true or false, got None"),
        (changed(("strata",), []), "strata an object"),
        (changed(("strata", "0", "drawn"), 3), "must add up to the 3 samples, they add up to 4"),
        (changed(("strata", "0", "drawn"), 10), "drawn must be <= population"),
        (changed(("strata", "0"), 2), "must be an object"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        parse_audit(data)


def test_a_file_that_does_not_say_so_was_sampled() -> None:
    assert parse_audit(changed(("sampled",), ...)) == parse_audit(changed(("sampled",), True)) == drawn_audit()
    assert parse_audit(changed(("sampled",), False)) == replace(drawn_audit(), sampled=False)
    assert b'"sampled":true' in render_audit(drawn_audit())


@given(st.binary(max_size=60) | st.integers(0, 400).map(lambda at: render_audit(drawn_audit())[:at]))
def test_any_other_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(AuditError):
        parse_audit(data)


def test_a_file_over_its_limit_is_not_parsed(folder: Path) -> None:
    with (folder / AUDIT_FILE).open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(AuditError, match=rf"audit.json.*at most {MAX_BYTES} bytes"):
        load_audit(folder)


def test_a_folder_without_the_file_is_no_audit(tmp_path: Path) -> None:
    assert not is_audit(tmp_path)
    with pytest.raises(AuditError, match=r"audit.json' cannot be read, so no audit is here: No such file"):
        load_audit(tmp_path)
    os.mkfifo(tmp_path / AUDIT_FILE)
    assert not is_audit(tmp_path)
    with pytest.raises(AuditError, match="must be a file"):  # and is not waited for
        load_audit(tmp_path)


# The folder -----------------------------------------------------------------------------------------------------------


def test_masks_are_read_with_their_frames_and_the_rest_is_counted(folder: Path) -> None:
    assert is_audit(folder)
    (folder / "masks" / ".DS_Store").write_bytes(b"junk")
    done, unfinished = read_audit(folder)
    assert [one.drawn.name for one in done] == ["0001", "0002"]
    assert unfinished == 1
    assert [one.drawn for one in done] == list(drawn_audit().samples[:2])
    for one in done:
        mask, ignore = load_mask(one)
        height, width = SIZES[one.drawn.name]
        assert mask.shape == ignore.shape == (height, width)
        assert mask.dtype == ignore.dtype == np.bool_
        assert mask[: height // 2].all()
        assert not mask[height // 2 :].any()
    assert not load_mask(done[0])[1].any()
    np.testing.assert_array_equal(load_mask(done[1])[1], np.eye(48, 40, dtype=np.bool_))


def test_an_audit_that_nobody_has_begun_is_good(folder: Path) -> None:
    shutil.rmtree(folder / "masks")
    shutil.rmtree(folder / "ignore")
    assert read_audit(folder) == ((), 3)


def test_an_ignore_without_a_mask_is_a_frame_that_is_not_done(folder: Path) -> None:
    (folder / "masks" / "0002.png").unlink()
    done, unfinished = read_audit(folder)
    assert ([one.drawn.name for one in done], unfinished) == (["0001"], 2)


def link_out(folder: Path) -> None:
    (folder / "secret.png").write_bytes(half("0003"))
    (folder / "masks" / "0003.png").symlink_to(folder / "secret.png")


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda f: (f / "masks" / "0004.png").write_bytes(half("0001")), r"name of a frame.*'0004.png'"),
        (lambda f: (f / "masks" / "0003.PNG").write_bytes(half("0003")), r"'0003.PNG'"),
        (lambda f: (f / "masks" / "0003.jpg").write_bytes(half("0003")), r"'0003.jpg'"),
        (lambda f: (f / "ignore" / "a.png").write_bytes(b""), r"'a.png'"),
        (lambda f: (f / "masks" / "0003.png").mkdir(), r"regular files only, no links.*'0003.png'"),
        (lambda f: os.mkfifo(f / "masks" / "0003.png"), r"regular files only"),
        (link_out, r"regular files only"),
        (lambda f: (f / "masks" / "0003.png").write_bytes(half("0001")), r"0003.png \(is 48x40, its frame 36x36\)"),
        (lambda f: (f / "ignore" / "0001.png").write_bytes(half("0002")), r"ignore/0001.png \(is 40x48"),
        (lambda f: (f / "masks" / "0003.png").write_bytes(b""), r"0003.png \(EmptyFile"),
        (lambda f: (f / "masks" / "0003.png").write_bytes(b"no picture"), r"0003.png \(UnsupportedFormat"),
        (lambda f: (f / "masks" / "0003.png").write_bytes(half("0003")[:-30]), r"0003.png \((Truncated|Corrupt)"),
        (lambda f: (f / "masks" / "0003.png").write_bytes(half("0003", 7)), r"0003.png \(UnsupportedFormat.*labels"),
        (
            lambda f: cv2.imwrite(str(f / "masks" / "0003.jpg.png"), np.zeros((36, 36), np.uint8)),
            r"'0003.jpg.png'",
        ),
    ],
)
def test_one_file_at_fault_refuses_all_and_is_named(
    folder: Path, breaking: Callable[[Path], object], message: str
) -> None:
    breaking(folder)
    with pytest.raises(AuditError, match=message):
        read_audit(folder)


def test_a_bomb_is_refused_by_its_header(folder: Path) -> None:
    header = bytearray(half("0003"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "masks" / "0003.png").write_bytes(bytes(header))
    with pytest.raises(AuditError, match=r"0003.png \(TooLarge"):
        read_audit(folder)


def test_the_first_ten_faults_are_named_and_all_counted(tmp_path: Path) -> None:
    samples = tuple(drawn_frame(f"{number:04}") for number in range(1, 15))
    strata = {"0": Stratum(population=14, drawn=14)}
    audit = replace(drawn_audit(), samples=samples, strata=strata)
    (tmp_path / AUDIT_FILE).write_bytes(render_audit(audit))
    (tmp_path / "masks").mkdir()
    for sample in samples[1:]:
        (tmp_path / "masks" / f"{sample.name}.png").write_bytes(b"junk")
    with pytest.raises(AuditError) as caught:
        read_audit(tmp_path)
    text = str(caught.value)
    assert "13 at fault" in text
    assert "and 3 more" in text
    assert text.count("UnsupportedFormat") == 10
    assert "0002.png" in text
    assert "0012.png" not in text


def test_a_mask_that_goes_after_it_was_read_is_named(folder: Path) -> None:
    done, _ = read_audit(folder)
    (folder / "masks" / "0001.png").unlink()
    with pytest.raises(AuditError, match=r"0001.png \(No such file"):
        load_mask(done[0])
    with pytest.raises(AuditError, match=r"0001.png' cannot be read: No such file"):
        audit_sha256(done)


def test_masks_of_chosen_frames_say_so_and_have_a_digest_of_their_own(folder: Path) -> None:
    sampled, _ = read_audit(folder)
    (folder / AUDIT_FILE).write_bytes(render_audit(replace(drawn_audit(), sampled=False)))
    chosen, unfinished = read_audit(folder)
    assert ([one.sampled for one in sampled], [one.sampled for one in chosen]) == ([True, True], [False, False])
    assert [replace(one, sampled=True) for one in chosen] == list(sampled)
    assert unfinished == 1
    assert audit_sha256(chosen) != audit_sha256(sampled)
    assert audit_sha256([replace(one, sampled=True) for one in chosen]) == audit_sha256(sampled)


# The digest -----------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_frames_and_files_and_of_nothing_else(folder: Path, tmp_path_factory: Any) -> None:
    done, _ = read_audit(folder)
    digest = audit_sha256(done)
    copy = tmp_path_factory.mktemp("copy") / "other"
    shutil.copytree(folder, copy)
    assert audit_sha256(reversed(read_audit(copy)[0])) == digest
    assert audit_sha256(done[:1]) != digest
    assert audit_sha256([*done, done[0]]) != digest  # two annotators of one frame are two
    swapped = AuditedMask(drawn=done[0].drawn, mask=done[0].mask, ignore=done[0].mask)
    assert audit_sha256([swapped, done[1]]) != digest
    (copy / "masks" / "0001.png").write_bytes(half("0001", 1))  # the same mask in another file
    assert audit_sha256(read_audit(copy)[0]) != digest
    shutil.copy(folder / "masks" / "0001.png", copy / "masks" / "0001.png")
    assert audit_sha256(read_audit(copy)[0]) == digest
    (copy / "ignore" / "0002.png").unlink()
    assert audit_sha256(read_audit(copy)[0]) != digest
