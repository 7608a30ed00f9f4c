"""How a stage is started from the command line."""

import sys
from collections.abc import Callable

from stages.errors import InputError


def run_stage(stage: Callable[..., None], *argument_names: str) -> None:
    """Call `stage` with the command line's arguments; turn an `InputError` into one line and exit status 1.

    Args:
        stage: the stage's function.
        argument_names: what its positional arguments are called, for the usage line.
    """
    arguments = sys.argv[1:]
    if len(arguments) != len(argument_names):
        usage = " ".join(name.upper() for name in argument_names)
        module = stage.__module__ if stage.__module__ != "__main__" else sys.argv[0]
        sys.exit(f"usage: python -m {_module_name(module)} {usage}".rstrip())
    try:
        stage(*arguments)
    except InputError as error:
        sys.exit(f"error: {error}")


def _module_name(module: str) -> str:
    """`stages.fetch` for a module run as `python -m stages.fetch` (whose argv[0] is a path)."""
    return f"stages.{module.rsplit('/', 1)[-1].removesuffix('.py')}" if module.endswith(".py") else module
