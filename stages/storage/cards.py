"""Cards: JSON files beside tensors and results that say what they are and how they were made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.running.errors import DamagedError, InputError

FORMAT_VERSION = 1  # of the cards beside the tensors
# Of an evaluation: outputs; what they are worth; what each example contributes to that; how the model was made.
PREDICTIONS, METRICS, PER_EXAMPLE, ORIGIN = "predictions", "metrics.json", "per_example.json", "origin.json"
COEFFICIENTS, SWEEP = "coefficients.json", "sweep.csv"  # of a search: the best λ, and all points
SIMILARITY_FILE = "similarity.json"
POINTER = b"version https://git-lfs.github.com/spec/"  # what Git LFS puts in a file's place


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, readable and the same for the same content."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises `InputError` if it is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of bytes, JSON, numbers of thousands of digits, and depth
        refuse_pointer(path)
        raise DamagedError(f"{path}: not valid JSON ({' '.join(str(error).split())})", path.parent) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def read_card(path: Path) -> dict[str, Any]:
    """Read a card, whose content may go into others: it must be what `write_json` can write."""
    content = read_json(path)
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # NaN, half a surrogate pair
        raise InputError(f"{path}: no card can say this ({error}); make it again") from None
    return content


def refuse_pointer(file: Path) -> None:
    """Raise `InputError` if there is a Git LFS pointer in the file's place."""
    with file.open("rb") as content:
        if content.read(len(POINTER)) == POINTER:
            raise InputError(
                f"{file}: is a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned, and pin "
                "the source again"
            )


def library_versions(*packages: str) -> dict[str, str]:
    """The installed versions of some packages, for a card."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
