"""similarity: the models' Fishers → results/similarity/similarity.json: how alike they are, and where their mass lies.

The report shows both. A whole Fisher is read for them, so they are a stage of their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import FORMAT_VERSION, SIMILARITY_FILE, atomic_directory, write_json
from stages.command import run_stage
from stages.contents import write_contents
from stages.merging.inputs import open_statistic
from stages.paths import FISHERS, SIMILARITY
from stages.plan import models_with_fishers
from stages.settings import stage_params
from stages.tensors import TensorFiles, check_fingerprint

CHUNK = 1 << 20  # values in memory at a time, of all models together
DIGITS = 9  # that are written


def similarity() -> None:
    """Compare the Fishers of all models of params.yaml that have one."""
    params = stage_params("similarity")
    content = compare_fishers({model: FISHERS / model for model in models_with_fishers(params)})
    with atomic_directory(SIMILARITY) as partial:
        write_json(partial / SIMILARITY_FILE, {"format_version": FORMAT_VERSION, **content})
        write_contents(partial)


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
        `tensors`: model → tensor → `entries` and `sum`, of float64.

    Raises:
        InputError: a Fisher is missing, or not as it was written.
    """
    found = {model: open_statistic("diagonal", directory) for model, directory in directories.items()}
    for statistic in found.values():
        check_fingerprint(statistic.tensors, {"fingerprint": None, **statistic.card}, statistic.card_file.name)
    fishers = {model: statistic.tensors for model, statistic in found.items()}
    sums = {model: dict.fromkeys(files.specs, 0.0) for model, files in fishers.items()}
    zeros = {model: dict.fromkeys(fishers, 0.0) for model in fishers}
    # Per ordered pair, over what both have: ⟨F, G⟩ and ‖F‖²; ⟨√F, √G⟩ and ‖√F‖²; the number of F's entries.
    products, squares, roots, masses, shared = ({model: dict(row) for model, row in zeros.items()} for _ in range(5))
    for tensor in sorted({name for files in fishers.values() for name in files.specs}):
        for group in _of_one_shape(tensor, fishers):
            values = {model: fishers[model].read(tensor).reshape(-1) for model in group}
            size = next(iter(values.values())).numel()
            step = max(1, CHUNK // len(group))
            for start in range(0, size, step):
                chunk = {model: _float64(whole[start : start + step]) for model, whole in values.items()}
                root = {model: np.sqrt(part) for model, part in chunk.items()}
                for first, part in chunk.items():
                    mass, square = float(part.sum()), float(np.sum(part * part))
                    sums[first][tensor] += mass
                    for second in group:
                        masses[first][second] += mass
                        squares[first][second] += square
                        if first <= second:
                            products[first][second] += float(np.sum(part * chunk[second]))
                            roots[first][second] += float(np.sum(root[first] * root[second]))
            for first in group:
                for second in group:
                    shared[first][second] += size

    def normalized(inner: Mapping[str, Mapping[str, float]], own: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        return {
            first: {
                second: _ratio(inner[min(first, second)][max(first, second)], own[first][second] * own[second][first])
                for second in fishers
            }
            for first in fishers
        }

    entries = {model: sum(spec.elements for spec in files.specs.values()) for model, files in fishers.items()}
    return {
        "cosine": normalized(products, squares),
        "overlap": normalized(roots, masses),
        "shared": {
            first: {second: _rounded(count / entries[first]) for second, count in row.items()}
            for first, row in shared.items()
        },
        "tensors": {
            model: {
                tensor: {"entries": files.specs[tensor].elements, "sum": _rounded(sums[model][tensor])}
                for tensor in files.specs
            }
            for model, files in fishers.items()
        },
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


if __name__ == "__main__":
    run_stage(similarity)
