"""Multiple choice in params.yaml."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stages.tasks.averaging import Averaging, MeanOfSoftmax
from stages.tasks.metrics import Accuracy, Metric
from stages.tasks.task import TableTask, Task

Columns = Annotated[list[str], Field(min_length=1)]
Text = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]  # no white space around it


class MultipleChoice(TableTask):
    """A question and choices, one of which is right; all examples of a task have the same number of choices.

    question: the column of the question, or several (a passage and a question), joined by `separator`.
    choices: the column of the choices, or a column for each. A single column holds lists of texts, objects
        `{text: [...], label: [...]}`, objects of texts with scores, or texts with a line for each choice that begins
        with its letter (`A. yes`).
    label: the column that says which choice is right. All its values are texts of choices, or labels that the choices
        have in the table, or letters, or positions from 0, or positions from 1; or objects of texts with scores, of
        which one is 1 and the others are 0.
    label_from: what positions count from, where the table does not tell.
    unusable: whether a row that is no example (a choice missing, repeated or empty, another number of choices, no such
        label) is refused or dropped.
    scoring: how models score a choice: by a `head` on question and choice together, or as language models by the `sum`
        of the log-probabilities of its tokens after the question, or by their `mean`.
    likelihood: what language models are trained for, and what their Fisher is of: the right choice among the `choices`,
        or each `token` of the right choice from those before it, as when they are trained to write it.
    separator: what stands between a question's columns and, for language models, between question and choice.
    max_length: in tokens, of a question with a choice; where one is longer, the question is cut at its beginning, by as
        much for all choices of an example.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Accuracy(),)
    averaging: ClassVar[Averaging | None] = MeanOfSoftmax()

    kind: Literal["multiple-choice"] = "multiple-choice"
    question: str | Columns = "question"
    choices: str | Annotated[list[str], Field(min_length=2)] | Annotated[dict[Text, Text], Field(min_length=2)] = (
        "choices"
    )
    label: str = "label"
    label_from: Literal[0, 1] | None = None
    unusable: Literal["refuse", "drop"] = "refuse"
    scoring: Literal["head", "sum", "mean"] = "head"
    likelihood: Literal["choices", "token"] = "choices"
    separator: str = " "
    max_length: int = Field(default=128, ge=2, le=1_000_000)

    @property
    def questions(self) -> list[str]:
        """The columns of a question."""
        return [self.question] if isinstance(self.question, str) else self.question

    @property
    def choice_columns(self) -> list[str]:
        """The columns of the choices; none where all examples have the same."""
        if isinstance(self.choices, str):
            return [self.choices]
        return self.choices if isinstance(self.choices, list) else []

    @property
    def hub_pipeline(self) -> str:
        """Encoders have a task of their own on the Hub; language models are language models."""
        return "multiple-choice" if self.scoring == "head" else "text-generation"

    @property
    def auto_class(self) -> str | None:
        """Transformers has no pipeline for a choice head."""
        return "AutoModelForMultipleChoice" if self.scoring == "head" else None

    @property
    def of_causal_models(self) -> bool:
        """Whether they have no choice head."""
        return self.scoring != "head"

    @property
    def exact_passes(self) -> int | None:
        """One fewer than choices; the fewest possible where only the table tells, and the task's card says it."""
        if self.likelihood == "token":
            return None
        return 1 if isinstance(self.choices, str) else len(self.choices) - 1

    def has_outputs_of(self, other: Task) -> bool:
        """Whether both are for choice heads, or both for language models; choices may be of any number."""
        if self.of_causal_models:
            return other.of_causal_models
        return isinstance(other, MultipleChoice) and not other.of_causal_models

    @field_validator("choices", mode="before")
    @classmethod
    def _quoted_labels(cls, choices: object) -> object:
        for label, text in choices.items() if isinstance(choices, dict) else ():
            if not isinstance(label, str) or not isinstance(text, str):
                raise ValueError(f'{label}: {text} must be a text for a text; write "{label}": "{text}"')
        return choices

    @model_validator(mode="after")
    def _tokens_of_a_language_model(self) -> "MultipleChoice":
        if self.likelihood == "token" and self.scoring == "head":
            raise ValueError("`likelihood: token` is for language models: put `scoring: sum` or `scoring: mean`")
        return self

    @model_validator(mode="after")
    def _different_texts(self) -> "MultipleChoice":
        if isinstance(self.choices, dict) and len(set(self.choices.values())) < len(self.choices):
            raise ValueError("`choices`: two labels have the same text")
        return self

    @model_validator(mode="after")
    def _different_columns(self) -> "MultipleChoice":
        named = [*self.questions, *self.choice_columns]
        if len(set(named)) < len(named):
            raise ValueError("`question` and `choices` must be different columns")
        if self.label in self.questions or (isinstance(self.choices, list) and self.label in self.choices):
            raise ValueError("`label` must be another column than those of `question` and `choices`")
        return self
