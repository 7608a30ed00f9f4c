"""What a statistic of a model is, as far as it can be said without torch; each is a module of `statistics/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GIVEN = "given"  # the estimator of a Fisher that has been taken without a card of ours
UNVERIFIED = "unverified"  # in its card: true; in a merge's card: the models whose Fisher is one
LIBRARY = "stages."  # what the code of a stage is named without


@dataclass(frozen=True, kw_only=True)
class StatisticKind:
    """One statistic: the module of `stages/storage/statistics/` that has its name has it as `KIND`.

    Attributes:
        name: what merge methods ask for it by, and what its module is called.
        stem: of its files, and the first word of its stages' names: `fisher.safetensors`, `fisher-MODEL`.
        title: what a sentence calls it.
        work: what its stages do, in the report's table of costs.
        directory: where it lies, below `models/`; there, each model has a directory.
        takes_gradients: whether it takes backward passes, and so an estimator; if not, it is of inputs alone.
        parts: of a statistic of Linear weights: the first word of a tensor's name in the file (`input` of
            `input.NAME`, NAME the weight's) → the class that adds it up, as `module:class`; it is an `Accumulator` of
            `stages.curvature`. Empty for a statistic of parameters, which has a tensor for each parameter, under the
            parameter's name, of its shape and not negative; `stages.curvature` has one of these, the diagonal.
    """

    name: str
    stem: str
    title: str
    work: str
    directory: str
    takes_gradients: bool
    parts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stem.isidentifier():
            raise ValueError(f"statistic {self.name}: the stem {self.stem!r} must be a word of letters, digits and _")

    @property
    def is_of_parameters(self) -> bool:
        """Whether it has a tensor for each parameter; if not, it has parts for each Linear weight."""
        return not self.parts

    @property
    def code(self) -> list[str]:
        """The modules that say what it is and add it up, below `stages`."""
        references = [f"{LIBRARY}storage.statistics.{self.name}", *self.parts.values()]
        return sorted({reference.partition(":")[0].removeprefix(LIBRARY) for reference in references})

    def key(self, part: str, weight: str) -> str:
        """What its file calls a part of a Linear weight. Raises `KeyError` if it has no such part."""
        if part not in self.parts:
            raise KeyError(f"the statistic {self.name} has no part {part!r}; its parts: {', '.join(self.parts)}")
        return f"{part}.{weight}"

    def keys(self, parameter: str) -> list[str]:
        """What its file calls the tensors of a parameter; a Linear weight has one for each part."""
        return [self.key(part, parameter) for part in self.parts] or [parameter]

    def parameter(self, key: str) -> str:
        """The parameter that the tensor `key` of its file is of."""
        part, _, name = key.partition(".")
        return name if part in self.parts else key


def nothing_binds(models: Sequence[str]) -> str:
    """What cards and reports say of Fishers that were taken without a card, in a sentence; nothing where none was.

    Args:
        models: whose they are said to be, as they shall stand in the sentence.
    """
    if not models:
        return ""
    if len(models) == 1:
        return (
            f"Nothing binds the Fisher of {models[0]} to its checkpoint: it was taken without a card "
            f"(`{UNVERIFIED}: true`), so that it is this model's is its user's word."
        )
    return (
        f"Nothing binds the Fishers of {', '.join(models[:-1])} and {models[-1]} to their checkpoints: they were taken "
        f"without cards (`{UNVERIFIED}: true`), so that they are these models' is their user's word."
    )
