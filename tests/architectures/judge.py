"""Is a model's Fisher right? Against autograd in float64, one example at a time."""

import copy
import re
import traceback
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.curvature import BackwardVectors, Estimation
from tests.architectures.inputs import LIKELIHOODS, batch_for, log_likelihood
from tests.architectures.tiny import settings_of, tiny_config, tiny_model

INITIALISATIONS = ("own", "ordinary")
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # relative, of a tensor's Fisher
FACTOR = 5  # how much further from float64 than plain autograd of the same type
OUTCOMES = ("not buildable", "exact", "slow in part", "refused", "wrong", "crashing")  # the worst one counts


@dataclass(frozen=True)
class Result:
    """What came of one class, in one type and with one initialisation.

    Attributes:
        detail: why, or which tensors.
    """

    task: str
    architecture: str
    class_name: str
    setting: str
    outcome: str
    detail: str = ""


def judge_class(task: str, architecture: str, class_name: str) -> list[Result]:
    """In both types and with both initialisations."""
    results = []
    for initialisation, dtype in product(INITIALISATIONS, DTYPES):
        try:
            model = tiny_model(class_name, tiny_config(architecture, class_name, task), initialisation).to(dtype)
            batch = _cast(batch_for(task, model, settings_of(architecture)), dtype)
            plain = autograd_fisher(task, model, batch)
            reference, kind = _reference(task, model, batch)
        except Exception as error:
            outcome, detail = "not buildable", _line(error)
        else:
            outcome, detail = _judge(task, model, batch, plain, reference)
            detail += kind
        setting = f"{initialisation} {str(dtype).removeprefix('torch.')}"
        results.append(Result(task, architecture, class_name, setting, outcome, detail))
    return results


def _judge(
    task: str, model: nn.Module, batch: dict[str, Tensor], plain: dict[str, Tensor], reference: dict[str, Tensor]
) -> tuple[str, str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with Estimation(model, BackwardVectors(LIKELIHOODS[task], "empirical")) as estimation:
                estimation.add(batch)
                slow = slow_tensors(estimation)
                found = estimation.result().diagonal
        except ValueError as error:
            if _is_ours(error):
                return "refused", _line(error)
            return "crashing", _line(error)
        except Exception as error:
            return "crashing", _line(error)
    announced = any("one example at a time" in str(warning.message) for warning in said)
    if wrong := wrong_tensors(found, plain, reference, next(model.parameters()).dtype):
        return "wrong", "; ".join(f"{name}: {how}" for name, how in wrong.items())
    if announced:
        return "slow in part", f"{len(slow)} of {len(found)}: {_listed(slow)}"
    return "exact", ""


def slow_tensors(estimation: Estimation) -> set[str]:
    """What the estimation leaves to autograd. Only this looks inside it."""
    verdict = estimation._verdict
    return set(verdict.wrong) if verdict is not None else set()


def wrong_tensors(
    found: Mapping[str, Tensor], plain: Mapping[str, Tensor], reference: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, str]:
    """Name → how it is wrong. What is zero but for rounding is judged by the rounding of plain autograd."""
    wrong = {}
    for name, own in reference.items():
        value, beside = found[name].double(), plain[name]
        size, rounding = float(own.norm()), float((beside - own).norm())
        error = float((value - own).norm())
        if not torch.isfinite(own).all() or not torch.isfinite(beside).all():
            continue
        if float(value.norm()) == 0 and size > 0 and 0.1 < float(beside.norm()) / size < 10:
            wrong[name] = f"zero, where {size:.1e} is right"
        elif not error <= FACTOR * rounding + TOLERANCE[dtype] * size:
            apart = float((value - beside).norm())
            if not apart <= TOLERANCE[dtype] * float(beside.norm()):  # an expert that another type chooses otherwise
                wrong[name] = f"off by {error / size if size else float('inf'):.1e}, plain autograd {rounding:.1e}"
    return wrong


def autograd_fisher(task: str, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over examples of the squared score of the labels, by autograd in the model's type, in float64."""
    parameters = {name: parameter.requires_grad_(True) for name, parameter in model.named_parameters()}
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    examples = len(batch["labels"])
    for row in range(examples):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        outputs: Any = model(**{name: tensor for name, tensor in one.items() if name != "labels"})
        # The score of float64 logits, so that only the model rounds, and not the likelihood.
        score = log_likelihood(task, outputs.logits.double(), one["labels"])
        gradients = torch.autograd.grad(score, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.detach().double() ** 2 / examples
    return total


def _reference(task: str, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """In float64; in float32 where the model's own code cannot be run in float64."""
    try:
        double = copy.deepcopy(model).double()
        if isinstance(double, PreTrainedModel) and double._can_set_experts_implementation():
            double.set_experts_implementation("eager")  # torch's grouped products have no float64
        return autograd_fisher(task, double, _cast(batch, torch.float64)), ""
    except RuntimeError:
        return autograd_fisher(task, copy.deepcopy(model).float(), _cast(batch, torch.float32)), " (float32 reference)"


def _cast(batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def _is_ours(error: BaseException) -> bool:
    """Whether the project itself raised it."""
    return "stages/curvature" in traceback.extract_tb(error.__traceback__)[-1].filename


def _listed(names: Collection[str]) -> str:
    """A layer's number is left out."""
    return ", ".join(sorted({re.sub(r"\d+", "*", name) for name in names}))


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
