"""Texts of strangers: what is shown of them is what they are, on one line, and moves nothing."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.text import clean, cut

ANY = st.text(st.characters())


@given(ANY, st.booleans())
def test_what_is_shown_can_be_printed_and_encoded(text: str, numbered: bool) -> None:
    shown = clean(text, numbered=numbered)
    assert shown.isprintable()
    shown.encode()
    assert clean(shown) == shown


@given(ANY)
def test_every_letter_of_any_script_stays(text: str) -> None:
    for before, after in zip(text, clean(text), strict=True):
        assert before == after or unicodedata.category(before)[0] in "CZ"


@pytest.mark.parametrize(
    ("text", "shown", "numbered"),
    [
        ("\x1b[31mred\x07", "·[31mred·", "U+001B[31mredU+0007"),
        ("\u202etxt.exe", "·txt.exe", "U+202Etxt.exe"),
        ("\u2066a\u2069", "·a·", "U+2066aU+2069"),
        ("\ud800", "·", "U+D800"),
        ("\x9b2J", "·2J", "U+009B2J"),  # the escape sequence of one byte
        ("a\r\nb", "a··b", "aU+000DU+000Ab"),
        ("人 e\u0301", "人 e\u0301", "人 e\u0301"),
    ],
)
def test_what_steers_a_terminal_or_turns_the_writing_is_named(text: str, shown: str, numbered: str) -> None:
    assert clean(text) == shown
    assert clean(text, numbered=True) == numbered


@given(st.text(), st.integers(0, 20))
def test_a_cut_text_is_a_beginning_and_says_that_more_was_there(text: str, most: int) -> None:
    assert cut(text, most) == (text if len(text) <= most else text[:most] + "…")
