import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from manifests.release import canonical_json, fingerprint
from manifests.signature import SignatureError, sign, signature_path
from manifests.signoff import UnsignedError, check_signed, event_name, review_folder
from review.event import EventError, Reviewer
from review.log import ReviewLog
from review.verify import sign_signoff, told, verify_review
from tests.manifests.test_signature import NAME, allow, make_key
from tests.review import releases
from tests.review.test_log import bulk, sample, task

ADA = Reviewer(name=NAME)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    return releases.write(root, releases.figures(6))


@pytest.fixture
def release(written: Path, tmp_path: Path) -> Path:
    """A copy of a release without reviews."""
    shutil.copytree(written.parent, tmp_path / "releases")
    return tmp_path / "releases" / written.name


def signoff(release: Path, **more: object) -> int:
    log = ReviewLog.open(release)
    return log.append("signoff", reviewer=ADA, verdict="approved", checklist={"seen": True}, **more).seq


def fill(release: Path) -> ReviewLog:
    """Two decisions, one of them of a frozen list, and a sign-off that is followed by a comment."""
    log = ReviewLog.open(release)
    target = {"ids": [sample(1)]}
    log.append("sample_decision", reviewer=ADA, target=target, verdict="hold", reasons=[], adjudicates=False)
    bulk(log, log.freeze([sample(1), sample(2)]), 2)
    signoff(release)
    log.append("comment", reviewer=ADA, target=target, text="done")
    return log


def test_a_release_without_a_log_is_sound_and_not_signed(release: Path) -> None:
    found = verify_review(release)
    assert (found.good, found.events, found.head.sha256, found.signoff.state) == (True, 0, None, "none")
    assert not found.folder.exists()
    assert "no event signs it off" in told(found)[2]


def test_a_sound_log_tells_its_head_and_who_signed_it_off(release: Path) -> None:
    log = fill(release)
    found = verify_review(release)
    assert (found.good, found.events, found.head) == (True, 4, log.head())
    assert found.signoff.state == "signed"
    assert found.signoff.signoff == check_signed(release)
    assert [(one.seq, one.state) for one in found.signatures] == [(2, "missing")]
    lines = told(found)
    assert str(found.head.sha256) in lines[1]
    assert f"signed off by {NAME} in event 2" in lines[2]
    assert "signature of event 2 (signoff by Ada Lovelace): missing" in lines[3]


def test_a_log_with_every_type_is_read_by_the_parser_of_the_trainer(release: Path) -> None:
    log = fill(release)
    audit = task(log, [sample(1)])
    result = {"target": {"ids": [sample(1)]}, "task": audit, "verdict": "good", "reasons": []}
    log.append("task_result", reviewer=ADA, **result)
    assert check_signed(release).seq == 2
    log.append("withdraw_signoff", reviewer=ADA, reasons=["too early"])
    with pytest.raises(UnsignedError, match="event 6 withdrew it"):
        check_signed(release)
    assert verify_review(release).signoff.state == "withdrawn"


