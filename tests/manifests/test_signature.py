import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from manifests import signature
from manifests.release import canonical_json
from manifests.signature import SignatureError, check, sign, signature_path
from manifests.signoff import event_name

NAME = "Ada Lovelace"


def make_key(folder: Path, name: str = "key", passphrase: str = "") -> Path:
    """A new ed25519 key; its public half lies beside it."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen (OpenSSH)")
    path = folder / name
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def allow(folder: Path, key: Path, who: str = NAME, options: str = "") -> Path:
    """A file of allowed signers in which one key may sign as somebody."""
    path = folder / "allowed signers"
    path.write_text(f'"{who}" {options} {key.with_suffix(".pub").read_text()}')
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path)


@pytest.fixture
def event(tmp_path: Path) -> Path:
    path = tmp_path / "reviews" / "f" / event_name(0)
    path.parent.mkdir(parents=True)
    path.write_bytes(canonical_json({"reviewer": {"name": NAME}, "text": "signed"}))
    return path


def test_a_good_signature_is_good(event: Path, key: Path, tmp_path: Path) -> None:
    data = event.read_bytes()
    made = sign(event, key)
    assert made == signature_path(event) == event.parent / "00000000000000000000.sig"
    assert check(event, made, allow(tmp_path, key), NAME) is None
    assert check(event, made, allow(tmp_path, key, options='namespaces="curate-review"'), NAME) is None
    assert event.read_bytes() == data
    assert sorted(path.name for path in event.parent.iterdir()) == [event.name, made.name]


def test_an_edited_event_is_not_what_was_signed(event: Path, key: Path, tmp_path: Path) -> None:
    made = sign(event, key)
    event.write_bytes(event.read_bytes().replace(b"signed", b"forged"))
    assert "is not one of 'Ada Lovelace' over this event" in (check(event, made, allow(tmp_path, key), NAME) or "")


def test_an_unknown_key_another_name_and_another_namespace_are_refused(event: Path, key: Path, tmp_path: Path) -> None:
    made = sign(event, key)
    other = make_key(tmp_path, "other")
    assert check(event, made, allow(tmp_path, other), NAME) is not None
    assert check(event, made, allow(tmp_path, key, who="Eve"), NAME) is not None
    assert check(event, made, allow(tmp_path, key), "Eve") is not None
    assert check(event, made, allow(tmp_path, key, options='namespaces="git"'), NAME) is not None
    done = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", "git"],
        input=event.read_bytes(),
        capture_output=True,
        check=True,
    )
    made.write_bytes(done.stdout)
    assert check(event, made, allow(tmp_path, key), NAME) is not None


def test_a_key_counts_while_it_is_valid(event: Path, key: Path, tmp_path: Path) -> None:
    made = sign(event, key)
    allowed = allow(tmp_path, key, options='valid-before="20260601"')
    assert check(event, made, allowed, NAME, at=datetime(2026, 5, 1, tzinfo=UTC)) is None
    assert check(event, made, allowed, NAME, at=datetime(2026, 7, 1, tzinfo=UTC)) is not None


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x")]
)
def test_a_damaged_signature_is_no_signature(event: Path, key: Path, tmp_path: Path, damage: object) -> None:
    made = sign(event, key)
    damage(made)  # type: ignore[operator]
    assert check(event, made, allow(tmp_path, key), NAME) is not None


def test_a_signature_is_never_replaced(event: Path, key: Path) -> None:
    data = sign(event, key).read_bytes()
    with pytest.raises(SignatureError, match="signed already"):
        sign(event, key)
    assert signature_path(event).read_bytes() == data


def test_names_that_look_like_options_are_names(event: Path, tmp_path: Path) -> None:
    odd = tmp_path / "-Q -f"
    odd.mkdir()
    moved = make_key(odd, "-n")
    made = sign(event, moved)
    assert check(event, made, allow(odd, moved, who="-Overify-time=0"), "-Overify-time=0") is None
    assert check(event, made, allow(odd, moved, who=NAME), "-Overify-time=0") is not None


def test_what_cannot_sign_says_why(event: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="no such key"):
        sign(event, tmp_path / "nothing")
    with pytest.raises(SignatureError, match="no event to sign"):
        sign(tmp_path / "no event", key)
    locked = make_key(tmp_path, "locked", "a passphrase")
    with pytest.raises(SignatureError, match="must be in the agent"):
        sign(event, locked)
    (tmp_path / "text").write_text("no key")
    with pytest.raises(SignatureError, match="does not sign with this key"):
        sign(event, tmp_path / "text")
    assert not signature_path(event).exists()
    with pytest.raises(SignatureError, match="no file of allowed signers"):
        check(event, signature_path(event), tmp_path / "nothing", NAME)
    with pytest.raises(SignatureError, match="cannot be called"):
        check(event, sign(event, key), allow(tmp_path, key), "A\0da")


def test_without_ssh_keygen_it_says_what_to_install(
    event: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SignatureError, match="install OpenSSH"):
        sign(event, key)


def test_one_that_hangs_is_ended(event: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "ssh-keygen"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=":")
    monkeypatch.setattr(signature, "SECONDS", 0.3)
    with pytest.raises(SignatureError, match="no answer"):
        sign(event, key)
