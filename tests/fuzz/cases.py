"""Seeded cases of bad input, each within limits of time and memory."""

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar
from zlib import crc32

import numpy as np

from stages.running.errors import MAX_CHARACTERS, InputError

SEED = "FUZZ_SEED"  # environment variable: try this seed only
SHARE = "FUZZ_SHARE"  # environment variable: try this share of the seeds, at least one of each
SECONDS = 10
MEGABYTES = 500

Random = np.random.Generator
OptionT = TypeVar("OptionT")


class OutOfTimeError(BaseException):
    """A case took too long. No Exception, so that nothing under test takes it for bad input."""


@contextmanager
def bounded() -> Iterator[None]:
    """Stop what runs inside when it takes more time or memory than any bad input may."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"took more than {SECONDS} seconds")

    status = Path("/proc/self/status")
    before = signal.signal(signal.SIGALRM, stop)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    if status.exists():  # Linux; elsewhere time alone is limited
        used = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + MEGABYTES * 10**6, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def run_cases(name: str, count: int, case: Callable[[Random], str]) -> Counter[str]:
    """Run `case` with a generator of its own for each of `count` seeds.

    Args:
        name: the cases' name, which goes into the generators' seeds, and by which pytest's -k finds them.
        count: how many seeds.
        case: raises what is a failure; returns what came out otherwise, for example "refused".

    Returns:
        How often what came out.
    """
    outcomes: Counter[str] = Counter()
    seeds = range(max(1, round(count * float(os.environ.get(SHARE, "1")))))
    for seed in [int(os.environ[SEED])] if SEED in os.environ else seeds:
        try:
            with bounded():
                outcomes[case(np.random.default_rng([crc32(name.encode()), seed]))] += 1
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}; to replay: {SEED}={seed} python -m pytest tests/fuzz -k {name}")
            raise
    return outcomes


def refused(error: InputError, place: str = "") -> str:
    """The outcome "refused", of an error whose message is a line that a terminal can show, and names the place."""
    message = str(error)
    assert message.isprintable(), f"not one line: {message!r}"
    assert 10 < len(message) <= MAX_CHARACTERS
    assert place in message
    return "refused"


def choice(random: Random, options: Sequence[OptionT]) -> OptionT:
    """One of the options, of whatever types they are."""
    return options[int(random.integers(len(options)))]
