"""What a stage says when it is interrupted, also while its modules are still being imported."""

import sys
from types import TracebackType

INTERRUPTED = "error: interrupted; `dvc repro` goes on from what was saved"
EXIT_STATUS = 128 + 2  # as a shell says it of SIGINT


def say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception hook: one line for an interrupt, Python's own words for all else."""
    if issubclass(kind, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
