"""Models in checkpoint directories, whatever they are for: safetensors only, no code from elsewhere, no gaps."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from stages.running.errors import InputError
from stages.running.placement import WEIGHTS
from stages.storage import naming
from stages.storage.adapted import AdaptedFiles
from stages.storage.adapters import adapter_base
from stages.storage.checkpoint_files import config_file, has_weights, is_adapter, read_config

Model = Any
Architecture = Any  # one of transformers' AutoModelFor…
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]  # as transformers has them
SINGLE_LABEL: Problem = "single_label_classification"
_MISSING, _OTHER_SHAPE = "lacks the tensor {}", "tensor {} has another shape than the config says"


def load_classifier(
    architecture: Architecture,
    checkpoint: Path,
    labels: Sequence[str],
    problem: Problem = SINGLE_LABEL,
    *,
    new_head: bool = False,
    head: Mapping[str, torch.Tensor] | None = None,
) -> Model:
    """The classifier, or model of numbers, in a checkpoint directory, in float32 on the CPU.

    Args:
        architecture: for what kind of input.
        checkpoint: safetensors weights and config.json.
        labels: label names, or names of numbers, in the order of the outputs.
        problem: what the outputs are, which decides the loss.
        new_head: the head may be missing (a base model) or be one for other labels, and is then initialised at random,
            as the pooler before it is if it is missing (a masked-LM model has none).
        head: tensors to use in place of the checkpoint's head, by their names.

    Raises:
        InputError: the checkpoint cannot be read, lacks a tensor, or has one of another shape than its config says.
    """
    model = load_pretrained(
        architecture,
        _what(problem),
        checkpoint,
        _labelling(labels, problem),
        headless=bool(new_head or head),
        poolerless=new_head,
    )
    if new_head and _own_labels(checkpoint) not in (None, list(labels)):
        fresh = architecture.from_config(model.config, dtype=WEIGHTS, trust_remote_code=False).state_dict()
        body = f"{model.base_model_prefix}."
        head = {name: tensor for name, tensor in fresh.items() if not name.startswith(body)}
    if head is not None:
        take_head(model, checkpoint, head)
    return model


def take_head(model: Model, checkpoint: Path, head: Mapping[str, torch.Tensor]) -> None:
    """Put a head's tensors, by their names, into the model of a checkpoint. Raises `InputError` if they do not fit."""
    try:
        unexpected = model.load_state_dict(dict(head), strict=False).unexpected_keys
    except RuntimeError as error:
        raise InputError(f"{checkpoint}: a head does not fit: {' '.join(str(error).split())}") from None
    if unexpected:
        raise InputError(f"{checkpoint}: a head has the tensor {unexpected[0]}, which the model lacks")


def load_pretrained(
    architecture: Architecture,
    what: str,
    checkpoint: Path,
    config: Mapping[str, Any],
    *,
    headless: bool,
    poolerless: bool,
) -> Model:
    """The model in a checkpoint directory, in float32 on the CPU; only safetensors are read, and no code is run.

    Args:
        architecture: one of transformers' AutoModelFor….
        what: it is, for messages.
        checkpoint: safetensors weights and config.json.
        config: what is said otherwise than in config.json.
        headless: whether tensors outside the body may be missing or of another shape; they are initialised at random.
        poolerless: whether those of the body's pooler may be missing; they are initialised at random.

    Raises:
        InputError: the checkpoint cannot be read, lacks a tensor, or has one of another shape than its config says.
    """
    load = _load_adapted if is_adapter(checkpoint) else _load
    model, lacking = load(architecture, what, checkpoint, config)
    _refuse_lacking(model, checkpoint, lacking, headless=headless, poolerless=poolerless)
    return model


