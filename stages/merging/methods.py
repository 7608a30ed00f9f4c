"""The registry of methods: the module `stages.merging.NAME` computes the method NAME of `stages.params.METHODS`."""

from importlib import import_module

from stages.errors import InputError
from stages.merging.models import Models, Rule
from stages.params import METHODS, Ensemble, Method


def method_options(method: str | Method) -> Method:
    """A method's options: those given, or the defaults of the method of that name.

    Raises:
        InputError: there is no such method, or it merges nothing.
    """
    if not isinstance(method, str):
        return method
    options = METHODS.get(method, Ensemble)()
    if isinstance(options, Ensemble):
        known = ", ".join(sorted(METHODS.keys() - {"ensemble"}))
        raise InputError(f"unknown merge method {method!r}; known: {known}")
    return options


def method_rule(options: Method, models: Models) -> Rule:
    """How the method merges a tensor: `rule` of its module, which is imported only now.

    Raises:
        InputError: the method cannot use what it finds in the models' statistics.
    """
    return import_module(f"stages.merging.{options.method}").rule(options, models)
