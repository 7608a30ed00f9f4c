"""What every part of params.yaml is made of, and how the sections that folders declare are found."""

from importlib import import_module
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints

# DVC stage names are made of these: it refuses dots and `@`, and silently drops integer keys.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, and `"1"` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


T = TypeVar("T")
SectionT = TypeVar("SectionT", bound=Section)


def declared(module: str, base: type[SectionT], key: str, name: str) -> type[SectionT]:
    """The section that a module declares: its one class derived from `base` whose `key` is `name` by default.

    Raises:
        ImportError: there is none, or more than one.
    """
    found = vars(import_module(module)).values()
    classes = [each for each in found if isinstance(each, type) and issubclass(each, base)]
    own = [each for each in classes if each.model_fields[key].default == name]
    if len(own) != 1:
        raise ImportError(f"{module}: must have one class of {base.__name__} with the {key} {name!r}")
    return own[0]


def by_name(entries: dict[str, T]) -> dict[str, T]:
    """A mapping in the order of its names: DVC does not see the order in the file, so nothing may depend on it."""
    return dict(sorted(entries.items()))
