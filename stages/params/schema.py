"""The schema of params.yaml: sources, tasks, models, and how they are fine-tuned and measured."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator

from stages.params.adapters import AdapterSettings
from stages.params.merges import ENSEMBLE, Ensemble, Merge
from stages.running.section import Name, Section, by_name
from stages.storage.source import ORIGINS, FisherSource, Source
from stages.tasks.kinds import KINDS, kind_of
from stages.tasks.task import Task

if TYPE_CHECKING:
    AnyTask = Task
else:  # one of the kinds that there are
    AnyTask = Annotated[
        reduce(or_, (Annotated[settings, Tag(kind)] for kind, settings in KINDS.items())), Discriminator(kind_of)
    ]


class FinetuneSettings(Section):
    """How a model is fine-tuned from its base (AdamW, linear decay after a linear warm-up).

    from_scratch: of the base, take the configuration only: the weights are initialised at random with `seed`.
    adapter: train an adapter on the base, whose weights stay as they are; without it, all weights are trained.
    precision: of the passes. Trained weights and their sums are float32 in either; weights that an adapter leaves as
        they are stay bfloat16 in memory, if their files have that and the passes too.
    """

    # Left out where it is false, so that cards say what they said before there was such a key.
    from_scratch: bool = Field(default=False, exclude_if=lambda value: not value)
    adapter: AdapterSettings | None = Field(default=None, exclude_if=lambda value: value is None)
    epochs: int = Field(default=2, ge=1)
    examples: int | None = Field(default=None, ge=1)  # at most so many training examples, drawn at random
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps
    precision: Literal["float32", "bfloat16"] = Field(default="float32", exclude_if=lambda value: value == "float32")
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _base_to_adapt(self) -> Self:
        if self.adapter is not None and self.from_scratch:
            raise ValueError("`adapter` is trained on a base's weights; leave out `from_scratch`")
        return self


class FisherSettings(Section):
    """How a model's Fisher is estimated; `stages/curvature/likelihoods.py` says what the estimators are.

    `adam` takes no pass at all: the optimizer's mean of squared gradients, which fine-tuning then keeps. It is a
    setting of a model, never of all: it changes what is fine-tuned.

    of: of an adapter's model, which parameters: the weights that it `adapts`, all `weights`, or the `adapter`'s own.
        By default the adapter's own where these are vectors, as (IA)³'s are, and else the weights that it adapts.
    """

    of: Literal["adapts", "weights", "adapter"] | None = Field(default=None, exclude_if=lambda value: value is None)
    estimator: Literal["exact", "sketch", "sampled", "empirical", "adam"] = "exact"
    samples: int = Field(default=1, ge=1)  # draws per example, for `sketch` and `sampled`
    examples: int | None = Field(default=256, ge=1)  # drawn at random from the train split; null: all of them
    batch_size: int = Field(default=16, ge=1)  # at most: it is halved where memory runs out
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["float32", "bfloat16"] = "float32"  # of the passes; the sums are always float32
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the file


class Model(Section):
    """A model: a base (a source or, if there is none of that name, another model), its task, and its own settings.

    Its `finetune` and `fisher` are what differs from the global sections.

    `finetune: false` takes the base as it is: an existing fine-tuned checkpoint. A `fisher` that is pinned as a source
    is (`path` and `sha256`, or `hub` and `revision`) is brought in, not estimated; with `fisher: false` there is none.
    `adapter` names a source that is a finished PEFT adapter of the base: nothing is fine-tuned then. Its configuration
    names its base; where that is another name of the same weights, `adapter_of` is that name.
    With `file` and `unverified: true` it is second moments without a card (`stages.storage.source.FisherSource`).
    """

    base: Name
    adapter: Name | None = Field(default=None, exclude_if=lambda value: value is None)
    adapter_of: str | None = Field(default=None, min_length=1, exclude_if=lambda value: value is None)
    task: Name
    finetune: dict[str, Any] | Literal[False] = Field(default_factory=dict)
    fisher: dict[str, Any] | Literal[False] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _finished_adapter(self) -> Self:
        if self.adapter is not None and self.finetune:
            raise ValueError("`adapter` is a finished one, so there is nothing to fine-tune; leave out `finetune`")
        if self.adapter_of is not None and self.adapter is None:
            raise ValueError("`adapter_of` is for a finished adapter, which `adapter` names; remove it")
        return self


SettingsT = TypeVar("SettingsT", bound=Section)


class OverrideError(Exception):
    """Problems in a model's own settings, with their place in the file."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__(problems)
        self.problems = problems


def _overridden(settings: SettingsT, own: Mapping[str, Any], place: tuple[str, ...]) -> SettingsT:
    """`settings` with `own` over it, checked by the same schema."""
    return _validated(type(settings), {**settings.model_dump(), **own}, place)


