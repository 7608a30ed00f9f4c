"""Adapters that fine-tuning can train instead of all weights, in params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from stages.running.section import Section

Names = list[Annotated[str, Field(min_length=1)]]
Targets = Annotated[Names, Field(min_length=1)]


class Lora(Section):
    """LoRA (Hu et al. 2022): W + s B A, with A [rank, inputs] and B [outputs, rank].

    alpha: s = alpha / rank; by default twice the rank.
    dropout: of the inputs of A, in training.
    targets: the endings of the names of the modules that are adapted; or all Linear layers but the output's.
    rslora: s = alpha / √rank (Kalajdzievski 2023).
    dora: the length of each output's weights is trained apart (DoRA, Liu et al. 2024).
    save: modules that are trained as a whole besides; new heads always are.
    """

    type: Literal["lora"]
    rank: int = Field(default=8, ge=1)
    alpha: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Targets | Literal["all-linear"] = "all-linear"
    rslora: bool = False
    dora: bool = False
    save: Names = Field(default_factory=list)


class Ia3(Section):
    """(IA)³ (Liu et al. 2022): activations are scaled by trained vectors.

    targets: the endings of the names of the modules that are scaled; by default those that peft knows of the model.
    feedforward: which of them are scaled at their inputs; the others are at their outputs.
    save: modules that are trained as a whole besides; new heads always are.
    """

    type: Literal["ia3"]
    targets: Targets | None = None
    feedforward: Targets | None = None
    save: Names = Field(default_factory=list)


AdapterSettings = Annotated[Lora | Ia3, Field(discriminator="type")]
ADAPTERS: dict[str, type[Section]] = {"lora": Lora, "ia3": Ia3}  # by `type`
