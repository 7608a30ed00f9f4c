"""Curvature statistics of a checkpoint on its task: shared out, saved, resumed, and in batches that fit into memory."""

import gc
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from stages.curvature import BackwardVectors, CurvatureStatistics, Estimation
from stages.curvature.errors import CurvatureError
from stages.curvature.estimation import DIAGONAL
from stages.curvature.memory import out_of_memory
from stages.curvature.precision import float32_products
from stages.estimation.accumulators import accumulators
from stages.estimation.measured import measured, measured_files, measured_model
from stages.params import FisherSettings
from stages.pipeline.code import code_sha256
from stages.running.errors import InputError
from stages.running.placement import Placement, started_processes
from stages.storage.adapted import OwnFiles
from stages.storage.adapters import file_name
from stages.storage.cards import library_versions
from stages.storage.naming import as_stored, places
from stages.storage.saved_progress import Progress
from stages.storage.statistic import StatisticKind
from stages.storage.statistics import STATISTICS
from stages.storage.tensors import TensorFiles, fingerprint
from stages.storage.weights import verify_checkpoint
from stages.tasks import module_of, task_kind, task_likelihood
from stages.tasks.data import TaskData, draw_examples, encoding_fingerprint, examples_fingerprint
from stages.tasks.encoding import encode
from stages.tasks.loading import Model
from stages.tasks.prediction import batches

if TYPE_CHECKING:
    from accelerate import PartialState

NO_MEMORY = "one example does not fit into memory; make the task's examples smaller, or use another device"

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Estimate:
    """What came of an estimation.

    Attributes:
        statistics: means over the examples of all processes.
        card: what they are of and how they were made, for the card beside their file.
    """

    statistics: CurvatureStatistics
    card: dict[str, Any]


def estimate_card(task: TaskData, settings: FisherSettings) -> dict[str, Any]:
    """What the card of every estimate says, with passes over examples or without."""
    return {
        "estimator": settings.estimator,
        "samples": settings.samples,
        "task": task.name,
        "seed": settings.seed,
        "precision": settings.precision,
        "libraries": library_versions("torch", "transformers"),
    }


@contextmanager
def estimated_statistics(
    checkpoint: Path, task: TaskData, settings: FisherSettings, out: Path, statistics: Collection[str]
) -> Iterator[Estimate | None]:
    """A checkpoint's statistics on examples drawn from the task's train split, to be written inside the context.

    Under torchrun or `accelerate launch`, every process enters it and takes its share of the examples. What a process
    has saved of its sums is kept until the context ends well.

    Args:
        checkpoint: a directory.
        task: whose model it is.
        settings: which examples, and how; the estimator is any but `adam`, which takes no pass.
        out: what will be written; sums are saved beside it.
        statistics: names of `stages.storage.statistics.STATISTICS`.

    Yields:
        The estimate in the main process, None in the others.

    Raises:
        InputError: the checkpoint or the examples cannot be used.
    """
    assert settings.estimator != "adam"
    wanted = [STATISTICS[name] for name in statistics]
    examples = _Examples(checkpoint, task, settings)
    processes = started_processes()
    placement = Placement(processes.device, settings.precision)
    verify_checkpoint(checkpoint)
    files = measured_files(checkpoint, settings)
    identity = {
        **examples.card,
        "checkpoint": fingerprint(files),
        "encoded": encoding_fingerprint(examples.encoded),
        **settings.model_dump(),
        "statistics": sorted(statistics),
        **_circumstances(processes, task.kind, wanted),
    }
    progress = Progress(out, f"process-{processes.process_index}", identity)
    name = " and ".join(statistic.title for statistic in wanted)
    vectors = BackwardVectors(task_likelihood(task), settings.estimator, settings.samples, settings.seed)
    model, batch = examples.model, partial(examples.batch, placement=placement)
    diagonal = DIAGONAL if any(statistic.is_of_parameters for statistic in wanted) else ()
    factors = [each for statistic in wanted for each in accumulators(statistic).values()]
    with Estimation(placement.model(model), vectors, measured(model, files, settings), diagonal, factors) as estimation:
        try:
            with float32_products(), placement.same_bits():
                starts = range(0, len(examples.order), settings.batch_size)
                Share(estimation, batch, starts, progress, processes, placement, name).add()
        except CurvatureError as error:
            raise InputError(f"{checkpoint}: {error}") from None
        if processes.num_processes > 1:
            estimation.sums.all_reduce()
        estimate = None
        if processes.is_main_process:
            found = with_stored_names(estimation.result(), model, files)
            estimate = Estimate(found, examples.card)
    yield estimate
    processes.wait_for_everyone()  # for the first to have written; if it is killed before, all sums are there still
    progress.remove()
    if processes.num_processes > 1:
        processes.destroy_process_group()


