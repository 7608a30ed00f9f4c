"""A task in params.yaml: what every kind of task has, what one of tables has, and what that says of its models."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from stages.running.section import Name, Section
from stages.storage.source import InnerPath
from stages.tasks.averaging import Averaging
from stages.tasks.metrics import Metric

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DatasetSplit(Section):
    """A split of a data set of the library `datasets`.

    directory: in the source, what `DatasetDict.save_to_disk` wrote; without it, the source is a repository of the Hub.
    config: the repository's configuration; it may be left out where there is one only.
    split: its name.
    """

    directory: InnerPath | None = Field(default=None, exclude_if=lambda value: value is None)
    config: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    split: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=256)]

    def __str__(self) -> str:
        """As params.yaml has it."""
        return f"{{{', '.join(f'{key}: {value}' for key, value in self.model_dump().items())}}}"

    __repr__ = __str__

    @model_validator(mode="after")
    def _one_place(self) -> "DatasetSplit":
        if self.directory is not None and self.config is not None:
            raise ValueError("give one of `directory` and `config`: what save_to_disk wrote has no configurations")
        return self


# The forms of `file`, named as pydantic names the branches of a union in the place of an error.
PATH, KEYS, SEVERAL, SPLIT = "str[path]", "DatasetSplit[keys]", "list[entries]", "dict[splits]"


def _form_of_entry(content: object) -> str:
    return KEYS if isinstance(content, (Mapping, DatasetSplit)) else PATH


def _form_of_entries(content: object) -> str:
    return SEVERAL if isinstance(content, list) else _form_of_entry(content)


def _form_of_file(content: object) -> str:
    """A mapping is of splits to entries unless one of its keys is an entry's."""
    if isinstance(content, Mapping) and not content.keys() & DatasetSplit.model_fields.keys():
        return SPLIT
    return _form_of_entries(content)


OnePath = Annotated[InnerPath, Tag(PATH)]
OneSplit = Annotated[DatasetSplit, Tag(KEYS)]
Entry = Annotated[OnePath | OneSplit, Discriminator(_form_of_entry)]
Several = Annotated[list[Entry], Field(min_length=1), Tag(SEVERAL)]  # are read one after the other
Entries = Annotated[OnePath | OneSplit | Several, Discriminator(_form_of_entries)]
Files = Annotated[
    OnePath | OneSplit | Several | Annotated[dict[Split, Entries], Tag(SPLIT)],
    Discriminator(_form_of_file),
]


class TaskSplit(Section):
    """Shares of the rows that become validation and test examples, stratified by label if each has one."""

    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _leaves_training_examples(self) -> "TaskSplit":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave some rows for training")
        return self


class Task(Section):
    """What every kind of task has; a kind has its own settings beside these.

    kind: its name, which is that of its folder in `stages/tasks/kinds` with hyphens.
    source: what it is read from, one of the sources.
    metric: the one that counts, by which λ are searched and results compared; by default its kind's first one.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()  # the primary one first; without any, its models are not evaluated
    averaging: ClassVar[Averaging | None] = None  # what an ensemble of its models is; without, there is none
    only_evaluates: ClassVar[bool] = False  # whether other tasks' models are evaluated on it, and it has none itself

    kind: str = ""
    source: Name
    metric: str | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def entries(self) -> list[str | DatasetSplit]:
        """All that it is read from, in its source; by default the whole of that."""
        return ["."]

    @property
    def files(self) -> list[str]:
        """The files and directories that it is read from; `.` is the whole source, which a configuration may be in."""
        found = [entry if isinstance(entry, str) else entry.directory or "." for entry in self.entries]
        return list(dict.fromkeys(found))

    @property
    def hub_pipeline(self) -> str:
        """What the Hub calls such models; by default the kind's name."""
        return self.kind

    @property
    def auto_class(self) -> str | None:
        """Transformers' class that loads such models, if no pipeline does."""
        return None

    @property
    def output_names(self) -> list[str]:
        """What its models' outputs are called, in their order; none where they have no names of the user's."""
        return []

    @property
    def possible_metrics(self) -> tuple[Metric, ...]:
        """Those of its kind's metrics that mean something of this task's outputs."""
        return self.metrics

    @property
    def own_metrics(self) -> tuple[Metric, ...]:
        """Its metrics, the primary one first; none if it is not evaluated."""
        ordered = sorted(self.possible_metrics, key=lambda metric: metric.name != self.metric)
        return tuple(metric.of(self.output_names) for metric in ordered)

    @property
    def exact_passes(self) -> int | None:
        """Backward passes of an exact Fisher, for each example; None where it would take too many to be had."""
        return None

    @property
    def of_causal_models(self) -> bool:
        """Whether its models are causal language models."""
        return False

    def has_outputs_of(self, other: "Task") -> bool:
        """Whether a model for the other task predicts what this one asks for."""
        return self.kind == other.kind and self.output_names == other.output_names

    @model_validator(mode="after")
    def _usable_metric(self) -> "Task":
        names = [metric.name for metric in self.possible_metrics]
        if self.metric is not None and self.metric not in names:
            raise ValueError(f"`metric`: {self.metric!r} is none of this task's: {', '.join(names) or 'it has none'}")
        return self


