"""Retrieval protocols: images searched among images, where labels or judgements say what is right."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from sightline import catalog
from sightline.contracts import Descriptors
from sightline.data.images import BadFiles
from sightline.data.judged import read_benchmark, with_distractors
from sightline.data.reading import read_data
from sightline.data.records import Records
from sightline.errors import UsageError, counted
from sightline.evaluation.evaluation import Evaluation
from sightline.evaluation.measured import Measured, measure
from sightline.evaluation.parts import part_to_measure
from sightline.evaluation.protocol import Options, Protocol
from sightline.evaluation.protocols import Rows, add_distractors, auto_rows, cross_camera, leave_one_out, query_gallery, require_several
from sightline.evaluation.report import Collection, report_page
from sightline.evaluation.trials import Trial, judged_trial, label_trial
from sightline.html import Page
from sightline.nn.encoder import Encoder
from sightline.search.embed import embed_records
from sightline.search.rerank import parse

_FOLDERS_OF = {"copydays": {"original", "strong", "jpegqual", "crops"}, "places": {"query", "reference"}}
"""Benchmarks whose folders would be taken for classes."""

_FILES_OF = {
    "gnd_*": "--protocol revisited",
    "ImageSets/20*": "--protocol davis",
    "retrieval_solution_v2.1.csv": "--protocol gldv2",
    "image_class_labels.txt": "--data {0}/images, or --dataset cub for the whole set",
    "Ebay_test.txt": "--dataset sop",
    "Eval/list_eval_partition.txt": "--dataset inshop",
    "annotations/*.json": "--protocol detect (for its objects)",
    "annotations/*/*.png": "--protocol in-context (for its masks)",
    "valannot": "--protocol in-context (for its masks)",
    "masks/*/*.png": "--protocol in-context (for its masks)",
}
"""A file that is in a data set's own layout, and the option that reads it."""


@dataclass(frozen=True, eq=False)
class Detail:
    """What the page of a retrieval evaluation is made from; ``trained`` are the images that training used, where they are known."""

    measured: Measured
    trial: Trial
    trained: Collection | None


@dataclass(frozen=True)
class _Task:
    """The records to embed, the trial of their descriptors, the measured part in words, and the records that training used."""

    records: Records
    trial: Callable[[Descriptors], Trial]
    part: str
    trained: Records | None = None


class Retrieval(Protocol):
    """The measures of ranked images, exactly."""

    def measure(self, encoder: Encoder, data: Path, bad_files: BadFiles, options: Options = Options()) -> Evaluation:
        """See ``Protocol.measure``."""
        reranker = parse(options.rerank) if options.rerank else None  # before anything is embedded
        task = self._task(data, bad_files, options)
        device = str(encoder.device) if encoder.device.type == "cuda" else "cpu"
        trial = task.trial(embed_records(encoder, task.records, bad_files, precision=options.precision))
        rerank = None if reranker is None else partial(reranker, device=device)
        measured = measure(trial, rerank=rerank, rerank_top=options.rerank_top, device=device)
        trained = None
        if options.for_page and task.trained is not None:
            found = embed_records(encoder, task.trained, BadFiles(), precision=options.precision, what="embedding the training part")
            trained = Collection(found, task.trained)
        facts = measured.to_json()
        return Evaluation(
            protocol=measured.protocol,
            metrics=measured.metrics,
            intervals=measured.intervals,
            facts={name: value for name, value in facts.items() if name not in ("metrics", "intervals", "protocol")}
            | ({"rerank": options.rerank} if options.rerank else {}),
            part=task.part,
            subject=f"{task.part}, {_described(measured, options.rerank)}",
            notes=(_skipped(measured),),
            num_files=len(task.records),
            detail=Detail(measured, trial, trained),
        )

    def page(self, evaluation: Evaluation, encoder: Encoder, bad_files: Sequence[str], command: str) -> Page:
        """See ``Protocol.page``."""
        rerank = evaluation.facts.get("rerank", "")
        facts = [
            ("model", f"{evaluation.model} ({encoder.model.backbone}, {encoder.dim}-d, {evaluation.fingerprint})"),
            ("data", f"{evaluation.data}: {evaluation.part}"),
            ("protocol", evaluation.protocol),
            *([("re-ranked by", rerank)] if rerank else []),
        ]
        detail: Detail = evaluation.detail
        return report_page(
            detail.measured, detail.trial, title="Retrieval report", command=command, facts=facts, train=detail.trained, bad_files=bad_files
        )

    @abstractmethod
    def _task(self, data: Path, bad_files: BadFiles, options: Options) -> _Task:
        """Return what is to be embedded, and its trial."""


def _described(measured: Measured, rerank: str) -> str:
    size = f"{counted(measured.num_queries, 'query', 'queries')} in {counted(measured.num_gallery, 'image')}"
    size += f" of {counted(measured.num_groups, 'class', 'classes')}" if measured.by_labels else ""
    reranked = f", {rerank} over the {measured.rerank_top:,} closest" if measured.rerank_top is not None else ""
    left_out = f" ({measured.left_out} left out)" if measured.left_out else ""
    return f"{measured.protocol}{left_out}, {size}{reranked}"


