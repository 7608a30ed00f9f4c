"""Fine-tuning by the Trainer: a base and a task make a checkpoint, the same bits each time."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from dvclive import Live
from dvclive.utils import standardize_metric_name

from stages.params import FinetuneSettings
from stages.pipeline.code import code_sha256
from stages.running.placement import WEIGHTS, compute_device, on_the_cpu, one_gpu, reproducible
from stages.running.scratch import scratch_directory
from stages.storage.cards import library_versions
from stages.storage.checkpoint_files import (
    ADAM,
    ADAPTER_STEM,
)
from stages.storage.configuration import SUPERSEDED, copy_configuration
from stages.storage.digests import tree_sha256
from stages.storage.naming import as_stored
from stages.storage.tensors import TensorFiles, write_tensors
from stages.storage.weights import verify_checkpoint
from stages.tasks import module_of, task_kind
from stages.tasks.data import TaskData, draw_examples, encoding_fingerprint
from stages.tasks.encoding import EncodedExamples, encode
from stages.tasks.kind import Kind
from stages.tasks.metrics import Metric
from stages.training.adapters import (
    leave_in,
    with_adapter,
    write_adapter,
)
from stages.training.checkpoint_parts import (
    refuse_adapter,
    refuse_not_finite,
    stored_dtype,
    write_card,
    write_generation,
)
from stages.training.resuming import TrainingProgress

DIVERGED = "training diverged; lower finetune.learning_rate"


def train(
    base: Path,
    task: TaskData,
    settings: FinetuneSettings,
    out: Path,
    curves: Path,
    progress: Path,
    keep_moments: bool = False,
) -> None:
    """Fine-tune `base` on the task's training examples; write the checkpoint into `out` and the curves into `curves`.

    AdamW with linear warm-up and decay; every random choice (the new head or, from scratch, the whole model; the
    order, dropout, masks) comes from the seed; validation examples' masks are the same in every epoch. Its state is
    saved in the directory `progress` every minute, and taken up from there. With `keep_moments`, the optimizer's second
    moments are written beside the checkpoint's weights.

    Raises:
        InputError: the base is damaged or cannot be loaded, training diverged, or see
            `stages.running.placement.reproducible`.
    """
    refuse_adapter(base)
    verify_checkpoint(base)
    transformers.set_seed(settings.seed)  # before the head is made
    kind = task_kind(task.kind)
    if settings.from_scratch:
        model = kind.new_model(base, task.labels)
    else:
        model = kind.load_model(base, task.labels, new_head=True)
    processor = kind.load_processor(base)
    drawn = draw_examples(task.rows("train"), settings.examples, settings.seed)
    examples = {
        split: encode(kind, processor, rows, task, model, settings.seed)
        for split, rows in (("train", drawn), ("validation", task.rows("validation")))
    }
    kind.refuse_unknown(processor, examples["train"], task)
    cache = getattr(model.config, "use_cache", None)
    trained = _to_be_trained(model, settings, base)
    trainer = _trainer(trained, processor, examples, task, settings, progress)
    identity: dict[str, Any] = {
        "base": tree_sha256(base),  # with its configuration and processor
        "labels": list(task.labels),
        "examples": {split: encoding_fingerprint(encoded) for split, encoded in examples.items()},
        "settings": settings.model_dump(),
        "batch": trainer.args.train_batch_size,
        **_circumstances(trainer.args.device, task.kind, ["peft"] if settings.adapter is not None else []),
    }
    with reproducible(trainer.args.device):
        TrainingProgress(trainer, identity).train()
    if model.can_generate() and cache is not None:
        model.config.use_cache = cache  # the Trainer has switched it off; without it texts are written slowly
    write_curves(trainer.state.log_history, curves)
    moments = second_moments(trainer.optimizer, model, settings.batch_size) if keep_moments else None
    if settings.adapter is None:
        dtype = WEIGHTS if settings.from_scratch else stored_dtype(base)
        _write_checkpoint(model.to(dtype), processor, base, out, moments)
    else:
        _write_adapter(trained, processor, base, out)
    origin = _origin(base, task, settings, len(drawn), trainer.state.log_history)
    write_card(out, task, model.base_model_prefix, origin)


def _to_be_trained(model: Any, settings: FinetuneSettings, base: Path) -> Any:
    """The model as it is or, where an adapter is to be trained, with that on it."""
    if settings.adapter is None:
        return model
    wrapped, stored = with_adapter(model, settings.adapter, base), stored_dtype(base)
    with scratch_directory() as folder, torch.random.fork_rng():
        write_adapter(wrapped, base, stored, folder)  # what could not be told from its files is refused before hours
    if settings.precision == "bfloat16" and stored == torch.bfloat16:
        leave_in(stored, wrapped)
    return wrapped


def _trainer(
    model: Any,
    processor: Any,
    examples: Mapping[str, Mapping[str, Sequence[Any]]],
    task: TaskData,
    settings: FinetuneSettings,
    progress: Path,
) -> transformers.Trainer:
    """The Trainer, with the encoded examples of the splits `train` and `validation`."""
    kind = task_kind(task.kind)
    validation = EncodedExamples(examples["validation"])
    return transformers.Trainer(
        model,
        training_arguments(settings, progress, kind),
        train_dataset=kind.training_set(processor, examples["train"], settings.seed),
        # Examples of a size together, or most of a batch is padding.
        eval_dataset=torch.utils.data.Subset(validation, kind.largest_first(examples["validation"]).tolist()),
        data_collator=kind.collator(processor, model),
        compute_metrics=_score(metric) if (metric := _metric_of_curves(task)) else None,
        preprocess_logits_for_metrics=_outputs_of(kind),
    )


def _write_checkpoint(
    model: Any, processor: Any, base: Path, out: Path, moments: Mapping[str, torch.Tensor] | None
) -> None:
    """Write the trained weights, the optimizer's moments if there are any, and what belongs to the base besides."""
    _copy_configuration(processor, base, out)
    on_the_cpu(model).save_pretrained(out)
    if moments is not None:
        write_tensors(out, ADAM, as_stored(model, moments, TensorFiles(out)))
    processor.save_pretrained(out)
    write_generation(model, base, out)
    refuse_not_finite(TensorFiles(out), DIVERGED)


