from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.errors import BundleError, ExportMismatchError
from dfs_deploy.io.text import first_line, one_line


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_any_text_becomes_one_line_that_a_terminal_can_show(text: str) -> None:
    shown = one_line(text, 100)
    assert len(shown) <= 100
    assert len(shown.splitlines()) <= 1
    assert all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp", "Cn", "Co") for character in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
    shown.encode("utf-8")
    assert one_line(shown, 100) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        ("red \x1b[31m", "red \\x1b[31m"),
        ("csi \x9b31m", "csi \\x9b31m"),
        ("a\nerror: forged\r", "a\\nerror: forged\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("line\u2028end", "line\\u2028end"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("tag \U000e0041", "tag \\U000e0041"),
    ],
)
def test_what_is_not_visible_is_escaped(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_long_text_keeps_its_end() -> None:
    shown = one_line("x" * 10**7 + "; export again")
    assert len(shown) == 1200
    assert shown.endswith("; export again")


def test_every_error_is_one_bounded_line() -> None:
    assert str(BundleError("a\x1b]0;title\x07\nb")) == "a\\x1b]0;title\\x07\\nb"
    assert len(str(BundleError("k" * 10**6))) == 1200
    assert ExportMismatchError("m", ["a\nb"]).mismatches == ("a\\nb",)


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one\x1b \ntwo")) == "one\\x1b"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(FileNotFoundError(2, "No such file", "x")) == "No such file"
