"""Tables that the library `datasets` reads: what it wrote, repositories of the Hub, folders of images.

Nothing is fetched, no code but the library's own is run, and nothing is written but below a temporary directory.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stages.running.errors import InputError
from stages.storage.digests import CONTENTS
from stages.tasks.dataset_features import Surroundings, lies_in, table_of
from stages.tasks.table_files import Table
from stages.tasks.task import DatasetSplit

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

STATE = "state.json"  # of what Dataset.save_to_disk wrote
SPLITS = "dataset_dict.json"  # of what DatasetDict.save_to_disk wrote
CARD = "README.md"
FURTHER_CARD = ".huggingface.yaml"  # what it says goes before the card
CONFIGS = "configs"  # the key of either
BUILDERS = ("arrow", "csv", "imagefolder", "json", "parquet", "text")  # others may unpickle, or run programs
SCRIPT = re.compile(r"\b(GeneratorBasedBuilder|ArrowBasedBuilder|BeamBasedBuilder|DatasetBuilder)\b")
FILE_FORMAT = b"ARROW1"  # what an Arrow file begins with; otherwise it is a stream
LISTED = 30  # names in a message


def read_arrow(file: Path, source: Path) -> Table:
    """The table in an Arrow file (IPC, of the stream or the file format).

    Args:
        file: with the data set's features in its schema's metadata, if `datasets` wrote it.
        source: the directory that the files of its images must lie in.

    Raises:
        InputError: it is no such file.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable

    with _one_line(file), pa.OSFile(str(file)) as stream:
        whole = stream.read(len(FILE_FORMAT)) == FILE_FORMAT
        stream.seek(0)
        rows = (pa.ipc.open_file if whole else pa.ipc.open_stream)(stream).read_all()
        return table_of(Dataset(InMemoryTable(rows)), file, Surroundings(source, file.parent))


def read_directory(directory: Path, source: Path) -> Table:
    """The table that a directory is: what `Dataset.save_to_disk` wrote, or images.

    Images are in the order of their paths. Their column is `image`; beside it are the columns of metadata.csv,
    metadata.jsonl or metadata.parquet, or else `label`, the name of each image's folder.

    Args:
        directory: where it is.
        source: the directory that all must lie in which it refers to.

    Raises:
        InputError: it is neither, or cannot be read.
    """
    if not lies_in(directory, source):
        raise InputError(f"{directory}: leads out of the source; put a copy there instead of a link")
    if (directory / STATE).is_file():
        return _saved(directory, source)
    if (directory / SPLITS).is_file():
        inner = directory.relative_to(source).as_posix()
        entries = ", ".join(f"{{directory: {inner}, split: {split}}}" for split in _splits(directory)[:LISTED])
        raise InputError(f"{directory}: has several splits; name one of them: {entries}")
    return _images(directory, source)