def _write_adapter(model: Any, processor: Any, base: Path, out: Path) -> None:
    """Write the trained adapter, and what belongs to the base beside its weights."""
    _copy_configuration(processor, base, out)
    write_adapter(on_the_cpu(model), base, stored_dtype(base), out)
    processor.save_pretrained(out)
    write_generation(model.get_base_model(), base, out)
    refuse_not_finite(TensorFiles(out, ADAPTER_STEM), DIVERGED)


def _copy_configuration(processor: Any, base: Path, out: Path) -> None:
    """What belongs to the base beside its weights, but for what its tokenizer will be saved without."""
    copy_configuration(base, out)
    for name in SUPERSEDED if isinstance(processor, transformers.PreTrainedTokenizerBase) else ():
        (out / name).unlink(missing_ok=True)


def training_arguments(settings: FinetuneSettings, progress: Path, kind: Kind[Any]) -> transformers.TrainingArguments:
    """How the Trainer trains: whole epochs, on one device a process, with an evaluation after each epoch.

    Args:
        settings: the model's.
        progress: where the training's state may be saved.
        kind: the task's, which says in what order and in what batches.
    """
    arguments = transformers.TrainingArguments(
        output_dir=str(progress),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=kind.prediction_batch,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        seed=settings.seed,
        train_sampling_strategy=kind.train_sampling,
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=5,
        report_to=[],
        remove_unused_columns=False,  # all are used
        bf16=settings.precision == "bfloat16",
        use_cpu=compute_device().type == "cpu",
        dataloader_pin_memory=False,
    )
    return one_gpu(arguments)


def _metric_of_curves(task: TaskData) -> Metric | None:
    """The first of the task's metrics that takes nothing but logits, if there is one."""
    return next((metric for metric in task.metrics if metric.of_logits), None)


def _score(metric: Metric) -> Callable[[transformers.EvalPrediction], dict[str, float]]:
    """What the Trainer makes of a split's predictions: the metric, under its name."""

    def score(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return {metric.name: metric.value(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))}

    return score


def _outputs_of(kind: Kind[Any]) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """What is kept of a batch's outputs, of which logits come first; the rest (hidden states) is no prediction."""

    def outputs_of(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        return kind.outputs(outputs[0] if isinstance(outputs, tuple) else outputs, labels)

    return outputs_of


def _circumstances(device: torch.device, kind: str, further: Sequence[str]) -> dict[str, Any]:
    """What a training's bits depend on beside its inputs."""
    return {
        "libraries": library_versions("torch", "transformers", "accelerate", *further),
        "device": device.type,
        "code": code_sha256("training.finetuning", module_of(kind, "kind")),
    }


def _origin(
    base: Path, task: TaskData, settings: FinetuneSettings, examples: int, history: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """How a checkpoint was trained and how well it did, for its card."""
    score = metric.name if (metric := _metric_of_curves(task)) else "loss"
    return {
        "method": "finetuned",
        "base": base.name,
        "examples": examples,
        f"validation_{score}": [entry[f"eval_{score}"] for entry in history if f"eval_{score}" in entry][-1],
        **settings.model_dump(exclude={"examples"}),
    }


def second_moments(
    optimizer: torch.optim.Optimizer | None, model: torch.nn.Module, batch_size: int
) -> dict[str, torch.Tensor]:
    """Adam's running mean of squared gradients, without its bias to zero, per parameter in float32.

    The gradients are of a batch's mean loss. Where that mean is near zero its square is 1/B of the mean square of the
    examples' own gradients, so it is multiplied by the batch size B: the size of an empirical Fisher.

    The optimizer passes over a parameter in steps that do not use it, where its gradient is zero: it has no state of
    one that nothing uses, and of one that some steps use a mean over these alone, which is brought down by their share.
    """
    assert optimizer is not None, "training has made it"
    (decay,) = {group["betas"][1] for group in optimizer.param_groups}
    steps = max(float(state["step"]) for state in optimizer.state.values())
    moments = {}
    for name, parameter in model.named_parameters():
        if (state := optimizer.state.get(parameter)) is None:
            moments[name] = torch.zeros(parameter.shape)
            continue
        taken = float(state["step"])
        scale = batch_size / (1 - decay**taken) * (taken / steps)
        moments[name] = (state["exp_avg_sq"].float() * scale).cpu()
    return moments


def write_curves(history: Sequence[Mapping[str, float]], curves: Path) -> None:
    """Write losses and any metric by training step; without run times, which would make no two runs' outputs alike.

    Args:
        history: what the Trainer has logged.
        curves: a directory for DVCLive's tables.
    """
    with scratch_directory() as scratch:
        live = Live(str(scratch), dvcyaml=None, save_dvc_exp=False, report=None)
        for entry in history:
            live.step = int(entry["step"])
            for name, value in entry.items():
                if name != "step" and not name.endswith(("runtime", "per_second", "_flos")):
                    live.log_metric(standardize_metric_name(name, "dvclive.huggingface"), value)
        live.end()
        shutil.copytree(Path(live.plots_dir) / "metrics", curves, dirs_exist_ok=True)
