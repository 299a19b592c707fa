"""Signatures of events with SSH keys: `ssh-keygen -Y`, detached, over the bytes of the event's file.

The signature of event 7 lies beside it as `00000000000000000007.sig`. The namespace is NAMESPACE, so that a signature
made for something else counts for nothing here. Who may sign as whom says an allowed-signers file (ssh-keygen(1)), e.g.

```
ada@example.org namespaces="curate-review" ssh-ed25519 AAAA…
"Ada Lovelace" ssh-ed25519 AAAA…
```

The identity is the reviewer's name in the event. Needs OpenSSH 8.2 or newer; nobody is asked for a passphrase: a key
that has one must be in the agent.
"""

import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from manifests.disk import put_if_absent

NAMESPACE = "curate-review"
SECONDS = 30.0
"""How long `ssh-keygen` may take."""
MAX_SIGNATURE_BYTES = 1 << 16

_BEGIN = b"-----BEGIN SSH SIGNATURE-----"


class SignatureError(ValueError):
    """A signature that cannot be made; the message says why, and what to do."""


def signature_path(event_path: Path) -> Path:
    """Where the signature of an event lies."""
    return event_path.with_suffix(".sig")


def sign(event_path: Path, key: Path) -> Path:
    """Sign an event, and leave the signature beside it, durable when this returns.

    Args:
        event_path: file of the event.
        key: a private key without a passphrase; or a private or public one that the agent has.

    Returns:
        The path of the signature.

    Raises:
        SignatureError: no such event or key, `ssh-keygen` refuses, or a signature is there already.
        WriteError: the signature cannot be written.
    """
    try:
        data = event_path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{event_path}: no event to sign: {error}") from error
    if not key.is_file():
        raise SignatureError(f"{key}: there is no such key: give a private key, or a public one that the agent knows")
    done = _run(["-Y", "sign", "-f", str(key.resolve()), "-n", NAMESPACE], data)
    if done.returncode or not done.stdout.startswith(_BEGIN):
        raise SignatureError(
            f"{key}: ssh-keygen does not sign with this key ({_said(done)}): "
            f"a key with a passphrase must be in the agent (ssh-add)"
        )
    path = signature_path(event_path)
    if not put_if_absent(path.parent, path.name, done.stdout):
        raise SignatureError(f"{path}: this event is signed already; a signature is never replaced: sign off again")
    return path


def check(
    event_path: Path, sig: Path, allowed_signers: Path, identity: str, *, at: datetime | None = None
) -> str | None:
    """What is wrong with a signature; None where it is good.

    Args:
        event_path: file of the event.
        sig: file of the signature.
        allowed_signers: who may sign as whom.
        identity: who must have signed: the reviewer's name.
        at: when the key must have been valid, an instant with a time zone; None for now.

    Raises:
        SignatureError: there is no file of allowed signers, or no `ssh-keygen`.
    """
    if not allowed_signers.is_file():
        raise SignatureError(f"{allowed_signers}: there is no file of allowed signers: write one, see ssh-keygen(1)")
    try:
        data = event_path.read_bytes()
        if sig.is_symlink() or not sig.is_file() or sig.stat().st_size > MAX_SIGNATURE_BYTES:
            return "the signature is missing, or is no file of a signature's size"
    except OSError as error:
        return f"the event or its signature cannot be read: {error}"
    moment = (at or datetime.now(UTC)).astimezone(UTC).strftime("%Y%m%d%H%M%S")
    places = ["-f", str(allowed_signers.resolve()), "-s", str(sig.resolve())]
    done = _run(["-Y", "verify", *places, "-I", identity, "-n", NAMESPACE, f"-Overify-time={moment}"], data)
    return f"the signature is not one of {identity!r} over this event ({_said(done)})" if done.returncode else None


def _run(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run `ssh-keygen` without a shell, a terminal or a local time zone."""
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=data,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            start_new_session=True,  # no terminal, so no question that nobody answers
            env={**os.environ, "TZ": "UTC", "LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"},
        )
    except FileNotFoundError as error:
        raise SignatureError("ssh-keygen is not installed: install OpenSSH (8.2 or newer)") from error
    except subprocess.TimeoutExpired as error:
        raise SignatureError(f"ssh-keygen gave no answer in {SECONDS:.0f} s: does the agent wait for you?") from error
    except ValueError as error:  # a NUL in the identity
        raise SignatureError(f"ssh-keygen cannot be called with {list(arguments)!r:.200}: {error}") from error


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return "; ".join(line.strip() for line in lines)[:300] or f"exit status {done.returncode}"
