"""Names that could write to a terminal, a log or the other way round are shown as escapes."""

import pytest

from zsad.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a b.png", "s3://bucket/a b.png"),
        ("größe/部品.png", "größe/部品.png"),
        ("a\nexit 0: done", "a\\nexit 0: done"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_can_not_be_seen_is_an_escape(text, shown):
    assert visible(text) == shown
