"""The kinds of task, a folder each: `settings.py` declares a kind, `reading.py` makes examples, `kind.py` models.

A new folder is a new kind, and nothing else has to be told of it. Settings are read without torch or pandas.
"""

from pkgutil import iter_modules

from stages.running.errors import InputError
from stages.running.section import declared
from stages.tasks import module_of
from stages.tasks.metrics import Metric
from stages.tasks.task import Task

DEFAULT = "text-classification"  # of a task that does not say its kind


KINDS = {
    name: declared(f"stages.{module_of(name, 'settings')}", Task, "kind", name)
    for name in (folder.name.replace("_", "-") for folder in iter_modules(__path__))
}


def kind_of(content: object) -> str:
    """The kind that a task in params.yaml says it is of; whatever it says, for the schema to refuse it by name."""
    return str(content.get("kind", DEFAULT) if isinstance(content, dict) else getattr(content, "kind", DEFAULT))


def metric_named(name: str) -> Metric:
    """The metric of that name. Raises `InputError` if no kind of task has it."""
    known = {metric.name: metric for settings in KINDS.values() for metric in settings.metrics}
    if name not in known:
        raise InputError(f"there is no metric {name!r}; known: {', '.join(known)}")
    return known[name]
