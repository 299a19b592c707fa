"""What the tests of the review server share: the samples of their release, and how answers are looked at."""

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests.datacard import QUESTIONS
from tests.review import releases
from tests.review.client import Answer, Client

SAMPLES = releases.figures(48)
BY_ID = {sample.id: sample for sample in SAMPLES}
ANSWERS = {one.key: True if one.kind == "yes" else "said" for one in QUESTIONS}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """All rows of manifest/ and dropped/, by id, read the plain way."""
    paths = [*(folder / "manifest").glob("*.parquet"), *(folder / "dropped").glob("*.parquet")]
    return {row["sample_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def good(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json


def refused(answer: Answer, status: int, told: str) -> None:
    assert answer.status == status, answer.body
    assert told in answer.json["error"]
    assert answer.json["remedy"]


def until(ask: Any, done: Any) -> Any:
    deadline = time.monotonic() + 120
    while not done(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def checked(client: Client) -> Any:
    assert good(client.post("/api/integrity"))["state"] == "running"
    return until(lambda: good(client.get("/api/integrity")), lambda found: found["state"] != "running")
