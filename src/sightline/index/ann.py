"""The derived search structure of a large segment: a FAISS index that may be lost at any time and is built again from the vectors.

FAISS reads its files without checking them, so only a file whose SHA-256 is the recorded one is ever given to it.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.index.codes import Codes, Turn
from sightline.index.header import sync_folder
from sightline.index.scan import merge, similarities_of
from sightline.index.segments import sha256_of
from sightline.runtime import use_large_pages

HNSW, HNSW_BEFORE, IVF = "hnsw-int8", "hnsw-sq8", "ivf-rabitq"
"""A graph over bytes, compared in whole numbers; the graph of indexes made before, whose bytes are decoded first, at half the speed
(200,000 rows 384 wide, the same recall); and lists of binary codes."""

_GRAPH_LADDER = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
LADDER = {HNSW: _GRAPH_LADDER, HNSW_BEFORE: _GRAPH_LADDER, IVF: (4, 8, 16, 32, 64, 128, 256, 512, 1024)}
"""The search parameters that calibration tries: HNSW's list of candidates, IVF's number of lists."""

OVERFETCH = {HNSW: 2, HNSW_BEFORE: 2, IVF: 20}
"""Candidates re-ranked exactly for each answer: 8 bits a dimension lose a rank or two (of ten true ones 9.893 lay among the first 14 of a walk,
9.894 among its first 30), one bit a dimension loses many."""

LEAST_KEPT = 3
"""A walk keeps so many candidates for each answer at least, though fewer are re-ranked: what it keeps is what it looks on from."""

DEEP_MARGIN = 64
"""Of many answers a graph re-ranks no more than a quarter and these besides: the true first 1,000 lay among the first 1,132 by their codes."""

MEASURED_RANK = 10
"""Down to here a search parameter itself is calibrated, and recall@10 is told."""

FILTERED_RANK = 30
"""Down to here at least a structure is asked under a filter: the last of the first ten alone are found less surely than the ten together
(one answer of 40,000 under a filter that left out 1 % around a query: 0.98)."""

ROWS_A_CANDIDATE, ROWS_A_GATHER = 360, 40
"""Rows that a product with many queries gets through (11 ns each, 384 wide) while a walk takes one unit of ``efSearch`` (4 us) and while
one row is gathered to be re-ranked."""

TURN_SEED, HALF_RANGE = 123, 126
NUM_LINKS = 32
BUILD_EFFORT = 128
TRAINING_ROWS = 100_000
BLOCK_ROWS = 32_768
BATCH, GATHERED_ROWS = 256, 65_536
"""Queries re-ranked at once, and most of their candidates, which are copied out of the mapping: 96 MiB 384 wide, however many answers."""


NO_DOUBT = -2.0
"""No similarity is lower: no answer is searched for again."""

DOUBTED_SHARE, SECOND_LOOK = 0.02, 4
"""A short walk misses some regions of a graph; its best similarity is then low. An answer is searched for again, with four times the effort,
if its best similarity is lower than that of 98 % of the rows to their nearest. ``benchmarks/search.py --looks`` shows the gain."""


@dataclass(frozen=True)
class Effort:
    """What it takes to find the item at a rank: ``parameter`` down to the tenth, ``growth`` times as much more for each rank below.

    Calibration measured it down to rank ``depth``; what lies deeper is not to be looked for in this way. An answer whose best similarity
    is below ``doubt`` is searched for again.
    """

    parameter: int
    growth: float
    depth: int
    doubt: float = NO_DOUBT

    def at(self, rank: int) -> int:
        """Return the search parameter that finds the items down to ``rank``."""
        return int(self.parameter * (1 + self.growth * max(0, rank - MEASURED_RANK)))

    def spent(self, rank: int) -> float:
        """Return the mean search parameter that a query down to ``rank`` costs, second looks included."""
        return self.at(rank) * (1 if self.doubt == NO_DOUBT else 1 + DOUBTED_SHARE * SECOND_LOOK)


@dataclass(frozen=True)
class Ann:
    """A loaded search structure over ``rows`` rows of ``kind`` and the ``effort`` that calibration found it to take."""

    kind: str
    rows: int
    effort: Effort
    structure: Any

    def top(self, queries: FloatArray, vectors: FloatArray, k: int, *, effort: Effort | None = None) -> tuple[IntArray, FloatArray]:
        """Return (rows ``[Q, K]``, exact similarity ``[Q, K]``), closest first, of the ``k`` closest of ``vectors`` that were met.

        ``effort`` is the calibrated one where none is given. Pads are -1 and -inf.
        """
        step = max(1, min(BATCH, GATHERED_ROWS // self._num_candidates(k)))
        effort = effort or self.effort
        if len(queries) <= step:
            return self._top(queries, vectors, k, effort)
        parts = [self._top(queries[start : start + step], vectors, k, effort) for start in range(0, len(queries), step)]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([similarity for _, similarity in parts])

    @cached_property
    def codes(self) -> Codes | None:
        """The bytes of every row, where the structure has such."""
        return Codes(self.structure, _storage_of(self._graph), self._turn) if self.kind == HNSW else None

    @cached_property
    def _graph(self) -> Any:
        return _graph_of(self.structure) if self.kind == HNSW else self.structure

    @cached_property
    def _turn(self) -> Turn:
        return _turn_of(self.structure)

    def num_rows_read(self, k: int) -> float:
        """Return how many rows of a scan, for many queries at once, take as long as finding ``k``."""
        if self.kind != IVF:
            return ROWS_A_CANDIDATE * self.effort.spent(k)
        num_lists = _num_lists(self.rows)
        return self.rows * min(1.0, self.effort.spent(k) / num_lists) + ROWS_A_GATHER * self._num_candidates(k)

    def _num_candidates(self, k: int) -> int:
        most = OVERFETCH[self.kind] * k
        return min(self.rows, most) if self.kind == IVF else self._num_of_graph(most, k)

    def _num_of_graph(self, most: int, k: int) -> int:
        return min(self.rows, most, k + k // 4 + DEEP_MARGIN)

    def _top(self, queries: FloatArray, vectors: FloatArray, k: int, effort: Effort) -> tuple[IntArray, FloatArray]:
        rows, similarity = self._look(queries, vectors, k, effort.at(k))
        if effort.doubt > NO_DOUBT and len(again := np.flatnonzero(similarity[:, 0] < effort.doubt)):
            rows[again], similarity[again] = self._look(queries[again], vectors, k, SECOND_LOOK * effort.at(k))
        return rows, similarity

    def _look(self, queries: FloatArray, vectors: FloatArray, k: int, parameter: int) -> tuple[IntArray, FloatArray]:
        rows = self._candidates(queries, k, parameter)
        similarity = similarities_of(queries, np.asarray(vectors[rows], np.float32))  # a pad takes any
        similarity[rows < 0] = -np.inf
        if rows.shape[1] < k:
            pads = ((0, 0), (0, k - rows.shape[1]))
            rows, similarity = np.pad(rows, pads, constant_values=-1), np.pad(similarity, pads, constant_values=-np.inf)
        return merge([rows], [similarity], k)

    def _candidates(self, queries: FloatArray, k: int, parameter: int) -> IntArray:
        """Return candidate rows ``[Q, more than K]``, -1 where fewer were met; parameters travel with the call, the structure is shared."""
        num = self._num_candidates(k)
        if self.kind == IVF:
            import faiss

            inner = faiss.IVFRaBitQSearchParameters(nprobe=min(parameter, _num_lists(self.rows)))
            options = faiss.SearchParametersPreTransform(index_params=inner)
            _, rows = self.structure.search(queries, num, params=options)
        else:
            options = _walk_options(max(parameter, self._num_of_graph(LEAST_KEPT * k, k)))
            asked = self._turn.as_bytes(queries) if self.kind == HNSW else queries
            _, rows = self._graph.search(asked, num, params=options)
        found: IntArray = rows
        return found


@lru_cache
def _walk_options(effort: int) -> Any:
    import faiss

    return faiss.SearchParametersHNSW(efSearch=effort)  # making one takes a tenth of a small search


def kind_for(num_rows: int, ivf_rows: int) -> str:
    """Return the kind of structure for a segment: a graph is quicker and truer, but outgrows the memory and the build time."""
    return IVF if num_rows >= ivf_rows else HNSW


def build(kind: str, vectors: FloatArray) -> Ann:
    """Return a structure over ``vectors`` ``[M, D]``, not calibrated yet."""
    import faiss

    num_rows, dim = vectors.shape
    sample = np.asarray(vectors[np.linspace(0, num_rows - 1, min(num_rows, TRAINING_ROWS)).astype(np.int64)], np.float32)
    if kind == HNSW:
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit_direct, NUM_LINKS)
        graph.hnsw.efConstruction = BUILD_EFFORT
        structure = faiss.IndexPreTransform(_to_bytes(sample), graph)  # FAISS's wrapper keeps both alive
    else:
        # RaBitQ's error bound holds for randomly rotated vectors only.
        structure = faiss.index_factory(dim, f"RR{dim},IVF{_num_lists(num_rows)},RaBitQ")
        structure.train(sample)
    for start in range(0, num_rows, BLOCK_ROWS):
        block = np.asarray(vectors[start : start + BLOCK_ROWS], np.float32)
        if kind == HNSW:
            _graph_of(structure).add(_turn_of(structure).as_bytes(block))
            structure.ntotal = _graph_of(structure).ntotal
        else:
            structure.add(block)
    return _settled(Ann(kind, num_rows, Effort(0, 0.0, 0), structure))


def _settled(ann: Ann) -> Ann:
    """Return the structure with the bytes and links of its graph, which a walk reads here and there, on large pages."""
    if ann.kind == HNSW:
        codes, links = _storage_of(ann._graph).codes, ann._graph.hnsw.neighbors
        use_large_pages(int(codes.data()), codes.size())
        use_large_pages(int(links.data()), links.size() * np.dtype(np.int32).itemsize)
    return ann


def _to_bytes(sample: FloatArray) -> Any:
    """Return the map of vectors to bytes: turned at random, so that no dimension needs more of the range than others, and spread over it."""
    import faiss

    dim = sample.shape[1]
    turn = faiss.RandomRotationMatrix(dim, dim)
    turn.init(TURN_SEED)
    scale = HALF_RANGE / float(np.abs(turn.apply(sample)).max())
    made = faiss.LinearTransform(dim, dim, True)
    faiss.copy_array_to_vector(scale * faiss.vector_to_array(turn.A), made.A)
    faiss.copy_array_to_vector(np.full(dim, HALF_RANGE + 1.5, np.float32), made.b)  # FAISS cuts off what is behind the point
    made.set_is_orthonormal()
    made.is_trained = True
    return made


def _graph_of(structure: Any) -> Any:
    import faiss

    return faiss.downcast_index(structure.index)


def _storage_of(graph: Any) -> Any:
    import faiss

    return faiss.downcast_index(graph.storage)


def _turn_of(structure: Any) -> Turn:
    import faiss

    return Turn.of(faiss.downcast_VectorTransform(structure.chain.at(0)))


def _num_lists(num_rows: int) -> int:
    return int(max(1, min(4 * num_rows**0.5, num_rows / 40)))


def write(ann: Ann, file: Path) -> str:
    """Write a structure durably and return the SHA-256 of its file."""
    import faiss

    draft = file.with_name(file.name + ".tmp")
    try:
        faiss.write_index(ann.structure, str(draft))
    except RuntimeError as error:  # FAISS keeps no error number; a full disk is the usual one
        full = shutil.disk_usage(file.parent).free < 1 << 20
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(draft)) from error
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    sha256 = sha256_of(draft)
    draft.replace(file)
    sync_folder(file.parent)
    return sha256


def load(file: Path, sha256: str, kind: str, rows: int, effort: Effort) -> Ann | None:
    """Return the structure in ``file``, or None where the file is missing or is not the one that was recorded."""
    import faiss

    if kind not in LADDER or not file.is_file() or sha256_of(file) != sha256:
        return None
    before = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(file.stat().st_size)  # no array in a file can be larger than the file
    try:
        structure = faiss.read_index(str(file))
    except RuntimeError:  # written by a FAISS that this one does not read: derived data, so built again
        return None
    finally:
        faiss.set_deserialization_vector_byte_limit(before)
    return _settled(Ann(kind, rows, effort, structure)) if structure.ntotal == rows else None
