"""The training loop: the only one. It knows a method by its four verbs and learns how good the model is from a callable."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sightline import runtime
from sightline.contracts import Batch
from sightline.data.samplers import Sampler
from sightline.errors import ModelError, TrainingError, first_line
from sightline.methods.base import Method
from sightline.nn import model_folder
from sightline.nn.collectives import any_rank, barrier
from sightline.nn.encoder import Encoder
from sightline.progress import Bar, Meter
from sightline.recipe import TrainSpec
from sightline.training import checkpoint
from sightline.training.choice import Validate, Validation
from sightline.training.compute import Compute
from sightline.training.optim import build_optimizer, clip_each, set_rate
from sightline.training.parallel import distribute
from sightline.training.report import MetricsLog


@runtime_checkable
class Epochs(Protocol):
    """What a run's batches are made from where that changes with the model: mined tuples, clusters found.

    The loop refreshes it before the first step of each epoch, opens the stream of batches anew, and keeps its state in checkpoints:
    a run that goes on in the middle of an epoch cannot make it again, for the weights it was made with are gone.
    """

    steps: int
    """Steps of an epoch."""

    def sampler(self) -> Sampler:
        """Return the sampler of the epoch."""
        ...

    def refresh(self, epoch: int, encoder: Encoder) -> Mapping[str, float]:
        """Make what epoch ``epoch`` (from 0) trains on with the model as it stands; all ranks call it. Return what the log should tell."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the rest of the epoch needs."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state`` returned."""
        ...


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0  # steps done
    best: float = -math.inf
    best_step: int = -1  # 0 is the start itself
    start: Validation | None = None  # what validation said before the first step; runs of older versions did not ask
    measured: dict[str, float] = field(default_factory=dict)  # by the latest validation, with its step
    epoch: int = -1  # the epoch that was last refreshed
    compute: Compute = field(default_factory=Compute)
    stopped_by: str = field(default="", metadata={"transient": True})  # the signal that ended it early

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {"step": self.step, "best": self.best, "best_step": self.best_step, "epoch": self.epoch}
        return {**kept, "start": self.start and self.start.state(), "measured": self.measured, "compute": asdict(self.compute)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Progress:
        """Return the progress that ``state`` returned."""
        return cls(**{**state, "start": Validation.of(state.get("start")), "compute": Compute(**state.get("compute", {}))})


class Loop:
    """One run of one method: ``run()`` returns when the steps are done or a signal asked to stop."""

    def __init__(
        self,
        method: Method,
        batches: Callable[[int], Iterator[Batch]],
        spec: TrainSpec,
        folder: Path | None,
        *,
        device: torch.device,
        validate: Validate | None = None,
        epochs: Epochs | None = None,
        rows: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        """``batches(n)`` yields this rank's batches from the n-th on (``accumulate`` of them a step), to the end of the run or epoch.

        ``rows`` is what checkpoints remember of the data, for whoever goes on to hold the run to it.

        Without a ``folder`` nothing is kept on disk: what is trained is for its caller alone, such as the head of a probe.
        """
        self.method, self.batches, self.spec, self.folder, self.device, self.validate, self.epochs = (
            method.to(device),
            batches,
            spec,
            folder,
            device,
            validate,
            epochs,
        )
        runtime.keep_freed_memory(device)
        self.ranks = runtime.ranks()
        self.optimizer = build_optimizer(method.parameter_groups(spec), spec)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.average = AveragedModel(method.encoder(), multi_avg_fn=get_ema_multi_avg_fn(spec.ema)) if spec.ema else None
        self.progress = Progress()
        self.rows = dict(rows or {})
        if resume:
            self._restore()
        self.net = distribute(method, device)
        self.dtype = runtime.autocast_dtype(spec.precision, device)
        self.signal = 0
        self.saved_at = self.progress.step or None  # of the checkpoint in the folder
        self.grad_norm = self.rate = self.timed_until_s = 0.0

    def encoder(self) -> Encoder:
        """Return what is measured and saved: the averaged weights where the recipe keeps them, else the learner's."""
        return cast(Encoder, self.average.module) if self.average is not None else self.method.encoder()

    def run(self, expected_s: float | None = None) -> Progress:
        """Train to the last step, or until SIGINT or SIGTERM: then save and return. ``expected_s`` is what the steps may take, to be shown.

        Raises:
            TrainingError: the loss is no longer finite; the message is the diagnosis.
        """
        log = MetricsLog(self.folder, resumed_at=self.progress.step) if self.ranks.is_main and self.folder is not None else None
        stream: Iterator[Batch] | None = None
        bar = Bar("training", self.spec.steps, done=self.progress.step, expected_s=expected_s, show=self.ranks.is_main)
        meter = Meter()
        try:
            with self._signals(), bar:
                if self.validate is not None and self.progress.step == 0:
                    self._validate(log, bar)  # a best model that is worse than the start is none
                meter.reset()
                bar.restart()
                self.timed_until_s = time.perf_counter()
                while self.progress.step < self.spec.steps:
                    if stream is None or self._is_new_epoch():
                        _close(stream)
                        self._refresh(log, bar)
                        stream = self.batches(self.progress.step * self.spec.accumulate)
                        meter.reset()
                    values = self._step(stream, meter)
                    self._after_step(values, meter, log, bar)
                    if any_rank(bool(self.signal), self.device):
                        self.progress.stopped_by = signal.Signals(self.signal or signal.SIGTERM).name
                        break
                self._save()
        finally:
            if log is not None:
                log.close()
            _close(stream)
        return self.progress

    def _is_new_epoch(self) -> bool:
        return self.epochs is not None and self.progress.epoch != self.progress.step // self.epochs.steps

    def _refresh(self, log: MetricsLog | None, bar: Bar) -> None:
        if self.epochs is None or not self._is_new_epoch():
            return
        self.progress.epoch = self.progress.step // self.epochs.steps
        told = self.epochs.refresh(self.progress.epoch, self.method.encoder())
        if log is not None:
            log.write(self.progress.step + 1, {f"epoch/{name}": value for name, value in told.items()})  # what its first step stands on
        bar.say(f"epoch {self.progress.epoch}: {', '.join(f'{name} {value:.4g}' for name, value in told.items())}")

    def _take_time(self) -> None:
        now_s = time.perf_counter()
        self.progress.compute.device_s += (now_s - self.timed_until_s) * self.ranks.world_size
        self.timed_until_s = now_s

    # --- one step ---------------------------------------------------------------------------------------------------------------

    def _step(self, stream: Iterator[Batch], meter: Meter) -> dict[str, torch.Tensor]:
        step, spec = self.progress.step, self.spec
        self.method.train()
        self.rate = set_rate(self.optimizer, step, spec)
        runtime.seed_step(spec.seed, step, self.ranks.rank)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        for part in range(spec.accumulate):
            asked_at = time.perf_counter()
            batch = next(stream).to(self.device)
            meter.waited_s += time.perf_counter() - asked_at
            num_images = len(batch) * self.ranks.world_size
            meter.num_images += num_images
            self.progress.compute.images += num_images
            with (
                self._no_sync(part + 1 < spec.accumulate),
                self.progress.compute.counting(self.ranks.world_size),
                torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None),
            ):
                total, terms = self.net(batch, step)
                (total / spec.accumulate).backward()
            for name, value in {"loss": total.detach(), **terms}.items():
                sums[name] = sums.get(name, 0.0) + value / spec.accumulate
        if spec.clip_each_norm:
            clip_each(self.trained, spec.clip_each_norm)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, spec.clip_norm or math.inf)
        self._require_finite(sums, norm)
        self.method.before_step(step)
        self.optimizer.step()
        self.method.after_step(step)
        if self.average is not None:
            self.average.update_parameters(self.method.encoder())
        self.progress.step += 1
        self.progress.compute.add_step()
        return {**sums, "grad_norm": norm}

    def _no_sync(self, more_follow: bool) -> contextlib.AbstractContextManager[Any]:
        return self.net.no_sync() if more_follow and self.net is not self.method else contextlib.nullcontext()  # type: ignore[operator]

    def _require_finite(self, terms: Mapping[str, torch.Tensor], norm: torch.Tensor) -> None:
        # On a GPU, asking means waiting for the step: ask once a log line. The weights are then lost either way, the checkpoint is not.
        if self.device.type != "cpu" and self.progress.step % self.spec.log_every:
            return
        if torch.isfinite(terms["loss"]) and torch.isfinite(norm):
            self.grad_norm = float(norm)
            return
        found = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        if self.progress.step == 0:  # no rate has changed a weight yet
            other = "other weights" if self.dtype is None else "other weights, or precision=fp32"
            raise TrainingError(
                f"training cannot begin: {found}, gradient norm {float(norm):.4g} before any weight was changed, so what the weights that it starts "
                f"from compute is beyond numbers: take {other}{self._kept()}"
            )
        raise TrainingError(
            f"training diverged at step {self.progress.step}: {found}, gradient norm {float(norm):.4g} (it was {self.grad_norm:.4g} before), "
            f"learning rate {self.rate:.3g}; try {'lr' if self.folder is None else '--set lr'}={self.rate / 3:.1g}, clip_norm=1, or precision=fp32"
            f"{self._kept()}"
        )

    def _kept(self) -> str:
        """Return what of a run that diverged is left, in words."""
        if self.folder is None:
            return ""
        if self.saved_at is None:
            return f". No step of it was saved: begin again with another --out than {self.folder}"
        return f". {self.folder} keeps it as it was after step {self.saved_at}: begin again with another --out"

    # --- between steps ----------------------------------------------------------------------------------------------------------

    def _after_step(self, values: Mapping[str, torch.Tensor], meter: Meter, log: MetricsLog | None, bar: Bar) -> None:
        done, spec = self.progress.step, self.spec
        last = done == spec.steps
        self._take_time()
        bar.update(done)
        if done % spec.log_every == 0 or last:
            numbers = {name: float(value) for name, value in values.items()}
            rates = meter.read()
            if log is not None:
                log.write(done, {**numbers, "lr": self.rate, **rates, **self.progress.compute.to_json()})
            note = f"loss {numbers['loss']:.4f}  {rates['images_per_s']:.1f} images/s  waiting {rates['data_wait']:.0%}  {rates['memory_mib']:.0f} MiB"
            bar.update(done, note)
        if self.validate is not None and (done % spec.validate_every == 0 or last):
            self._validate(log, bar)
            meter.reset()
        if done % spec.save_every == 0 and not last:
            self._save()

    def _validate(self, log: MetricsLog | None, bar: Bar) -> None:
        if self.ranks.is_main and self.validate is not None:
            self._note_measured(self.validate(self.encoder()), log, bar)
        barrier()

    def _note_measured(self, found: Validation, log: MetricsLog | None, bar: Bar) -> None:
        name, value = next(iter(found.metrics)), found.value
        if math.isnan(value):  # it chooses nothing, and is no number to tell
            bar.say(f"step {self.progress.step}: validation measures nothing: of the held-out images that can be read none can be wrong")
            return
        self.progress.measured = {name: value, "step": self.progress.step}
        note = self._choose(found)
        if log is not None:
            log.write(self.progress.step, {f"validation/{key}": number for key, number in found.metrics.items()})
        bar.say(f"step {self.progress.step}: validation {name} {value:.4f}{note and f' ({note})'}")

    def _choose(self, found: Validation) -> str:
        """Keep the model where it is the best so far and beats the start; return in words what came of it."""
        if self.progress.step == 0:
            self.progress.start = found
        if not found.chooses or found.value <= self.progress.best:
            return ""
        objection = found.objection(self.progress.start) if self.progress.step and self.progress.start is not None else ""
        if objection:
            return objection
        self.progress.best, self.progress.best_step = found.value, self.progress.step
        if self.folder is not None:
            model_folder.save(self.encoder(), self.folder / "model")
        return "best so far" if self.progress.step else "the start"

    def _save(self) -> None:
        self._take_time()
        if self.ranks.is_main and self.folder is not None:
            average = self.average.state_dict() if self.average is not None else {}
            checkpoint.save(
                self.folder,
                {
                    "method": self.method.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "average": average,
                    "progress": self.progress.state(),
                    "epochs": self.epochs.state() if self.epochs is not None else {},
                    "rows": self.rows,
                },
            )
            self.saved_at = self.progress.step
            if self.validate is None or self.progress.best_step < 0:
                model_folder.save(self.encoder(), self.folder / "model")
        barrier()

    def _restore(self) -> None:
        state = None if self.folder is None else checkpoint.load(self.folder)
        if state is None:
            return
        try:
            self.method.load_state_dict(state["method"])
        except RuntimeError as error:
            raise ModelError(
                f"the checkpoint in '{self.folder}' is of another network or other data than this run's ({first_line(error)}): begin anew with "
                "another --out"
            ) from error
        asked = [(group["base_lr"], group["base_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, (rate, decay) in zip(self.optimizer.param_groups, asked, strict=True):
            group["base_lr"], group["base_decay"] = rate, decay  # a run that is trained on may ask for others
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.progress = Progress.of(state["progress"])
        if self.epochs is not None:
            self.epochs.restore(state["epochs"])

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            if self.signal:
                raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
            self.signal = number

        before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _close(stream: Iterator[Batch] | None) -> None:
    if isinstance(stream, Generator):
        stream.close()