def _skipped(measured: Measured) -> str:
    skipped = ", ".join(f"{setting} {num}".strip() for setting, num in measured.num_skipped.items())
    what = "no other image of their class" if measured.by_labels else "nothing to find"
    over = "classes" if measured.by_labels else "groups of queries that share a positive"
    return f"ties: {measured.tie_rule}; intervals: 95 %, bootstrap over {over}; skipped ({what}): {skipped}"


# --- by labels --------------------------------------------------------------------------------------------------------------------


class Labelled(Retrieval):
    """Retrieval among labelled images; ``rows`` chooses the queries and the gallery."""

    takes: ClassVar[frozenset[str]] = frozenset({"dataset", "verify", "split", "distractors", "rerank", "rerank_top"})

    @abstractmethod
    def rows(self, records: Records) -> Rows:
        """Return the rows of the queries and of the gallery.

        Raises:
            DataError: the records do not suit the protocol.
        """

    def _task(self, data: Path, bad_files: BadFiles, options: Options) -> _Task:
        is_auto = isinstance(self, Auto)
        if options.dataset == "auto" and is_auto:
            require_class_folders(data)
        records = read_data(data, bad_files, dataset=options.dataset, verify=options.verify, require_labels=True)
        mistaken = next(
            (name for name, folders in _FOLDERS_OF.items() if records.num_classes > 1 and folders.issuperset(records.class_names)), ""
        )
        if mistaken and is_auto:
            raise UsageError(
                f"'{data}' looks like {mistaken}: add --protocol {mistaken}, or --protocol leave-one-out if its folders are classes"
            )
        part = part_to_measure(records, options.model, options.split)
        measured, rows = part.records, self.rows(part.records)
        if options.distractors is None:
            require_several(measured, rows)
        else:
            measured, rows = add_distractors(measured, rows, read_data(options.distractors, bad_files))
        return _Task(measured, partial(label_trial, records=measured, rows=rows), part.words, part.learnt)


@dataclass(frozen=True, kw_only=True)
class Auto(Labelled):
    """query-gallery where both splits are there, cross-camera where cameras are too, else leave-one-out."""

    name: ClassVar[str] = "auto"

    def rows(self, records: Records) -> Rows:
        """See ``Labelled.rows``."""
        return auto_rows(records)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Labelled):
    """Every image searches all others (SOP, CUB)."""

    name: ClassVar[str] = "leave-one-out"

    def rows(self, records: Records) -> Rows:
        """See ``Labelled.rows``."""
        return leave_one_out(records)


@dataclass(frozen=True, kw_only=True)
class QueryGallery(Labelled):
    """The query split searches the gallery split (In-Shop)."""

    name: ClassVar[str] = "query-gallery"

    def rows(self, records: Records) -> Rows:
        """See ``Labelled.rows``."""
        return query_gallery(records)


@dataclass(frozen=True, kw_only=True)
class CrossCamera(Labelled):
    """As query-gallery, without images of the query's identity by the query's camera (re-identification)."""

    name: ClassVar[str] = "cross-camera"

    def rows(self, records: Records) -> Rows:
        """See ``Labelled.rows``."""
        return cross_camera(records)


# --- by judgements ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Judged(Retrieval):
    """A judged benchmark; ``benchmark`` names its reader in the catalog, with settings, such as ``places,frames=3``."""

    takes: ClassVar[frozenset[str]] = frozenset({"verify", "distractors", "rerank", "rerank_top"})

    benchmark: str

    @property
    def name(self) -> str:
        """The name of the benchmark."""
        return self.benchmark.partition(",")[0]

    def check(self, data: Path, options: Options) -> None:
        """See ``Protocol.check``."""
        if options.dataset != "auto" or options.split != "auto":
            raise UsageError(f"--protocol {self.benchmark} reads its own layout and measures all of it: leave out --dataset and --split")
        catalog.find("benchmarks", self.name)
        super().check(data, options)

    def _task(self, data: Path, bad_files: BadFiles, options: Options) -> _Task:
        judged = read_benchmark(self.benchmark, data, verify=options.verify)
        if options.distractors is not None:
            judged = with_distractors(judged, read_data(options.distractors, bad_files))
        trial: Any = partial(judged_trial, judged=judged)
        return _Task(judged.records, trial, "all of it")


def require_class_folders(data: Path) -> None:
    """Refuse a folder in the layout of a data set that is read otherwise: its folders are no classes.

    Raises:
        UsageError: it is one.
    """
    option = next((option for file, option in _FILES_OF.items() if data.is_dir() and any(data.glob(file))), None)
    if option is not None:
        raise UsageError(
            f"'{data}' looks like a data set in its own layout: give {option.format(data)}; or --protocol leave-one-out if its folders are classes"
        )
