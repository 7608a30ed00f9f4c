"""The merge methods, a folder each: `options.py` declares a method, `rule.py` computes it.

A new folder is a new method, and nothing else has to be told of it. Options are read without torch.
"""

from importlib import import_module
from pkgutil import iter_modules

from stages.merging.options import MethodOptions


def _declared(name: str) -> type[MethodOptions]:
    """The options of the method in the folder of that name: the class whose `method` is that name."""
    found = vars(import_module(f"{__name__}.{name}.options")).values()
    classes = [each for each in found if isinstance(each, type) and issubclass(each, MethodOptions)]
    own = [each for each in classes if each.model_fields["method"].default == name]
    if len(own) != 1:
        raise ImportError(f"{__name__}.{name}.options: must have one class of MethodOptions with the method {name!r}")
    return own[0]


METHODS = {folder.name: _declared(folder.name) for folder in iter_modules(__path__)}
