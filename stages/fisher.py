"""fisher@MODEL: checkpoint and its task's train split → models/fishers/MODEL/{fisher.safetensors,fisher.json}."""

import gc
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from stages.artifacts import (
    ADAM,
    FISHER_CARD,
    FORMAT_VERSION,
    TensorFiles,
    atomic_directory,
    fingerprint,
    library_versions,
    tree_sha256,
    write_json,
    write_tensors,
)
from stages.command import run_stage
from stages.curvature import BackwardVectors, Estimation
from stages.curvature.memory import out_of_memory
from stages.device import compute_device
from stages.errors import InputError
from stages.params import FisherSettings, load_params
from stages.paths import FINETUNED, FISHERS, TASKS
from stages.progress import Progress
from stages.tasks import task_kind
from stages.tasks.data import TaskData, draw_examples, examples_fingerprint

LAUNCHER = "FISHER_LAUNCHER"  # environment variable: "torchrun --nproc-per-node 4", "accelerate launch", …

NO_MEMORY = "one example does not fit into memory; lower the task's max_length, or use another device"

Batch = dict[str, torch.Tensor]


def fisher(name: str) -> None:
    """Estimate the diagonal Fisher of the model `name`; in several processes, if the environment says so."""
    params = load_params()
    if name not in params.models:
        raise InputError(f"params.yaml: models: there is no model {name!r}")
    settings = params.fisher_settings(name)
    launcher = shlex.split(os.environ.get(LAUNCHER, ""))
    if launcher and "RANK" not in os.environ and settings.estimator != "adam":
        sys.exit(subprocess.run([*launcher, "-m", "stages.fisher", name], check=False).returncode)
    task = TaskData.open(TASKS / params.models[name].task)
    estimate(FINETUNED / name, task, settings, FISHERS / name)


def estimate(checkpoint: Path, task: TaskData, settings: FisherSettings, out: Path) -> None:
    """Write the checkpoint's Fisher on examples drawn from the task's train split, with its card, as directory `out`.

    Under torchrun or `accelerate launch`, every process calls it and takes its share of the examples; the first writes.

    Raises:
        InputError: the checkpoint or the examples cannot be used, or the result is not finite.
    """
    frame = draw_examples(task.read("train"), settings.examples, settings.seed)
    card: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "checkpoint": fingerprint(TensorFiles(checkpoint)),
        "estimator": settings.estimator,
        "samples": settings.samples,
        "task": task.name,
        "seed": settings.seed,
        "precision": settings.precision,
        "dtype": settings.dtype,
        "libraries": library_versions("torch", "transformers"),
    }
    if settings.estimator == "adam":
        write(out, second_moments(checkpoint), card, checkpoint, settings)
        return
    card |= {"examples": len(frame), "examples_fingerprint": examples_fingerprint(frame)}
    kind = task_kind(task.kind)
    card["likelihood"] = kind.LIKELIHOOD
    model = kind.load_model(checkpoint, task.labels)
    tokenizer = kind.load_tokenizer(checkpoint)
    encoded = kind.encode(tokenizer, frame, task, kind.position_limit(model))
    order = kind.by_length(encoded)
    processes = PartialState(cpu=compute_device().type == "cpu")
    here = Path(__file__).parent
    code = [tree_sha256(file) for file in [Path(__file__), *sorted((here / "curvature").glob("*.py"))]]
    identity = {**card, "processes": processes.num_processes, "device": processes.device.type, "code": code}
    progress = Progress(out, f"process-{processes.process_index}", identity | settings.model_dump())

    def batch(start: int, stop: int) -> Batch:
        rows = order[start:stop]
        return next(kind.batches(tokenizer, encoded, rows, len(rows), processes.device))

    vectors = BackwardVectors(kind.LIKELIHOOD, settings.estimator, settings.samples, settings.seed)
    with Estimation(model.to(processes.device), vectors) as estimation:
        try:
            add_share(estimation, batch, len(order), settings, progress, processes)
        except ValueError as error:
            raise InputError(f"{checkpoint}: {error}") from None
        if processes.num_processes > 1:
            estimation.sums.all_reduce()
        diagonal = estimation.result().diagonal
    if processes.is_main_process:
        write(out, diagonal, card, checkpoint, settings)
    progress.remove()
    if processes.num_processes > 1:
        processes.wait_for_everyone()
        processes.destroy_process_group()


