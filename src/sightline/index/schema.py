"""What the tables of a local index look like, and how those of an index of before become so."""

from __future__ import annotations

import sqlite3

VERSION, WITH_BOXES = 3, 2
"""``PRAGMA user_version`` of the tables; 0 is how they were before items had boxes and sources, 2 before segments had ``doubt``."""

ITEMS = """
CREATE TABLE items(
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL, box TEXT NOT NULL, metadata TEXT NOT NULL, digest TEXT NOT NULL,
    size_bytes INTEGER, mtime_ns INTEGER, content_sha256 TEXT, UNIQUE (path, box));
"""

SOURCES = """
CREATE TABLE sources(number INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT NOT NULL UNIQUE, root TEXT NOT NULL);
CREATE TABLE brought(
    item INTEGER NOT NULL, source INTEGER NOT NULL, name TEXT NOT NULL, own_device INTEGER NOT NULL, facts TEXT NOT NULL,
    PRIMARY KEY (item, source)) WITHOUT ROWID;
"""


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables of an index of before, of a lower ``version``, up to date, inside a transaction."""
    if version < WITH_BOXES:
        _add_boxes(connection)
    connection.execute("ALTER TABLE segments ADD COLUMN doubt REAL")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _add_boxes(connection: sqlite3.Connection) -> None:
    """Add boxes to the key, give all items the source ``BEFORE``, and let nothing be known of filters.

    ``connection`` has the function ``digest_of``. The number that no id has been given above is kept.
    """
    for column in ("growth REAL", "depth INTEGER", "recall_filtered REAL"):
        connection.execute(f"ALTER TABLE segments ADD COLUMN {column}")
    (last,) = connection.execute("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'items'), 0)").fetchone()
    connection.execute("ALTER TABLE items RENAME TO items_before")
    for statement in (ITEMS + SOURCES).split(";"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(
        "INSERT INTO items SELECT id, path, '', metadata, digest_of(metadata), size_bytes, mtime_ns, content_sha256 FROM items_before"
    )
    connection.execute("DROP TABLE items_before")
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'items'")
    connection.execute("INSERT INTO sqlite_sequence(name, seq) VALUES ('items', ?)", [last])
    connection.execute("INSERT INTO sources(number, place, root) VALUES (1, '', '')")
    connection.execute("INSERT INTO brought SELECT id, 1, path, 1, metadata FROM items")
