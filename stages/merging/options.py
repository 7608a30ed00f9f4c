"""What a merge method declares of itself, beside its own options."""

from collections.abc import Mapping
from typing import ClassVar

from stages.running.section import Section
from stages.storage.statistics import STATISTICS


class MethodOptions(Section):
    """Options of a merge method. λ, the coefficients, are none: every method has them, divided by their sum.

    Attributes:
        statistics: what it needs of every model beside its checkpoint, by the names of `stages/storage/statistics/`.
        needs_base: whether it needs the weights that the models were fine-tuned from.
        most_models: how many models it merges at most; None for any number.
        least_models: and at least.
        method: its name, which is that of its folder.
    """

    statistics: ClassVar[tuple[str, ...]] = ()
    needs_base: ClassVar[bool] = False
    least_models: ClassVar[int] = 1
    most_models: ClassVar[int | None] = None

    method: str = ""

    def __init_subclass__(cls) -> None:
        """Refuse statistics that there are none of, where the method is declared."""
        super().__init_subclass__()
        if unknown := sorted(set(cls.statistics) - STATISTICS.keys()):
            raise TypeError(
                f"{cls.__name__}: statistics: there is no statistic {unknown[0]!r}; known: {', '.join(STATISTICS)}"
            )

    @property
    def keeps_single_model(self) -> bool:
        """Whether a merge in which only one model has a positive λ is that model, bit for bit."""
        return True

    @property
    def further_models(self) -> Mapping[str, str]:
        """The option that names it → a model that has no part in the merge, but whose Fisher the method needs."""
        return {}

    def refuse_number(self, models: int) -> None:
        """Raise `ValueError` if the method does not merge so many models."""
        most = self.most_models
        if models < self.least_models or (most is not None and models > most):
            least = self.least_models
            wanted = f"at least {least}" if most is None else f"{least}" if most == least else f"{least} to {most}"
            raise ValueError(f"the method {self.method} merges {wanted} models, not {models}")
