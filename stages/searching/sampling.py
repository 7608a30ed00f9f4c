"""Where a search looks: λ after λ, each a point of the simplex; samplers that learn are told how good each one was."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from stages.params import Search

Coefficients = dict[str, float]  # λ by model, summing to 1


class Sampler(ABC):
    """Points to try, one after the other; the same ones for the same seed and scores."""

    @abstractmethod
    def ask(self) -> Coefficients:
        """The next point."""

    @abstractmethod
    def tell(self, score: float) -> None:
        """The score of the point that was asked for last, which is better the larger it is, whatever it is of."""


def make_sampler(search: Search, coefficients: Mapping[str, float]) -> Sampler:
    """The sampler of a search between models.

    Args:
        search: which sampler, with how many points and what seed.
        coefficients: λ by model, not all zero: what the search starts from.
    """
    total = sum(coefficients.values())
    start = {name: λ / total for name, λ in coefficients.items()}
    match search.sampler:
        case "grid":
            return Grid(start, search.points)
        case "simplex":
            return Simplex(start, search.seed)
        case "tpe" | "cma-es":
            return Learning(start, search.sampler, search.seed)


class Grid(Sampler):
    """Evenly spaced points of the segment between two models, its ends among them."""

    def __init__(self, start: Coefficients, points: int) -> None:
        self._names = list(start)
        self._points = iter(np.linspace(1.0, 0.0, points))

    def ask(self) -> Coefficients:
        """The next point, from the first model to the second."""
        λ = float(next(self._points))
        return dict(zip(self._names, (λ, 1 - λ), strict=True))

    def tell(self, score: float) -> None:
        """A grid does not learn."""


class Simplex(Sampler):
    """The start, then points drawn from the uniform (Dirichlet) distribution on the simplex."""

    def __init__(self, start: Coefficients, seed: int) -> None:
        self._names = list(start)
        self._random = np.random.default_rng(seed)
        self._next: Coefficients | None = start

    def ask(self) -> Coefficients:
        """The next point."""
        if self._next is not None:
            point, self._next = self._next, None
            return point
        return dict(zip(self._names, map(float, self._random.dirichlet(np.ones(len(self._names)))), strict=True))

    def tell(self, score: float) -> None:
        """Independent draws do not learn."""


class Learning(Sampler):
    """The start, then what one of Optuna's samplers makes of the scores so far.

    It moves in the unit cube: λ_i ∝ −log u_i, so that even u are even on the simplex (a Dirichlet distribution's
    construction from exponential ones).
    """

    def __init__(self, start: Coefficients, kind: str, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._names = list(start)
        sampler: optuna.samplers.BaseSampler = (
            optuna.samplers.TPESampler(seed=seed) if kind == "tpe" else optuna.samplers.CmaEsSampler(seed=seed)
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        # Scaled so that the start's u are neither all near 1 nor all near 0.
        self._study.enqueue_trial({name: math.exp(-len(start) * λ) for name, λ in start.items()})
        self._trial: optuna.Trial | None = None

    def ask(self) -> Coefficients:
        """The next point."""
        self._trial = self._study.ask()
        weights = {name: abs(math.log(self._trial.suggest_float(name, 1e-9, 1.0))) for name in self._names}
        total = sum(weights.values())
        return {name: weight / total if total else 1 / len(weights) for name, weight in weights.items()}

    def tell(self, score: float) -> None:
        """Report the score to the study."""
        assert self._trial is not None
        self._study.tell(self._trial, score)


def best(points: Sequence[Coefficients], scores: Sequence[float], start: Mapping[str, float]) -> int:
    """The position of the largest score; of several, the one nearest to where the search started, then the first."""
    total = sum(start.values())

    def distance(point: Coefficients) -> float:
        return sum((λ - start[name] / total) ** 2 for name, λ in point.items())

    return min(range(len(points)), key=lambda i: (-scores[i], round(distance(points[i]), 12), i))