def read_split(source: Path, entry: DatasetSplit) -> Table:
    """The table that a split of a data set in a source is.

    Args:
        source: where the data set is.
        entry: the split. Of a repository, its README.md says what the splits are, or else the names of its files.

    Raises:
        InputError: there is no such configuration or split, or it cannot be read.
    """
    if entry.directory is None:
        return _of_repository(source, entry)
    directory = source / entry.directory
    if (directory / STATE).is_file():
        raise InputError(f"{directory}: has no splits; write `file: {entry.directory}`")
    if not (directory / SPLITS).is_file() or not lies_in(directory, source):
        raise InputError(f"{directory}: is no directory that DatasetDict.save_to_disk wrote (it has no {SPLITS})")
    _choose("split", entry.split, _splits(directory), directory)
    return read_directory(directory / entry.split, source)


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """Run the library without progress bars or network; whatever it raises becomes one line."""
    import datasets
    from huggingface_hub import constants

    shown = not datasets.utils.are_progress_bars_disabled()
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    datasets.utils.disable_progress_bars()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever the library and pyarrow make of what is none
        cause: BaseException = error
        while cause.__cause__ is not None:  # the library's own says that there was one
            cause = cause.__cause__
        reason = " ".join(f"{cause}".split())[:400] or type(cause).__name__
        raise InputError(f"{file}: cannot be read as a data set: {reason}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        if shown:
            datasets.utils.enable_progress_bars()


def _choose(what: str, name: str, known: Iterable[str], place: Path) -> None:
    """Refuse a name that is not known."""
    listed = list(known)
    if name not in listed:
        more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        raise InputError(f"{place}: has no {what} {name!r}; it has: {', '.join(listed[:LISTED]) or 'none'}{more}")


def _object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of the library's."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: is no JSON object; save the data set again")
    return found


def _splits(directory: Path) -> list[str]:
    """The splits that DatasetDict.save_to_disk wrote."""
    found = _object(directory / SPLITS).get("splits")
    if not isinstance(found, list) or not all(isinstance(split, str) for split in found):
        raise InputError(f"{directory / SPLITS}: lists no splits; save the data set again")
    return found


def _saved(directory: Path, source: Path) -> Table:
    """What Dataset.save_to_disk wrote."""
    import datasets

    listed = _object(directory / STATE).get("_data_files")
    files = [one.get("filename") if isinstance(one, Mapping) else None for one in listed or [None]]
    for name in files:
        if not isinstance(name, str) or PurePosixPath(name).name != name:
            raise InputError(f"{directory / STATE}: lists no files of its directory; save the data set again")
        if not (directory / name).is_file() or not lies_in(directory / name, source):
            raise InputError(f"{directory / name}: is missing, or a link out of the source; save the data set again")
    with _one_line(directory):
        found = datasets.Dataset.load_from_disk(str(directory), keep_in_memory=True)
        return table_of(found, directory, Surroundings(source, directory))


def _images(directory: Path, source: Path) -> Table:
    """A folder of images."""
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    inner = {
        path: path.relative_to(directory).parts for path in sorted(directory.rglob("*"), key=lambda path: path.parts)
    }
    files = [path for path, parts in inner.items() if path.is_file() and not any(part[0] == "." for part in parts)]
    images = [path for path in files if path.suffix.lower() in ImageFolder.EXTENSIONS]
    metadata = [path for path in files if path.name in ImageFolder.METADATA_FILENAMES]
    if not images:
        raise InputError(
            f"{directory}: is a directory without images, and not one that save_to_disk wrote (it has no {STATE}); for "
            "a repository of the Hub, write `file: {config: …, split: …}`"
        )
    for path in [*images, *metadata]:
        if not lies_in(path, source):
            raise InputError(f"{path}: is a link out of the source; put a copy there")
    # A single class is one too; left to itself, the library needs two.
    labels = {"drop_labels": False} if all(len(inner[path]) == 2 for path in images) else {}
    wanted = [str(path) for path in (*images, *metadata)]
    with _one_line(directory), TemporaryDirectory() as scratch:
        data_files = DataFilesDict({"train": DataFilesList(wanted, [() for _ in wanted])})
        builder = ImageFolder(cache_dir=scratch, data_files=data_files, **labels)
        return table_of(_built(builder, "train"), directory, Surroundings(source, directory))


def _built(builder: "DatasetBuilder", split: str) -> "Dataset":
    builder.download_and_prepare()
    return builder.as_dataset(split=split, in_memory=True)


def _of_repository(source: Path, entry: DatasetSplit) -> Table:
    """A split of a repository of the Hub, fetched into a directory.

    The library sees it by links: without the list of contents, which would be data to it, and with nothing in its card
    of other configurations, whose files need not be there.
    """
    import datasets

    if not source.is_dir():
        raise InputError(f"{source}: no such directory; fetch the source first")
    name = Path(f"{source} {entry}")
    with _one_line(name), TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        repository = scratch / "repository"
        _refuse_script(source)
        card = _card(source)
        config = _configuration(source, entry.config, card)
        _link(source, repository)
        _write_card(repository / CARD, card, config)
        builder = datasets.load_dataset_builder(str(repository), config, cache_dir=str(scratch / "cache"))
        if builder.name not in BUILDERS:
            raise InputError(f"{name}: has files of the kind {builder.name}; read are {', '.join(BUILDERS)}")
        _choose("split", entry.split, builder.config.data_files, name)
        found = _built(builder, entry.split)
        return table_of(found, name, Surroundings(source, repository, scratch))


def _refuse_script(source: Path) -> None:
    for file in sorted(source.glob("*.py")):
        if SCRIPT.search(file.read_text(encoding="utf-8", errors="replace")):
            raise InputError(
                f"{file}: this data set is made by a script, and no code of others is run; take a revision of it with "
                "data files, such as the Hub's refs/convert/parquet"
            )


def _card(source: Path) -> dict[str, Any]:
    """What a repository says of itself: the head of its README.md, and what goes before that."""
    from huggingface_hub import DatasetCard
    from ruamel.yaml import YAML

    card: dict[str, Any] = DatasetCard.load(source / CARD).data.to_dict() if (source / CARD).is_file() else {}
    if (source / FURTHER_CARD).is_file():
        card |= YAML(typ="safe", pure=True).load((source / FURTHER_CARD).read_text(encoding="utf-8")) or {}
    return card


def _configuration(source: Path, wanted: str | None, card: Mapping[str, Any]) -> str | None:
    """The name of the wanted configuration, or of the only one; None where the card lists none, and none is wanted."""
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    known = MetadataConfigs.from_dataset_card_data(DatasetCardData(**card))
    if wanted is None:
        if len(known) > 1:
            raise InputError(f"{source}: has several configurations; name one as `config`: {', '.join(known)}")
        wanted = next(iter(known), None)
    if wanted is None:
        return None
    _choose("configuration", wanted, known or ["default"], source)
    for pattern in _texts([known.get(wanted, {}).get(key) for key in ("data_files", "data_dir")]):
        if (
            "://" in pattern
            or "::" in pattern
            or pattern.startswith(("/", "~"))
            or ".." in PurePosixPath(pattern).parts
        ):
            raise InputError(f"{source / CARD}: the configuration {wanted} has files outside the source: {pattern!r}")
    return wanted


def _texts(content: Any) -> Iterator[str]:
    """The texts in a list or mapping, however deep."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, (list, Mapping)):
        for inner in content.values() if isinstance(content, Mapping) else content:
            yield from _texts(inner)


def _link(source: Path, repository: Path) -> None:
    """Make a directory of links to a source's files, but for those that say what it is."""
    repository.mkdir()
    for file in sorted(source.rglob("*")):
        inner = file.relative_to(source)
        if str(inner) in (CONTENTS, CARD, FURTHER_CARD) or not file.is_file():
            continue
        if not lies_in(file, source):
            raise InputError(f"{file}: is a link out of the source; put a copy there")
        (repository / inner).parent.mkdir(parents=True, exist_ok=True)
        (repository / inner).symlink_to(file.resolve())


def _write_card(file: Path, card: dict[str, Any], config: str | None) -> None:
    """Write what a card says of one configuration."""
    from huggingface_hub import DatasetCardData

    own = dict(card)
    if config is not None:
        for key in (CONFIGS, "dataset_info"):
            if isinstance(listed := card.get(key), list):
                own[key] = [one for one in listed if one.get("config_name", "default") == config]
    file.write_text(f"---\n{DatasetCardData(**own).to_yaml()}\n---\n", encoding="utf-8")
