"""What a task is: `kinds/` has a folder for each kind, with its settings, its reading of tables, its models and
their likelihood.

`task` says what the settings of every kind have, `reading` how a kind makes examples of tables, and `kind` what the
stages ask of a kind's models, and nothing else. The rest is what several kinds share.
"""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from stages.curvature.likelihoods import Likelihood
    from stages.tasks.data import TaskData
    from stages.tasks.kind import Evaluator, Kind

Part = Literal["settings", "reading", "kind", "likelihood"]  # of a kind: the files of its folder


def module_of(kind: str, part: Part) -> str:
    """The name of a module of a task kind, below `stages`."""
    return f"tasks.kinds.{kind.replace('-', '_')}.{part}"


def task_kind(kind: str) -> "Kind[Any]":
    """The kind of that name, which has models; imported only when asked for (it brings transformers with it)."""
    from importlib import import_module

    found: Kind[Any] = import_module(f"stages.{module_of(kind, 'kind')}").KIND
    return found


def task_evaluator(kind: str) -> "Evaluator":
    """What evaluates models on tasks of that kind, which may have none of its own."""
    from importlib import import_module

    found: Evaluator = import_module(f"stages.{module_of(kind, 'kind')}").KIND
    return found


def task_likelihood(task: "TaskData") -> "Likelihood":
    """The likelihood of a task's outputs, apart from its kind's models: what it says decides no training."""
    from importlib import import_module

    found: Likelihood = import_module(f"stages.{module_of(task.kind, 'likelihood')}").likelihood(task)
    return found
