"""A merge: its models with their λ, its method with options, and the search for λ."""

import math
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.merging.methods import METHODS
from stages.merging.options import MethodOptions
from stages.merging.sizes import bytes_of
from stages.running.section import Name, Section, by_name

if TYPE_CHECKING:
    AnyMethod = MethodOptions
else:  # one of those that there are
    AnyMethod = Annotated[reduce(or_, METHODS.values()), Field(discriminator="method")]
ENSEMBLE: Literal["ensemble"] = "ensemble"  # what stands in a merge's place in the file, where there is no merge
Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _checked_size(size: str | int) -> str | int:
    bytes_of(size)
    return size


class Search(Section):
    """How a merge's λ are looked for, on validation splits.

    sampler: `grid`, evenly spaced points of the segment between two models; `simplex`, points drawn evenly from all λ
        that sum to 1; `tpe` and `cma-es`, Optuna's samplers, which learn from the points they have seen.
    points: how many λ are tried. The merge's own `coefficients` are the first of those that are drawn.
    metric: by which metric, as a mean over the tasks; by default their primary one.
    tasks: names; by default those of the merged models.
    normalize: divide a task's score by that of the task's own expert.
    seed: of the draws.
    """

    sampler: Literal["grid", "simplex", "tpe", "cma-es"]
    points: int = Field(default=50, ge=2)
    metric: str | None = None
    tasks: list[Name] | None = Field(default=None, min_length=1)
    normalize: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)


class Weighted(Section):
    """Models with their λ, in a merge or an ensemble.

    coefficients: λ by model; they are divided by their sum.
    target: the model that comes first. Without it: the first by name (coefficients are a mapping, whose order means
        nothing).
    """

    coefficients: Annotated[dict[Name, Coefficient], AfterValidator(by_name)] = Field(min_length=1)
    target: Name | None = None

    @model_validator(mode="after")
    def _usable_coefficients(self) -> Self:
        if not any(self.coefficients.values()):
            raise ValueError("`coefficients` are all zero; at least one must be positive")
        if not math.isfinite(sum(self.coefficients.values())):
            raise ValueError("`coefficients` are too large to add up")
        if self.target is not None and self.target not in self.coefficients:
            raise ValueError(f"`target` is {self.target!r}, which `coefficients` does not list")
        return self

    @property
    def target_model(self) -> str:
        """The target, by default the first model by name."""
        return self.target if self.target is not None else min(self.coefficients)

    @property
    def models(self) -> list[str]:
        """The models: the target first, the others by name, whatever their order in the file."""
        return sorted(self.coefficients, key=lambda name: (name != self.target_model, name))


class Ensemble(Weighted):
    """An output ensemble, a baseline that merges nothing: the λ-weighted mean of the models' probabilities."""

    method: Literal["ensemble"] = ENSEMBLE


class AsAdapter(Section):
    """A merge of adapters that is written as a LoRA adapter of their base again, not as a whole model.

    rank: of the truncated singular value decomposition of each weight's change.
    """

    rank: int = Field(ge=1)


class Merge(Weighted):
    """A merge. In the file, the method's options stand beside these keys.

    target: besides, the model that `favor_target` favours and whose head is kept where heads cannot be merged.
    heads: `merge` merges the heads if all models share label names, shapes and what they are for, and else keeps the
        target's;
        `target` keeps the target's, and of its body what another model lacks (a masked-LM model has no pooler);
        `each` evaluates every task with the head of that task's own model; so all bodies must have the same tensors.
    vocabulary: `same` refuses models with other tokens. The others match the rows of embeddings by token, and merge
        each among the models that have it: `shared` keeps the target's tokens; `union` adds after them those that were
        added to other models' tokenizers.
    precision: what values are computed in; they are written in the target's type.
    max_shard_size: larger checkpoints are spread over several files.
    adapter: how a merge of adapters becomes an adapter again; without it, one of LoRA adapters is a whole model. One of
        (IA)³ vectors is an adapter always. Its λ are given, not searched.
    search: how better λ than `coefficients` are looked for; without it, these stand.
    options: the method (the key `method`) with its options.
    """

    heads: Literal["merge", "target", "each"] = "merge"
    # Left out where it is `same`, so that searches are what they were before there was such a key.
    vocabulary: Literal["same", "shared", "union"] = Field(default="same", exclude_if=lambda value: value == "same")
    precision: Literal["float32", "float64"] = "float32"
    max_shard_size: Annotated[str | int, AfterValidator(_checked_size)] = "5GB"
    adapter: AsAdapter | None = Field(default=None, exclude_if=lambda value: value is None)
    search: Search | None = None
    options: AnyMethod

    @model_validator(mode="before")
    @classmethod
    def _options_beside(cls, content: Any) -> Any:
        """Gather the method's options, which are all keys that not every merge has."""
        if not isinstance(content, Mapping):
            return content
        common = cls.model_fields.keys() - {"options"}
        options = {key: value for key, value in content.items() if key not in common}
        return {**{key: value for key, value in content.items() if key in common}, "options": options}

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.options.refuse_number(len(self.coefficients))
        if self.search is not None:
            if self.adapter is not None:
                raise ValueError(
                    "`search` scores merges as they are before `adapter` cuts them to its rank, which would choose λ "
                    "by models that are never written; search in a merge without `adapter`, and give its λ to this one"
                )
            if len(self.coefficients) < 2:
                raise ValueError("`search` needs two models or more")
            if self.search.sampler == "grid" and len(self.coefficients) != 2:
                raise ValueError("`search.sampler: grid` is for two models; take simplex, tpe or cma-es")
        return self
