"""The merge methods, a folder each: `options.py` declares a method, `rule.py` computes it.

A new folder is a new method, and nothing else has to be told of it. Options are read without torch.
"""

from pkgutil import iter_modules

from stages.merging.options import MethodOptions
from stages.running.section import declared

METHODS = {
    folder.name: declared(f"{__name__}.{folder.name}.options", MethodOptions, "method", folder.name)
    for folder in iter_modules(__path__)
}
