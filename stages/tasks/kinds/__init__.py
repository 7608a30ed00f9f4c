"""The kinds of task, a folder each: `settings.py` declares a kind, `reading.py` makes examples, `kind.py` models.

A new folder is a new kind, and nothing else has to be told of it. Settings are read without torch or pandas.
"""

from importlib import import_module
from pkgutil import iter_modules

from stages.running.errors import InputError
from stages.tasks.metrics import Metric
from stages.tasks.task import Task

DEFAULT = "text-classification"  # of a task that does not say its kind


def _declared(folder: str) -> type[Task]:
    """The settings of the kind in the folder of that name: the class whose `kind` is that name."""
    kind = folder.replace("_", "-")
    found = vars(import_module(f"{__name__}.{folder}.settings")).values()
    classes = [each for each in found if isinstance(each, type) and issubclass(each, Task)]
    own = [each for each in classes if each.model_fields["kind"].default == kind]
    if len(own) != 1:
        raise ImportError(f"{__name__}.{folder}.settings: must have one class of Task with the kind {kind!r}")
    return own[0]


KINDS = {
    settings.model_fields["kind"].default: settings
    for settings in (_declared(folder.name) for folder in iter_modules(__path__))
}


def kind_of(content: object) -> str:
    """The kind that a task in params.yaml says it is of; whatever it says, for the schema to refuse it by name."""
    return str(content.get("kind", DEFAULT) if isinstance(content, dict) else getattr(content, "kind", DEFAULT))


def metrics_of(kind: str) -> tuple[Metric, ...]:
    """The metrics of a kind of task, the primary one first; none if it is not evaluated."""
    return KINDS[kind].metrics


def metric_named(name: str) -> Metric:
    """The metric of that name. Raises `InputError` if no kind of task has it."""
    known = {metric.name: metric for settings in KINDS.values() for metric in settings.metrics}
    if name not in known:
        raise InputError(f"there is no metric {name!r}; known: {', '.join(known)}")
    return known[name]
