"""Reading a collection by what a command is given: a folder, a manifest, or a data set of the catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline import catalog, runtime
from sightline.data.images import BadFiles, measured_range
from sightline.data.records import Records, read_records
from sightline.progress import say


def read_data(
    source: str | Path, bad_files: BadFiles, *, dataset: str = "auto", verify: bool = True, require_labels: bool = False
) -> Records:
    """Return the records of a class folder or manifest, or of a data set of the catalog in its own layout; what is odd about them is said.

    Raises:
        DataError, UsageError: nothing readable is there, or no such data set.
    """
    if dataset == "auto":
        records = read_records(source, require_labels=require_labels, on_bad=bad_files.add)
    else:
        records = catalog.find("datasets", dataset)(Path(source), verify=verify)
    if runtime.ranks().is_main:
        for note in records.notes:
            say(note)
    return replace(records, deep=measured_range([records.file(row) for row in range(len(records))]))
