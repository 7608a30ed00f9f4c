"""Merge rules on tensors, and the streamed merge of checkpoints; knows nothing of DVC.

Options come without torch: who only reads a params.yaml need not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.merging.methods.dare.options import Dare
from stages.merging.methods.fisher.options import Fisher
from stages.merging.methods.isotropic.options import Isotropic
from stages.merging.methods.kfac.options import Kfac
from stages.merging.methods.regmean.options import Regmean
from stages.merging.methods.slerp.options import Slerp
from stages.merging.methods.task_arithmetic.options import TaskArithmetic
from stages.merging.methods.ties.options import Ties
from stages.merging.methods.uncertainty.options import Uncertainty

if TYPE_CHECKING:
    from stages.merging.checkpoints import merge_checkpoints
    from stages.merging.saving import save_fisher

__all__ = [
    "Dare",
    "Fisher",
    "Isotropic",
    "Kfac",
    "Regmean",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "Uncertainty",
    "merge_checkpoints",
    "save_fisher",
]
_WITH_TORCH = {"merge_checkpoints": "stages.merging.checkpoints", "save_fisher": "stages.merging.saving"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
