"""Tables that the library `datasets` reads: what it wrote, repositories of the Hub, folders of images.

Nothing is fetched, no code but the library's own is run, and nothing is written but below a temporary directory.
"""

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.running.errors import InputError, first_names
from stages.running.scratch import scratch_directory
from stages.storage.digests import CONTENTS
from stages.tasks.arrow import progress_bars
from stages.tasks.dataset_features import Surroundings, checked_part, lies_in, place, tables_of
from stages.tasks.table_files import Table, TableFile
from stages.tasks.task import DatasetSplit

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset

STATE, INFO = "state.json", "dataset_info.json"  # of what Dataset.save_to_disk wrote
SPLITS = "dataset_dict.json"  # of what DatasetDict.save_to_disk wrote
CARD = "README.md"
FURTHER_CARD = ".huggingface.yaml"  # what it says goes before the card
CONFIGS, INFOS = "configs", "dataset_info"  # keys of either
BUILDERS = ("arrow", "csv", "imagefolder", "json", "parquet", "text")  # others may unpickle, or run programs
SCRIPT = re.compile(r"\b(GeneratorBasedBuilder|ArrowBasedBuilder|BeamBasedBuilder|DatasetBuilder)\b")
FEATURES = b"huggingface"  # the key of a schema's metadata under which `datasets` writes what the columns are
FILE_FORMAT = b"ARROW1"  # what an Arrow file begins with; otherwise it is a stream
UNUSED = "unused"  # a data set's fingerprint, for which the library would otherwise read and copy all of it


def arrow_parts(file: Path, source: Path) -> Iterator[Table]:
    """The table in an Arrow file, part by part (IPC, of the stream or the file format).

    Args:
        file: with the data set's features in its schema's metadata, if `datasets` wrote it.
        source: the directory that the files of its images must lie in.

    Raises:
        InputError: it is no such file.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable

    _refuse_outside(file, source)
    with one_line(file):
        rows = Dataset(InMemoryTable(_arrow(file)), fingerprint=UNUSED)
    return tables_of(rows, file, Surroundings(source, file.parent))


def described_parts(tables: Iterable[pa.Table], schema: pa.Schema, file: Path, source: Path) -> Iterator[Table]:
    """The table in a Parquet file that `datasets` wrote, part by part: its labels have names.

    Args:
        tables: the parts.
        schema: theirs, with the data set's features in its metadata.
        file: what messages call it.
        source: the directory that the files of its images must lie in.

    Raises:
        InputError: its values are not what their types say, or the features are none.
    """
    from datasets import Features

    with one_line(file):
        features = Features.from_arrow_schema(schema)
    start = 0
    for rows in tables:
        yield checked_part(rows, start, features, file, Surroundings(source, file.parent))
        start += len(rows)


def directory_parts(directory: Path, source: Path) -> Iterator[Table]:
    """The table that a directory is, part by part: what `Dataset.save_to_disk` wrote, or images.

    Images are in the order of their paths, or of metadata.csv, metadata.jsonl or metadata.parquet, which must name all
    of them. Their column is `image`; beside it are the metadata's columns, or else `label`, the name of each image's
    folder.

    Args:
        directory: where it is.
        source: the directory that all must lie in which it refers to.

    Raises:
        InputError: it is neither, or cannot be read.
    """
    _refuse_outside(directory, source)
    if (directory / STATE).is_file():
        return _saved(directory, source)
    if (directory / SPLITS).is_file():
        inner = directory.relative_to(source).as_posix()
        entries = [f"{{directory: {inner}, split: {split}}}" for split in _splits(directory, source)]
        raise InputError(f"{directory}: has several splits; name one of them: {first_names(entries)}")
    return _images(directory, source)


@contextmanager
def open_splits(source: Path, entries: Iterable[DatasetSplit]) -> Iterator[dict[DatasetSplit, TableFile]]:
    """The tables that splits of data sets in a source are, to be read inside the context.

    Args:
        source: where the data sets are.
        entries: the splits. Of a repository, its README.md says what they are, or else the names of its files.

    Raises:
        InputError: there is no such configuration or split, or it cannot be read.
    """
    found: dict[DatasetSplit, TableFile] = {}
    configurations: dict[str | None, list[DatasetSplit]] = {}
    for entry in entries:
        if entry.directory is None:
            configurations.setdefault(entry.config, []).append(entry)
        else:
            found[entry] = _saved_split(source, entry.directory, entry.split)
    with scratch_directory() as folder:
        for number, (config, own) in enumerate(configurations.items()):
            found |= _of_repository(source, config, own, folder.resolve() / str(number))
        yield found


def _saved_split(source: Path, inner: str, split: str) -> TableFile:
    """A split of what DatasetDict.save_to_disk wrote."""
    directory = source / inner
    if (directory / STATE).is_file():
        raise InputError(f"{directory}: has no splits; write `file: {inner}`")
    if not (directory / SPLITS).is_file():
        raise InputError(f"{directory}: is no directory that DatasetDict.save_to_disk wrote (it has no {SPLITS})")
    _choose("split", split, _splits(directory, source), directory)
    return TableFile(directory / split, lambda: directory_parts(directory / split, source))


def _arrow(file: Path) -> pa.Table:
    """The rows in an Arrow file, memory-mapped. Whatever pyarrow raises is raised."""
    stream = pa.memory_map(str(file))
    whole = stream.read(len(FILE_FORMAT)) == FILE_FORMAT
    stream.seek(0)
    rows = (pa.ipc.open_file if whole else pa.ipc.open_stream)(stream).read_all()
    rows.validate(full=True)  # to convert what is damaged may end the process
    return rows


class _Errors(logging.Handler):
    """Keeps what the library says of errors, where it tells which file it was in."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def one_line(file: Path, seen: Path | None = None) -> Iterator[None]:
    """Run the library without progress bars or network; whatever it raises becomes one line.

    Args:
        file: what the line is of.
        seen: where the library sees it, which means nothing to anybody else.
    """
    errors = _Errors()
    with _quiet(errors):
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # whatever the library and pyarrow make of what is none
            cause: BaseException = error
            while cause.__cause__ is not None:  # the library's own says that there was one
                cause = cause.__cause__
            said = errors.said[-1] if errors.said else str(cause)
            if seen is not None:
                said = said.replace(f"{seen}/", "").replace(str(seen), str(file))
            reason = " ".join(said.split())[:300]
            reason = reason if " " in reason and reason[0].isalpha() else f"{type(cause).__name__} {reason}"
            raise InputError(f"{file}: cannot be read as a data set: {reason}") from None


