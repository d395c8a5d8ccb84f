"""The truth of a local index: one SQLite file with the items, their metadata, and the vectors that are not in a segment yet.

Write-ahead log, ``synchronous=FULL``: a commit has reached the disk when it returns, and readers in other processes are never
blocked by the writer. Everything that changes what a search may answer happens in one transaction that raises ``generation``.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contracts import FloatArray, IntArray
from sightline.errors import DiskFullError, IndexStoreError, SightlineError, explain_os_error
from sightline.index.filter_sql import as_number, to_sql
from sightline.index.filters import Filter
from sightline.index.items import Item, Key, Known, box_of, box_text, digest_of, real_path
from sightline.index.schema import ITEMS, SOURCES, VERSION, WITH_BOXES, migrate

FILE = "index.db"
BUSY_TIMEOUT_MS = 10_000
POLITE_TIMEOUT_MS = 200
LOG_PART_ROWS = 4_096

# items.id is AUTOINCREMENT so that the id of a removed picture is never given to another one. `facts` is the metadata once more, by
# key and value: a filter is an index range, not a parse of every item's JSON. `dead` numbers are never reused either, so a reader
# asks only for those above the last it saw. `log.seq` changes whenever the vector does.
SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE state(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO state VALUES ('generation', 0);
{ITEMS}
{SOURCES}
CREATE TABLE facts(key TEXT NOT NULL, value NOT NULL, item INTEGER NOT NULL, PRIMARY KEY (key, value, item)) WITHOUT ROWID;
CREATE TABLE log(seq INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER NOT NULL UNIQUE, vector BLOB NOT NULL);
CREATE TABLE segments(
    number INTEGER PRIMARY KEY AUTOINCREMENT, rows INTEGER NOT NULL, vectors_sha256 TEXT NOT NULL, ids_sha256 TEXT NOT NULL,
    ann_kind TEXT, ann_sha256 TEXT, parameter INTEGER, recall_at_10 REAL, calibrated TEXT,
    growth REAL, depth INTEGER, recall_filtered REAL, doubt REAL);
CREATE TABLE dead(number INTEGER PRIMARY KEY AUTOINCREMENT, segment INTEGER NOT NULL, row INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class SegmentRow:
    """What the truth says of a segment: its size, the hashes of its files, and how its search structure was calibrated.

    The last four are None in an index that was made before they were measured, ``doubt`` also where no answer is looked for again.
    """

    number: int
    rows: int
    vectors_sha256: str
    ids_sha256: str
    ann_kind: str | None = None
    ann_sha256: str | None = None
    parameter: int | None = None
    recall_at_10: float | None = None
    calibrated: str | None = None
    growth: float | None = None
    depth: int | None = None
    recall_filtered: float | None = None
    doubt: float | None = None


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into one line of ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(error, doing) from error
    except OSError as error:
        raise explain_os_error(error, doing) from error


def _explain(error: sqlite3.Error, doing: str) -> SightlineError:
    code = getattr(error, "sqlite_errorcode", None)
    kind = None if code is None else code & 0xFF  # the extended codes share their first byte
    if kind == sqlite3.SQLITE_FULL:
        return DiskFullError(
            f"no space left on the disk while {doing}: free some space and run the same command again; nothing acknowledged is lost"
        )
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IndexStoreError(f"the index's {FILE} is damaged (found while {doing}): restore the folder from a copy, or index again")
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return IndexStoreError(f"another program holds the index's {FILE} (while {doing}): wait for it to finish and try again")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return IndexStoreError(
            f"the index's {FILE} cannot be opened or written while {doing} ({error}): check that it exists and its permissions"
        )
    return SightlineError(f"SQLite failed while {doing}: {error}")


def create(folder: Path) -> None:
    """Make the empty store of a new index in ``folder``."""
    with explained("creating the index"):
        connection = sqlite3.connect(folder / FILE, isolation_level=None)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # lets a sealed log give its pages back; only settable while empty
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        finally:
            connection.close()


class Store:
    """One connection to the truth. Reading methods see one generation; writing ones belong inside ``writing``.

    An item may have several vectors: a row's number is the item's id with ``bits`` bits behind it that count the item's rows.
    """

    bits = 0

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self.file = folder / FILE
        if not self.file.is_file():
            raise IndexStoreError(f"'{self.file}' is missing: restore the folder from a copy, or index again")
        # On a read-only medium SQLite cannot make its shared-memory file; without a log beside it the file cannot change either.
        frozen = read_only and not os.access(folder, os.W_OK) and not self.file.with_name(FILE + "-wal").exists()
        options = "immutable=1" if frozen else "mode=ro" if read_only else "mode=rw"
        with explained(f"opening '{folder}'"):
            uri = f"{self.file.absolute().as_uri()}?{options}"
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000)
            if not read_only:
                self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.create_function("as_number", 1, as_number, deterministic=True)
            self.connection.create_function("digest_of", 1, digest_of, deterministic=True)
            self.connection.execute("SELECT value FROM state").fetchall()  # the first statement is what reads the file
            if not read_only and (before := self._find_version()) < VERSION:
                with self.writing("bringing an index of before up to date"):
                    migrate(self.connection, before)
            self.version = self._find_version()

    def close(self) -> None:
        """Close the connection; the last one out folds the write-ahead log into the file."""
        self.connection.close()

    @contextmanager
    def reading(self, doing: str = "reading the index") -> Iterator[None]:
        """Hold one generation for all statements inside."""
        with explained(doing):
            self.connection.execute("BEGIN")
            if self.version < VERSION:  # the writer may have brought it up to date meanwhile
                self.version = self._find_version()
            try:
                yield
            finally:
                self.connection.execute("COMMIT")

    @contextmanager
    def writing(self, doing: str) -> Iterator[None]:
        """Make all statements inside one durable change, or none of them."""
        with explained(doing):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("UPDATE state SET value = value + 1 WHERE name = 'generation'")
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite itself rolls back on a full disk
                    self.connection.execute("ROLLBACK")
                raise

    def _find_version(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return what a query answers (inside ``reading`` or ``writing``)."""
        return self.connection.execute(sql, values).fetchall()

    def _ints(self, sql: str, values: Sequence[Any] = ()) -> IntArray:
        return np.fromiter((row[0] for row in self.connection.execute(sql, values)), dtype=np.int64)

    # --- items ----------------------------------------------------------------------------------------------------------------

    def put_items(self, items: Sequence[Item]) -> IntArray:
        """Add or replace items of distinct paths and boxes and return their ids ``[M]`` (inside ``writing``)."""
        keys = [[item.path, box_text(item.box)] for item in items]
        wanted = (
            "SELECT {} FROM json_each(?) AS wanted JOIN items "
            "ON items.path = json_extract(wanted.value, '$[0]') AND items.box = json_extract(wanted.value, '$[1]')"
        )
        self._forget_facts(self.rows(wanted.format("items.id, metadata"), [json.dumps(keys)]))
        self.connection.executemany(
            "INSERT INTO items(path, box, metadata, digest, size_bytes, mtime_ns, content_sha256) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT(path, box) DO UPDATE SET metadata = excluded.metadata, digest = excluded.digest, "
            "size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns, content_sha256 = excluded.content_sha256",
            [_columns(item) for item in items],
        )
        id_of = {(path, box): id for path, box, id in self.rows(wanted.format("items.path, items.box, items.id"), [json.dumps(keys)])}
        ids = [id_of[path, box] for path, box in keys]
        self._add_facts(ids, items)
        return np.array(ids, dtype=np.int64)

    def change_items(self, ids: Sequence[int], items: Sequence[Item]) -> None:
        """Give items another path, box, metadata and file facts (inside ``writing``).

        Raises:
            IndexStoreError: an id is not known, or another item has a path and box.
        """
        old = self.rows("SELECT id, metadata FROM items WHERE id IN (SELECT value FROM json_each(?))", [json.dumps(list(ids))])
        missing = set(ids) - {id for id, _ in old}
        if missing:
            raise IndexStoreError(f"the index has no item {min(missing)}: it may have been removed")
        self._forget_facts(old)
        columns = ", ".join(f"{name} = ?" for name in ("path", "box", "metadata", "digest", "size_bytes", "mtime_ns", "content_sha256"))
        try:
            self.connection.executemany(
                f"UPDATE items SET {columns} WHERE id = ?", [(*_columns(item), id) for id, item in zip(ids, items, strict=True)]
            )
        except sqlite3.IntegrityError as error:
            raise IndexStoreError("an item cannot take a path and box that another item has: remove that one first") from error
        self._add_facts(ids, items)

    def _add_facts(self, ids: Sequence[int], items: Sequence[Item]) -> None:
        facts = ((key, value, id) for id, item in zip(ids, items, strict=True) for key, value in item.metadata.items() if value is not None)
        self.connection.executemany("INSERT INTO facts VALUES (?, ?, ?)", facts)

    def drop_items(self, ids: IntArray) -> None:
        """Delete items with their facts and log rows (inside ``writing``)."""
        wanted = json.dumps(ids.tolist())
        self._forget_facts(self.rows("SELECT id, metadata FROM items WHERE id IN (SELECT value FROM json_each(?))", [wanted]))
        self.connection.execute("DELETE FROM items WHERE id IN (SELECT value FROM json_each(?))", [wanted])
        self.connection.execute("DELETE FROM brought WHERE item IN (SELECT value FROM json_each(?))", [wanted])
        self.drop_vectors(ids)

    def _forget_facts(self, rows: Sequence[tuple[int, str]]) -> None:
        facts = ((key, value, id) for id, metadata in rows for key, value in json.loads(metadata).items() if value is not None)
        self.connection.executemany("DELETE FROM facts WHERE key = ? AND value = ? AND item = ?", facts)

    def known(self) -> dict[Key, Known]:
        """Return what is known of every item by its path and box."""
        now = self.version >= WITH_BOXES
        columns = (
            "path, box, id, size_bytes, mtime_ns, content_sha256, digest"
            if now
            else ("path, '', id, size_bytes, mtime_ns, content_sha256, digest_of(metadata)")
        )
        return {(path, box_of(box)): Known(*rest) for path, box, *rest in self.rows(f"SELECT {columns} FROM items")}

    def items(self, ids: IntArray) -> dict[int, Item]:
        """Return the items of those ids that exist."""
        box = "box" if self.version >= WITH_BOXES else "''"
        sql = f"SELECT id, path, metadata, size_bytes, mtime_ns, content_sha256, {box} FROM items WHERE id IN (SELECT value FROM json_each(?))"
        return {
            id: Item(path, json.loads(metadata), size_bytes, mtime_ns, sha256, box_of(box))
            for id, path, metadata, size_bytes, mtime_ns, sha256, box in self.rows(sql, [json.dumps(ids.tolist())])
        }

    def ids_of_paths(self, paths: Sequence[str]) -> IntArray:
        """Return the ids of those paths that are known, as they are or by where they lead, ascending."""
        meant = json.dumps([place for path in paths for place in self._places(path)])
        return self._ints("SELECT id FROM items WHERE path IN (SELECT value FROM json_each(?)) ORDER BY id", [meant])

    @staticmethod
    def _places(path: str) -> list[str]:
        return [path, real_path(path)]

    def ids(self, where: Filter | None) -> IntArray:
        """Return the ids of all items or of those that match, ascending."""
        if where is None:
            return self._ints("SELECT id FROM items ORDER BY id")
        condition, values = to_sql(where, self._places, named=self.version >= WITH_BOXES)
        return self._ints(f"SELECT id FROM items WHERE {condition} ORDER BY id", values)

    def num_items(self) -> int:
        """Return the number of items."""
        return int(self.rows("SELECT count(*) FROM items")[0][0])

    # --- the log --------------------------------------------------------------------------------------------------------------

    def put_vectors(self, ids: IntArray, vectors: FloatArray) -> None:
        """Put vectors into the log, in the place of those that are there (inside ``writing``)."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO log(id, vector) VALUES (?, ?)",
            ((int(id), vector.tobytes()) for id, vector in zip(ids, vectors, strict=True)),
        )

    def drop_vectors(self, ids: IntArray) -> None:
        """Delete the log rows of items (inside ``writing``)."""
        ranges = ((id << self.bits, (id + 1) << self.bits) for id in ids.tolist())
        self.connection.executemany("DELETE FROM log WHERE id >= ? AND id < ?", ranges)

    def log_seqs(self) -> IntArray:
        """Return the sequence numbers of the log."""
        return self._ints("SELECT seq FROM log")

    def log_rows(self, dim: int, *, after: int = 0) -> tuple[IntArray, IntArray, FloatArray]:
        """Return (sequence numbers ``[M]``, ids ``[M]``, vectors ``[M, D]``) of the log rows above sequence number ``after``."""
        rows = self.rows("SELECT seq, id, vector FROM log WHERE seq > ?", [after])
        vectors = np.frombuffer(b"".join(row[2] for row in rows), dtype="<f4").reshape(len(rows), dim)
        numbers = np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
        return numbers[:, 0], numbers[:, 1], vectors

    def log_parts(self, dim: int) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield (ids ``[M]``, vectors ``[M, D]``) of the whole log by ascending id, a few thousand rows at a time."""
        cursor = self.connection.execute("SELECT id, vector FROM log ORDER BY id")
        while rows := cursor.fetchmany(LOG_PART_ROWS):
            yield (
                np.array([row[0] for row in rows], dtype=np.int64),
                np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4").reshape(-1, dim),
            )

    def num_log_rows(self) -> int:
        """Return the number of rows in the log."""
        return int(self.rows("SELECT count(*) FROM log")[0][0])

    def clear_log(self) -> None:
        """Delete every row of the log (inside ``writing``)."""
        self.connection.execute("DELETE FROM log")

    # --- segments -------------------------------------------------------------------------------------------------------------

    def data_version(self) -> int:
        """Return a number that is another one once any other connection has written: a look at it costs less than a transaction."""
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def generation(self) -> int:
        """Return the number that every change raises."""
        return int(self.rows("SELECT value FROM state WHERE name = 'generation'")[0][0])

    def segments(self) -> list[SegmentRow]:
        """Return the published segments, oldest first."""
        return [SegmentRow(*row) for row in self.rows("SELECT * FROM segments ORDER BY number")]

    def next_segment(self) -> int:
        """Return the number of the next segment."""
        return int(self.rows("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'segments'), 0) + 1")[0][0])

    def publish(self, segment: SegmentRow) -> None:
        """Add a segment, or replace what is said of it (inside ``writing``)."""
        names = list(SegmentRow.__dataclass_fields__)
        self.connection.execute(
            f"INSERT OR REPLACE INTO segments({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            [getattr(segment, name) for name in names],
        )

    def drop_segment(self, number: int) -> None:
        """Forget a segment and its dead rows (inside ``writing``)."""
        self.connection.execute("DELETE FROM segments WHERE number = ?", [number])
        self.connection.execute("DELETE FROM dead WHERE segment = ?", [number])

    def bury(self, segment: int, rows: IntArray) -> None:
        """Mark rows of a segment as dead (inside ``writing``)."""
        self.connection.executemany("INSERT INTO dead(segment, row) VALUES (?, ?)", ((segment, int(row)) for row in rows))

    def dead(self, *, after: int = 0) -> IntArray:
        """Return ``[M, 3]`` of (number, segment, row) for the dead rows numbered above ``after``."""
        return np.array(
            self.rows("SELECT number, segment, row FROM dead WHERE number > ? ORDER BY number", [after]), dtype=np.int64
        ).reshape(-1, 3)

    # --- upkeep ---------------------------------------------------------------------------------------------------------------

    def give_back(self) -> None:
        """Return free pages and the write-ahead log to the file system, as far as readers allow it now."""
        with explained("giving space back"):
            self.connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page and stop
            # A reader in the middle of a statement keeps the log a little longer; the next call gives it back.
            self.connection.execute(f"PRAGMA busy_timeout = {POLITE_TIMEOUT_MS}")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    def problems(self, dim: int) -> list[str]:
        """Return what is wrong inside the database, one line each."""
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check") if row[0] != "ok"]
        bad = self.rows("SELECT count(*) FROM log WHERE length(vector) != ?", [4 * dim])[0][0]
        if bad:
            found.append(f"{bad} vectors of the log are not {dim} wide")
        num_facts = self.rows("SELECT count(*) FROM facts")[0][0]
        num_values = sum(
            value is not None for (text,) in self.connection.execute("SELECT metadata FROM items") for value in json.loads(text).values()
        )
        if num_facts != num_values:
            found.append(f"{num_values:,} metadata values but {num_facts:,} in the filter table")
        return [f"{FILE}: {line}" for line in found]


def _columns(item: Item) -> tuple[str | int | None, ...]:
    metadata = json.dumps(dict(item.metadata), ensure_ascii=False, allow_nan=False)
    return item.path, box_text(item.box), metadata, item.digest, item.size_bytes, item.mtime_ns, item.content_sha256
