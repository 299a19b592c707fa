import json
import re
from typing import Any

import pytest

from manifests.diff import KINDS
from review import event, query
from review.server import STATIC

FILES = sorted(path for path in STATIC.iterdir() if path.is_file())
MARKUP = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "DOMParser",
    "eval(",
    "new Function",
    "srcdoc",
)


def test_the_page_is_made_of_files_that_the_server_knows() -> None:
    assert {path.suffix for path in FILES} == {".html", ".css", ".js"}
    assert all(len(path.read_text().splitlines()) < 500 for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_text_becomes_markup_and_no_other_host_is_named(path) -> None:
    text = path.read_text()
    assert not [word for word in MARKUP if word in text]
    assert set(re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z.]+[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\sstyle=|\son[a-z]+=\"|<script>|<style>|[{,]\s*style:", text)


def test_every_module_that_is_imported_is_there() -> None:
    names = {path.name for path in FILES}
    for path in FILES:
        found = set(re.findall(r"from \"\./([^\"]+)\"", path.read_text()))
        assert found <= names, path.name
    wanted = re.findall(r"/static/([a-z.]+)", (STATIC / "index.html").read_text())
    assert set(wanted) == {"app.js", "style.css"}


def literal(name: str, what: str) -> Any:
    """The value that a script gives to a name: lists and objects of texts."""
    text = (STATIC / name).read_text()
    found = re.search(rf"^(?:export )?const {what} = (.*?);$", text, re.MULTILINE | re.DOTALL)
    assert found, f"{name} has no {what}"
    keyed = re.sub(r"(\w+):", r'"\1":', found[1])
    return json.loads(re.sub(r",(\s*[\]}])", r"\1", keyed))


def test_the_page_filters_by_the_words_and_numbers_that_the_server_knows() -> None:
    assert {key: set(words) for key, words in literal("filter.js", "LISTS").items()} == {
        key: set(words) for key, words in query.WORDS.items()
    }
    assert sorted(literal("filter.js", "NUMBERS")) == sorted(query.NUMBERS)


def test_the_page_offers_the_verdicts_and_differences_that_the_server_knows() -> None:
    text = (STATIC / "decide.js").read_text()
    assert tuple(re.findall(r"verdict: \"(\w+)\", key: \"\w\"", text)) == event.VERDICTS
    assert set(re.findall(r"record\(\"(\w+)\"\)", (STATIC / "tasks.js").read_text())) == set(event.TASK_VERDICTS)
    assert {kind for kind, _ in literal("compare.js", "KINDS")} == set(KINDS)