@contextmanager
def _quiet(errors: logging.Handler) -> Iterator[None]:
    """Run the library without progress bars or network; what it logs goes to the handler alone."""
    import datasets
    from huggingface_hub import constants

    log = logging.getLogger("datasets")
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, log.handlers, log.propagate
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    log.handlers, log.propagate = [errors], False
    try:
        with progress_bars(False):
            yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, log.handlers, log.propagate = before


def _choose(what: str, name: str, known: Collection[str], place: Path) -> None:
    """Refuse a name that is not known."""
    if name not in known:
        raise InputError(f"{place}: has no {what} {name!r}; it has: {first_names(known)}")


def _object(file: Path, source: Path) -> dict[str, Any]:
    """The object in a JSON file of the library's."""
    _refuse_outside(file, source)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: is no JSON object; save the data set again")
    return found


def _refuse_outside(path: Path, source: Path) -> None:
    if not lies_in(path, source):
        raise InputError(f"{path}: is a link that leads out of the source; put a copy there")


def _splits(directory: Path, source: Path) -> list[str]:
    """The splits that DatasetDict.save_to_disk wrote."""
    found = _object(directory / SPLITS, source).get("splits")
    if not isinstance(found, list) or not all(isinstance(split, str) for split in found):
        raise InputError(f"{directory / SPLITS}: lists no splits; save the data set again")
    return found


def _saved(directory: Path, source: Path) -> Iterator[Table]:
    """What Dataset.save_to_disk wrote."""
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable

    listed = _object(directory / STATE, source).get("_data_files")
    shards = listed if isinstance(listed, list) and listed else [None]
    files = [one.get("filename") if isinstance(one, Mapping) else None for one in shards]
    for name in [*files, INFO]:
        if not isinstance(name, str) or PurePosixPath(name).name != name:
            raise InputError(f"{directory / STATE}: lists no files of its directory; save the data set again")
        if not (directory / name).is_file():
            raise InputError(f"{directory / name}: is missing; save the data set again")
        _refuse_outside(directory / name, source)
    with one_line(directory):
        rows = pa.concat_tables([_arrow(directory / str(name)) for name in files])
        info = DatasetInfo.from_dict(_object(directory / INFO, source))
        found = Dataset(InMemoryTable(rows), info, fingerprint=UNUSED)
    return tables_of(found, directory, Surroundings(source, directory))


def _images(directory: Path, source: Path) -> Iterator[Table]:
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
        _refuse_outside(path, source)
    # A single class is one too; left to itself, the library needs two.
    labels = {"drop_labels": False} if all(len(inner[path]) == 2 for path in images) else {}
    wanted = [str(path.absolute()) for path in (*images, *metadata)]
    with one_line(directory), scratch_directory() as scratch:
        data_files = DataFilesDict({"train": DataFilesList(wanted, [() for _ in wanted])})
        builder = ImageFolder(cache_dir=str(scratch), data_files=data_files, **labels)
        builder.download_and_prepare()
        found = builder.as_dataset("train")
    paths = [Path(path).relative_to(directory.absolute()) for path in _paths(found)]
    named = set(paths)
    if missing := [path for path in images if path.relative_to(directory) not in named]:
        raise InputError(
            f"{directory}: {len(missing)} of its {len(images)} images, {missing[0].relative_to(directory)} first, are "
            f"in no row of {metadata[0].name if metadata else 'the data set'}; add them to it, or remove them"
        )
    for table in tables_of(found, directory, Surroundings(source, directory)):
        yield replace(table, place=lambda row: f"{place(row)} ({paths[row]})")


