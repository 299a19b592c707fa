"""Whether every byte of the release and of its log is what it was: checked beside the server, by a process of its own.

A process, because decoding every picture takes minutes and may meet hostile bytes; it can be stopped at once, and ends
with the server. Run as `python -m review.integrity RELEASE` it prints what it found as JSON.
"""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manifests.release import ReleaseError
from manifests.signoff import render_instant
from manifests.verify import verify_release
from review.log import ReviewLog

MEMORY_BYTES = 8 << 30
"""Address space of a check: far more than it needs, so that hostile bytes end the check and not the machine."""
SHOWN = 200
"""Problems that are told; the rest are counted."""


class BusyError(ValueError):
    """A check is running already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What the last check found.

    Attributes:
        state: "not run", "running", "good", "problems", or "failed" where it could not come to an end.
        checked_at: when it ended; None before.
        problems: (path, message) pairs of the release, at most SHOWN.
        count: all problems of the release.
        changed: whether a file has not the bytes that `release.json` lists.
        log: problems of the review log, at most SHOWN.
        why: of "failed".
    """

    state: str = "not run"
    checked_at: datetime | None = None
    problems: tuple[tuple[str, str], ...] = ()
    count: int = 0
    changed: bool = False
    log: tuple[str, ...] = ()
    why: str = ""

    @property
    def release_state(self) -> str:
        """The state of the release alone."""
        return self._state_of(self.count)

    def _state_of(self, problems: int) -> str:
        if self.state not in ("good", "problems"):
            return self.state
        return "problems" if problems else "good"

    def to_json(self) -> dict[str, Any]:
        """The release's part and the log's, each with its own state."""
        return {
            "state": self.release_state,
            "checked_at": None if self.checked_at is None else render_instant(self.checked_at),
            "problems": [{"path": path, "message": message} for path, message in self.problems],
            "count": self.count,
            "why": self.why,
            "log": {
                "state": self._state_of(len(self.log)),
                "problems": list(self.log),
            },
        }


class Integrity:
    """Checks of one release, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._checked = Checked()

    def checked(self) -> Checked:
        """What is known now."""
        with self._lock:
            return self._checked

    def start(self) -> None:
        """Begin a check; what the last one found is forgotten.

        Raises:
            BusyError: one is running.
            OSError: no process can be started.
        """
        with self._lock:
            if self._process is not None:
                raise BusyError("an integrity check is running; wait for it, or stop it first")
            self._process = process = _spawn(self._folder)
            self._checked = Checked(state="running")
        threading.Thread(target=self._wait, args=(process,), name="integrity", daemon=True).start()

    def stop(self) -> None:
        """Stop a running check at once; nothing is known then."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                self._checked = Checked()

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        data = process.stdout.read()
        code = process.wait()
        process.stdout.close()
        process.stdin.close()
        checked = _understood(data, code)
        with self._lock:
            if self._process is process:  # else it was stopped
                self._process, self._checked = None, checked


def _spawn(folder: Path) -> "subprocess.Popen[bytes]":
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "review.integrity", str(folder.resolve())],
        stdin=subprocess.PIPE,  # stays open: its end tells the process that the server is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _understood(data: bytes, code: int) -> Checked:
    now = datetime.now(UTC)
    try:
        if code:
            raise ValueError(f"it ended with {code}")
        found = json.loads(data)
        problems = tuple((path, message) for path, message in found["problems"])
        count, changed, log = found["count"], found["changed"], tuple(found["log"])
    except (ValueError, KeyError, TypeError) as error:
        why = f"the check did not come to an end ({error}): run it again, or run `curate verify` in a terminal"
        return Checked(state="failed", checked_at=now, why=why)
    state = "problems" if count or log else "good"
    return Checked(state=state, checked_at=now, problems=problems, count=count, changed=changed, log=log)


def check(folder: Path) -> dict[str, Any]:
    """Verify the release in a folder and its review log: problems, how many, and those of the log."""
    found = verify_release(folder)
    problems = [(problem.path, problem.message) for problem in found[:SHOWN]]
    try:
        log = ReviewLog.open(folder).verify()
    except (ReleaseError, OSError) as error:
        log = [str(error)]
    changed = any(problem.changed for problem in found)
    return {"problems": problems, "count": len(found), "changed": changed, "log": log[:SHOWN]}


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1 << 10):
        pass
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """Check the release in the one folder named, and print what was found."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.write(json.dumps(check(Path(arguments[0]))))
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for the parent never ends


if __name__ == "__main__":
    main(sys.argv[1:])
