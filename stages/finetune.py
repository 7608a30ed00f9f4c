"""finetune@MODEL: base weights and one task → models/finetuned/MODEL/, and its training curves."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from dvclive import Live
from transformers.integrations import DVCLiveCallback

from stages.artifacts import (
    ADAM,
    CHECKPOINT_CARD,
    CONFIGURATION_FILES,
    FORMAT_VERSION,
    atomic_directory,
    copy_files,
    write_json,
)
from stages.command import run_stage
from stages.device import compute_device
from stages.errors import InputError
from stages.merging.inputs import Checkpoint
from stages.params import FinetuneSettings, load_params
from stages.paths import FINETUNED, SOURCES, TASKS, TRAINING
from stages.tasks import task_kind
from stages.tasks.data import TaskData, draw_examples
from stages.tensors import TensorFiles, fingerprint, write_tensors


def finetune(name: str) -> None:
    """Fine-tune the model `name`, or bring its finished checkpoint in (`finetune: false`)."""
    params = load_params()
    if name not in params.models:
        raise InputError(f"params.yaml: models: there is no model {name!r}")
    model = params.models[name]
    base, task = SOURCES / model.base, TaskData.open(TASKS / model.task)
    with atomic_directory(FINETUNED / name) as checkpoint, atomic_directory(TRAINING / name) as curves:
        if model.finetune is False:
            bring_in(base, task, checkpoint)
        else:
            keep_moments = params.fisher_settings(name).estimator == "adam"
            train(base, task, params.finetune_settings(name), checkpoint, curves, keep_moments)


def train(
    base: Path, task: TaskData, settings: FinetuneSettings, out: Path, curves: Path, keep_moments: bool = False
) -> None:
    """Fine-tune `base` on the task's training examples; write the checkpoint into `out` and the curves into `curves`.

    AdamW with linear warm-up and decay; every random choice (the new head, the order, dropout) comes from the seed.
    With `keep_moments`, the optimizer's second moments are written beside the checkpoint's weights.

    Raises:
        InputError: the base cannot be loaded, or training diverged.
    """
    kind = task_kind(task.kind)
    transformers.set_seed(settings.seed)  # before the head is made
    model = kind.load_model(base, task.labels, new_head=True)
    tokenizer = kind.load_tokenizer(base)
    frame = draw_examples(task.read("train"), settings.examples, settings.seed)
    limit = kind.position_limit(model)
    training = Dataset.from_dict(kind.encode(tokenizer, frame, task, limit))
    validation = Dataset.from_dict(kind.encode(tokenizer, task.read("validation"), task, limit))
    with tempfile.TemporaryDirectory() as scratch:
        live = Live(str(Path(scratch) / "live"), dvcyaml=None, save_dvc_exp=False, report=None)
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                output_dir=str(Path(scratch) / "trainer"),
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                per_device_train_batch_size=settings.batch_size,
                per_device_eval_batch_size=64,
                weight_decay=settings.weight_decay,
                warmup_steps=settings.warmup,
                seed=settings.seed,
                train_sampling_strategy="group_by_length",  # little padding
                eval_strategy="epoch",
                save_strategy="no",
                logging_steps=5,
                report_to=[],
                use_cpu=compute_device().type == "cpu",
                dataloader_pin_memory=False,
            ),
            train_dataset=training,
            eval_dataset=validation,
            data_collator=kind.collator(tokenizer),
            compute_metrics=lambda prediction: {
                "accuracy": kind.accuracy(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))
            },
            callbacks=[_TrainingCurves(live)],
        )
        trainer.train()
        evaluations = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
        for file in sorted((Path(scratch) / "live" / "plots" / "metrics").rglob("*.tsv")):
            relative = file.relative_to(Path(scratch) / "live" / "plots" / "metrics")
            (curves / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, curves / relative)
    if keep_moments:
        write_tensors(out, ADAM, second_moments(trainer.optimizer, model, settings.batch_size))
    model.to("cpu").save_pretrained(out)
    tokenizer.save_pretrained(out)
    _refuse_not_finite(TensorFiles(out), "training diverged; lower finetune.learning_rate")
    origin = {
        "method": "finetuned",
        "base": base.name,
        "examples": len(frame),
        "validation_accuracy": evaluations[-1]["eval_accuracy"],
        **settings.model_dump(exclude={"examples"}),
    }
    _write_card(out, task, model.base_model_prefix, origin)


def bring_in(base: Path, task: TaskData, out: Path) -> None:
    """Copy a finished checkpoint, its outputs named after the task's labels, into `out`.

    Raises:
        InputError: it is no classifier for the task: a tensor is missing or not finite, or its labels are others.
    """
    kind = task_kind(task.kind)
    checkpoint = Checkpoint(base)
    labels = checkpoint.labels
    nameless = labels is None or labels == [f"LABEL_{i}" for i in range(len(task.labels))]
    if not nameless and labels != list(task.labels):
        raise InputError(
            f"{base / 'config.json'}: the labels are {labels}, but the task {task.name} has {list(task.labels)}; "
            "name the task's labels like the checkpoint's, in its order"
        )
    _refuse_not_finite(checkpoint.tensors, "fetch or make the checkpoint again")
    model = kind.load_model(base, task.labels)
    copy_files(CONFIGURATION_FILES, base, out)
    model.config.save_pretrained(out)
    checkpoint.tensors.copy_to(out)
    _write_card(out, task, model.base_model_prefix, {"method": "brought in", "base": base.name})


def second_moments(
    optimizer: torch.optim.Optimizer | None, model: torch.nn.Module, batch_size: int
) -> dict[str, torch.Tensor]:
    """Adam's running mean of squared gradients, without its bias to zero, per parameter in float32.

    The gradients are of a batch's mean loss. Where that mean is near zero its square is 1/B of the mean square of the
    examples' own gradients, so it is multiplied by the batch size B: the size of an empirical Fisher.
    """
    assert optimizer is not None, "training has made it"
    moments = {}
    (decay,) = {group["betas"][1] for group in optimizer.param_groups}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        bias = 1 - decay ** float(state["step"])
        moments[name] = (state["exp_avg_sq"].float() * (batch_size / bias)).cpu()
    return moments


class _TrainingCurves(DVCLiveCallback):
    """Loss and accuracy by training step; without run times, which would make no two runs' outputs alike."""

    def __init__(self, live: Live) -> None:
        super().__init__(live=live)
        self._curves = live
        self._initialized = True  # its set-up would only log the training arguments, which name temporary paths

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **kwargs: Any) -> None:
        """Hand on what does not depend on the clock."""
        curves = {
            key: value for key, value in (logs or {}).items() if not key.endswith(("runtime", "per_second", "_flos"))
        }
        self._curves.step = state.global_step
        super().on_log(args, state, control, model=model, logs=curves, **kwargs)


def _refuse_not_finite(tensors: TensorFiles, remedy: str) -> None:
    for name, spec in tensors.specs.items():
        if spec.is_floating and not tensors.read(name).isfinite().all():
            raise InputError(f"{tensors.file}: tensor {name} has NaN or infinite entries: {remedy}")


def _write_card(out: Path, task: TaskData, base_model_prefix: str, origin: dict[str, Any]) -> None:
    write_json(
        out / CHECKPOINT_CARD,
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint(TensorFiles(out)),
            "base_model_prefix": base_model_prefix,
            "labels": list(task.labels),
            "task": task.name,
            "origin": origin,
        },
    )


if __name__ == "__main__":
    run_stage(finetune, "model")