def add_share(
    estimation: Estimation,
    batch: Callable[[int, int], Batch],
    examples: int,
    settings: FisherSettings,
    progress: Progress,
    processes: PartialState,
) -> None:
    """Add this process's share of the examples: of every `num_processes` batches, one.

    Saved sums are taken up, and saved again every minute. Where a batch does not fit into memory, batches are halved,
    and those sums that the failed batch was already in are replaced by the last saved ones. Examples come longest
    first, so that this happens at the start if at all.

    Args:
        estimation: what to add to; its sums are empty.
        batch: makes the batch of the examples start … stop − 1.
        examples: their number.
        settings: batch size and precision.
        progress: where sums are saved.
        processes: who takes which share.

    Raises:
        InputError: a single example does not fit into memory.
    """
    size = settings.batch_size
    starts = range(processes.process_index * size, examples, processes.num_processes * size)
    autocast = torch.autocast(processes.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
    try:
        estimation.check(batch(0, min(2, examples)))  # on the same examples whatever was saved, and in every process
    except (RuntimeError, MemoryError) as error:
        raise (InputError(NO_MEMORY) if out_of_memory(error) else error) from None
    done, rows = _take_up(estimation, progress, size)
    with tqdm(
        total=sum(min(size, examples - start) for start in starts),
        initial=estimation.sums.examples,
        desc="Fisher" if processes.num_processes == 1 else f"Fisher, 1 of {processes.num_processes} processes",
        unit="example",
        disable=not processes.is_main_process,
    ) as bar:
        while done < len(starts):
            stop = min(starts[done] + size, examples)
            try:
                for start in range(starts[done], stop, rows):
                    with autocast:
                        estimation.add(batch(start, min(start + rows, stop)), first=start)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if rows == 1:
                    raise InputError(NO_MEMORY) from None
                rows //= 2
                whole = not estimation.torn and start == starts[done]
            else:
                done += 1
                bar.update(stop - starts[done - 1])
                if progress.due:
                    reached = {"done": done, "rows": rows, "examples": estimation.sums.examples}
                    progress.save(estimation.sums.tensors(), reached)
                continue
            # Out here the failed pass's tensors are gone.
            gc.collect()
            torch.cuda.empty_cache()
            if not whole:
                done, _ = _take_up(estimation, progress, size)
                bar.n = estimation.sums.examples
            tqdm.write(f"out of memory: going on with batches of {rows}", file=sys.stderr)


def _take_up(estimation: Estimation, progress: Progress, size: int) -> tuple[int, int]:
    """Set the sums to what was saved, or to nothing. Returns the number of batches done, and of examples at a time."""
    reached = progress.load()
    if reached is None or reached.tensors.keys() != estimation.sums.tensors().keys():
        estimation.sums.clear()
        return 0, size
    estimation.sums.restore(reached.tensors, reached.position["examples"])
    return reached.position["done"], reached.position["rows"]


def second_moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The optimizer's running mean of squared gradients as a Fisher ("Fishers for Free?", arXiv 2507.18807).

    Raises:
        InputError: fine-tuning has not kept it.
    """
    if not (checkpoint / f"{ADAM}.safetensors").is_file():
        raise InputError(
            f"{checkpoint}: has no {ADAM}.safetensors; fine-tune it with `fisher: {{estimator: adam}}` under its model"
        )
    moments = TensorFiles(checkpoint, ADAM)
    return {name: moments.read(name) for name in moments.specs}


def write(
    out: Path, diagonal: dict[str, torch.Tensor], card: dict[str, Any], checkpoint: Path, settings: FisherSettings
) -> None:
    """Write a Fisher, under the names of the checkpoint's file, with its card.

    Raises:
        InputError: a value is not finite, or a parameter is not in the checkpoint's file.
    """
    specs = TensorFiles(checkpoint).specs
    for name, values in diagonal.items():
        if not torch.isfinite(values).all():
            raise InputError(f"{checkpoint}: the Fisher of {name} is not finite; the model's weights are out of range")
        if name not in specs:
            raise InputError(f"{checkpoint}: the model's parameter {name} is not in its file")
    with atomic_directory(out) as partial:
        write_tensors(
            partial, "fisher", {name: values.to(getattr(torch, settings.dtype)) for name, values in diagonal.items()}
        )
        card["fingerprint"] = fingerprint(TensorFiles(partial, "fisher"))
        card["tensors"] = {name: _summary(diagonal[name]) for name in sorted(diagonal)}
        write_json(partial / FISHER_CARD, card)


def _summary(values: torch.Tensor) -> dict[str, Any]:
    zeros = int((values == 0).sum())
    return {"mean": float(values.double().mean()), "zeros": zeros / values.numel()}


if __name__ == "__main__":
    run_stage(fisher, "model")
