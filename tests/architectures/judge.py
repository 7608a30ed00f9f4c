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
from tests.architectures.inputs import LIKELIHOODS, batch_for, kind_of, log_likelihood
from tests.architectures.tiny import settings_of, tiny_config, tiny_model

INITIALISATIONS = ("own", "ordinary")
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # relative, of a tensor's Fisher
FACTOR = 5  # how much further from float64 than plain autograd of the same type
NOISE = 1000  # the same, where all is rounding
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
            kind = kind_of(task, model)
            batch = _cast(batch_for(kind, model, settings_of(architecture)), dtype)
            _refuse_blind(kind, copy.deepcopy(model), batch)
            reference, reference_dtype = _reference(kind, model, batch)  # first: some models keep tensors of a pass
            plain = autograd_fisher(kind, copy.deepcopy(model), batch)
        except Exception as error:
            outcome, detail = "not buildable", _line(error)
        else:
            outcome, detail = _judge(kind, model, batch, plain, reference, reference_dtype)
            detail += "" if reference_dtype == torch.float64 else " (float32 reference)"
        setting = f"{initialisation} {str(dtype).removeprefix('torch.')}"
        results.append(Result(task, architecture, class_name, setting, outcome, detail))
    return results


def _refuse_blind(kind: str, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Refuse a model that cannot tell choices apart (MRA's attention needs its kernel for GPUs): it has no gradient."""
    if kind == "choice":
        with torch.no_grad():
            logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        if torch.equal(logits[:, 0], logits[:, 1]):
            raise ValueError("its outputs do not depend on its inputs on this machine")


def _judge(
    kind: str,
    model: nn.Module,
    batch: dict[str, Tensor],
    plain: dict[str, Tensor],
    reference: dict[str, Tensor],
    reference_dtype: torch.dtype,
) -> tuple[str, str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with Estimation(model, BackwardVectors(LIKELIHOODS[kind], "empirical")) as estimation:
                estimation.add(batch)
                slow = estimation.slow
                found = estimation.result().diagonal
        except ValueError as error:
            if _is_ours(error):
                return "refused", _line(error)
            return "crashing", _line(error)
        except Exception as error:
            return "crashing", _line(error)
    announced = [str(warning.message) for warning in said if "one example at a time" in str(warning.message)]
    if wrong := wrong_tensors(found, plain, reference, next(model.parameters()).dtype, reference_dtype):
        return "wrong", "; ".join(f"{name}: {how}" for name, how in wrong.items())
    if announced:
        return "slow in part", f"{len(slow)} of {len(found)}: {_listed(slow)}" if slow else announced[0]
    return "exact", ""


def wrong_tensors(
    found: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    dtype: torch.dtype,
    reference_dtype: torch.dtype = torch.float64,
) -> dict[str, str]:
    """Name → how it is wrong: a tensor is judged by its own scale, and by the rounding of plain autograd.

    Where a gradient is zero in exact arithmetic (BERT's key biases), all that there is to see is rounding, whose
    squares differ by orders of magnitude from one way of adding up to another.
    """
    largest = max((float(value.norm()) for value in reference.values() if value.isfinite().all()), default=0.0)
    wrong = {}
    for name, right in reference.items():
        value, beside = found[name].double(), plain[name]
        if not (right.isfinite().all() and beside.isfinite().all()):
            continue  # the model itself is out of its type's range
        size, rounding, error = float(right.norm()), float((beside - right).norm()), float((value - right).norm())
        underflow = torch.finfo(torch.float32).tiny * right.numel() ** 0.5  # results are float32
        if reference_dtype != torch.float64 and size < torch.finfo(reference_dtype).eps ** 2 * largest:
            continue  # such a reference cannot tell it from rounding
        if not _agree(beside, right) or _cancels(name, reference):
            allowed = NOISE * (rounding + size) + (10 * torch.finfo(dtype).eps) ** 2 * largest
        elif float(value.norm()) == 0 and size > underflow:
            wrong[name] = f"zero, where {size:.1e} is right"
            continue
        else:
            allowed = FACTOR * rounding + TOLERANCE[dtype] * size
        # An expert that is chosen otherwise in float64 is as it is in plain autograd.
        otherwise = float((value - beside).norm()) <= TOLERANCE[dtype] * float(beside.norm())
        if not (error <= allowed + underflow or otherwise):
            wrong[name] = f"{error:.1e} off {size:.1e}; plain autograd is {rounding:.1e} off"
    return wrong


def _agree(plain: Tensor, right: Tensor) -> bool:
    """Whether plain autograd in the model's type shows the same gradient as float64 does, and not only rounding."""
    a, b = float(plain.norm()), float(right.norm())
    return a > 0 and b > 0 and 0.3 < a / b < 3 and float((plain * right).sum()) > 0.7 * a * b


def _cancels(name: str, reference: Mapping[str, Tensor]) -> bool:
    """Whether a bias has no gradient beside its weight's: what is left is float32's rounding inside of the model.

    Some models compute a softmax in float32 whatever their type, so that float64 has that rounding, too.
    """
    weight = reference.get(f"{name.removesuffix('bias')}weight")
    return name.endswith("bias") and weight is not None and float(reference[name].norm()) < 1e-12 * float(weight.norm())


def autograd_fisher(kind: str, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over examples of the squared score of the labels, by autograd in the model's type, in float64."""
    parameters = {name: parameter.requires_grad_(True) for name, parameter in model.named_parameters()}
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    examples = len(batch["labels"])
    for row in range(examples):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        outputs: Any = model(**{name: tensor for name, tensor in one.items() if name != "labels"})
        # The score of float64 logits, so that only the model rounds, and not the likelihood.
        score = log_likelihood(kind, outputs.logits.double(), one["labels"])
        gradients = torch.autograd.grad(score, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.detach().double() ** 2 / examples
    return total


def _reference(kind: str, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], torch.dtype]:
    """In float64; in float32 where the model's own code cannot be run in float64."""
    try:
        double = copy.deepcopy(model).double()
        if isinstance(double, PreTrainedModel) and double._can_set_experts_implementation():
            double.set_experts_implementation("eager")  # torch's grouped products have no float64
        return autograd_fisher(kind, double, _cast(batch, torch.float64)), torch.float64
    except RuntimeError:
        return autograd_fisher(kind, copy.deepcopy(model).float(), _cast(batch, torch.float32)), torch.float32


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