class _Examples:
    """A checkpoint's model, and the examples that its statistics are estimated on, encoded for it.

    Attributes:
        model: on the CPU.
        encoded: all examples, see `stages.tasks`.
        order: the examples' positions, in the order in which they are added.
        card: what the estimate's card says.
    """

    def __init__(self, checkpoint: Path, task: TaskData, settings: FisherSettings) -> None:
        kind, likelihood = task_kind(task.kind), task_likelihood(task)
        rows = draw_examples(task.rows("train"), settings.examples, settings.seed)
        self.card = estimate_card(task, settings) | {
            "examples": len(rows),
            "examples_fingerprint": examples_fingerprint(rows),
            "likelihood": likelihood.name,
            **({"likelihood_parameters": dict(likelihood.parameters)} if likelihood.parameters else {}),
        }
        self.model = measured_model(checkpoint, task, kind, settings)
        processor = kind.load_processor(checkpoint)
        self.encoded = encode(kind, processor, rows, task, self.model, settings.seed)
        self._kind, self._collate = kind, kind.collator(processor, self.model)
        self.order = kind.largest_first(self.encoded)

    def batch(self, start: int, stop: int, placement: Placement) -> Batch:
        """The batch of the examples start … stop − 1 of the order."""
        rows = self.order[start:stop]
        return self._kind.likelihood_batch(next(batches(self._collate, self.encoded, rows, len(rows), placement)))


def _circumstances(processes: "PartialState", kind: str, statistics: Iterable[StatisticKind]) -> dict[str, Any]:
    """What sums depend on beside their inputs."""
    own = sorted({module for statistic in statistics for module in statistic.code})
    return {
        "processes": processes.num_processes,
        "device": processes.device.type,
        "code": code_sha256("estimation.passes", module_of(kind, "kind"), module_of(kind, "likelihood"), *own),
    }


