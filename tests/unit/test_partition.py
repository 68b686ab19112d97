"""Path templates turn keys into columns, and refuse what would be ambiguous."""

import pytest

from zsad.errors import ConfigError
from zsad.partition import PartitionTemplate


@pytest.mark.parametrize(
    ("template", "key", "expected"),
    [
        ("{line}/{date}/", "a/2026-03-01/x.png", {"line": "a", "date": "2026-03-01"}),
        ("{line}/{date}/", "a/2026-03-01/deep/er/x.png", {"line": "a", "date": "2026-03-01"}),
        ("line={line}/", "line=7/x.png", {"line": "7"}),
        ("raw.v1/{line}/", "raw.v1/7/x.png", {"line": "7"}),
        ("{line}/{part}-{view}.png", "a/x-1-2.png", {"line": "a", "part": "x", "view": "1-2"}),
        ("{line}/", "ü b/x.png", {"line": "ü b"}),
        ("{part}.png", "x.png.png", {"part": "x.png"}),
    ],
)
def test_fields_are_read_from_keys(template, key, expected):
    found = PartitionTemplate(template)
    assert found.match(key) == expected
    assert found.fields == tuple(expected)


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{line}/{date}/", "a/x.png"),
        ("{line}/{date}/", "x.png"),
        ("{line}/{date}/", "a//x.png"),
        ("raw.v1/{line}/", "rawxv1/7/x.png"),
        ("{part}.png", "x.png.bak"),
        ("{part}.png", "a/x.png"),
        ("{line}/", ""),
    ],
)
def test_other_keys_have_null_fields(template, key):
    assert set(PartitionTemplate(template).match(key).values()) == {None}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "no {field}"),
        ("line/", "no {field}"),
        ("{line}/{line}/", "twice"),
        ("{line}{camera}/", "between"),
        ("{line}/{camera/", "not balanced"),
        ("{line}}/", "not balanced"),
        ("{}/", "field name ''"),
        ("{Line}/", "field name 'Line'"),
        ("{a.b}/", "field name 'a.b'"),
        ("/{line}/", "can't begin with /"),
        ("".join(f"{{f{number}}}/" for number in range(17)), "limit is 16"),
    ],
)
def test_unusable_templates_are_refused_with_the_reason(template, words):
    with pytest.raises(ConfigError, match=words):
        PartitionTemplate(template)


def test_a_long_hostile_key_is_matched_in_time():
    template = PartitionTemplate("-".join(f"{{f{number}}}" for number in range(4)) + "/")
    assert template.match("-" * 1024)["f0"] is None
