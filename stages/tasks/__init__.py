"""What a task is, one module a kind: its examples, model class, collation, likelihood and any metrics."""

from types import ModuleType


def task_kind(kind: str) -> ModuleType:
    """The module of a task kind, imported only when asked for (it brings transformers with it)."""
    from importlib import import_module

    return import_module(f"stages.tasks.{kind.replace('-', '_')}")