def _paths(folder: "Dataset") -> list[str]:
    """Where each image of a folder is."""
    found: list[str] = pc.struct_field(folder.data.column("image"), "path").to_pylist()
    return found


def _of_repository(
    source: Path, config: str | None, entries: Sequence[DatasetSplit], scratch: Path
) -> dict[DatasetSplit, TableFile]:
    """Splits of one configuration of a repository of the Hub, fetched into a directory.

    The library sees it by links: without the list of contents, which would be data to it, and with nothing in its card
    of other configurations, whose files need not be there.
    """
    import datasets

    if not source.is_dir():
        raise InputError(f"{source}: no such directory; fetch the source first")
    _refuse_script(source)
    repository = scratch / "repository"
    with one_line(source, repository):
        card = _card(source)
        name = _configuration(source, config, card)
        _link(source, repository)
        if card:
            _write_card(repository / CARD, card, name)
        builder = datasets.load_dataset_builder(str(repository), name, cache_dir=str(scratch / "cache"))
        if builder.name not in BUILDERS:
            raise InputError(f"{source}: has files of the kind {builder.name}; read are {', '.join(BUILDERS)}")
        for entry in entries:
            _choose("split", entry.split, builder.config.data_files, Path(f"{source} {entry}"))
        builder.download_and_prepare()
        rows = {entry: builder.as_dataset(entry.split) for entry in entries}
    around = Surroundings(source, repository, scratch)
    return {
        entry: TableFile(file, partial(tables_of, own, file, around))
        for entry, own in rows.items()
        for file in [Path(f"{source} {entry}")]
    }


def _refuse_script(source: Path) -> None:
    for file in sorted(source.glob("*.py")):
        if SCRIPT.search(file.read_text(encoding="utf-8", errors="replace")):
            raise InputError(
                f"{file}: this data set is made by a script, and no code of others is run; take a revision of it with "
                "data files, such as the Hub's refs/convert/parquet"
            )


def _card(source: Path) -> dict[str, Any]:
    """What a repository says of itself: the head of its README.md, and what goes before that."""
    from huggingface_hub import metadata_load
    from ruamel.yaml import YAML

    for name in (CARD, FURTHER_CARD):
        _refuse_outside(source / name, source)
    card: dict[str, Any] = (metadata_load(source / CARD) if (source / CARD).is_file() else None) or {}
    if (source / FURTHER_CARD).is_file():
        card |= YAML(typ="safe", pure=True).load((source / FURTHER_CARD).read_text(encoding="utf-8")) or {}
    return card


def _configuration(source: Path, wanted: str | None, card: Mapping[str, Any]) -> str | None:
    """The name of the wanted configuration, or of the only one; None where the card lists none, and none is wanted.

    Raises:
        InputError: there is none of that name, several and no name, or it has files outside the source.
        ValueError: what the card says of configurations is not what it should.
    """
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    listed = MetadataConfigs.from_dataset_card_data(DatasetCardData(**card))
    known = {str(name): settings for name, settings in listed.items()}
    if wanted is None:
        if len(known) > 1:
            raise InputError(f"{source}: has several configurations; name one as `config`: {first_names(known)}")
        wanted = next(iter(known), None)
    if wanted is None:
        return None
    _choose("configuration", wanted, known or ["default"], source)
    for pattern in _texts([known.get(wanted, {}).get(key) for key in ("data_files", "data_dir")]):
        if re.search(r"://|::|^[/~]", pattern) or ".." in PurePosixPath(pattern).parts:
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
    """Make a directory of links to a source's files, but for those that say what it is, and programs."""
    repository.mkdir(parents=True)
    for file in sorted(source.rglob("*")):
        inner = file.relative_to(source)
        if str(inner) in (CONTENTS, CARD, FURTHER_CARD) or inner.suffix == ".py" or not file.is_file():
            continue
        _refuse_outside(file, source)
        (repository / inner).parent.mkdir(parents=True, exist_ok=True)
        (repository / inner).symlink_to(file.resolve())


def _write_card(file: Path, card: Mapping[str, Any], config: str | None) -> None:
    """Write what a card says of one configuration."""
    from huggingface_hub import DatasetCardData

    own = dict(card)
    infos = card.get(INFOS) or []
    infos = [infos] if isinstance(infos, dict) else infos
    if card.get(CONFIGS):
        for key, listed in ((CONFIGS, card[CONFIGS]), (INFOS, infos)):
            of_it = [one for one in listed if str(one.get("config_name", "default")) == config]
            own[key] = [{**one, "config_name": config} for one in of_it]
    elif len(infos) == 1:  # whatever its name, it is of all files, which the library calls `default`
        own[INFOS] = [{**infos[0], "config_name": "default"}]
    file.write_text(f"---\n{DatasetCardData(**own).to_yaml()}\n---\n", encoding="utf-8")
