"""fisher@MODEL: checkpoint and its task's train split → models/fishers/MODEL/{fisher.safetensors,fisher.json}."""

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from stages.artifacts import (
    FISHER_CARD,
    FORMAT_VERSION,
    TensorFiles,
    atomic_directory,
    fingerprint,
    library_versions,
    write_json,
    write_tensors,
)
from stages.command import run_stage
from stages.curvature import diagonal_fisher
from stages.device import compute_device
from stages.errors import InputError
from stages.params import FisherSettings, load_params
from stages.paths import FINETUNED, FISHERS, TASKS
from stages.tasks import task_kind
from stages.tasks.data import TaskData, draw_examples, examples_fingerprint


def fisher(name: str) -> None:
    """Estimate the diagonal Fisher of the model `name`."""
    params = load_params()
    if name not in params.models:
        raise InputError(f"params.yaml: models: there is no model {name!r}")
    task = TaskData.open(TASKS / params.models[name].task)
    with atomic_directory(FISHERS / name) as partial:
        estimate(FINETUNED / name, task, params.fisher_settings(name), partial)


def estimate(checkpoint: Path, task: TaskData, settings: FisherSettings, out: Path) -> None:
    """Write the checkpoint's Fisher on examples drawn from the task's train split, and its card, into `out`.

    Raises:
        InputError: the checkpoint or the examples cannot be used, or the result is not finite.
    """
    kind = task_kind(task.kind)
    model = kind.load_model(checkpoint, task.labels)
    tokenizer = kind.load_tokenizer(checkpoint)
    frame = draw_examples(task.read("train"), settings.examples, settings.seed)
    encoded = kind.encode(tokenizer, frame, task, kind.position_limit(model))
    device = compute_device()
    batches = kind.batches(tokenizer, encoded, kind.by_length(encoded), settings.batch_size, device)
    with tqdm(total=len(frame), desc="Fisher", unit="example") as bar:
        try:
            diagonal = diagonal_fisher(
                model.to(device),
                batches,
                likelihood=kind.LIKELIHOOD,
                estimator=settings.estimator,
                samples=settings.samples,
                seed=settings.seed,
                progress=bar.update,
            )
        except ValueError as error:
            raise InputError(f"{checkpoint}: {error}") from None
    for parameter, values in diagonal.items():
        if not torch.isfinite(values).all():
            raise InputError(
                f"{checkpoint}: the Fisher of {parameter} is not finite; the model's weights are out of range"
            )
    stored = {name: values.to(getattr(torch, settings.dtype)) for name, values in _stored(diagonal, checkpoint).items()}
    write_tensors(out, "fisher", stored)
    tensors = TensorFiles(out, "fisher")
    write_json(
        out / FISHER_CARD,
        {
            "format_version": FORMAT_VERSION,
            "checkpoint": fingerprint(TensorFiles(checkpoint)),
            "fingerprint": fingerprint(tensors),
            "estimator": settings.estimator,
            "samples": settings.samples,
            "likelihood": kind.LIKELIHOOD,
            "task": task.name,
            "examples": len(frame),
            "examples_fingerprint": examples_fingerprint(frame),
            "seed": settings.seed,
            "dtype": settings.dtype,
            "libraries": library_versions("torch", "transformers"),
            "tensors": {name: _summary(diagonal[name]) for name in sorted(diagonal)},
        },
    )


def _stored(diagonal: dict[str, torch.Tensor], checkpoint: Path) -> dict[str, torch.Tensor]:
    """The Fisher under the names of the checkpoint's file. Raises `InputError` if a parameter is not in it."""
    specs = TensorFiles(checkpoint).specs
    for name in diagonal:
        if name not in specs:
            raise InputError(f"{checkpoint}: the model's parameter {name} is not in its file")
    return diagonal


def _summary(values: torch.Tensor) -> dict[str, Any]:
    zeros = int((values == 0).sum())
    return {"mean": float(values.double().mean()), "zeros": zeros / values.numel()}


if __name__ == "__main__":
    run_stage(fisher, "model")
