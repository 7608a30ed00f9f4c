"""Options of uncertainty-based gradient matching."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from stages.merging.options import MethodOptions
from stages.running.section import Name


class Uncertainty(MethodOptions):
    """Options of uncertainty-based gradient matching (Daheim et al. 2024).

    scale: α_i = scale · λ_i.
    delta: added to every Fisher entry of the prior.
    prior: a model (in params.yaml) or a key of `statistics` (in Python) whose Fisher serves as the base's; without it,
        the prior is `delta` alone.
    """

    statistics: ClassVar[tuple[str, ...]] = ("diagonal",)
    needs_base: ClassVar[bool] = True

    method: Literal["uncertainty"] = "uncertainty"
    scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    delta: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    prior: Name | None = None

    @property
    def keeps_single_model(self) -> bool:
        """At the task vectors' own length only."""
        return self.scale == 1

    @property
    def further_models(self) -> Mapping[str, str]:
        """The prior's."""
        return {} if self.prior is None else {"prior": self.prior}
