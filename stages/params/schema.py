"""The schema of params.yaml: sources, tasks, models, and how they are fine-tuned and measured."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from stages.params.merges import ENSEMBLE, Ensemble, Merge
from stages.running.section import Name, Section, by_name
from stages.storage.source import ORIGINS, InnerPath, Source

Positive = Annotated[int, Field(ge=1, le=100_000)]
Files = InnerPath | Annotated[list[InnerPath], Field(min_length=1)]  # several are read one after the other
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
FISHER_FILES = ["fisher.json", "fisher.safetensors", "fisher.safetensors.index.json", "fisher-*-of-*.safetensors"]


class TaskSplit(Section):
    """Shares of the rows that become validation and test examples, stratified by label."""

    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _leaves_training_examples(self) -> "TaskSplit":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave some rows for training")
        return self


class Images(Section):
    """Where a table has its images: in one `column` or in `pixels`, exactly one of the two.

    column: of encoded images (the bytes of a PNG, JPEG, WebP or BMP file), or of Hugging Face's {bytes, path}.
    pixels: [height, width] or [height, width, channels]: all columns but the label's are an image's pixels, 0 to 255,
        row by row. In `columns`, the name `pixels` stands for all of them.
    size: [height, width] in pixels that every image is brought to; without it, images keep their sizes.
    """

    column: str | None = None
    pixels: Annotated[list[Positive], Field(min_length=2, max_length=3)] | None = None
    size: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "Images":
        if (self.column is None) == (self.pixels is None):
            raise ValueError("give exactly one of column, pixels")
        if self.pixels is not None and self.pixels[2:] not in ([], [1], [3]):
            raise ValueError(f"`pixels`: an image has 1 or 3 channels, not {self.pixels[2]}")
        return self


class Corruption(Section):
    """A change of every image, one of these; `stages/tasks/corruptions.py` says what each does.

    invert: black becomes white.
    rotate: by so many degrees, counter-clockwise.
    translate: by [down, right] pixels.
    contrast: distances from the image's mean are multiplied by this.
    gaussian_noise: its standard deviation, where the pixels' range is 1.
    gaussian_blur: the kernel's standard deviation, in pixels.
    occlude: the side of a square somewhere in the image, in pixels.
    """

    invert: Literal[True] | None = None
    rotate: float | None = Field(default=None, ge=-360, le=360)
    translate: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    contrast: float | None = Field(default=None, ge=0, le=100)
    gaussian_noise: float | None = Field(default=None, gt=0, le=10)
    gaussian_blur: float | None = Field(default=None, gt=0, le=1000)
    occlude: Positive | None = None

    @model_validator(mode="after")
    def _one_change(self) -> "Corruption":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"a corruption is exactly one of {', '.join(type(self).model_fields)}")
        return self


KEYS_OF_OTHERS: dict[str, tuple[str, ...]] = {  # by a task's kind, the keys that it has no use for
    "text-classification": ("image", "corruptions"),
    "image-classification": ("text", "text_pair", "max_length"),
    "masked-lm": ("image", "corruptions", "label", "labels"),
}


class Task(Section):
    """A data set, as a table in one of the sources.

    kind: `text-classification` or `image-classification`, whose examples have labels; or `masked-lm`, whose examples
        are texts alone: rows without one are dropped, and neither `label` nor `labels` is given.
    file: a .csv, .tsv, .txt (tab-separated), .tab (Orange's), .jsonl, .json (an object a line, or an array of them) or
        .parquet file in the source (all but the last may be compressed, .csv.gz), split by `split`, or a list of files
        with the same columns, which are read one after the other; or such a file or list per split (`{train: …,
        validation: …, test: …}`; a missing validation is taken from train). A text of the test file is in no other
        split. In one table, a `masked-lm` task is split otherwise than a task with labels, and sees that task's test
        texts unless their `part`s keep them apart.
    columns: the columns' names, for a table without a header row.
    text, text_pair, label: the names of the columns used.
    image: where the images are.
    labels: label names, in the order of the model's outputs (in all files of a task, the label column holds these
        names, or else their positions from 0, or false and true); or a mapping of names to intervals [low, high] of a
        numeric label column (rows outside all of them are dropped).
    max_length: in tokens; longer texts are truncated.
    corruptions: changes of all images, in this order, once it is decided which are in which split.
    part: use the rows whose place between 0 and 1, given by their text or image and `split.seed`, is in this interval:
        tasks with parts that do not overlap have no example in common, from whatever tables they are.
    examples: use at most so many rows, drawn at random with `split.seed`.
    """

    kind: Literal["text-classification", "image-classification", "masked-lm"] = "text-classification"
    source: Name
    file: Files | dict[Split, Files]
    columns: list[str] | None = None
    text: str = "text"
    text_pair: str | None = None
    image: Images | None = None
    label: str = "label"
    labels: list[str] | dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list
    )
    max_length: int = Field(default=128, ge=2, le=1_000_000)
    corruptions: list[Corruption] = Field(default_factory=list)
    part: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    examples: int | None = Field(default=None, ge=1)
    split: TaskSplit = TaskSplit()

    @property
    def files(self) -> list[str]:
        """All files that it is read from."""
        parts = self.file.values() if isinstance(self.file, dict) else [self.file]
        return [name for part in parts for name in ([part] if isinstance(part, str) else part)]

    @model_validator(mode="after")
    def _usable(self) -> "Task":
        self._refuse_keys_of_other_kinds()
        if isinstance(self.file, dict) and not {"train", "test"} <= self.file.keys():
            raise ValueError("`file` must name at least a train and a test file")
        if self.part is not None and not self.part[0] < self.part[1]:
            raise ValueError(f"`part`: {self.part} is empty; the first share must be the smaller one")
        if self.kind == "image-classification":
            self._check_images()
        else:
            self._check_text_columns()
        if "labels" not in KEYS_OF_OTHERS[self.kind]:
            self._check_labels()
        return self

    def _refuse_keys_of_other_kinds(self) -> None:
        for key in KEYS_OF_OTHERS[self.kind]:
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                kinds = " or ".join(kind for kind, others in KEYS_OF_OTHERS.items() if key not in others)
                raise ValueError(f"`{key}` is for tasks of the kind {kinds}, and this one is {self.kind}; remove it")

    def _check_images(self) -> None:
        if self.image is None:
            raise ValueError("a task of images needs `image`: {column: …} or {pixels: [height, width]}")
        if self.image.column == self.label:
            raise ValueError("`image.column` and `label` must be different columns")
        if self.image.pixels and self.columns is not None and self.columns.count("pixels") != 1:
            raise ValueError("`columns` must have `pixels` once, for all of an image's columns")

    def _check_text_columns(self) -> None:
        keys = [key for key in ("text", "text_pair", "label") if key not in KEYS_OF_OTHERS[self.kind]]
        columns = [column for key in keys if (column := getattr(self, key)) is not None]
        if len(set(columns)) < len(columns):
            raise ValueError(f"{', '.join(f'`{key}`' for key in keys)} must be different columns")

    def _check_labels(self) -> None:
        names = list(self.labels)
        if "labels" not in self.model_fields_set:
            raise ValueError(f"`labels` is missing, which a {self.kind} task needs")
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


class FinetuneSettings(Section):
    """How a model is fine-tuned from its base (AdamW, linear decay after a linear warm-up).

    from_scratch: of the base, take the configuration only: the weights are initialised at random with `seed`.
    """

    # Left out where it is false, so that cards say what they said before there was such a key.
    from_scratch: bool = Field(default=False, exclude_if=lambda value: not value)
    epochs: int = Field(default=2, ge=1)
    examples: int | None = Field(default=None, ge=1)  # at most so many training examples, drawn at random
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
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
    """A model: a base (a source or, if there is none of that name, another model), its task, and its own settings.

    Its `finetune` and `fisher` are what differs from the global sections.

    `finetune: false` takes the base as it is: an existing fine-tuned checkpoint. A `fisher` that is pinned as a source
    is (`path` and `sha256`, or `hub` and `revision`) is brought in, not estimated; with `fisher: false` there is none.
    """

    base: Name
    task: Name
    finetune: dict[str, Any] | Literal[False] = Field(default_factory=dict)
    fisher: dict[str, Any] | Literal[False] = Field(default_factory=dict)


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
    tasks: Annotated[dict[Name, Task], AfterValidator(by_name)]
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

    def fisher_source(self, model: str) -> Source | None:
        """Where the model's Fisher is brought from, or None if it is estimated."""
        own = self.models[model].fisher
        if own is False or not any(key in own for key in ORIGINS):
            return None
        return _validated(Source, {"files": FISHER_FILES, **own}, ("models", model, "fisher"))

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
