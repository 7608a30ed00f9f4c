"""A task in params.yaml: what every kind of task has, and what its settings say of its models."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from stages.running.section import Name, Section
from stages.storage.source import InnerPath
from stages.tasks.averaging import Averaging
from stages.tasks.metrics import Metric

Files = InnerPath | Annotated[list[InnerPath], Field(min_length=1)]  # several are read one after the other
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


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
    """A data set, as a table in one of the sources; every kind of task has its own settings beside these.

    kind: its name, which is that of its folder in `stages/tasks/kinds` with hyphens.
    file: a .csv, .tsv, .txt (tab-separated), .tab (Orange's), .jsonl, .json (an object a line, or an array of them) or
        .parquet file in the source (all but the last may be compressed, .csv.gz), split by `split`, or a list of files
        with the same columns, which are read one after the other; or such a file or list per split (`{train: …,
        validation: …, test: …}`; a missing validation is taken from train). An example of the test file is in no other
        split. In one table, a task without labels is split otherwise than a task with labels, and sees that task's test
        examples unless their `part`s keep them apart.
    columns: the columns' names, for a table without a header row.
    field: of .json files that hold one object: its key whose value is the array of rows.
    part: use the rows whose place between 0 and 1, given by their contents and `split.seed`, is in this interval: tasks
        with parts that do not overlap have no example in common, from whatever tables they are.
    examples: use at most so many rows, drawn at random with `split.seed`.
    metric: the one that counts, by which λ are searched and results compared; by default its kind's first one.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()  # the primary one first; without any, its models are not evaluated
    averaging: ClassVar[Averaging | None] = None  # what an ensemble of its models is; without, there is none

    kind: str = ""
    source: Name
    file: Files | dict[Split, Files]
    columns: list[str] | None = None
    field: str | None = Field(default=None, exclude_if=lambda value: value is None)
    part: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    examples: int | None = Field(default=None, ge=1)
    metric: str | None = Field(default=None, exclude_if=lambda value: value is None)
    split: TaskSplit = TaskSplit()

    @property
    def files(self) -> list[str]:
        """All files that it is read from."""
        parts = self.file.values() if isinstance(self.file, dict) else [self.file]
        return [name for part in parts for name in ([part] if isinstance(part, str) else part)]

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

    def has_outputs_of(self, other: "Task") -> bool:
        """Whether a model for the other task predicts what this one asks for."""
        return self.kind == other.kind and self.output_names == other.output_names

    @model_validator(mode="after")
    def _usable_metric(self) -> "Task":
        names = [metric.name for metric in self.possible_metrics]
        if self.metric is not None and self.metric not in names:
            raise ValueError(f"`metric`: {self.metric!r} is none of this task's: {', '.join(names) or 'it has none'}")
        return self

    @model_validator(mode="after")
    def _usable_files(self) -> "Task":
        if isinstance(self.file, dict) and not {"train", "test"} <= self.file.keys():
            raise ValueError("`file` must name at least a train and a test file")
        if self.part is not None and not self.part[0] < self.part[1]:
            raise ValueError(f"`part`: {self.part} is empty; the first share must be the smaller one")
        return self
