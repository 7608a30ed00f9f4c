"""Tasks of lm-evaluation-harness in params.yaml."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.storage.source import InnerPath
from stages.tasks.kinds.lm_eval.metrics import METRICS, Measure
from stages.tasks.metrics import Metric
from stages.tasks.task import DatasetSplit, Task


class LmEval(Task):
    """Tasks of lm-evaluation-harness, with YAML files and data of one's own; causal language models do them.

    It is for evaluation alone. Several tasks are one of ours: its items are those of all of them.

    include: YAML files, or directories of them, in the source.
    tasks: the names that tasks have in these.
    measures: which of the tasks' metrics are kept, by lm_eval's names; the first one counts.
    few_shot: how many examples stand before each item; null: as many as the YAML file says.
    seed: of the choice of these.
    limit: at most so many items of each task, the first ones; null: all.
    chat_template: whether the prompts are written by the tokenizer's chat template.
    """

    metrics: ClassVar[tuple[Metric, ...]] = tuple(METRICS.values())
    only_evaluates: ClassVar[bool] = True

    kind: Literal["lm-eval"] = "lm-eval"
    include: InnerPath | Annotated[list[InnerPath], Field(min_length=1)]
    tasks: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1)]
    measures: Annotated[list[Measure], Field(min_length=1)] = Field(default=["acc"])
    few_shot: int | None = Field(default=None, ge=0)
    seed: int = Field(default=1234, ge=0, lt=2**32)  # lm_eval's own
    limit: int | None = Field(default=None, ge=1)
    chat_template: bool = False

    @property
    def entries(self) -> list[str | DatasetSplit]:
        """The whole source: the YAML files say where their data are."""
        return ["."]

    @property
    def included(self) -> list[str]:
        """The YAML files and directories of them."""
        return [self.include] if isinstance(self.include, str) else self.include

    @property
    def output_names(self) -> list[str]:
        """The measures: an output is lm_eval's number for an item."""
        return list(self.measures)

    @property
    def possible_metrics(self) -> tuple[Metric, ...]:
        """Those of the measures."""
        return tuple(METRICS[measure] for measure in self.measures)

    def has_outputs_of(self, other: Task) -> bool:
        """Whether the other task's models are causal language models."""
        return other.of_causal_models

    @model_validator(mode="after")
    def _named_once(self) -> "LmEval":
        for key, names in (("tasks", self.tasks), ("measures", self.measures)):
            if len(set(names)) < len(names):
                raise ValueError(f"`{key}`: names one twice")
        return self