def with_stored_names(statistics: CurvatureStatistics, model: Model, files: TensorFiles) -> CurvatureStatistics:
    """A model's statistics under the names that the tensors have in the checkpoint's files."""
    if isinstance(files, OwnFiles):
        return _as_adapter_has_them(statistics)
    stored = {place.name: name for name, place in places(model, files.specs).items() if place.pattern is None}

    def renamed(factors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # A Linear that the files hold in one tensor with others has factors under no name of theirs.
        return {stored[name]: factor for name, factor in factors.items() if name in stored}

    return CurvatureStatistics(
        as_stored(model, statistics.diagonal, files),
        {name: renamed(factors) for name, factors in statistics.factors.items()},
        frozenset(stored[name] for name in statistics.transposed if name in stored),
    )


def _as_adapter_has_them(statistics: CurvatureStatistics) -> CurvatureStatistics:
    """Statistics of an adapter's own parameters under the names that its file has."""
    return CurvatureStatistics(
        {file_name(name): values for name, values in statistics.diagonal.items()},
        {
            part: {file_name(name): factor for name, factor in factors.items()}
            for part, factors in statistics.factors.items()
        },
        frozenset(map(file_name, statistics.transposed)),
    )


class Share:
    """This process's share of an estimation's examples, of every `num_processes` batches one, and how far it has come.

    Saved sums are taken up, and saved again every minute. Where a batch does not fit into memory, batches are halved,
    and those sums that the failed batch was already in are replaced by the last saved ones. Examples come longest
    first, so that this happens at the start if at all.

    Args:
        estimation: what to add to; its sums are empty.
        batch: makes the batch of the examples start … stop − 1.
        starts: of the batches of all shares: the examples from 0 to their number, by the size of a batch.
        progress: where sums are saved.
        processes: who takes which share.
        placement: where the passes are, and in what type.
        name: of what is estimated, for the progress bar.
    """

    def __init__(
        self,
        estimation: Estimation,
        batch: Callable[[int, int], Batch],
        starts: range,
        progress: Progress,
        processes: "PartialState",
        placement: Placement,
        name: str,
    ) -> None:
        self._estimation = estimation
        self._batch = batch
        self._examples = starts.stop
        self._progress = progress
        self._processes = processes
        self._name = name
        self._placement = placement
        own = starts[processes.process_index :: processes.num_processes]
        self._batches = [(start, min(start + starts.step, starts.stop)) for start in own]
        self._done = 0  # batches
        self._rows = starts.step  # examples that are added at once

    def add(self) -> None:
        """Add all of it.

        Raises:
            InputError: a single example does not fit into memory.
        """
        self._check()
        self._take_up()
        sums = self._estimation.sums
        with self._bar() as bar:
            while self._done < len(self._batches):
                before = sums.examples
                if self._add_batch(*self._batches[self._done]):
                    self._done += 1
                    if self._progress.due:
                        self._save()
                else:
                    self._halve(whole=sums.examples == before and not self._estimation.torn)
                bar.update(sums.examples - bar.n)

    def _check(self) -> None:
        """On the same examples whatever was saved, and in every process."""
        try:
            self._estimation.check(self._batch(0, min(2, self._examples)))
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise InputError(NO_MEMORY) from None
            raise

    def _add_batch(self, start: int, stop: int) -> bool:
        """Add the examples start … stop − 1. Returns whether memory sufficed; if not, some may be in the sums."""
        try:
            for first in range(start, stop, self._rows):
                with self._placement.passes():
                    self._estimation.add(self._batch(first, min(first + self._rows, stop)), first=first)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return False
        return True

    def _halve(self, whole: bool) -> None:
        """Go on with half as many examples at once, after a failed pass whose tensors nothing refers to any more.

        Args:
            whole: whether the sums are still those of the batches done.
        """
        if self._rows == 1:
            raise InputError(NO_MEMORY)
        self._rows //= 2
        gc.collect()
        self._placement.release()
        if not whole:
            self._take_up()
        tqdm.write(f"out of memory: going on with batches of {self._rows}", file=sys.stderr)

    def _save(self) -> None:
        sums = self._estimation.sums
        self._progress.save(sums.tensors(), {"done": self._done, "rows": self._rows, "examples": sums.examples})

    def _take_up(self) -> None:
        """Go back to what was saved, or to nothing; never to more examples at once."""
        reached, sums = self._progress.load(), self._estimation.sums
        if reached is None or reached.tensors.keys() != sums.tensors().keys():
            sums.clear()
            self._done = 0
        else:
            sums.restore(reached.tensors, reached.position["examples"])
            self._done = reached.position["done"]
            self._rows = min(self._rows, reached.position["rows"])

    def _bar(self) -> tqdm:
        count = self._processes.num_processes
        return tqdm(
            total=sum(stop - start for start, stop in self._batches),
            initial=self._estimation.sums.examples,
            desc=self._name if count == 1 else f"{self._name}, 1 of {count} processes",
            unit="example",
            disable=not self._processes.is_main_process,
        )
