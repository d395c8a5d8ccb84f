"""Recall and speed of search with filters that have to do with the vectors and filters that have not, beside other engines.

    export OPENBLAS_NUM_THREADS=1                                 # one thread for the products too; FAISS's are set here
    python benchmarks/filtered_search.py                          # every set, graph and lists, with the peers
    python benchmarks/filtered_search.py --set classes-40000 --kind hnsw --no-peers
    python benchmarks/filtered_search.py --vectors photos.parquet # descriptors that `sightline embed` wrote; a picture's class is its folder
    python benchmarks/filtered_search.py --quick                  # 5,000 rows: whether it runs

"classes" has 40 classes whose members have a cosine of 0.8; "clustered" 4,000 clusters of Zipf-like sizes and a decaying spectrum,
in 40 classes by the place of their centres; "manifold" is a curved 24-dimensional surface without clusters, in 40 regions. Queries are drawn
like the rows and are not among them. "nearest N % out" leaves out the rows closest to one of four places, and is asked by the queries closest
to it. Of descriptors in a file one in twenty is held out to ask (at most 1,000), and a graph is built however few they are.
Recall is against exact search over the rows that the filter leaves; the process ends with 1 where a row of Sightline is below 0.99.

"a call each" is one query after the other on one thread, "together" all queries of a filter in one call on one thread, both with the filter
known; "first" is what a filter takes that was never asked before. Times are the processor's, since other programs may be running. How
answers were found is told by the answers. Each peer is given the least effort of a ladder that reaches 0.99, else its most (qdrant-edge:
else its exact search). The peers are in benchmarks/requirements.txt.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as parquet
from _common import table
from search import clustered_with_centres, manifold_with_places, unit

from sightline.index.base import Index, Item
from sightline.index.writer import Limits

NUM_CLASSES, NUM_TAGS, NUM_PLACES, AROUND = 40, 10_000, 4, 50
NUM_QUERIES, NUM_TIMED = 1_000, 50
KS = (1, 10, 100)
WANTED = 0.99
EFFORTS = (64, 128, 256, 512, 1024)
SETS = {
    "classes-40000": ("classes", 40_000, 64),
    "manifold-40000": ("manifold", 40_000, 64),
    "clustered-200000": ("clustered", 200_000, 384),
    "manifold-200000": ("manifold", 200_000, 384),
}
PEER_FILTERS = ("none", "50 %", "own class out", "another class", "nearest 1 % out", "nearest 20 % out", "nearest 60 % out")


@dataclass(frozen=True)
class Set:
    """Vectors with their facts, and queries with theirs: ``closer`` ``[P, M]`` is how many rows are closer to a place."""

    name: str
    vectors: np.ndarray
    label: np.ndarray
    tag: np.ndarray
    closer: np.ndarray
    queries: np.ndarray
    asked: np.ndarray
    around: np.ndarray
    places: np.ndarray
    similarity: np.ndarray
    """Of every query with every row ``[Q, M]``."""
    similarity_around: np.ndarray


@dataclass(frozen=True)
class Ask:
    """Queries (as vectors ``[Q, D]``) that share one filter: in Sightline's words, as a mask, and as (field, relation, value)."""

    queries: np.ndarray
    similarity: np.ndarray
    where: str | None
    mask: np.ndarray
    plain: tuple[str, str, int] | None


