"""The files of checkpoints and results: cards, and outputs that appear whole or not at all."""

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from stages.errors import InputError, anew

FORMAT_VERSION = 1  # of the cards beside the tensors
PARTIAL_PREFIX = ".partial-"  # of what is still being written; .dvcignore and .gitignore know it
WRITE_FAILURES = {  # in the words of libraries that keep the system's to themselves: SQLite's (in DVC), torch's
    "disk is full": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
    "PytorchStreamWriter": errno.EIO,
    "inline_container": errno.EIO,
}
OLD_SUFFIX = ".old"  # of what is being replaced

CHECKPOINT_CARD = "checkpoint.json"  # beside model.safetensors: what the checkpoint is and how it was made
WEIGHTS = "model*.safetensors"  # their fingerprint is in the card
ADAM = "adam"  # stem of the file with the optimizer's second moments, beside a checkpoint's weights
# Of an evaluation: logits; what they are worth; which of them are right, for comparisons; how the model was made.
PREDICTIONS, METRICS, CORRECT, ORIGIN = "predictions.parquet", "metrics.json", "correct.json", "origin.json"
COEFFICIENTS, SWEEP = "coefficients.json", "sweep.csv"  # of a search: the best λ, and all points
SIMILARITY_FILE = "similarity.json"
# Endings, in lower case, of what no model that is made from a checkpoint takes over from its directory.
# fmt: off
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".ipynb", ".js", ".c", ".cpp", ".cu", ".h")
WEIGHT_FORMATS = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".distcp", ".mar",
    ".nemo", ".msgpack", ".h5", ".hdf5", ".keras", ".ot", ".npz", ".npy", ".gguf", ".ggml", ".pdparams", ".params",
    ".pb", ".meta", ".index", ".data-00000-of-00001", ".tflite", ".mlmodel", ".engine", ".onnx", ".onnx_data",
    ".onnx.data", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z",
)
# fmt: on
CARDS = (CHECKPOINT_CARD, "contents.json", "fisher.json", "kfac.json", "gram.json", "readme.md")  # of other weights
POINTER = b"version https://git-lfs.github.com/spec/"  # what Git LFS puts in a file's place


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, to fill; it becomes `path` when the block ends well, and vanishes otherwise.

    What killed processes have left of theirs is removed.

    Raises:
        OSError: a file cannot be written, whichever library has found that out; with the name of `path` if of no file.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent))
        try:
            with _held(partial):
                yield partial
                partial.chmod(0o755)  # mkdtemp and safetensors make things that only their owner may read
                for entry in partial.rglob("*"):
                    entry.chmod(0o755 if entry.is_dir() else 0o644)
                _replace_directory(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_foreign(directory: Path, ours: Collection[str], inputs: Iterable[Path] = ()) -> None:
    """Refuse to replace a directory that holds what no earlier call has written, or lies among the inputs.

    `atomic_directory` replaces whatever is there: right for a stage's own output, not for a place that a user names.

    Args:
        directory: to be replaced; it may be empty, or not exist.
        ours: the files in it that an earlier call has written, as paths relative to it.
        inputs: what is read: the directory may neither be one of them, nor lie in one, nor hold one.

    Raises:
        InputError: with what would be lost.
    """
    place = directory.resolve()
    for path in inputs:
        read = path.resolve()
        if place == read or place in read.parents or read in place.parents:
            raise InputError(f"{directory}: is, holds or lies in the input {path}; name a directory apart from it")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; name a directory")
    for entry in directory.rglob("*"):
        name = entry.relative_to(directory).as_posix()
        if name not in ours and (entry.is_symlink() or not entry.is_dir()):
            raise InputError(f"{directory}: holds {name}, which would be lost; name a new or an empty directory")


def _replace_directory(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a directory cannot be renamed onto a full one, so an old one steps aside first."""
    if not path.exists():
        new.rename(path)
        return
    with _held(path):
        old = path.rename(new.with_name(f"{new.name}{OLD_SUFFIX}"))
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold a lock on the directory, which ends with this process if not before: nobody takes it for abandoned."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks, where nothing is taken for abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Remove the partial directories for `path` that no living process holds."""
    for entry in path.parent.glob(f"{PARTIAL_PREFIX}{glob.escape(path.name)}-*"):
        # By the whole name, since another output's may begin like this one's.
        if not re.fullmatch(
            rf"[a-z0-9_]{{8}}({re.escape(OLD_SUFFIX)})?", entry.name[len(PARTIAL_PREFIX + path.name) + 1 :]
        ):
            continue
        with suppress(OSError):
            handle = os.open(entry, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry, ignore_errors=True)
            finally:
                os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an `OSError` of what libraries raise when the system refuses to write, and name `path` where no file is."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if not isinstance(error, InputError) and (number := _error_number(str(error))) is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _error_number(message: str) -> int | None:
    """The system's error number: Rust's libraries give it, of others' words it is guessed."""
    if found := re.search(r"\(os error (\d+)\)", message):
        return int(found[1])
    return next((number for words, number in WRITE_FAILURES.items() if words in message), None)


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
        raise InputError(f"{path}: not valid JSON ({' '.join(str(error).split())}); {anew(path.parent)}") from None
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


def configuration_files(directory: Path) -> list[Path]:
    """What belongs to a checkpoint beside its weights, relative to its directory: config, tokenizer and more.

    That is all in it that is no weight, no code, no card of ours or model card (they tell of other weights), and not
    hidden. A sub-directory that has weights of its own is another model, and nothing of it belongs to this one.
    """
    found = [file.relative_to(directory) for file in sorted(directory.rglob("*")) if file.is_file()]
    models = {file.parent for file in found if _named(file, WEIGHT_FORMATS)} - {Path()}
    return [
        file
        for file in found
        if not _named(file, (*CODE, *WEIGHT_FORMATS))
        and file.as_posix().lower() not in CARDS
        and not any(part.startswith(".") for part in file.parts)
        and not models.intersection(file.parents)
    ]


def copy_configuration(source: Path, target: Path) -> None:
    """Copy what belongs to a checkpoint beside its weights; see `configuration_files`."""
    for file in configuration_files(source):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)


def refuse_pointer(file: Path) -> None:
    """Raise `InputError` if there is a Git LFS pointer in the file's place."""
    with file.open("rb") as content:
        if content.read(len(POINTER)) == POINTER:
            raise InputError(
                f"{file}: is a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned, and pin "
                "the source again"
            )


def _named(file: Path, endings: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(endings)


def library_versions(*packages: str) -> dict[str, str]:
    """The installed versions of some packages, for a card."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
