from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import UsageError
from sightline.index.filter_sql import as_number, to_sql
from sightline.index.filters import And, Below, Compare, In, Not, Or, leaves, parse, show_leaf


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
        ("path below 'photos/2026' and not path BELOW 'x'", And((Below("photos/2026"), Not(Below("x"))))),
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
        ("path below 3", "expected a folder in quotes"),
        ("camera below 'x'", "expected one of = != < <= > >= in"),
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


def test_leaves_say_what_is_spared() -> None:
    found = list(leaves(parse("a = 1 and (not b in [2] or id != 3) and not not path = 'x' and not c > 4")))
    assert [(show_leaf(leaf), spared) for leaf, spared in found] == [
        ("a = 1", False),
        ("b in [2]", True),
        ("id = 3", True),
        ('path = "x"', False),
        ("c > 4", True),
    ]


@pytest.mark.parametrize(
    "text", ['a = "it\'s \\"x\\""', "`my key` in [1, null, true]", 'path below "x"', "a.b != 0.5", "`in` >= 3", "a not in [2]"]
)
def test_a_comparison_is_shown_as_it_is_read(text: str) -> None:
    (leaf, spared) = next(leaves(parse(text)))
    shown = parse(show_leaf(leaf, spared=spared))
    assert list(leaves(shown)) == [(leaf, spared)]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("01", 1), ("-7", -7), ("+2", 2), ("1.0", 1.0), (".5", 0.5), ("1e3", 1000.0), ("9007199254740993", 9007199254740993)]
    + [(text, None) for text in ("", "1a", " 1", "1_000", "0x1", "inf", "nan", "1e999", "\u0661", "-", ".", "1,5", None, 3)],
)
def test_what_reads_as_a_number(text: object, number: float | None) -> None:
    assert as_number(text) == number
    assert type(as_number(text)) is type(number)


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