class TableTask(Task):
    """A data set, as a table in one of the sources.

    file: what it is read from, split by `split`; or a list of such entries with the same columns, which are read one
        after the other; or an entry or list per split (`{train: …, validation: …, test: …}`; a missing validation is
        taken from train). An example of the test file is in no other split. In one table, a task without labels is
        split otherwise than a task with labels, and sees that task's test examples unless their `part`s keep them
        apart. An entry is, in the source,
        - a file: .csv, .tsv, .txt (tab-separated), .tab (Orange's), .jsonl, .json (an object a line, or an array of
          them), each perhaps compressed (.csv.gz), .parquet or .arrow;
        - a directory that `Dataset.save_to_disk` wrote, or one of images with a folder for each class (`.` is the whole
          source);
        - `{directory: …, split: …}`, a split in a directory that `DatasetDict.save_to_disk` wrote;
        - `{config: …, split: …}`, a split of a configuration of the source, which is a data set repository of the Hub;
          `config` may be left out where there is one only.
    format: `text` for files of plain text, perhaps compressed, in which every line is an example, but for those of
        white space alone; their one column is `text`.
    columns: the columns' names, for a table without a header row.
    field: of .json files that hold one object: its key whose value is the array of rows.
    part: use the rows whose place between 0 and 1, given by their contents and `split.seed`, is in this interval: tasks
        with parts that do not overlap have no example in common, from whatever tables they are.
    examples: use at most so many rows, drawn at random with `split.seed`.
    """

    file: Files
    format: Literal["text"] | None = Field(default=None, exclude_if=lambda value: value is None)
    columns: list[str] | None = None
    field: str | None = Field(default=None, exclude_if=lambda value: value is None)
    part: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    examples: int | None = Field(default=None, ge=1)
    split: TaskSplit = TaskSplit()

    @property
    def entries(self) -> list[str | DatasetSplit]:
        """All that it is read from."""
        parts = self.file.values() if isinstance(self.file, dict) else [self.file]
        return [entry for part in parts for entry in (part if isinstance(part, list) else [part])]

    @model_validator(mode="after")
    def _usable_files(self) -> "TableTask":
        if isinstance(self.file, dict) and not {"train", "test"} <= self.file.keys():
            raise ValueError("`file` must name at least a train and a test file")
        if self.format is not None:
            if others := [entry for entry in self.entries if isinstance(entry, DatasetSplit)]:
                raise ValueError(f"`format` is for files, and {others[0]} is none; remove one of them")
            if self.columns is not None or self.field is not None:
                key = "field" if self.columns is None else "columns"
                raise ValueError(f"`{key}`: a plain text has one column, `text`; remove the key")
        if self.part is not None and not self.part[0] < self.part[1]:
            raise ValueError(f"`part`: {self.part} is empty; the first share must be the smaller one")
        return self
