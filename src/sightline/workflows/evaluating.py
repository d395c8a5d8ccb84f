"""Evaluating: a model measured on a data set by a protocol, with a page to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline import runtime
from sightline.data.images import BAD_FILES_NAME, BadFiles
from sightline.data.sets import segmentation
from sightline.errors import explain_os_error
from sightline.evaluation.evaluation import Evaluation
from sightline.evaluation.protocol import Options, Protocol, parse
from sightline.html import Page
from sightline.nn import model_folder
from sightline.runtime import Precision
from sightline.workflows.common import write_bad_files


def evaluate(
    model: str,
    data: str | Path,
    *,
    protocol: str = "auto",
    dataset: str = "auto",
    verify: bool = True,
    split: str = "auto",
    train_data: Path | None = None,
    distractors: Path | None = None,
    rerank: str = "",
    rerank_top: int | None = None,
    report: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    command: str = "",
) -> Evaluation:
    """Return the measures of ``model`` on ``data``; ``report`` is a folder to write the page and ``metrics.json`` into.

    ``protocol`` names a row of the catalog's PROTOCOLS or BENCHMARKS, with settings (``davis,context=7``). ``auto`` is retrieval by labels, and
    segmentation where the model has a segmenter and the data masks. ``split`` auto measures the test split (or query and gallery) where there
    is one; else, for a model whose run tells its training classes, the classes that training did not use; else everything. The other options
    are those of ``evaluation.protocol.Options``; a protocol refuses the ones that it does not use.

    Raises:
        UsageError: the model or data cannot be read, an option does not suit the protocol, or nothing can be measured.
    """
    chosen, place, bad_files = protocol_for(protocol, model, data), Path(data), BadFiles()
    options = Options(
        dataset=dataset,
        verify=verify,
        split=split,
        train_data=train_data,
        distractors=distractors,
        rerank=rerank,
        rerank_top=rerank_top,
        model=model,
        precision=precision,
        for_page=report is not None,
    )
    chosen.check(place, options)
    encoder = model_folder.load(model, device=runtime.device(device))
    found = chosen.measure(encoder, place, bad_files, options)
    named = None if report is None else report / BAD_FILES_NAME
    summary = bad_files.summary(found.num_files, named)
    found = replace(found, model=str(model), fingerprint=encoder.fingerprint, data=str(data), bad_files=summary)
    if report is not None:
        bad = [f"{path}: {reason}" for path, reason in bad_files.items()]
        write(report, found, chosen.page(found, encoder, bad, command))
        write_bad_files(bad_files, report)
    return found


def protocol_for(text: str, model: str, data: str | Path) -> Protocol:
    """Return the protocol that ``text`` names; auto is ``segment`` where the model has a segmentation head and the data has masks.

    Raises:
        UsageError: there is no such protocol or setting.
    """
    if text == "auto" and model_folder.has_segmenter(model) and segmentation.is_one(Path(data)):
        return parse("segment")
    return parse(text)


def write(folder: Path, evaluation: Evaluation, page: Page) -> None:
    """Write ``index.html`` and ``metrics.json`` into a folder.

    Raises:
        SightlineError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model_folder.write_json(folder / "metrics.json", evaluation.to_json())
    except OSError as error:
        raise explain_os_error(error, f"writing the report in '{folder}'") from error
    page.write(folder / "index.html")
