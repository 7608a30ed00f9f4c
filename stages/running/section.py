"""What every part of params.yaml is made of."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints

# DVC stage names are made of these: it refuses dots and `@`, and silently drops integer keys.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, and `"1"` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


T = TypeVar("T")


def by_name(entries: dict[str, T]) -> dict[str, T]:
    """A mapping in the order of its names: DVC does not see the order in the file, so nothing may depend on it."""
    return dict(sorted(entries.items()))
