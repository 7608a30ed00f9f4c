"""The YAML files of tasks of lm-evaluation-harness: where they are, and what may stand in them.

They are data: whatever in them would be code, or would be fetched, is refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.running.errors import InputError, first_names

ENDINGS = (".yaml", ".yml")  # of the files in a directory that is included
FORMATS = ("json", "csv", "parquet", "arrow", "text")  # of data, as `dataset_path` names them
DATA_KEYS = ("data_files", "field", "sep", "delimiter", "column_names")
KEYS = {  # that a task may have
    *("task", "task_alias", "tag", "metadata", "dataset_path", "dataset_kwargs"),
    *("training_split", "validation_split", "test_split", "fewshot_split", "fewshot_config", "num_fewshot"),
    *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"),
    *("target_delimiter", "fewshot_delimiter", "output_type", "generation_kwargs", "metric_list", "filter_list"),
    *("repeats", "should_decontaminate", "doc_to_decontamination_query"),
}
SHAPES: dict[str, tuple[type | tuple[type, ...], str]] = {  # of some keys' values
    **dict.fromkeys(("dataset_kwargs", "generation_kwargs", "fewshot_config"), (dict, "a mapping")),
    **dict.fromkeys(("metric_list", "filter_list"), (list, "a list")),
    "doc_to_choice": ((str, list, dict), "a text, a list or a mapping"),
    "num_fewshot": (int, "a whole number"),
}


@dataclass(frozen=True)
class HarnessTask:
    """A task, as its YAML file and those that this one includes say.

    Attributes:
        name: its name in that file.
        file: the file, relative to `root`.
        root: the directory that all must lie in which it refers to.
        configuration: what it says, as lm_eval takes it.
        included: the YAML files that it includes, directly or not, relative to `root`.
    """

    name: str
    file: str
    root: Path
    configuration: Mapping[str, Any]
    included: tuple[str, ...]

    @property
    def place(self) -> str:
        """The file, for messages."""
        return str(self.root / self.file)

    @property
    def data_files(self) -> dict[str, list[str]]:
        """Split → the files of its rows, relative to `root`; they are named relative to the task's own file.

        Raises:
            InputError: there are none, or not inside of the root.
        """
        given = self.configuration.get("dataset_kwargs", {}).get("data_files")
        by_split = given if isinstance(given, dict) else {"train": given}  # as the library calls the only split
        found = {}
        for split, named in by_split.items():
            names = named if isinstance(named, list) else [named]
            if not names or not all(isinstance(name, str) and name for name in names):
                raise InputError(
                    f"{self.place}: dataset_kwargs.data_files: must name the files of the task's rows, for each split; "
                    "data that lm_eval would fetch are pinned by nothing: put them into the source"
                )
            found[str(split)] = [_inside(self.root, self.file, name, "dataset_kwargs.data_files") for name in names]
        return found

    @property
    def files(self) -> list[str]:
        """All files that it is made of, relative to `root`."""
        data = [name for names in self.data_files.values() for name in names]
        return list(dict.fromkeys([self.file, *self.included, *data]))


def find_tasks(root: Path, include: Iterable[str], names: Iterable[str]) -> list[HarnessTask]:
    """The tasks of these names, in their order.

    Args:
        root: a source's directory.
        include: YAML files, or directories of them, in it.
        names: that the tasks have there.

    Raises:
        InputError: there is no task of a name, or two, or one says what cannot be used.
    """
    known: dict[str, list[str]] = {}
    for file in _yaml_files(root, include):
        if (name := _name(root / file)) is not None:
            known.setdefault(name, []).append(file)
    found = []
    for name in names:
        if name not in known:
            raise InputError(
                f"{root}: its YAML files have no task {name!r}; they have: {first_names(known)} (a group or a tag is "
                "none, and the tasks that lm_eval brings along fetch data that nothing pins)"
            )
        if len(known[name]) > 1:
            raise InputError(f"{root}: {' and '.join(known[name])} both have a task {name!r}; rename one of them")
        found.append(read_task(root, known[name][0]))
    return found


def read_task(root: Path, file: str) -> HarnessTask:
    """The task in a YAML file. Raises `InputError` if it says what cannot be used."""
    included: dict[str, None] = {}
    content = {key: value for key, value in _merged(root, file, included).items() if value is not None}
    task = HarnessTask(str(content.get("task")), file, root, content, tuple(included))
    if unknown := sorted(map(str, content.keys() - KEYS)):
        raise InputError(f"{task.place}: {unknown[0]}: cannot be used here; a task may have {', '.join(sorted(KEYS))}")
    for key, (kind, name) in SHAPES.items():
        if key in content and not isinstance(content[key], kind):
            raise InputError(f"{task.place}: {key} = {content[key]!r}: must be {name}")
    if content.get("dataset_path") not in FORMATS:
        raise InputError(
            f"{task.place}: dataset_path = {content.get('dataset_path')!r}: must be the format of data files in the "
            f"source ({', '.join(FORMATS)}); what lm_eval would fetch is pinned by nothing"
        )
    data = content.get("dataset_kwargs")
    if not isinstance(data, dict) or (others := sorted(map(str, data.keys() - set(DATA_KEYS)))):
        key = f"dataset_kwargs.{others[0]}" if isinstance(data, dict) else "dataset_kwargs"
        raise InputError(
            f"{task.place}: {key}: must be a mapping with data_files, and perhaps {', '.join(DATA_KEYS[1:])}"
        )
    choices = content.get("doc_to_choice", [])
    for choice in choices.values() if isinstance(choices, dict) else choices:
        if not isinstance(choice, str):
            raise InputError(
                f"{task.place}: doc_to_choice: {choice!r} is no text; put it in quotes, as no and yes also"
            )
    for name in task.files:
        if not (root / name).is_file():
            raise InputError(f"{root / name}: not found; {task.file} names it")
    return task


def _merged(root: Path, file: str, included: dict[str, None]) -> dict[str, Any]:
    """What a file says over what those say that it includes, the last one first, as lm_eval reads it."""
    content = _content(root / file)
    given = content.pop("include", [])
    found: dict[str, Any] = {}
    for name in given if isinstance(given, list) else [given]:
        inner = _inside(root, file, name, "include")
        if inner in included or not (root / inner).is_file():
            raise InputError(
                f"{root / file}: include: {name} is " + ("there twice" if inner in included else "not found")
            )
        included[inner] = None
        found |= _merged(root, inner, included)
        found.pop("task_list", None)
    return found | content


def _yaml_files(root: Path, include: Iterable[str]) -> Iterator[str]:
    found: dict[str, None] = {}
    for entry in include:
        place = root / entry
        if not place.exists():
            raise InputError(f"{place}: not found; `include` names it")
        files = sorted(file for file in place.rglob("*") if file.suffix in ENDINGS) if place.is_dir() else [place]
        found |= dict.fromkeys(file.relative_to(root).as_posix() for file in files)
    yield from found


def _inside(root: Path, file: str, name: object, key: str) -> str:
    """A file that another one names, relative to that one, as a path relative to the root."""
    parts = PurePosixPath(str(name)).parts
    if not isinstance(name, str) or name.startswith("/") or ".." in parts or "://" in name or "::" in name:
        raise InputError(
            f"{root / file}: {key}: {name!r} must be a path relative to that file, without `..`: all that a task is "
            "made of lies in its source"
        )
    return (PurePosixPath(file).parent / name).as_posix()


def _name(file: Path) -> str | None:
    """The name of the task in a file, if it has one; read without making anything of the rest."""
    import yaml

    node = _parsed(file, lambda text: yaml.compose(text, Loader=yaml.SafeLoader))
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    names = [value.value for key, value in entries if key.value == "task" and isinstance(value, yaml.ScalarNode)]
    return names[0] if names else None


def _content(file: Path) -> dict[str, Any]:
    """What a file says. Raises `InputError` if it is no mapping of plain values."""
    import yaml

    content = _parsed(file, yaml.safe_load)
    if not isinstance(content, dict):
        raise InputError(f"{file}: is no YAML file of a task: it holds no mapping")
    return content


def _parsed(file: Path, parse: Any) -> Any:
    import yaml

    try:
        return parse(file.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"{file}: line {error.problem_mark.line + 1}: {error.problem}; a tag such as !function is code, and none "
            "is run that comes with data"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
