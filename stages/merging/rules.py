"""What a method's name or options stand for: the options, and the rule that merges a tensor."""

import sys
from collections.abc import Callable
from importlib import import_module

from stages.merging.methods import METHODS
from stages.merging.models import Models, Rule
from stages.merging.options import MethodOptions
from stages.running.errors import InputError


def method_options(method: str | MethodOptions) -> MethodOptions:
    """A method's options: those given, or the defaults of the method of that name.

    Raises:
        InputError: there is no such method.
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise InputError(f"unknown merge method {method!r}; known: {', '.join(sorted(METHODS))}")
    return METHODS[method]()


def method_rule(options: MethodOptions, models: Models) -> Rule:
    """How the method merges a tensor: by `rule` of the module that declares its options, or of `rule.py` beside it.

    A folder's `rule.py` is imported only now.

    Raises:
        InputError: the method cannot use what it finds in the models' statistics.
    """
    module = sys.modules[type(options).__module__]
    if not hasattr(module, "rule"):
        module = import_module(f"{module.__package__}.rule")
    rule: Callable[[MethodOptions, Models], Rule] = module.rule
    return rule(options, models)
