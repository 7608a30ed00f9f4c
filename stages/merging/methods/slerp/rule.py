"""Spherical interpolation between two models, tensor by tensor."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stages.merging.methods.slerp.options import Slerp
from stages.merging.models import Models, Rule

# Beyond this |cosine| the tensors are taken as colinear, as in mergekit.
_COLINEAR = 0.9995


def slerp(first: Tensor, second: Tensor, t: float, angle: float | None) -> Tensor:
    """θ = (sin((1 − t) φ) θ_1 + sin(t φ) θ_2) / sin φ (Shoemake 1985); without an angle, (1 − t) θ_1 + t θ_2.

    t = 0 gives the first, t = 1 the second exactly. Models that agree are colinear, and give their common value back
    without rounding.

    Args:
        first: θ_1, in the precision to compute in: a whole tensor or a chunk of it.
        second: θ_2, of the same shape.
        t: how far from the first to the second.
        angle: φ, between the two models' whole tensors; see `Angle`.
    """
    if angle is None:
        return torch.lerp(first, second, t)
    merged = first * (math.sin((1 - t) * angle) / math.sin(angle))
    return merged.add_(second, alpha=math.sin(t * angle) / math.sin(angle))


class Angle:
    """The angle between two tensors, flattened, from sums in float64 over their chunks."""

    def __init__(self) -> None:
        self._first_square = self._second_square = self._product = 0.0

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add a chunk of the first and the same chunk of the second tensor."""
        first, second = first.reshape(-1).double(), second.reshape(-1).double()
        self._first_square += float(first @ first)
        self._second_square += float(second @ second)
        self._product += float(first @ second)

    def radians(self) -> float | None:
        """φ in (0, π), or None where there is none to turn by: |cos φ| > 0.9995, or a tensor is zero.

        mergekit takes a right angle between a zero tensor and any other, and interpolates by sines.
        """
        norms = math.sqrt(self._first_square) * math.sqrt(self._second_square)
        if norms == 0 or abs(cosine := self._product / norms) > _COLINEAR:
            return None
        return math.acos(cosine)


def rule(_: Slerp, models: Models) -> Rule:
    """Every parameter by `slerp`, by the angle between the two models' tensors."""
    t = models.coefficients[1]

    def angle(name: str) -> float | None:
        found = Angle()
        for first, second in models.chunks(name, models.checkpoints):
            found.add(first, second)
        return found.radians()

    def merged(name: str) -> Iterator[Tensor]:
        radians = models.once(("angle", name), lambda: angle(name))
        for first, second in models.chunks(name, models.checkpoints):
            yield slerp(first, second, t, radians)

    return merged
