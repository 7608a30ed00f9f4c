"""Causal language modelling in params.yaml."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.tasks.averaging import Averaging, MixtureOfTexts
from stages.tasks.language_metrics import NegativeLogLikelihood, Perplexity
from stages.tasks.metrics import Metric
from stages.tasks.task import TableTask, Task

Form = Literal["messages", "prompt", "text"]
Column = Annotated[str, Field(min_length=1)]


class CausalLM(TableTask):
    """Texts that a model learns to write, each token from those before it. Examples have one of three forms.

    messages: the column of conversations, each a list of {role, content}, which the tokenizer's chat template writes;
        the assistant's turns are trained.
    prompt, completion: the columns of beginnings, and of what directly follows them, which is trained, with the token
        that ends a text. Of a list of columns, each is a part of the beginning that ends with its line.
    text: the column of texts, of which all is trained, with the token that ends a text if the tokenizer has one.
    max_length: in tokens; what is longer is truncated.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (NegativeLogLikelihood(), Perplexity())
    averaging: ClassVar[Averaging | None] = MixtureOfTexts()

    kind: Literal["causal-lm"] = "causal-lm"
    messages: str | None = None
    prompt: Column | Annotated[list[Column], Field(min_length=1)] | None = None
    completion: str | None = None
    text: str | None = None
    max_length: int = Field(default=512, ge=2, le=1_000_000)

    @property
    def hub_pipeline(self) -> str:
        """What the Hub calls such models."""
        return "text-generation"

    @property
    def of_causal_models(self) -> bool:
        """They are."""
        return True

    def has_outputs_of(self, other: Task) -> bool:
        """Whether the other task's models are causal language models: they write, whatever they were trained for."""
        return other.of_causal_models

    @property
    def form(self) -> Form:
        """What its examples are, by the first of the columns."""
        return "messages" if self.messages is not None else "prompt" if self.prompt is not None else "text"

    @property
    def prompts(self) -> list[str]:
        """The columns of beginnings."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []

    @model_validator(mode="after")
    def _one_form(self) -> "CausalLM":
        given = {key for key in ("messages", "prompt", "completion", "text") if getattr(self, key) is not None}
        if given not in ({"messages"}, {"prompt", "completion"}, {"text"}):
            raise ValueError("give exactly one of `messages`, `prompt` with `completion`, or `text`")
        columns = [*self.prompts, self.completion]
        if len(set(columns)) < len(columns):
            raise ValueError("`prompt`, `completion` must be different columns")
        return self
