"""Every engine of the catalog answers as a dict and a matrix product do."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline import catalog
from sightline.contracts import Ranking
from sightline.errors import IndexStoreError, UsageError
from sightline.index.base import Index, Item
from sightline.index.filters import And, Compare, Filter, In, Not, Or, parse
from sightline.index.header import HEADER
from sightline.index.items import Brought, Source
from sightline.index.writer import Limits

DIM = 16
SMALL = Limits(log_rows=400, ann_rows=500, exact_rows=20, tidy_rows=1_200, walk_cost=0)
OPTIONS: dict[str, dict[str, Any]] = {
    "local": {"limits": SMALL},
    "local, IVF": {"limits": dataclasses.replace(SMALL, ivf_rows=500)},
    "local, exact": {},
    "patches": {"limits": SMALL},
    "patches, IVF": {"limits": dataclasses.replace(SMALL, ivf_rows=500)},
}

Make = Callable[[Path], Index]


def unit(vectors: np.ndarray) -> np.ndarray:
    # In numbers that float16 has, for engines that store these: what comes back can then be held to be the same bit for bit.
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def pictures(num: int, seed: int = 0) -> tuple[list[Item], np.ndarray]:
    random = np.random.default_rng(seed)
    items = [
        Item(
            f"{seed}/{row:05d}.jpg",
            {"camera": row % 14, "tag": f"t{row % 50}", "price": row / 7} | ({"rare": True} if row % 3 == 0 else {}),
            row,
            row * 10,
        )
        for row in range(num)
    ]
    surface = np.random.default_rng(99).normal(size=(4, DIM))  # one for all seeds: queries come from where the items do
    return items, unit(random.normal(size=(num, 4)) @ surface + 0.3 * random.normal(size=(num, DIM)))


def alike(have: Any, value: Any, *, ordered: bool) -> tuple[Any, Any]:
    """Return what is compared: a text that reads as a number is one beside a number, and true is 1."""
    if isinstance(have, str) and isinstance(value, bool) and have in ("true", "True", "TRUE", "false", "False", "FALSE") and not ordered:
        return have.lower() == "true", value
    if isinstance(have, str) == isinstance(value, str) or isinstance(value, bool) or have is None or value is None:
        return have, value
    text = have if isinstance(have, str) else value
    number = float(text) if re.fullmatch(r"[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)", text) else None
    if number is None and text is value and text.lower() in ("true", "false"):
        number = float(text.lower() == "true")
    return (have, value) if number is None else (number, value) if text is have else (have, number)


def matches(where: Filter, item: Item, id: int) -> bool:
    """Say what a filter means, in Python."""
    match where:
        case And(parts):
            return all(matches(part, item, id) for part in parts)
        case Or(parts):
            return any(matches(part, item, id) for part in parts)
        case Not(part):
            return not matches(part, item, id)
        case In(key, values):
            return any(matches(Compare(key, "=", value), item, id) for value in values)
        case Compare(key, operator, value):
            have = {"id": id, "path": item.path, **item.metadata}.get(key)
            have, value = alike(have, value, ordered=operator not in ("=", "!="))
            if operator in ("=", "!="):
                return (have == value) == (operator == "=")
            if have is None or isinstance(have, str) != isinstance(value, str):
                return False
            return {"<": have < value, "<=": have <= value, ">": have > value, ">=": have >= value}[operator]


class Model:
    """What an index must agree with."""

    def __init__(self) -> None:
        self.items: dict[str, tuple[int, Item, np.ndarray]] = {}

    def put(self, ids: np.ndarray, items: list[Item], vectors: np.ndarray) -> None:
        for id, item, vector in zip(ids.tolist(), items, vectors, strict=True):
            if item.path in self.items:
                assert self.items[item.path][0] == id
            self.items[item.path] = (id, item, vector)

    def search(self, queries: np.ndarray, k: int, where: Filter | None) -> np.ndarray:
        kept = [(id, vector) for id, item, vector in self.items.values() if where is None or matches(where, item, id)]
        found = np.full((len(queries), k), -1)
        if kept:
            ids = np.array([id for id, _ in kept])
            similarity = np.einsum("qd,md->qm", queries, np.stack([vector for _, vector in kept]))
            order = np.lexsort((np.broadcast_to(ids, similarity.shape), -similarity), axis=1)[:, :k]
            found[:, : order.shape[1]] = ids[order]
        return found


def recall(found: Ranking, truth: np.ndarray) -> float:
    shares = [
        len({*a} & {*b}) / len({*b}) for a, b in zip(found.rows.tolist(), truth.tolist(), strict=True)
    ]  # pads are found when both have them
    return float(np.mean(shares))


@pytest.fixture(params=list(OPTIONS))
def make(request: pytest.FixtureRequest) -> Callable[..., Index]:
    engine, options = request.param.partition(",")[0], OPTIONS[request.param]

    def made(path: Path, **more: Any) -> Index:
        return Index.create(path, dim=DIM, fingerprint="f" * 64, engine=engine, **options, **more)

    return made


@pytest.fixture
def filled(make: Callable[..., Index], tmp_path: Path) -> Any:
    items, vectors = pictures(1_500)
    with make(tmp_path / "index") as index:
        model = Model()
        for start in range(0, len(items), 250):
            part = slice(start, start + 250)
            model.put(index.upsert(items[part], vectors[part]), items[part], vectors[part])
        index.seal()
        more, more_vectors = pictures(100, seed=1)
        model.put(index.upsert(more, more_vectors), more, more_vectors)
        yield index, model


def test_every_engine_of_the_catalog_is_tested() -> None:
    assert {name.partition(",")[0] for name in OPTIONS} == set(catalog.INDEX_ENGINES)


FILTERS = [
    None,
    "camera != 3",
    'tag = "t7"',
    'camera in [1, 2, null] and not (price >= 100) or path < "0/00010.jpg"',
    "rare = true and price > 30.5",
    "rare = null",
    "id in [3, 5, 1550]",
    'tag = "nobody"',
    'camera < "3"',
]


@pytest.mark.parametrize("where", FILTERS)
def test_search_agrees_with_brute_force(filled: Any, where: str | None) -> None:
    index, model = filled
    parsed = parse(where) if where else None
    queries = pictures(40, seed=9)[1]
    truth = model.search(queries, 10, parsed)
    exact = index.search(queries, 10, where=where, exact=True)
    assert np.array_equal(exact.rows, truth)
    found = index.search(queries, 10, where=where)
    assert recall(found, truth) >= 0.97
    assert np.array_equal((found.rows >= 0).sum(axis=1), (truth >= 0).sum(axis=1))
    assert np.all(np.diff(np.nan_to_num(found.similarity, neginf=-9), axis=1) <= 0)
    assert index.count(where) == sum(parsed is None or matches(parsed, item, id) for id, item, _ in model.items.values())


NUM_CLASSES, NUM_ANCHORS = 5, 4


@pytest.fixture
def classified(make: Make, tmp_path: Path) -> Any:
    """Items whose metadata have to do with their vectors: their class, and how many of all are closer to some of the queries."""
    random = np.random.default_rng(3)
    centres = unit(random.normal(size=(NUM_CLASSES, DIM)))
    label = random.integers(0, NUM_CLASSES, 1_540)
    vectors = unit(0.9 * centres[label] + 0.44 * unit(random.normal(size=(len(label), DIM))))
    vectors, queries, label, asked = vectors[:1_500], vectors[1_500:], label[:1_500], label[1_500:]
    closer = np.argsort(np.argsort(-(queries[:NUM_ANCHORS] @ vectors.T), axis=1), axis=1)
    items = [
        Item(
            f"{row:05d}.jpg",
            {"label": f"c{label[row]}", "odd": row % 2} | {f"closer{of}": int(closer[of, row]) for of in range(NUM_ANCHORS)},
        )
        for row in range(len(vectors))
    ]
    with make(tmp_path / "index") as index:
        model = Model()
        model.put(index.upsert(items, vectors), items, vectors)
        index.seal()
        yield index, model, queries, asked


CORRELATED = {
    "own class excluded": lambda query, asked: f'label != "c{asked[query]}"',
    "own class excluded, half of the rest": lambda query, asked: f'label != "c{asked[query]}" and odd = 1',
    "another class": lambda query, asked: f'label = "c{(asked[query] + 1) % NUM_CLASSES}"',
    "own class": lambda query, asked: f'label = "c{asked[query]}"',
} | {
    f"nearest {num} excluded": lambda query, asked, num=num: f"closer{query % NUM_ANCHORS} >= {num}"
    for num in (15, 75, 300, 900)
}  # fmt: skip


@pytest.mark.parametrize("kind", CORRELATED)
def test_filters_that_have_to_do_with_the_query_find_what_is_nearest(classified: Any, kind: str) -> None:
    index, model, queries, asked = classified
    for k in (1, 10, 100):
        shares = []
        for query in range(NUM_ANCHORS * 3 if kind.startswith("nearest") else len(queries)):
            vector = queries[query % NUM_ANCHORS if kind.startswith("nearest") else query][None]
            where = CORRELATED[kind](query, asked)
            shares.append(recall(index.search(vector, k, where=where), model.search(vector, k, parse(where))))
        assert np.mean(shares) >= 0.99


def test_an_answer_tells_how_it_was_found(classified: Any, request: pytest.FixtureRequest) -> None:
    index, _, queries, asked = classified
    where = f'label != "c{asked[0]}"'
    own = np.flatnonzero(asked == asked[0])
    found = index.search(queries, 10, where=where)
    others = [how for query, how in enumerate(found.how) if query not in own]
    if request.node.callspec.params["make"] == "local, exact":
        assert set(found.how) == {"exact"}
    else:
        assert {found.how[query] for query in own} == {"exact"}, "what is around these is left out: no walk may answer them"
        assert others.count("approximate") > len(others) / 2, "the search structure is asked, or this suite tests nothing"
        assert set(index.search(queries, 10).how) == {"approximate"}
        some = index.search(queries[:NUM_ANCHORS], 10, where="closer0 >= 40").how
        assert some[0] == "approximate, widened"
    assert set(index.search(queries, 10, exact=True).how) == {"exact"}
    assert [hits.how for hits in index.hits(found)] == list(found.how)


def test_many_answers_are_as_good_as_ten(filled: Any) -> None:
    index, model = filled
    queries = pictures(20, seed=9)[1]
    assert recall(index.search(queries, 200), model.search(queries, 200, None)) >= 0.97
    assert index.search(queries[:0], 7).rows.shape == (0, 7)
    assert index.search(queries, 2_000).rows.max(axis=0)[1_600] == -1


def test_items_come_back_as_they_were_given(filled: Any) -> None:
    index, model = filled
    for id, item, vector in list(model.items.values())[::97]:
        assert index.get(id) == item
        assert index.vector(id).tobytes() == vector.tobytes()
    some = {id: vector for id, _, vector in list(model.items.values())[::5]}
    found, vectors = index.vectors([*some, *some, 10**9])  # twice, and one that is not there
    assert found.tolist() == sorted(some)
    assert vectors.tobytes() == np.stack([some[id] for id in sorted(some)]).tobytes()
    assert index.vectors([])[1].shape == (0, DIM)
    path, (_, item, _) = next(iter(model.items.items()))
    known = index.known()[path, None]
    assert (known.size_bytes, known.mtime_ns, known.content_sha256, known.digest) == (item.size_bytes, item.mtime_ns, None, item.digest)
    assert model.items[path][0] == known.id
    assert len(index.known()) == index.count() == len(model.items)


def test_hits_carry_path_similarity_and_metadata(filled: Any) -> None:
    index, model = filled
    ranking = index.search(pictures(2, seed=9)[1], 3)
    answers = index.hits(ranking)
    assert [[hit.id for hit in hits] for hits in answers] == ranking.rows.tolist()
    assert dict(answers[0][0].metadata) == model.items[answers[0][0].path][1].metadata
    index.remove(ids=[answers[0][0].id])
    assert len(index.hits(ranking)[0]) == 2


def test_removed_items_never_answer(filled: Any) -> None:
    index, model = filled
    queries = pictures(30, seed=9)[1]
    gone = index.search(queries, 1).rows[:, 0]
    assert index.remove(ids=gone) == len(set(gone.tolist()))
    model.items = {path: entry for path, entry in model.items.items() if entry[0] not in set(gone.tolist())}
    assert not set(gone.tolist()) & set(index.search(queries, 20).rows.ravel().tolist())
    assert index.remove(paths=["nowhere.jpg"]) == 0
    assert index.remove(where="camera in [0, 1, 2, 3, 4, 5]") > 500
    model.items = {path: entry for path, entry in model.items.items() if entry[1].metadata["camera"] > 5}
    assert np.array_equal(index.search(queries, 10, exact=True).rows, model.search(queries, 10, None))
    assert recall(index.search(queries, 10), model.search(queries, 10, None)) >= 0.97
    index.compact()
    assert np.array_equal(index.search(queries, 10, exact=True).rows, model.search(queries, 10, None))
    assert index.info().dead_rows == 0
    assert index.verify() == []
    with pytest.raises(IndexStoreError, match="no item"):
        index.get(int(gone[0]))
    with pytest.raises(IndexStoreError, match="no item"):
        index.vector(int(gone[0]))


def test_an_updated_item_keeps_its_id_and_has_only_its_new_vector(filled: Any) -> None:
    index, model = filled
    path, (id, _, vector) = next(iter(model.items.items()))
    changed = Item(path, {"camera": 99})
    assert index.upsert([changed], -vector[None]).tolist() == [id]
    assert index.get(id) == changed
    assert index.vector(id).tobytes() == (-vector).tobytes()
    assert index.search(vector[None], 5).rows[0, 0] != id
    assert index.search(-vector[None], 1, where="camera = 99").rows.tolist() == [[id]]
    assert index.count('tag = "t0"') == sum(entry[1].metadata["tag"] == "t0" for entry in model.items.values()) - 1
    index.seal()
    assert index.vector(id).tobytes() == (-vector).tobytes()


def test_of_items_with_one_path_the_last_counts(make: Make, tmp_path: Path) -> None:
    vectors = pictures(3)[1]
    with make(tmp_path / "index") as index:
        ids = index.upsert([Item("a"), Item("b"), Item("a", {"x": 1})], vectors)
        assert ids[0] == ids[2] != ids[1]
        assert index.count() == 2
        assert index.vector(int(ids[0])).tobytes() == vectors[2].tobytes()
        assert index.upsert([], np.empty((0, DIM), np.float32)).tolist() == []


def test_boxes_of_a_picture_are_items_and_go_together_by_path(make: Make, tmp_path: Path) -> None:
    vectors = pictures(4)[1]
    boxes = [None, (0, 0, 4, 4), (0.5, 0, 4, 4), (0.0, -0.0, 4.0, 4.0)]
    with make(tmp_path / "index") as index:
        ids = index.upsert([Item("a.jpg", {"n": n}, box=box) for n, box in enumerate(boxes)], vectors)
        assert ids[1] == ids[3]
        assert len(set(ids.tolist())) == 3
        assert set(index.known()) == {("a.jpg", None), ("a.jpg", (0, 0, 4, 4)), ("a.jpg", (0.5, 0, 4, 4))}
        index.seal()
        (hits,) = index.hits(index.search(vectors[2:3], 1))
        assert (hits[0].id, hits[0].box, hits[0].metadata) == (ids[2], (0.5, 0, 4, 4), {"n": 2})
        assert index.get(int(ids[1])) == Item("a.jpg", {"n": 3}, box=(0, 0, 4, 4))
        assert index.remove(paths=["a.jpg"]) == 3
    for wrong in ((0, 0, 0, 4), (0, 0, 4), (0, 0, float("nan"), 4), (5, 0, 4, 4)):
        with pytest.raises(IndexStoreError, match="cannot have the box"):
            Item("a.jpg", box=wrong)  # type: ignore[arg-type]


def test_an_update_changes_all_but_the_vector(make: Make, tmp_path: Path) -> None:
    vectors = pictures(3)[1]
    with make(tmp_path / "index") as index:
        ids = index.upsert([Item("a", {"x": 1}), Item("b", {"x": 2}), Item("c")], vectors)
        index.seal()
        with Index.open(tmp_path / "index", read_only=True) as reader:
            assert reader.count("x = 1") == 1
            index.update([int(ids[0])], [Item("d", {"x": 5, "y": "z"}, 7, 8, "hash", (0, 0, 1, 1))])
            assert reader.count("x = 1") == 0
            assert reader.search(vectors[:1], 1, where="x = 5").rows.tolist() == [[ids[0]]]
        assert index.get(int(ids[0])) == Item("d", {"x": 5, "y": "z"}, 7, 8, "hash", (0, 0, 1, 1))
        assert index.vector(int(ids[0])).tobytes() == vectors[0].tobytes()
        for which, item, told in ((ids[0], Item("b"), "another item has"), (99, Item("e"), "no item 99")):
            with pytest.raises(IndexStoreError, match=told):
                index.update([int(which)], [item])
        assert index.count("x = 5") == 1
        assert index.verify() == []


def test_sources_tell_who_brought_what(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "index") as index:
        one, two, three = index.upsert([Item("a"), Item("b"), Item("c")], pictures(3)[1]).tolist()
        assert index.sources() == []
        index.claim("/photos", "/photos", {one: Brought("a"), two: Brought("x/b", own_device=False)})
        index.claim("/m.csv", "/", {two: Brought("b")})
        index.claim("/photos", "/other", {one: Brought("y/a")})
        assert index.sources() == [
            Source("/photos", "/other", {one: Brought("y/a"), two: Brought("x/b", own_device=False)}),
            Source("/m.csv", "/", {two: Brought("b")}),
        ]
        assert index.ids('path in ["y/a", "c"]').tolist() == [one, three]
        assert index.ids('path below "x"').tolist() == [two]
        index.disclaim([two], "/photos")
        index.remove(ids=[one])
        assert index.sources() == [Source("/photos", "/other", {}), Source("/m.csv", "/", {two: Brought("b")})]
        index.disclaim([two])
        assert index.sources() == []
    with Index.open(tmp_path / "index", read_only=True) as index, pytest.raises(IndexStoreError, match="reading only"):
        index.claim("/photos", "/", {two: Brought("b")})


def test_equal_similarities_put_the_lower_id_first(make: Make, tmp_path: Path) -> None:
    items, vectors = pictures(700)
    vectors[:] = vectors[0]
    with make(tmp_path / "index") as index:
        ids = index.upsert(items, vectors)
        index.seal()
        index.upsert([items[3]], vectors[:1])  # now in the log, under its old id
        assert index.search(vectors[:5], 6, exact=True).rows.tolist() == [sorted(ids.tolist())[:6]] * 5


def test_an_empty_index_answers(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "index") as index:
        index.seal()
        index.compact()
        ranking = index.search(pictures(2)[1], 3, where="camera = 3")
        assert ranking.rows.tolist() == [[-1] * 3] * 2
        assert [len(hits) for hits in index.hits(ranking)] == [0, 0]
        assert index.search(np.empty((0, DIM), np.float32), 3).rows.shape == (0, 3)
        assert (index.count(), index.known(), index.verify(), index.info().rows) == (0, {}, [], 0)


def test_it_opens_again_and_readers_see_the_writer(make: Make, tmp_path: Path) -> None:
    items, vectors = pictures(900)
    with make(tmp_path / "index", model="timm:some_vit") as index:
        index.upsert(items[:800], vectors[:800])
        with Index.open(tmp_path / "index", read_only=True) as reader:
            assert reader.count() == 800
            [id] = index.upsert(items[800:801], vectors[800:801])
            assert reader.search(vectors[800:801], 1).rows.tolist() == [[id]]
            index.seal()
            assert reader.search(vectors[800:801], 1).rows.tolist() == [[id]]
            index.remove(ids=[id])
            assert reader.search(vectors[800:801], 1).rows.tolist() != [[id]]
            index.compact()
            assert reader.search(vectors[5:6], 1).rows.tolist() == index.ids('path = "0/00005.jpg"')[None].tolist()
            with pytest.raises(IndexStoreError, match="reading only"):
                reader.remove(ids=[1])
            with pytest.raises(IndexStoreError, match="another program is writing"):
                Index.open(tmp_path / "index")
    with Index.open(tmp_path / "index", fingerprint="f" * 64) as index:
        assert index.count() == 800
        assert index.info().model == "timm:some_vit"
        [again] = index.upsert(items[800:801], vectors[800:801])
        assert again > id  # the id of a removed item is not given to another


def test_wrong_use_is_explained(make: Make, tmp_path: Path) -> None:
    items, vectors = pictures(5)
    path = tmp_path / "index"
    with make(path) as index:
        index.upsert(items, vectors)
        for wrong in (vectors[:, :8], vectors.astype(np.float64), vectors * 2, vectors * np.nan):
            with pytest.raises(IndexStoreError):
                index.upsert(items, wrong)
            with pytest.raises(IndexStoreError):
                index.search(wrong, 1)
        with pytest.raises(IndexStoreError, match="5 items came with 3"):
            index.upsert(items, vectors[:3])
        for k in (0, -1, 10**9):
            with pytest.raises(UsageError, match="answers"):
                index.search(vectors, k)
        with pytest.raises(UsageError, match="in one way"):
            index.remove()
        with pytest.raises(UsageError, match="did you mean 'camera'"):
            index.search(vectors, 1, where="camrea = 3")
        with pytest.raises(UsageError, match="character 8"):
            index.count("camera 3")
        assert index.count() == 5
    with pytest.raises(IndexStoreError, match="already holds an index"):
        make(path)
    with pytest.raises(IndexStoreError, match="not of aaaa"):
        Index.open(path, fingerprint="a" * 64)
    with pytest.raises(IndexStoreError, match="no index at"):
        Index.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match="unknown index engine"):
        Index.create(tmp_path / "other", dim=3, fingerprint="x", engine="locl")
    header = json.loads((path / HEADER).read_text())
    (path / HEADER).write_text(json.dumps(header | {"format": 7}))
    with pytest.raises(IndexStoreError, match="format 7"):
        Index.open(path)


@pytest.mark.parametrize(
    "wrong", [{"path": 3}, {"": 1}, {"x": float("nan")}, {"x": 2**63}, {"x": [1]}, {"x": "\udc80"}, {"a`b": 1}, {"x": np.int64(3)}]
)
def test_metadata_that_cannot_be_filtered_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(IndexStoreError, match="metadata"):
        Item("a.jpg", wrong)


@pytest.fixture
def numbered(make: Make, tmp_path: Path) -> Any:
    labels = ["1", "1", "01", "1.0", "2", "10", "cup"]
    facts = [
        {"label": label, "camera": row if row < 4 else f"gate {row}", "price": row / 2, "ok": row > 2} for row, label in enumerate(labels)
    ]
    with make(tmp_path / "index") as index:
        index.upsert([Item(f"{row}.jpg", fact | {"tag": f"tag {row}"}) for row, fact in enumerate(facts)], pictures(len(facts))[1])
        yield index


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("label = 1", {0, 1, 2, 3}),
        ("label != 1", {4, 5, 6}),
        ('label = "1"', {0, 1}),
        ('label != "1"', {2, 3, 4, 5, 6}),
        ("label in [1.0, 10]", {0, 1, 2, 3, 5}),
        ("label not in [1, 2, 10]", {6}),
        ("label >= 2", {4, 5}),
        ("label > 1 and label < 10", {4}),
        ("label <= 1.5", {0, 1, 2, 3}),
        ("not label < 2", {4, 5, 6}),
        ('camera = "3"', {3}),
        ('camera < "2"', {0, 1}),
        ('camera = "gate 5"', {5}),
        ('camera != "gate 5"', {0, 1, 2, 3, 4, 6}),
        ("ok = true", {3, 4, 5, 6}),
        ("ok = 0", {0, 1, 2}),
        ('ok = "true"', {3, 4, 5, 6}),
        ('price = "1.5"', {3}),
        ('price >= "2"', {4, 5, 6}),
    ],
)
def test_numbers_meet_texts_that_read_as_numbers(numbered: Index, where: str, rows: set[int]) -> None:
    assert {numbered.get(id).path for id in numbered.ids(where)} == {f"{row}.jpg" for row in rows}


@pytest.mark.parametrize("where", ["tag = 1", "tag != 1", "tag >= 2", "tag in [3]", 'not tag in ["tag 1", 3]', "tag = true", "tag < false"])
def test_a_comparison_that_no_item_can_meet_is_refused(numbered: Index, where: str) -> None:
    for act in (numbered.count, numbered.ids, lambda where: numbered.remove(where=where)):
        with pytest.raises(UsageError, match=r"no tag in the index is (a number|true or false).*; (did you mean|choose one of).*tag \d"):
            act(where)
    assert numbered.count() == 7


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_either_unicode_form_are_one_text(make: Make, tmp_path: Path, form: str) -> None:
    def name(text: str, form: str) -> str:
        return unicodedata.normalize(form, text)

    with make(tmp_path / "index") as index:
        items = [Item(f"/{name('café', own)}/{own}.jpg", {"label": name("café", own)}) for own in ("NFC", "NFD")]
        index.upsert([*items, Item("/tea/a.jpg", {"label": "tea"})], pictures(3)[1])
        for where in ('label = "café"', 'label in ["café", "mate"]', 'path below "/café"', 'path in ["/café/NFC.jpg", "/café/NFD.jpg"]'):
            assert [index.get(id).path[-7:] for id in index.ids(name(where, form))] == ["NFC.jpg", "NFD.jpg"], where
        assert [index.get(id).path for id in index.ids(name('label != "café"', form))] == ["/tea/a.jpg"]
        assert index.absent(name('label != "café"', form)) == []


def test_a_text_beside_numbers_alone_is_refused(numbered: Index) -> None:
    for where in ('price = "cheap"', 'price != "cheap"', 'price > "x"', 'price not in ["cheap"]'):
        with pytest.raises(UsageError, match=r"no price in the index is a text.*it goes from 0 to 3"):
            numbered.count(where)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ('label = "cupp"', "no item has label = \"cupp\"; did you mean 'cup'?"),
        ('label in ["cupp", "cup"] and price > 9', "no item has price > 9: it goes from 0 to 3"),
        ("price = 1.7", "no item has price = 1.7: the nearest are 1.5 and 2"),
        ("price = 12", "no item has price = 12: it goes from 0 to 3"),
        ('label = "cup" and price = 0', "no item meets them together"),
        ('path = "x/3.jpeg"', 'no item has path = "x/3.jpeg": paths are such as'),
        ("id = 999", "no item has id = 999: ids go from 1 to 7"),
    ],
)
def test_why_nothing_matches_is_told_with_the_nearest_values(numbered: Index, where: str, told: str) -> None:
    assert numbered.count(where) == 0
    assert told in numbered.why_none(where)


def test_what_a_filter_names_in_vain_is_told(numbered: Index) -> None:
    found = numbered.absent('label in ["cup", "mug"] and camera != "gate 9" and price > 1 and path != "a"')
    assert [one.spares for one in found] == [False, True, True]
    assert 'no item has label = "mug"' in found[0].told
    assert 'no item has camera = "gate 9", so camera != "gate 9" leaves nothing out; did you mean' in found[1].told


PATHS = st.integers(0, 30).map("p{}".format)
KEYS = st.sampled_from(["a", "b c", 'q"', "ü"])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(-3, 3, width=16),
    st.text("aZé'\"\\%_01.-", max_size=2),
    st.sampled_from([0.1, 2**62, 1e300, "true", "False", "02", "1.0"]),
)
COMPARISONS: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Compare, KEYS, st.sampled_from(["=", "!="]), VALUES),
    st.builds(Compare, KEYS, st.sampled_from(["<", "<=", ">", ">="]), VALUES.filter(lambda value: value is not None)),
    st.builds(In, KEYS, st.lists(VALUES, max_size=3).map(tuple)),
    st.builds(Compare, st.just("path"), st.sampled_from(["=", "!=", "<", ">="]), PATHS),
)
WHERE = st.recursive(
    COMPARISONS,
    lambda part: st.one_of(st.builds(Not, part), *(st.builds(kind, st.lists(part, max_size=3).map(tuple)) for kind in (And, Or))),
    max_leaves=5,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.tuples(PATHS, st.dictionaries(KEYS, VALUES, max_size=3)), max_size=12), st.integers(0, 99)),
        st.tuples(st.just("remove"), st.lists(PATHS, max_size=8)),
        st.tuples(st.just("remove where"), WHERE),
        st.tuples(st.sampled_from(["seal", "compact", "open again"])),
    ),
    min_size=3,
    max_size=10,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS, where=WHERE)
def test_any_history_leaves_what_a_dict_would_hold(
    make: Make, tmp_path_factory: pytest.TempPathFactory, steps: list[Any], where: Filter
) -> None:
    path, model = tmp_path_factory.mktemp("model") / "index", Model()
    index = make(path)
    reader = Index.open(path, read_only=True)
    # So that no key is unknown, and no value of a kind that no item has.
    anchors = [Item(name, dict.fromkeys(["a", "b c", 'q"', "ü"], value)) for name, value in (("anchor 0", 0), ("anchor 1", "true"))]
    start = unit(np.random.default_rng(7).normal(size=(2, DIM)))
    model.put(index.upsert(anchors, start), anchors, start)
    for step in steps:
        match step:
            case ("put", pairs, seed):
                items = [Item(name, metadata) for name, metadata in dict(pairs).items()]
                vectors = unit(np.random.default_rng(seed).normal(size=(len(items), DIM)))
                model.put(index.upsert(items, vectors), items, vectors)
            case ("remove", names):
                assert index.remove(paths=names) == len({*names} & model.items.keys())
                model.items = {name: entry for name, entry in model.items.items() if name not in names}
            case ("remove where", gone):
                kept = {
                    name: entry for name, entry in model.items.items() if name.startswith("anchor") or not matches(gone, entry[1], entry[0])
                }
                assert index.remove(where=And((gone, Not(In("path", ("anchor 0", "anchor 1")))))) == len(model.items) - len(kept)
                model.items = kept
            case ("open again",):
                index.close()
                index = Index.open(path)
            case (verb,):
                getattr(index, verb)()
        queries = unit(np.random.default_rng(5).normal(size=(3, DIM)))
        assert np.array_equal(reader.search(queries, 5).rows, model.search(queries, 5, None))
    assert np.array_equal(reader.search(queries, 5, where=where).rows, model.search(queries, 5, where))
    assert index.verify() == []
    assert {name: index.get(entry[0]) for name, entry in model.items.items()} == {name: entry[1] for name, entry in model.items.items()}
    reader.close()
    index.close()