def _load(
    architecture: Architecture, what: str, checkpoint: Path, config: Mapping[str, Any]
) -> tuple[Model, dict[str, str]]:
    """The model in a checkpoint directory; and what is wrong with those of its tensors that are none of the files'."""
    _check_self_contained(checkpoint)
    if not has_weights(checkpoint):
        raise InputError(
            f"{checkpoint}: cannot be loaded as {what}: it has no weights (.safetensors); a model that is to start "
            "from its config alone needs `finetune: {from_scratch: true}`"
        )
    _silence()
    try:
        model, loading = architecture.from_pretrained(
            checkpoint,
            **config,
            dtype=WEIGHTS,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # whatever transformers makes of a broken checkpoint
        raise _not_loadable(checkpoint, what, error) from None
    lacking = dict.fromkeys(map(str, loading["missing_keys"]), _MISSING)
    return model, lacking | {str(entry[0]): _OTHER_SHAPE for entry in loading["mismatched_keys"]}


def _load_adapted(
    architecture: Architecture, what: str, checkpoint: Path, config: Mapping[str, Any]
) -> tuple[Model, dict[str, str]]:
    """What `_load` gives, of the model that an adapter makes of its base: one copy of that, with the changes in it."""
    base = adapter_base(checkpoint)
    model, lacking = _load(architecture, what, base, config)
    files = AdaptedFiles(checkpoint, base)
    if files.untied:
        untie(model)
    tensors = model.state_dict()
    for name in sorted(files.changed):
        if name not in tensors:
            raise InputError(f"{checkpoint}: the adapter's tensor {name} is none of {what}")
        if tensors[name].shape == files.specs[name].shape:
            tensors[name].copy_(files.read_as(name, WEIGHTS))
            lacking.pop(name, None)
    return model, lacking


def untie(model: Model) -> None:
    """Give a model tensors of their own, of the same values, where several are one: embeddings and the output's."""
    for name in naming.ties(model):
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, own, torch.nn.Parameter(getattr(module, own).detach().clone()))
    model.config.get_text_config().tie_word_embeddings = False


def _refuse_lacking(
    model: Model, checkpoint: Path, lacking: Mapping[str, str], *, headless: bool, poolerless: bool
) -> None:
    """Raise `InputError` if a checkpoint lacks a tensor that may not be new; see `load_pretrained`."""
    body = f"{model.base_model_prefix}."
    for name, complaint in sorted(lacking.items()):
        new_pooler = poolerless and complaint == _MISSING and name.startswith(f"{body}pooler.")
        if not new_pooler and (_in_body(name, model) or not headless):
            raise InputError(f"{checkpoint}: {complaint.format(name)}; make or fetch the checkpoint again")


def _in_body(name: str, model: Model) -> bool:
    """Whether a model's tensor is of its body; T5 has its body's parts beside its head, which is one module."""
    if hasattr(model, model.base_model_prefix):
        return name.startswith(f"{model.base_model_prefix}.")
    head = model.get_output_embeddings()
    return not any(module is head and name.startswith(f"{path}.") for path, module in model.named_modules())


def new_classifier(
    architecture: Architecture, checkpoint: Path, labels: Sequence[str], problem: Problem = SINGLE_LABEL
) -> Model:
    """What `load_classifier` gives, but initialised at random by a directory's config.json: torch's seed decides.

    Raises:
        InputError: there is no config, or none of a classifier for this kind of input.
    """
    return new_pretrained(architecture, _what(problem), checkpoint, _labelling(labels, problem))


def new_pretrained(architecture: Architecture, what: str, checkpoint: Path, config: Mapping[str, Any]) -> Model:
    """What `load_pretrained` gives, but initialised at random.

    Raises:
        InputError: there is no config, or one of another kind of model.
    """
    _check_self_contained(checkpoint)
    _silence()
    try:
        own = transformers.AutoConfig.from_pretrained(
            checkpoint, **config, trust_remote_code=False, local_files_only=True
        )
        return architecture.from_config(own, dtype=WEIGHTS, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of a broken config
        raise _not_loadable(checkpoint, what, error) from None


def _what(problem: Problem) -> str:
    """What a model is, for messages."""
    return "a regression model" if problem == "regression" else "a classifier"


def _labelling(labels: Sequence[str], problem: Problem) -> dict[str, Any]:
    names = dict(enumerate(labels))
    return {
        "num_labels": len(labels),
        "id2label": names,
        "label2id": {label: position for position, label in names.items()},
        "problem_type": problem,  # whatever a base was trained for
    }


def _silence() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _own_labels(checkpoint: Path) -> list[str] | None:
    """The label names of a checkpoint's head, in its outputs' order, if it has any that are not transformers' own."""
    names = read_config(checkpoint).get("id2label")
    if not isinstance(names, dict) or all(str(name) == f"LABEL_{position}" for position, name in names.items()):
        return None
    return [str(names[position]) for position in sorted(names, key=int)]


def _not_loadable(checkpoint: Path, what: str, error: Exception) -> InputError:
    return InputError(f"{checkpoint}: cannot be loaded as {what}: {' '.join(str(error).split())[:400]}")


def _check_self_contained(checkpoint: Path) -> None:
    """Refuse a directory without a config, or with which transformers would load weights or code from elsewhere."""
    for key, value in _implementations(read_config(checkpoint)):
        if "/" in str(value):  # a repository of kernels, compiled code
            raise InputError(f"{config_file(checkpoint)}: {key} = {value!r} is code from elsewhere; remove it")


def _implementations(config: object) -> Iterator[tuple[str, object]]:
    """What a configuration, or one in it, says of how to compute."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.endswith("_implementation"):
            yield key, value
        yield from _implementations(value)
