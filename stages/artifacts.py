"""The files of checkpoints and results: cards, and outputs that appear whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from stages.errors import InputError

FORMAT_VERSION = 1  # of the cards beside the tensors
PARTIAL_PREFIX = ".partial-"  # of what is still being written; .dvcignore and .gitignore know it

CHECKPOINT_CARD = "checkpoint.json"  # beside model.safetensors: what the checkpoint is and how it was made
ADAM = "adam"  # stem of the file with the optimizer's second moments, beside a checkpoint's weights
PREDICTIONS, METRICS, ORIGIN = "predictions.parquet", "metrics.json", "origin.json"  # of an evaluation
CONFIGURATION_FILES = (  # what a checkpoint directory may hold beside weights and card
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, to fill; it becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp and safetensors make things that only their owner may read
        for entry in partial.rglob("*"):
            entry.chmod(0o755 if entry.is_dir() else 0o644)
        _replace_directory(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_directory(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a directory cannot be renamed onto a full one, so an old one steps aside first."""
    if not path.exists():
        new.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent))
    old = path.rename(aside / "old")
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
        raise InputError(f"{path}: not valid JSON ({' '.join(str(error).split())}); make it again") from None
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


def tree_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a directory, over its files' relative names and digests in the names' order."""
    if path.is_file():
        with path.open("rb") as file:
            digest = sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sha256("".join(f"{tree_sha256(path / name)}  {name}\n" for name in names).encode()).hexdigest()


def copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy those of the named files that `source` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def library_versions(*packages: str) -> dict[str, str]:
    """The installed versions of some packages, for a card."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
