from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import UsageError
from sightline.index.filters import And, Compare, In, Not, Or, keys, parse, to_sql


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera = 3", Compare("camera", "=", 3)),
        ("camera == -3", Compare("camera", "=", -3)),
        ("price >= 1.5e2", Compare("price", ">=", 150.0)),
        ("a <> null", Compare("a", "!=", None)),
        ("ok = TRUE", Compare("ok", "=", True)),
        (r"""name = 'it\'s "x" \\'""", Compare("name", "=", 'it\'s "x" \\')),
        ("`my key` in ['a', 2, null]", In("my key", ("a", 2, None))),
        ("tag not in []", Not(In("tag", ()))),
        ("a = 1 or b = 2 and not c = 3", Or((Compare("a", "=", 1), And((Compare("b", "=", 2), Not(Compare("c", "=", 3))))))),
        ("(a = 1 OR b = 2) AND c = 3", And((Or((Compare("a", "=", 1), Compare("b", "=", 2))), Compare("c", "=", 3)))),
        ("taken.at-utc<'2026'", Compare("taken.at-utc", "<", "2026")),
    ],
)
def test_parse(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: expected a metadata key"),
        ("camera", "character 7: expected one of"),
        ("camera = ", "character 10: expected a value"),
        ("tag = cat", 'character 7: expected a value; text goes in quotes: "cat"'),
        ('tag = "cat', "character 7: a text is not closed"),
        ("a = 1 && b = 2", "character 7: '&' means nothing here"),
        ("(a = 1", "opened at character 1 is not closed"),
        ("a = 1 b = 2", "character 7: expected 'and', 'or' or the end"),
        ("a in 3", "character 6: expected a list"),
        ("a in [1,]", "character 9: expected a value"),
        ("a not 3", "character 7: expected 'in'"),
        ("a = 3x", "character 5"),
        ("a = 99999999999999999999", "at most 64 bits"),
        ("a > null", "null has no order"),
        ("path = 3", "a path is text"),
        ('id = "3"', "an id is a number"),
        ("not " * 80 + "a = 1", "nested more than"),
        (" or ".join(["a = 1"] * 500), "more than 400 comparisons"),
        ("and = 3", "expected a metadata key"),
    ],
)
def test_what_cannot_be_read_is_explained_at_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sql_holds_nothing_that_was_written() -> None:
    text, values = to_sql(parse("""`x"; DROP TABLE items; --` = "'; DROP TABLE items; --" and path != "a' OR 1=1" """))
    assert "DROP" not in text
    assert "OR 1=1" not in text
    assert values == ['x"; DROP TABLE items; --', "'; DROP TABLE items; --", "a' OR 1=1"]


def test_keys_leaves_out_what_is_built_in() -> None:
    assert list(keys(parse("a = 1 and (not b in [2] or id = 3) and path = 'x'"))) == ["a", "b"]


@settings(max_examples=200, deadline=None)
@given(st.text("ab=<>!()[],.'\"\\`0123456789 -eandorti\n", max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    refused = ""
    try:
        sql, values = to_sql(parse(text))
    except UsageError as error:
        refused = str(error)
    assert "\n" not in refused
    assert refused or sql.count("?") == len(values)