def test_a_signoff_expires(release: Path) -> None:
    signoff(release, expires_at="2026-06-01T00:00:00Z")
    assert verify_review(release, now=datetime(2026, 5, 1, tzinfo=UTC)).signoff.state == "signed"
    found = verify_review(release, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert (found.good, found.signoff.state) == (True, "expired")


def _edit(log: ReviewLog) -> None:
    path = log.folder / event_name(1)
    path.write_bytes(path.read_bytes().replace(b"approve", b"reject"))


def _swap(log: ReviewLog) -> None:
    one, two = log.folder / event_name(1), log.folder / event_name(2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _insert(log: ReviewLog) -> None:
    for seq in (3, 2):
        (log.folder / event_name(seq)).rename(log.folder / event_name(seq + 1))
    shutil.copy(log.folder / event_name(1), log.folder / event_name(2))


@pytest.mark.parametrize(
    ("damage", "seq"),
    [(_edit, 2), (_swap, 1), (_insert, 2), (lambda log: (log.folder / event_name(0)).unlink(), 0)],
)
def test_a_damaged_event_is_named_and_voids_the_signoff(
    release: Path, damage: Callable[[ReviewLog], None], seq: int
) -> None:
    damage(fill(release))
    found = verify_review(release)
    assert not found.good
    assert f"event {seq} " in found.problems[0]
    assert (found.signoff.state, found.signoff.signoff) == ("broken", None)
    assert any(line.startswith("PROBLEM") and f"event {seq} " in line for line in told(found))
    with pytest.raises(UnsignedError, match=f"event {seq} "):
        check_signed(release)


def test_a_damaged_frozen_list_is_named_and_voids_the_signoff(release: Path) -> None:
    log = fill(release)
    (path,) = log.folder.glob("ids-*.bin")
    path.write_bytes(path.read_bytes()[16:])
    found = verify_review(release)
    assert "event 1: " in found.problems[0]
    assert found.signoff.state == "broken"


def test_any_changed_byte_of_the_release_voids_its_signoff(release: Path) -> None:
    log = fill(release)
    path = release / "release.json"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"seed":5', b'"seed":6'))
    assert path.read_bytes() != data
    found = verify_review(release)
    assert (found.events, found.signoff.state) == (0, "none")
    assert found.fingerprint == fingerprint(path.read_bytes()) != log.fingerprint
    with pytest.raises(UnsignedError, match="no event signs it off"):
        check_signed(release)
    log.folder.rename(review_folder(release, found.fingerprint))  # the log of another release signs nothing
    found = verify_review(release)
    assert (found.good, found.signoff.state) == (False, "broken")
    assert "event 0 must have release" in found.problems[0]


# A head that was kept elsewhere


def test_a_log_holds_the_head_that_was_kept_elsewhere(release: Path) -> None:
    log = fill(release)
    kept = log.head().sha256
    assert verify_review(release, head=kept).since == 0
    signoff(release)
    found = verify_review(release, head=kept)
    assert (found.good, found.since) == (True, 1)
    assert "1 events before it" in told(found)[1]


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_removed_last_events_show_by_the_head_that_was_kept(release: Path, cut: int) -> None:
    log = fill(release)
    kept = log.head().sha256
    for seq in range(4 - cut, 4):
        (log.folder / event_name(seq)).unlink()
    assert verify_review(release).good
    found = verify_review(release, head=kept)
    assert "was the last one when it was noted" in found.problems[0]
    assert found.signoff.state == "broken"


def test_a_head_is_a_sha256(release: Path) -> None:
    with pytest.raises(EventError, match="64 hex digits"):
        verify_review(release, head="last")


# Signatures


def test_a_signed_signoff_of_an_allowed_signer_counts(release: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    allowed = allow(tmp_path, key)
    fill(release)
    assert sign_signoff(release, key).seq == 2
    found = verify_review(release, allowed_signers=allowed)
    assert (found.good, found.signoff.state) == (True, "signed")
    assert [(one.seq, one.state) for one in found.signatures] == [(2, "good")]
    assert check_signed(release, allowed_signers=allowed) == check_signed(release)
    assert [one.state for one in verify_review(release).signatures] == ["unchecked"]


def test_an_unsigned_signoff_counts_only_where_nobody_asks_who_may_sign(release: Path, tmp_path: Path) -> None:
    allowed = allow(tmp_path, make_key(tmp_path))
    fill(release)
    assert verify_review(release).signoff.state == "signed"
    found = verify_review(release, allowed_signers=allowed)
    assert "event 2, a sign-off by 'Ada Lovelace', bears no signature: identity not verified" in found.problems[0]
    with pytest.raises(UnsignedError, match="the signature is missing"):
        check_signed(release, allowed_signers=allowed)


def test_a_signoff_of_an_unknown_key_or_in_anothers_name_is_refused(release: Path, tmp_path: Path) -> None:
    known, unknown = make_key(tmp_path), make_key(tmp_path, "unknown")
    fill(release)
    sign_signoff(release, unknown)
    for allowed in (allow(tmp_path, known), allow(tmp_path, unknown, who="Eve")):
        found = verify_review(release, allowed_signers=allowed)
        assert [(one.seq, one.state) for one in found.signatures] == [(2, "bad")]
        assert found.signoff.state == "broken"
        with pytest.raises(UnsignedError, match=r"event 2, .*the signature is not one of 'Ada Lovelace'"):
            check_signed(release, allowed_signers=allowed)


def test_the_last_event_edited_is_shown_by_its_signature_alone(release: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    seq = signoff(release)
    sign_signoff(release, key)
    path = ReviewLog.open(release).folder / event_name(seq)
    path.write_bytes(path.read_bytes().replace(b'"seen":true', b'"seen":false'))
    assert verify_review(release).good
    found = verify_review(release, allowed_signers=allow(tmp_path, key))
    assert (found.good, found.signoff.state) == (False, "broken")


def test_a_bad_signature_counts_for_nothing_and_breaks_nothing_but_its_own_sign_off(
    release: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    log = fill(release)
    sign(log.folder / event_name(0), key)
    sign_signoff(release, key)
    assert verify_review(release, allowed_signers=allow(tmp_path, key)).good
    shutil.copy(signature_path(log.folder / event_name(2)), signature_path(log.folder / event_name(0)))
    found = verify_review(release, allowed_signers=allow(tmp_path, key))
    assert (found.good, found.signoff.state) == (True, "signed")
    assert [(one.seq, one.state) for one in found.signatures] == [(0, "bad"), (2, "good")]
    assert any("signature of event 0" in line and "bad" in line for line in told(found))


def test_who_signed_with_a_wrong_key_signs_off_again(release: Path, tmp_path: Path) -> None:
    key, wrong = make_key(tmp_path), make_key(tmp_path, "wrong")
    allowed = allow(tmp_path, key)
    signoff(release)
    sign_signoff(release, wrong)
    assert verify_review(release, allowed_signers=allowed).signoff.state == "broken"
    signoff(release)
    sign_signoff(release, key)
    found = verify_review(release, allowed_signers=allowed)
    assert (found.good, found.signoff.state) == (True, "signed")
    assert check_signed(release, allowed_signers=allowed).seq == 1


def test_a_sign_off_of_somebody_else_is_not_signed_by_mistake(release: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    signoff(release)
    with pytest.raises(SignatureError, match="a sign-off by 'Ada Lovelace', not by 'Eve'"):
        sign_signoff(release, key, reviewer="Eve")
    assert sign_signoff(release, key, reviewer=NAME).seq == 0


def test_what_is_appended_while_a_log_is_verified_is_not_half_in_it(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(release)
    ReviewLog.open(release).append("withdraw_signoff", reviewer=ADA, reasons=[])
    real = ReviewLog.frozen_ids

    def meanwhile(log: ReviewLog, sha256: str) -> object:
        monkeypatch.setattr(ReviewLog, "frozen_ids", real)
        ReviewLog.open(release).append("signoff", reviewer=Reviewer(name="Mallory"), verdict="approved")
        return real(log, sha256)

    monkeypatch.setattr(ReviewLog, "frozen_ids", meanwhile)
    found = verify_review(release, allowed_signers=allow(tmp_path, make_key(tmp_path)))
    assert ReviewLog.open(release).head().seq == 5
    assert (found.events, found.head.seq, found.signoff.state) == (5, 4, "withdrawn")
    assert [one.seq for one in found.signatures] == [2]


def test_a_signed_event_that_is_dated_back_is_told(release: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    log = fill(release)
    signoff(release, at=datetime(2024, 1, 1, tzinfo=UTC))
    sign_signoff(release, key)
    allowed = allow(tmp_path, key, options='valid-before="20250101"')
    found = verify_review(release, allowed_signers=allowed)
    assert found.good
    assert f"{log.folder}: event 4, which is signed, says 2024-01-01" in found.warnings[0]
    assert any(line.startswith("WARNING") and "event 4" in line for line in told(found))


def test_names_of_others_do_not_speak_to_the_terminal(release: Path) -> None:
    log = fill(release)
    path = log.folder / event_name(3)
    event = json.loads(path.read_bytes())
    event |= {"type": "signoff", "reviewer": {"name": "Eve\x1b[2J\nPROBLEM", "how_known": "x"}}
    path.write_bytes(canonical_json(event))
    lines = told(verify_review(release))
    assert all(line.isprintable() for line in lines)
    assert r"signed off by Eve\x1b[2J\nPROBLEM in event 3" in lines[2]


def test_only_a_signoff_that_holds_is_signed(release: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    with pytest.raises(SignatureError, match="no sign-off to be signed: no event signs it off"):
        sign_signoff(release, key)
    fill(release)
    ReviewLog.open(release).append("withdraw_signoff", reviewer=ADA, reasons=[])
    with pytest.raises(SignatureError, match="event 4 withdrew it"):
        sign_signoff(release, key)
