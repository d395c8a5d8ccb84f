"""A reading connection for each thread of an open index: SQLite serves one statement of a connection at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from sightline.errors import IndexStoreError
from sightline.index.store import Store


@dataclass(eq=False)
class Reader:
    """The connection of one thread; ``version`` is the store's when the thread last checked the snapshot. ``close`` waits for ``lock``."""

    store: Store
    version: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)


class Readers:
    """The readers of an index, made by ``connect`` when a thread first reads; those of threads that ended are closed."""

    def __init__(self, connect: Callable[[], Store]) -> None:
        self._connect, self._lock, self._closed = connect, threading.Lock(), False
        self._of_thread = {threading.get_ident(): Reader(connect())}

    def own(self) -> Reader:
        """Return the reader of this thread.

        Raises:
            IndexStoreError: the index is closed, or the store cannot be opened any more.
        """
        thread = threading.get_ident()
        reader = self._of_thread.get(thread)
        if reader is not None and not self._closed:
            return reader
        with self._lock:
            if self._closed:
                raise IndexStoreError("the index is closed: open it again")
            alive = {one.ident for one in threading.enumerate()}
            for ended in [ident for ident in self._of_thread if ident not in alive]:
                self._of_thread.pop(ended).store.close()
            return self._of_thread.setdefault(thread, Reader(self._connect()))

    def close(self) -> None:
        """Close every connection, each after the statements that run in it; closing twice does no harm."""
        with self._lock:
            self._closed = True
            for reader in self._of_thread.values():
                with reader.lock:
                    reader.store.close()
            self._of_thread.clear()
