"""The merge methods: their options, and which statistics of the models they need. `stages/merging/` computes them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.params.section import Name, Section

Statistic = Literal["diagonal", "kfac", "gram"]


class MethodOptions(Section):
    """Options of a merge method. λ, the coefficients, are none: every method has them, divided by their sum.

    Attributes:
        statistics: what it needs of every model beside its checkpoint.
        needs_base: whether it needs the weights that the models were fine-tuned from.
    """

    statistics: ClassVar[tuple[Statistic, ...]] = ()
    needs_base: ClassVar[bool] = False

    @property
    def keeps_single_model(self) -> bool:
        """Whether a merge in which only one model has a positive λ is that model, bit for bit."""
        return True


class Isotropic(MethodOptions):
    """Options of the isotropic merge: none. Every parameter weighs alike."""

    method: Literal["isotropic"] = "isotropic"


class FisherWeighted(MethodOptions):
    """What merges weighted by diagonal Fishers have in common.

    floor: the least value of a Fisher's entries, raw, before λ and the norm enter.
    favor_target: floor the target's Fisher only, so that a coordinate that no model cares about keeps its value.
    normalize: divide λ_i by ‖F_i‖₂ over all merged parameters, or not.
    """

    statistics: ClassVar[tuple[Statistic, ...]] = ("diagonal",)

    floor: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    favor_target: bool = True
    normalize: Literal["l2", "none"] = "l2"


class Fisher(FisherWeighted):
    """Options of the Fisher merge (Matena & Raffel 2022, eq. 5 and their reference code)."""

    method: Literal["fisher"] = "fisher"


class Regmean(MethodOptions):
    """Options of RegMean (Jin et al. 2023): Linear weights by least squares on the models' own inputs.

    alpha: what the Gram matrices' off-diagonal entries are multiplied by.
    """

    statistics: ClassVar[tuple[Statistic, ...]] = ("gram",)

    method: Literal["regmean"] = "regmean"
    alpha: float = Field(default=0.9, ge=0, le=1)


class Kfac(FisherWeighted):
    """Options of the K-FAC merge (Tam et al. 2024, MaTS): block Fishers for Linear weights, diagonal ones for the rest.

    The Fisher merge's own options are of the diagonal one, where conjugate gradient starts; K-FAC factors are weighted
    by the same c_i. By default that is λ_i, as in the paper: on the default data that was better in validation.

    damping: weight of that start, relative to the mean diagonal entry of the system.
    iterations, tolerance: conjugate gradient stops after so many, or at this residual relative to the right-hand side.
    """

    statistics: ClassVar[tuple[Statistic, ...]] = ("diagonal", "kfac")

    method: Literal["kfac"] = "kfac"
    normalize: Literal["l2", "none"] = "none"
    damping: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    iterations: int = Field(default=20, ge=1)
    tolerance: float = Field(default=1e-6, ge=0, allow_inf_nan=False)


class Uncertainty(MethodOptions):
    """Options of uncertainty-based gradient matching (Daheim et al. 2024).

    scale: α_i = scale · λ_i.
    delta: added to every Fisher entry of the prior.
    prior: a model (in params.yaml) or a key of `statistics` (in Python) whose Fisher serves as the base's; without it,
        the prior is `delta` alone.
    """

    statistics: ClassVar[tuple[Statistic, ...]] = ("diagonal",)
    needs_base: ClassVar[bool] = True

    method: Literal["uncertainty"] = "uncertainty"
    scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    delta: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    prior: Name | None = None

    @property
    def keeps_single_model(self) -> bool:
        """At the task vectors' own length only."""
        return self.scale == 1


class TaskVectorOptions(MethodOptions):
    """What merges of task vectors (the model's weights minus the base's) have in common.

    scale: of the merged task vector. Where papers give a factor of the SUM of N task vectors, scale is N times that.
    """

    needs_base: ClassVar[bool] = True

    scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def keeps_single_model(self) -> bool:
        """At the task vectors' own length only."""
        return self.scale == 1


class TaskArithmetic(TaskVectorOptions):
    """Options of task arithmetic (Ilharco et al. 2023)."""

    method: Literal["task_arithmetic"] = "task_arithmetic"


class Ties(TaskVectorOptions):
    """Options of TIES (Yadav et al. 2023): trim, elect signs, merge what agrees.

    density: share of a task vector's entries that are kept: those of the largest magnitude.
    trim: that share of every tensor (as mergekit does), or of all of a model's tensors together (as the paper does).
    """

    method: Literal["ties"] = "ties"
    density: float = Field(default=0.2, gt=0, le=1)
    trim: Literal["tensor", "global"] = "tensor"


class Dare(TaskVectorOptions):
    """Options of DARE (Yu et al. 2024): drop entries of the task vectors at random, rescale the others.

    density: probability with which an entry is kept; what is kept is divided by it.
    seed: of the draws, which belong to model and tensor.
    """

    method: Literal["dare"] = "dare"
    density: float = Field(default=0.5, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


class Slerp(MethodOptions):
    """Options of spherical interpolation, for two models: none. λ says how far along the arc."""

    method: Literal["slerp"] = "slerp"


class Ensemble(MethodOptions):
    """Options of the output ensemble, a baseline that merges nothing: the λ-weighted mean of the probabilities."""

    method: Literal["ensemble"] = "ensemble"


Method = Isotropic | Fisher | Regmean | Kfac | Uncertainty | TaskArithmetic | Ties | Dare | Slerp
AnyMethod = Annotated[Method | Ensemble, Field(discriminator="method")]

# By the name that `method:` has.
METHODS: dict[str, type[Method] | type[Ensemble]] = {
    "isotropic": Isotropic,
    "fisher": Fisher,
    "regmean": Regmean,
    "kfac": Kfac,
    "uncertainty": Uncertainty,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": Dare,
    "slerp": Slerp,
    "ensemble": Ensemble,
}
