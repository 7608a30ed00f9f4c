"""What a task is: `kinds/` has a folder for each kind, with its settings, its reading of tables and its models.

`task` says what the settings of every kind have, `reading` how a kind makes examples of tables, and `kind` what the
stages ask of a kind's models, and nothing else. The rest is what several kinds share.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.tasks.kind import Kind


def task_kind(kind: str) -> "Kind[Any]":
    """The kind of that name, imported only when asked for (it brings transformers with it)."""
    from importlib import import_module

    found: Kind[Any] = import_module(f"stages.{module_of(kind)}").KIND
    return found


def module_of(kind: str) -> str:
    """The name of a task kind's module, below `stages`."""
    return f"tasks.kinds.{kind.replace('-', '_')}.kind"
