"""A question to the review server, taken apart once and strictly: what is not understood is refused, never guessed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote

from starlette.datastructures import Headers, QueryParams

from manifests.verify import parse_document
from review.desk import NO_NAME, Desk, reviewer_of
from review.event import Reviewer
from review.guard import Refusal
from review.query import Query, parse_query

REVIEWER_HEADER = "X-Reviewer"
"""Name of the reviewer of one browser, percent-encoded UTF-8."""
MAX_PAGE = 200
MAX_OFFSET = 1 << 31

_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One question.

    Attributes:
        desk: what is asked about.
        path: named parts of the path.
        query: parameters, each once, all known.
        body: of a change; empty otherwise.
        name: the reviewer's, as the browser gives it; None where it gives none.
    """

    desk: Desk
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    def text(self, name: str, default: str | None = None) -> str:
        """A parameter of the query.

        Raises:
            Refusal: it is missing and has no default.
        """
        found = self.query.get(name, default)
        if found is None:
            _refuse(f"parameter {name} must be given")
        return found

    def number(self, name: str, default: int | None, low: int, high: int) -> int:
        """A whole number of the query, within low and high.

        Raises:
            Refusal: it is none, or missing without a default.
        """
        return number_in(self.text(name, None if default is None else str(default)), name, low, high)

    def filter(self) -> Query:
        """The samples that the parameter `filter` asks for; all where it is missing.

        Raises:
            Refusal: it is no JSON.
            QueryError: it is no filter.
        """
        given = self.query.get("filter")
        return parse_query(None if given is None else parse_json(given, "filter"))

    def sample(self) -> str:
        """The sample id of the path.

        Raises:
            Refusal: it is none.
        """
        return sample_id(self.path["id"])

    def reviewer(self) -> Reviewer:
        """Who asks: by the header of the browser, else as the command was started.

        Raises:
            Refusal: neither gives a name, or one that cannot be kept.
        """
        if self.name is not None:
            return reviewer_of(decoded(self.name))
        if self.desk.reviewer is None:
            raise Refusal(400, f"no reviewer: header {REVIEWER_HEADER} is missing", NO_NAME)
        return self.desk.reviewer

    def given(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A field of the body; the default where it is missing or null.

        Raises:
            Refusal: it has another type, or is missing without a default.
        """
        found = self.body.get(name)
        found = default if found is None else found
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is int):
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            _refuse(f"{name} must be {names}, got {found!r:.80}")
        return found

    def reasons(self) -> list[str]:
        """The reasons of the body, without empty ones; `review.event` holds them to their rules."""
        found = [reason.strip() if isinstance(reason, str) else reason for reason in self.given("reasons", list, [])]
        return [reason for reason in found if reason != ""]


def _refuse(error: str, remedy: str = "send what the page sends") -> NoReturn:
    raise Refusal(400, error, remedy)


def number_in(value: str, name: str, low: int, high: int) -> int:
    """The whole number that a text states.

    Raises:
        Refusal: it states none, or one outside low and high.
    """
    if not _NUMBER.fullmatch(value) or not low <= int(value) <= high:
        _refuse(f"{name} must be a whole number within {low} and {high}, got {value!r:.60}")
    return int(value)


def sample_id(value: object) -> str:
    """A sample id that comes from outside.

    Raises:
        Refusal: it is none.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        _refuse(f"a sample id has 32 lower-case hex digits, got {value!r:.60}")
    return value


def digest(value: str) -> str:
    """A fingerprint that comes from outside.

    Raises:
        Refusal: it is none.
    """
    if not _SHA256.fullmatch(value):
        _refuse(f"a fingerprint has 64 lower-case hex digits, got {value!r:.80}")
    return value


def decoded(value: str) -> str:
    """The text of a percent-encoded header.

    Raises:
        Refusal: it is no UTF-8.
    """
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"{REVIEWER_HEADER} must be percent-encoded UTF-8, got {value!r:.80}", NO_NAME) from error


def parse_json(data: str | bytes, what: str) -> Any:
    """JSON from outside: finite numbers, and texts that have an encoding.

    Raises:
        Refusal: it is none.
    """
    try:
        return parse_document(data)
    except ValueError as error:
        raise Refusal(400, f"{what} is not valid JSON: {error!s:.200}", "send what the page sends") from error


def parse_body(data: bytes, fields: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a change, with no other fields than those named.

    Raises:
        Refusal: it is none, or has another field.
    """
    value = parse_json(data, "the body")
    if not isinstance(value, dict):
        _refuse(f"the body must be a JSON object, got {type(value).__name__}")
    unknown = sorted(set(value) - set(fields))
    if unknown:
        _refuse(f"unknown field {unknown[0]!r:.60}; there are {', '.join(fields) or 'none'}")
    return value


def parse_params(params: QueryParams, names: Sequence[str]) -> dict[str, str]:
    """The parameters of a query, each at most once, with no others than those named.

    Raises:
        Refusal: one is unknown, or is there twice.
    """
    found: dict[str, str] = {}
    for name, value in params.multi_items():
        if name not in names:
            _refuse(f"unknown parameter {name!r:.60}; there are {', '.join(names) or 'none'}")
        if name in found:
            _refuse(f"parameter {name} must be there once")
        found[name] = value
    return found


def reviewer_name(headers: Headers) -> str | None:
    """The header that names the reviewer, as it is.

    Raises:
        Refusal: it is there twice.
    """
    found = headers.getlist(REVIEWER_HEADER)
    if len(found) > 1:
        _refuse(f"{REVIEWER_HEADER} must be there once, got {len(found)}")
    return found[0] if found else None