def classes(num: int, dim: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    centres = unit(random.standard_normal((NUM_CLASSES, dim), dtype=np.float32))
    label = random.integers(0, NUM_CLASSES, num)
    own = unit(random.standard_normal((num, dim), dtype=np.float32))
    return unit(0.8**0.5 * centres[label] + 0.2**0.5 * own), label


def clustered(num: int, dim: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    vectors, centre = clustered_with_centres(num, dim, random)
    return vectors, _regions(centre, random)


def manifold(num: int, dim: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    vectors, place = manifold_with_places(num, dim, random)
    return vectors, _regions(place, random)


def _regions(places: np.ndarray, random: np.random.Generator) -> np.ndarray:
    directions = random.standard_normal((places.shape[1], NUM_CLASSES), dtype=np.float32)
    found: np.ndarray = (places @ (directions * places.std(axis=0)[:, None])).argmax(axis=1)
    return found


DATA: dict[str, Callable[[int, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "classes": classes,
    "clustered": clustered,
    "manifold": manifold,
}


def photographs(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of a file in random order, and the number of each one's folder."""
    columns = parquet.read_table(file).to_pydict()
    order = np.random.default_rng(1).permutation(len(columns["path"]))
    folders = np.array([str(Path(path).parent) for path in columns["path"]])
    return np.array(columns["vector"], np.float32)[order], np.unique(folders, return_inverse=True)[1][order]


def make_set(name: str, vectors: np.ndarray, label: np.ndarray, num: int, random: np.random.Generator) -> Set:
    """Return the first ``num`` rows as the collection and those behind them as what asks."""
    vectors, held_out, label, held_label = vectors[:num].copy(), vectors[num:].copy(), label[:num], label[num:]
    places = held_out[-NUM_PLACES:]
    closer = np.stack([np.argsort(np.argsort(-(vectors @ place), kind="stable")) for place in places])
    around = np.concatenate([held_out[np.argsort(-(held_out @ place))[:AROUND]] for place in places])
    queries = held_out[:NUM_QUERIES]
    tag = random.permutation(num) * NUM_TAGS // num
    ranks = (vectors, label, tag, closer, queries, held_label[:NUM_QUERIES], around, places)
    return Set(name, *ranks, queries @ vectors.T, around @ vectors.T)


def sets(options: argparse.Namespace) -> Iterator[Set]:
    if options.vectors is not None:
        vectors, label = photographs(options.vectors)
        num = len(vectors) - min(NUM_QUERIES, len(vectors) // 20)
        yield make_set(options.vectors.stem, vectors, label, num, np.random.default_rng(0))
        return
    for name in options.set or SETS:
        kind, num, dim = SETS[name]
        num, random = 5_000 if options.quick else num, np.random.default_rng(0)
        yield make_set(name, *DATA[kind](num + 2_000, dim, random), num, random)


def shared(data: Set, where: str | None, mask: np.ndarray, plain: tuple[str, str, int] | None) -> list[Ask]:
    return [Ask(data.queries, data.similarity, where, mask, plain)]


def by_class(data: Set, relation: str, shift: int) -> list[Ask]:
    found = []
    for own in np.unique(data.asked):
        mine, other = data.asked == own, int(own + shift) % int(data.label.max() + 1)
        mask = data.label == other if relation == "=" else data.label != other
        if mask.any():
            found.append(Ask(data.queries[mine], data.similarity[mine], f"label {relation} {other}", mask, ("label", relation, other)))
    return found


def by_place(data: Set, share: float) -> list[Ask]:
    least, found = int(share * len(data.vectors)), []
    for place in range(NUM_PLACES):
        mine = slice(place * AROUND, (place + 1) * AROUND)
        mask, field = data.closer[place] >= least, f"closer{place}"
        found.append(Ask(data.around[mine], data.similarity_around[mine], f"{field} >= {least}", mask, (field, ">=", least)))
    return found


def filters(data: Set) -> Iterator[tuple[str, list[Ask]]]:
    yield "none", shared(data, None, np.ones(len(data.vectors), bool), None)
    for share in (0.01, 0.1, 1, 10, 50, 90, 99.9):
        least = round(NUM_TAGS * share / 100)
        yield f"{share:g} %", shared(data, f"tag < {least}", data.tag < least, ("tag", "<", least))
    yield "own class out", by_class(data, "!=", 0)
    yield "own class", by_class(data, "=", 0)
    yield "another class", by_class(data, "=", 1)
    for share in (1, 5, 20, 60):
        yield f"nearest {share} % out", by_place(data, share / 100)
    yield "farthest half", by_place(data, 0.5)


def truth(ask: Ask, k: int) -> np.ndarray:
    rows = np.flatnonzero(ask.mask)
    k = min(k, len(rows))
    first = []
    for start in range(0, len(ask.queries), 100):
        first.append(np.argpartition(-ask.similarity[start : start + 100, rows], k - 1, axis=1)[:, :k])
    found: np.ndarray = rows[np.concatenate(first)]
    return found


def recall(found: np.ndarray, wanted: np.ndarray) -> list[float]:
    return [len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]


def queries_per_s(asks: list[Ask], search: Callable[[Ask, np.ndarray], Any]) -> float:
    """Return the rate of one query a call: the better of two rounds, since the machine may be busy."""
    singles = [(ask, query[None]) for ask in asks for query in ask.queries]
    singles = singles[:: max(1, len(singles) // NUM_TIMED)]
    best_s = float("inf")
    for _ in range(2):
        start = time.process_time()
        for ask, query in singles:
            search(ask, query)
        best_s = min(best_s, time.process_time() - start)
    return len(singles) / best_s


def measure_sightline(folder: Path, data: Set, kind: str) -> Iterator[dict[str, Any]]:
    limits = Limits(ann_rows=min(Limits().ann_rows, len(data.vectors)), ivf_rows=Limits().ivf_rows if kind == "hnsw" else 1)
    with Index.create(folder, dim=data.vectors.shape[1], fingerprint="benchmark", limits=limits) as index:
        for first in range(0, len(data.vectors), 2_000):
            rows = range(first, min(first + 2_000, len(data.vectors)))
            index.upsert([Item(f"{row:08d}.jpg", facts(data, row)) for row in rows], data.vectors[first : rows.stop])
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        index.seal()
        faiss.omp_set_num_threads(1)
    with Index.open(folder, read_only=True) as index:
        for segment in index.info().segments:
            print(json.dumps({"set": data.name, "kind": kind, "told": vars(segment)}), file=sys.stderr)
        for name, asks in filters(data):
            start = time.process_time()
            index.search(asks[0].queries[:1], 10, where=asks[0].where)
            first_ms = 1_000 * (time.process_time() - start)
            for k in KS:
                shares, how, spent_s = [], collections.Counter[str](), 0.0
                for ask in asks:
                    index.search(ask.queries[:1], k, where=ask.where)  # the filter is known now
                    start = time.process_time()
                    found = index.search(ask.queries, k, where=ask.where)
                    spent_s += time.process_time() - start
                    shares += recall(found.rows - 1, truth(ask, k))  # ids count from 1 in the order of the rows
                    how.update(found.how)
                row = {
                    "set": data.name,
                    "engine": f"sightline {kind}",
                    "filter": name,
                    "left": f"{100 * np.mean([ask.mask.mean() for ask in asks]):.3g} %",
                    "k": k,
                    "recall": float(np.mean(shares)),
                    "how": ", ".join(f"{num} {what}" for what, num in sorted(how.items())),
                    "together": len(shares) / spent_s,
                }
                if k == 10:
                    row["a call each"] = queries_per_s(asks, lambda ask, query: index.search(query, 10, where=ask.where))
                    row["first ms"] = first_ms
                yield row


def facts(data: Set, row: int) -> dict[str, int]:
    found = {"label": int(data.label[row]), "tag": int(data.tag[row])}
    return found | {f"closer{place}": int(data.closer[place, row]) for place in range(NUM_PLACES)}


def measure_peer(name: str, data: Set, searcher: Callable[[Ask, np.ndarray, int], np.ndarray], last: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of an engine whose ``searcher`` takes (ask, queries, effort), the least effort of the ladder that is enough."""
    for label, asks in filters(data):
        if label not in PEER_FILTERS:
            continue
        for effort in (*EFFORTS, last) if last not in EFFORTS else EFFORTS:
            few = [(ask, ask.queries[: max(2, NUM_TIMED // len(asks))]) for ask in asks]
            found = [recall(searcher(ask, some, effort), truth(ask, 10)[: len(some)]) for ask, some in few]
            reached = float(np.mean(np.concatenate(found)))
            if reached >= WANTED:
                break
        row = {"set": data.name, "engine": name, "filter": label, "k": 10, "recall": reached, "how": f"ef {effort}" if effort else "exact"}
        yield row | {"a call each": queries_per_s(asks, lambda ask, query, effort=effort: searcher(ask, query, effort))}


def faiss_peer(data: Set) -> Iterator[dict[str, Any]]:
    structure = faiss.IndexHNSWFlat(data.vectors.shape[1], 32)
    structure.hnsw.efConstruction = 128
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    structure.add(data.vectors)
    faiss.omp_set_num_threads(1)
    bitmaps: dict[str | None, np.ndarray] = {}

    def searcher(ask: Ask, queries: np.ndarray, effort: int) -> np.ndarray:
        if ask.where not in bitmaps:
            bitmaps[ask.where] = np.packbits(ask.mask, bitorder="little")
        selector = None if ask.where is None else faiss.IDSelectorBitmap(bitmaps[ask.where])
        found: np.ndarray = structure.search(queries, 10, params=faiss.SearchParametersHNSW(efSearch=effort, sel=selector))[1]
        return found

    yield from measure_peer("faiss HNSW32, selector", data, searcher, EFFORTS[-1])


def hnswlib_peer(data: Set) -> Iterator[dict[str, Any]]:
    import hnswlib

    structure = hnswlib.Index(space="ip", dim=data.vectors.shape[1])
    structure.init_index(max_elements=len(data.vectors), M=32, ef_construction=128)
    structure.add_items(data.vectors, num_threads=os.cpu_count() or 1)

    def searcher(ask: Ask, queries: np.ndarray, effort: int) -> np.ndarray:
        structure.set_ef(effort)
        keep = None if ask.where is None else lambda row: bool(ask.mask[row])
        try:
            found: np.ndarray = structure.knn_query(queries, k=10, num_threads=1, filter=keep)[0].astype(np.int64)
        except RuntimeError:  # it met fewer than ten allowed rows
            found = np.full((len(queries), 10), -1)
        return found

    yield from measure_peer("hnswlib, filter", data, searcher, EFFORTS[-1])


def qdrant_peer(data: Set) -> Iterator[dict[str, Any]]:
    import qdrant_edge as qdrant

    fields = ["label", "tag", *(f"closer{place}" for place in range(NUM_PLACES))]
    graph = qdrant.HnswIndexConfig(m=16, ef_construct=128, full_scan_threshold=10_000, max_indexing_threads=os.cpu_count() or 1)
    config = qdrant.EdgeConfig(
        vectors=qdrant.EdgeVectorParams(size=data.vectors.shape[1], distance=qdrant.Distance.Dot),
        hnsw_config=graph,
        optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1_000),
        max_search_threads=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        shard = qdrant.EdgeShard.create(folder, config)
        for field in fields:
            shard.update(qdrant.UpdateOperation.create_field_index(field, qdrant.PayloadSchemaType.Integer))
        for first in range(0, len(data.vectors), 2_000):
            rows = range(first, min(first + 2_000, len(data.vectors)))
            points = [qdrant.Point(row, data.vectors[row].tolist(), facts(data, row)) for row in rows]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        shard.optimize()

        def searcher(ask: Ask, queries: np.ndarray, effort: int) -> np.ndarray:
            params = qdrant.SearchParams(hnsw_ef=effort) if effort else qdrant.SearchParams(exact=True)
            found = np.full((len(queries), 10), -1)
            for number, query in enumerate(queries):
                nearest = qdrant.Query.Nearest(query.tolist())
                request = qdrant.QueryRequest(limit=10, query=nearest, filter=_for_qdrant(qdrant, ask.plain), params=params)
                ids = [point.id for point in shard.query(request)]
                found[number, : len(ids)] = ids
            return found

        yield from measure_peer("qdrant-edge", data, searcher, 0)
        shard.close()


def _for_qdrant(qdrant: Any, plain: tuple[str, str, int] | None) -> Any:
    if plain is None:
        return None
    field, relation, value = plain
    if relation in ("=", "!="):
        condition = qdrant.FieldCondition(key=field, match=qdrant.MatchValue(value))
        return qdrant.Filter(must=[condition]) if relation == "=" else qdrant.Filter(must_not=[condition])
    bounds = qdrant.RangeFloat(lt=float(value)) if relation == "<" else qdrant.RangeFloat(gte=float(value))
    return qdrant.Filter(must=[qdrant.FieldCondition(key=field, range=bounds)])


PEERS = {"faiss": faiss_peer, "hnswlib": hnswlib_peer, "qdrant": qdrant_peer}


def told(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows, each shown on standard error at once: the whole takes minutes."""
    for row in rows:
        print(json.dumps(row), file=sys.stderr, flush=True)
        yield row


def as_table(rows: list[dict[str, Any]]) -> str:
    columns = {"recall": ".4f", "together": ",.0f", "a call each": ",.0f", "first ms": ",.0f"}
    names = ["engine", "set", "filter", "left", "k", "recall", "together", "a call each", "first ms", "how"]
    return table(names, [[format(row[name], columns.get(name, "")) if name in row else "" for name in names] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SETS), action="append", help="one set only; may be repeated")
    parser.add_argument("--vectors", type=Path, help="a .parquet file of `sightline embed` in place of the made sets")
    parser.add_argument("--kind", choices=["hnsw", "ivf"], action="append", help="one search structure only")
    parser.add_argument("--peer", choices=sorted(PEERS), action="append", help="one peer only; may be repeated")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    parser.add_argument("--only-peers", action="store_true", help="leave Sightline out")
    parser.add_argument("--quick", action="store_true", help="5,000 rows of each set")
    options = parser.parse_args()
    faiss_version = faiss.__version__
    print(
        json.dumps(
            {
                "cpus": os.cpu_count(),
                "blas threads": os.environ.get("OPENBLAS_NUM_THREADS"),
                "load": round(os.getloadavg()[0], 1),
                "faiss": faiss_version,
                "numpy": np.__version__,
            }
        )
    )
    rows: list[dict[str, Any]] = []
    for data in sets(options):
        for structure in () if options.only_peers else options.kind or ("hnsw", "ivf"):
            with tempfile.TemporaryDirectory() as folder:
                rows += told(measure_sightline(Path(folder) / "index", data, structure))
        for peer in () if options.no_peers else options.peer or PEERS:
            rows += told(PEERS[peer](data))
    print(as_table(rows))
    ours = [row for row in rows if row["engine"].startswith("sightline")]
    least = min((row["recall"] for row in ours), default=1.0)
    print(f"least recall of {len(ours)} rows of Sightline: {least:.4f}; rows below {WANTED}: {sum(row['recall'] < WANTED for row in ours)}")
    sys.exit(least < WANTED)


if __name__ == "__main__":
    main()