def _validated(section: type[SettingsT], content: Mapping[str, Any], place: tuple[str, ...]) -> SettingsT:
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise OverrideError([{**problem, "loc": (*place, *problem["loc"])} for problem in error.errors()]) from None


class Params(Section):
    """The whole of params.yaml. Tasks are in the order of their names, whatever that in the file is.

    ensembles: those of the file's `merges` whose method is `ensemble`.
    """

    sources: dict[Name, Source]
    tasks: Annotated[dict[Name, AnyTask], AfterValidator(by_name)]
    finetune: FinetuneSettings = FinetuneSettings()
    fisher: FisherSettings = FisherSettings()
    models: dict[Name, Model]
    merges: dict[Name, Merge] = Field(default_factory=dict)
    # Left out where there are none, as it is no key of the file.
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict, exclude_if=lambda value: not value)

    @model_validator(mode="before")
    @classmethod
    def _ensembles_apart(cls, content: Any) -> Any:
        """In the file, ensembles stand among the merges, to be compared with them."""
        if not isinstance(content, Mapping) or not isinstance(merges := content.get("merges"), Mapping):
            return content
        ensembles = {
            name: entry
            for name, entry in merges.items()
            if isinstance(entry, Mapping) and entry.get("method") == ENSEMBLE
        }
        rest = {name: entry for name, entry in merges.items() if name not in ensembles}
        return {**content, "merges": rest, "ensembles": ensembles}

    def finetune_settings(self, model: str) -> FinetuneSettings:
        """The global `finetune` section with the model's own settings over it."""
        own = self.models[model].finetune
        return _overridden(self.finetune, own or {}, ("models", model, "finetune"))

    def fisher_settings(self, model: str) -> FisherSettings:
        """The global `fisher` section with the model's own settings over it, if its Fisher is not brought in."""
        own = {} if self.fisher_source(model) else self.models[model].fisher
        return _overridden(self.fisher, own or {}, ("models", model, "fisher"))

    def fisher_source(self, model: str) -> FisherSource | None:
        """Where the model's Fisher is brought from, or None if it is estimated."""
        own = self.models[model].fisher
        if own is False or not any(key in own for key in ORIGINS):
            return None
        place = ("models", model, "fisher")
        if own.get("gguf") is not None:
            problem = {"type": "value_error", "loc": (*place, "gguf"), "ctx": {"error": "a Fisher is no GGUF file"}}
            raise OverrideError([problem])
        return _validated(FisherSource, own, place)

    def is_adapter(self, model: str) -> bool:
        """Whether a model is an adapter on its base, trained or finished."""
        section = self.models[model]
        trained = section.finetune is not False and self.finetune_settings(model).adapter is not None
        return section.adapter is not None or trained

    def names_of_base(self, model: str) -> list[str] | None:
        """What a finished adapter may call its base: its repository on the Hub, and `adapter_of`; None without either.

        A base that is a path, a package or another model has no name that an adapter could be compared by.
        """
        section = self.models[model]
        source = self.sources.get(section.base)
        names = [name for name in (None if source is None else source.hub, section.adapter_of) if name is not None]
        return names or None

    def tasks_of(self, merge: Merge) -> list[str]:
        """The tasks that a merge is evaluated on: those that ask for its target's outputs, by kind and name.

        A merge that keeps each model's head is evaluated on its models' own tasks.
        """
        if merge.heads == "each":
            own = {self.models[model].task for model in merge.models}
            return [task for task, found in self.tasks.items() if task in own and found.own_metrics]
        target = self.tasks[self.models[merge.target_model].task]
        return [task for task, found in self.tasks.items() if found.has_outputs_of(target)]

    def search_tasks(self, merge: Merge) -> list[str]:
        """The tasks on whose validation splits the merge's λ are scored.

        These are the ones that its search names, or else those of its models that it is evaluated on.
        """
        own = {self.models[model].task for model in merge.models}
        named = merge.search.tasks if merge.search is not None else None
        return named or [task for task in self.tasks_of(merge) if task in own and self.tasks[task].own_metrics]

    def ancestors(self, model: str) -> list[str]:
        """What the model was fine-tuned from, and what that was, and so on, to a source. No cycles are expected."""
        found = [self.models[model].base]
        while found[-1] not in self.sources:
            found.append(self.models[found[-1]].base)
        return found

    def base_of(self, merge: Merge) -> str | None:
        """The nearest source or model that all the merge's models were fine-tuned from, if there is one."""
        lines = [self.ancestors(model) for model in merge.models]
        return next((name for name in lines[0] if all(name in line for line in lines)), None)
