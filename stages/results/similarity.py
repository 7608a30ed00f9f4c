"""How alike the models' Fishers are, and where in the model their mass lies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.storage.statistic import UNVERIFIED
from stages.storage.statistic_files import open_statistic
from stages.storage.tensors import TensorFiles, check_fingerprint

CHUNK = 1 << 20  # values in memory at a time, of all models together
DIGITS = 9  # that are written


def compare_fishers(directories: Mapping[str, Path]) -> dict[str, Any]:
    """How alike diagonal Fishers are, pair by pair, and how much of each lies in which tensor.

    With F and G the diagonals as vectors over the tensors that both models have, by name and shape:

    - `cosine`: ⟨F, G⟩ / (‖F‖ ‖G‖), which the few largest entries decide;
    - `overlap`: ⟨√F, √G⟩ / (‖√F‖ ‖√G‖) = Σ √(F_k G_k) / √(ΣF ΣG), the Bhattacharyya coefficient of the two as
      distributions over the parameters, in which every entry counts by its share of the mass.

    Both are 1 for a Fisher and a positive multiple of it, and 0 for two that no parameter has in common.

    Args:
        directories: model → the directory of its Fisher.

    Returns:
        `cosine` and `overlap`: model → model → value, or None where no tensor is shared or one of them is zero;
        `shared`: model → model → share of the first one's entries that are in tensors that both have;
        `tensors`: model → tensor → `entries` and `sum`, of float64;
        `unverified`, if there are any: the models whose Fisher nothing binds to their checkpoint.

    Raises:
        InputError: a Fisher is missing, or not as it was written.
    """
    found = {model: open_statistic("diagonal", directory) for model, directory in directories.items()}
    for statistic in found.values():
        check_fingerprint(statistic.tensors, {"fingerprint": None, **statistic.card}, statistic.card_file.name)
    sums = _Sums({model: statistic.tensors for model, statistic in found.items()})
    for tensor in sorted({name for files in sums.fishers.values() for name in files.specs}):
        for group in _of_one_shape(tensor, sums.fishers):
            sums.add(tensor, group)
    unverified = [model for model, statistic in found.items() if statistic.card.get(UNVERIFIED)]
    return {
        "cosine": sums.normalized(sums.products, sums.squares),
        "overlap": sums.normalized(sums.roots, sums.masses),
        "shared": sums.shares(),
        "tensors": sums.tensors(),
        **({UNVERIFIED: unverified} if unverified else {}),
    }


class _Sums:
    """Sums over Fishers, in float64, from which all comparisons follow.

    Attributes:
        fishers: model → its Fisher.
        products: of an ordered pair of models (the first by name first), over the tensors that both have: ⟨F, G⟩.
        roots: the same: ⟨√F, √G⟩.
        squares: of either order of a pair, over the same tensors: ‖F‖² of the first.
        masses: the same: ΣF of the first.
    """

    def __init__(self, fishers: Mapping[str, TensorFiles]) -> None:
        self.fishers = fishers
        pairs = {model: dict.fromkeys(fishers, 0.0) for model in fishers}
        self.products, self.squares, self.roots, self.masses, self._shared = (
            {model: dict(row) for model, row in pairs.items()} for _ in range(5)
        )
        self._of_tensors = {model: dict.fromkeys(files.specs, 0.0) for model, files in fishers.items()}

    def add(self, tensor: str, group: Sequence[str]) -> None:
        """Add a tensor that these models have in one shape, chunk by chunk."""
        values = {model: self.fishers[model].read(tensor).reshape(-1) for model in group}
        size = next(iter(values.values())).numel()
        step = max(1, CHUNK // len(group))
        for start in range(0, size, step):
            self._add_chunk(tensor, {model: _float64(whole[start : start + step]) for model, whole in values.items()})
        for first in group:
            for second in group:
                self._shared[first][second] += size

    def _add_chunk(self, tensor: str, chunk: Mapping[str, np.ndarray]) -> None:
        root = {model: np.sqrt(part) for model, part in chunk.items()}
        for first, part in chunk.items():
            mass, square = float(part.sum()), float(np.sum(part * part))
            self._of_tensors[first][tensor] += mass
            for second in chunk:
                self.masses[first][second] += mass
                self.squares[first][second] += square
                if first <= second:
                    self.products[first][second] += float(np.sum(part * chunk[second]))
                    self.roots[first][second] += float(np.sum(root[first] * root[second]))

    def normalized(
        self, inner: Mapping[str, Mapping[str, float]], own: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float | None]]:
        """Model → model → the inner product over the root of both models' own."""
        return {
            first: {
                second: _ratio(inner[min(first, second)][max(first, second)], own[first][second] * own[second][first])
                for second in self.fishers
            }
            for first in self.fishers
        }

    def shares(self) -> dict[str, dict[str, float]]:
        """Model → model → the share of the first one's entries that are in tensors that both have."""
        entries = {model: sum(spec.elements for spec in files.specs.values()) for model, files in self.fishers.items()}
        return {
            first: {second: _rounded(count / entries[first]) for second, count in row.items()}
            for first, row in self._shared.items()
        }

    def tensors(self) -> dict[str, dict[str, dict[str, float]]]:
        """Model → tensor → `entries` and `sum`."""
        return {
            model: {
                tensor: {"entries": files.specs[tensor].elements, "sum": _rounded(self._of_tensors[model][tensor])}
                for tensor in files.specs
            }
            for model, files in self.fishers.items()
        }


def _of_one_shape(tensor: str, fishers: Mapping[str, TensorFiles]) -> list[list[str]]:
    """The models that have the tensor, those in which it has the same shape together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for model, files in fishers.items():
        if tensor in files.specs:
            groups.setdefault(files.specs[tensor].shape, []).append(model)
    return list(groups.values())


def _float64(values: Any) -> np.ndarray:
    import torch

    return values.to(torch.float64).numpy()


def _ratio(inner: float, product_of_squares: float) -> float | None:
    return _rounded(inner / product_of_squares**0.5) if product_of_squares > 0 else None


def _rounded(value: float) -> float:
    """Without the digits that a sum in another order would change."""
    return float(f"{value:.{DIGITS}g}")
