"""What a review event holds, by type: checked before it is written, and again when it is read.

The envelope (`seq`, `prev`, `release`, `type`, `reviewer`, `tool`, `at`) is that of `manifests.signoff`; this module
owns the rest. SAMPLES is `{"ids": [sample ids]}`; FROZEN is `{"query": {…}, "ids_sha256": …, "count": n}`: what was
asked for, and the frozen list of the n samples that it found at that time (`review.log.ReviewLog.freeze`).

| type | fields |
|---|---|
| `sample_decision` | `target` SAMPLES, 1..1000; `verdict` of VERDICTS; `reasons`; `adjudicates`: it ends a dispute |
| `bulk_decision` | `target` FROZEN; `verdict` of VERDICTS; `reasons` |
| `comment` | `target` SAMPLES, 1..1000; `text` |
| `task` | `target` FROZEN: the samples drawn, to be looked at; `title`; `task` {`kind` "audit" or "overlap"; `size`, |
| | equal to `count`; `seed`; `blind` true; `of_task`: of an overlap, the seq of the audit that is judged again; |
| | `population`, optional: of how many samples they were drawn} |
| `task_result` | `target` SAMPLES, one; `task`: seq of the task; `verdict` "good" or "defect"; `reasons` |
| `signoff` | `verdict` "approved"; `checklist` {question: answer}; `conditions`; `expires_at`, an instant or null; |
| | `unmet`: what stood against it, at most 100 texts |
| `withdraw_signoff` | `reasons` |

`reasons` (at most 20 texts), `adjudicates`, `checklist`, `conditions` and `unmet` may be left out. Further fields are
read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from manifests.signoff import parse_instant, render_instant

VERDICTS = ("approve", "reject", "hold", "redraw")
"""What a reviewer says of a sample: keep it, drop it, hold it, or hold it until its mask is drawn again."""
TASK_VERDICTS = ("good", "defect")
TASK_KINDS = ("audit", "overlap")
MAX_IDS = 1000
MAX_REASONS = 20
MAX_UNMET = 100
MAX_TEXT = 4000
MAX_NAME = 80

_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class EventError(ValueError):
    """What an event must not hold; the message names the field, the rule and the value found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewer:
    """Who says so.

    Attributes:
        name: not empty. To be written it has at most 80 printable characters, and no space at its ends.
        how_known: how the name was checked; whether an event bears a valid signature is told by `review.verify`.
    """

    name: str
    how_known: str = "not verified"

    def __post_init__(self) -> None:
        for field in ("name", "how_known"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise EventError(f"reviewer.{field} must be a non-empty text, got {value!r:.80}")

    def check(self) -> None:
        """Check that the name may be written.

        Raises:
            EventError: it is too long, or holds what cannot be seen.
        """
        for field in ("name", "how_known"):
            value = getattr(self, field)
            if len(value) > MAX_NAME or not value.isprintable() or value != value.strip():
                raise EventError(
                    f"reviewer.{field} must be 1..{MAX_NAME} printable characters without space at its ends, "
                    f"got {value!r:.100}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The last event of a log: keep its sha256 elsewhere, and nobody can cut the log unseen.

    Attributes:
        seq: its number; -1 where the log is empty.
        sha256: of the bytes of its file, 64 hex digits; None where the log is empty.
    """

    seq: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """An event of a log, in its place.

    Attributes:
        seq: its number.
        kind: one of `manifests.signoff.EVENT_TYPES`.
        reviewer: who says so.
        at: when, in UTC, by the writer's clock. The order of events is that of `seq` alone.
        sha256: of the bytes of its file, 64 hex digits.
        fields: the rest, as the module's table says.
    """

    seq: int
    kind: str
    reviewer: Reviewer
    at: datetime
    sha256: str
    fields: Mapping[str, Any]

    @property
    def ids(self) -> list[str]:
        """The sample ids that the event itself holds; none where it refers to a frozen list."""
        target = self.fields.get("target")
        return list(target.get("ids", ())) if isinstance(target, dict) else []

    @property
    def frozen(self) -> tuple[str, int] | None:
        """The sha256 and the length of the frozen list that the event refers to; None where there is none."""
        target = self.fields.get("target")
        return (target["ids_sha256"], target["count"]) if isinstance(target, dict) and "ids_sha256" in target else None

    def to_log(self) -> dict[str, Any]:
        """The event as `manifests.signoff.next_signoff` takes it."""
        who = {"name": self.reviewer.name, "how_known": self.reviewer.how_known}
        return {**self.fields, "seq": self.seq, "type": self.kind, "reviewer": who, "at": render_instant(self.at)}

    def to_json(self) -> dict[str, Any]:
        """The event for a page, without the list of the samples that it is about."""
        rest = {name: value for name, value in self.fields.items() if name != "target"}
        frozen = self.frozen
        return {
            **rest,
            "seq": self.seq,
            "type": self.kind,
            "reviewer": self.reviewer.name,
            "how_known": self.reviewer.how_known,
            "at": render_instant(self.at),
            "sha256": self.sha256,
            "count": len(self.ids) if frozen is None else frozen[1],
        }


def check_fields(kind: str, fields: Mapping[str, Any]) -> None:
    """Check what an event of a type holds beside its envelope; further fields pass.

    Raises:
        EventError: a field is missing, or breaks a rule of the module's table.
    """
    for name, check in _FIELDS[kind].items():
        if name in fields or name not in _OPTIONAL:
            check(name, fields.get(name))
    if kind == "task":
        _check_task(fields["target"], fields["task"])


def check_written(kind: str, fields: Mapping[str, Any]) -> None:
    """Check what a reader would take, but we do not write: unknown types and fields, other verdicts of a sign-off.

    Raises:
        EventError: it has not.
    """
    if kind not in _FIELDS:
        raise EventError(f"an event's type must be one of {tuple(_FIELDS)}, got {kind!r:.80}")
    unknown = sorted(set(fields) - set(_FIELDS[kind]))
    if unknown:
        raise EventError(f"a {kind} has the fields {tuple(_FIELDS[kind])}, got {unknown[0]!r:.80}")
    if kind == "signoff" and fields.get("verdict") != "approved":
        raise _say("verdict of a signoff", "'approved': to take one back, withdraw it", fields.get("verdict"))


def _say(name: str, rule: str, found: object) -> EventError:
    return EventError(f"{name} must be {rule}, got {found!r:.80}")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _text(name: str, value: object, limit: int = MAX_TEXT, least: int = 1) -> None:
    if not isinstance(value, str) or not least <= len(value) <= limit:
        raise _say(name, f"a text of {least}..{limit} characters", value)


def _samples(name: str, value: object, most: int = MAX_IDS) -> None:
    ids = value.get("ids") if isinstance(value, dict) else None
    if not isinstance(ids, list) or not 1 <= len(ids) <= most:
        raise _say(f"{name}.ids", f"a list of 1..{most} sample ids", ids)
    for one in ids:
        if not isinstance(one, str) or not _ID.fullmatch(one):
            raise _say(f"{name}.ids", "sample ids of 32 hex digits", one)
    if len(set(ids)) < len(ids):
        raise _say(f"{name}.ids", "all different", ids)


def _one_sample(name: str, value: object) -> None:
    _samples(name, value, 1)


def _frozen(name: str, value: object) -> None:
    target = value if isinstance(value, dict) else {}
    if not isinstance(target.get("query"), dict):
        raise _say(f"{name}.query", "an object", target.get("query"))
    sha256 = target.get("ids_sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _say(f"{name}.ids_sha256", "64 hex digits", sha256)
    if not _is_count(target.get("count"), 1):
        raise _say(f"{name}.count", "a whole number >= 1", target.get("count"))


def _one_of(*values: str) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if value not in values:
            raise _say(name, f"one of {values}", value)

    return check


def _reasons(name: str, value: object) -> None:
    if not isinstance(value, list) or len(value) > MAX_REASONS:
        raise _say(name, f"a list of at most {MAX_REASONS} texts", value)
    for reason in value:
        _text(name, reason, 200)


def _unmet(name: str, value: object) -> None:
    if not isinstance(value, list) or len(value) > MAX_UNMET:
        raise _say(name, f"a list of at most {MAX_UNMET} texts", value)
    for text in value:
        _text(name, text, MAX_TEXT)


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _say(name, "true or false", value)


def _number(name: str, value: object) -> None:
    if not _is_count(value, 0):
        raise _say(name, "a whole number >= 0", value)


def _object(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise _say(name, "an object", value)


def _answers(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise _say(name, "an object", value)
    for question, answer in value.items():
        _text(f"a question of {name}", question, 400)
        if not isinstance(answer, bool):
            _text(f"{name}[{question!r:.80}]", answer, MAX_TEXT, 0)


def _conditions(name: str, value: object) -> None:
    _text(name, value, MAX_TEXT, 0)


def _title(name: str, value: object) -> None:
    _text(name, value, 200)


def _expiry(name: str, value: object) -> None:
    if value is not None:
        try:
            parse_instant(value)
        except ValueError as error:
            raise EventError(f"{name} must be null or {error}") from error


def _signoff_verdict(name: str, value: object) -> None:
    if value is not None:
        _text(name, value, 80)


def _check_task(target: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    _one_of(*TASK_KINDS)("task.kind", task.get("kind"))
    if not _is_count(task.get("size"), 1) or task["size"] != target["count"]:
        raise _say("task.size", f"the number of samples drawn, {target['count']}", task.get("size"))
    _number("task.seed", task.get("seed"))
    if task.get("blind") is not True:
        raise _say("task.blind", "true: who judges must not see what others said", task.get("blind"))
    if task["kind"] == "overlap":
        _number("task.of_task", task.get("of_task"))
    if "population" in task and not _is_count(task["population"], task["size"]):
        raise _say("task.population", f"a whole number >= the size, {task['size']}", task["population"])


_Check = Callable[[str, object], None]
_VERDICT: dict[str, _Check] = {"verdict": _one_of(*VERDICTS), "reasons": _reasons}
_FIELDS: dict[str, dict[str, _Check]] = {
    "sample_decision": {"target": _samples, **_VERDICT, "adjudicates": _flag},
    "bulk_decision": {"target": _frozen, **_VERDICT},
    "comment": {"target": _samples, "text": _text},
    "task": {"target": _frozen, "task": _object, "title": _title},
    "task_result": {
        "target": _one_sample,
        "task": _number,
        "verdict": _one_of(*TASK_VERDICTS),
        "reasons": _reasons,
    },
    "signoff": {
        "verdict": _signoff_verdict,
        "checklist": _answers,
        "conditions": _conditions,
        "expires_at": _expiry,
        "unmet": _unmet,
    },
    "withdraw_signoff": {"reasons": _reasons},
}
_OPTIONAL = ("reasons", "adjudicates", "checklist", "conditions", "expires_at", "unmet")
