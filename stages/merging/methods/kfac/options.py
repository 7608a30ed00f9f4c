"""Options of the K-FAC merge."""

from typing import ClassVar, Literal

from pydantic import Field

from stages.merging.methods.fisher.options import FisherWeighted


class Kfac(FisherWeighted):
    """Options of the K-FAC merge (Tam et al. 2024, MaTS): block Fishers for Linear weights, diagonal ones for the rest.

    The Fisher merge's own options are of the diagonal one, where conjugate gradient starts; K-FAC factors are weighted
    by the same c_i. By default that is λ_i, as in the paper: on the default data that was better in validation.

    damping: weight of that start, relative to the mean diagonal entry of the system.
    iterations, tolerance: conjugate gradient stops after so many, or at this residual relative to the right-hand side.
    """

    statistics: ClassVar[tuple[str, ...]] = ("diagonal", "kfac")

    method: Literal["kfac"] = "kfac"
    normalize: Literal["l2", "none"] = "none"
    damping: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    iterations: int = Field(default=20, ge=1)
    tolerance: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
