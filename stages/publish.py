"""publish MODEL --to DIRECTORY|hub:ORG/NAME: a finished model with its Fisher and a model card, for others to merge.

No stage of the pipeline: it is run by hand, on what `dvc repro` has made. The Hub's token comes from `hf auth login` or
the environment, as huggingface_hub finds it.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.estimation.verification import verified_fisher
from stages.params import Params, load_params
from stages.pipeline.places import EVAL, FINETUNED, FISHERS
from stages.results.model_card import MARK, Publication, model_card, taking
from stages.running.errors import InputError, said
from stages.running.scratch import scratch_directory
from stages.storage.adapters import BASE, adapter_config
from stages.storage.cards import METRICS, ORIGIN, read_json, write_json
from stages.storage.checkpoint_files import ADAPTER_CONFIG, ADAPTER_STEM, CHECKPOINT_CARD, own_card
from stages.storage.configuration import configuration_files, copy_configuration
from stages.storage.digests import tree_sha256
from stages.storage.outputs import atomic_directory, copy_files, refuse_foreign
from stages.storage.source import Source
from stages.tasks.metrics import Metric

if TYPE_CHECKING:  # they import torch, which a misspelt name need not wait for
    from huggingface_hub import HfApi

HUB = "hub:"  # what a destination on the Hugging Face Hub begins with
CARD = "README.md"
TENSOR_FILES = tuple(
    f"{stem}{rest}" for stem in ("model", ADAPTER_STEM, "fisher") for rest in (".safetensors*", "-*-of-*.safetensors")
)
PUBLISHED_FILES = (
    CARD,
    CHECKPOINT_CARD,
    ADAPTER_CONFIG,
    "fisher.json",
    *TENSOR_FILES,
)  # beside the checkpoint's configuration


def publish(name: str, to: str) -> str:
    """Publish the model `name` to a directory, or to the Hub repository after `hub:`.

    Returns:
        What takes it into another project: lines of params.yaml, pinned.

    Raises:
        InputError: the model, its Fisher or the destination cannot be used; nothing has been written.
    """
    publication = open_publication(name, load_params())
    if to.startswith(HUB):
        source = to_hub(publication, to.removeprefix(HUB))
    else:
        source = to_directory(publication, Path(to).expanduser().resolve())
    return taking(publication, source)


def open_publication(name: str, params: Params) -> Publication:
    """The finished model `name`, after its Fisher has been verified.

    Raises:
        InputError: it is unknown or unfinished, its Fisher is not its own or damaged, or its evaluation is out of date.
    """
    if name not in params.models:
        raise InputError(f"params.yaml: models: there is no model {name!r}")
    origin = own_card(FINETUNED / name)["origin"]
    first = _first_base(origin["base"], params)
    checkpoint, fisher = verified_fisher(name, FINETUNED / name, FISHERS / name)
    task = params.tasks[params.models[name].task]
    metrics = _metrics(EVAL / name, origin)
    measured_by = {done: params.tasks.get(done, task).own_metrics for done in metrics}
    _refuse_lacking(EVAL / name, metrics, measured_by)
    return Publication(
        name=name,
        task=task,
        checkpoint=checkpoint,
        fisher=fisher,
        base=None if first is None else (first, params.sources[first]),
        data=params.sources[task.source],
        metrics=metrics,
        measured_by=measured_by,
    )


def _first_base(base: str, params: Params) -> str | None:
    """The source that a base is, or that the model which it is was made from; None if params.yaml has it no more."""
    while base in params.models:
        base = params.models[base].base
    return base if base in params.sources else None


def _metrics(directory: Path, origin: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """The metrics of a model of this origin, or none.

    Raises:
        InputError: they are of another training, which its settings and what it scored tell apart.
    """
    file = directory / METRICS
    if not file.is_file():
        return {}
    evaluated = read_json(directory / ORIGIN)
    if any(evaluated.get(key) != value for key, value in origin.items()):
        raise InputError(f"{file}: is of an earlier {directory.name}; {_again(directory)}")
    tasks: dict[str, Mapping[str, float]] = read_json(file)["tasks"]
    return tasks


def _refuse_lacking(
    directory: Path, metrics: Mapping[str, Mapping[str, float]], measured_by: Mapping[str, Sequence[Metric]]
) -> None:
    """Raise `InputError` if a task's results are not of all that it is measured by."""
    for task, entry in metrics.items():
        if lacking := [metric.name for metric in measured_by[task] if metric.name not in entry]:
            raise InputError(
                f"{directory / METRICS}: tasks.{task}: lacks {lacking[0]}, which its task has meanwhile; "
                f"{_again(directory)}"
            )


def _again(directory: Path) -> str:
    return f"run `dvc repro models/dvc.yaml:evaluate-{directory.name}`"


def to_directory(publication: Publication, directory: Path) -> dict[str, str]:
    """Write the publication as `directory`, whole or not at all. Returns where it is, as a source of params.yaml.

    Raises:
        InputError: the directory holds what has not been published, or cannot be written.
    """
    try:
        refuse_foreign(
            directory,
            _published(directory, configuration_files(publication.checkpoint.directory)),
            [publication.checkpoint.directory, publication.fisher.tensors.directory],
        )
        with atomic_directory(directory) as partial:
            write(publication, partial, {"path": str(directory), "sha256": "<sha256>"})
        return {"path": str(directory), "sha256": tree_sha256(directory)}
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror or error}") from None


def _published(directory: Path, configuration: Sequence[Path]) -> set[str]:
    """The files in a directory that an earlier call has written there: none if the card is not that of one."""
    if not _has_mark(directory / CARD):
        return set()
    found = (file.relative_to(directory) for file in directory.rglob("*") if file.is_file())
    return {file.as_posix() for file in found if file in configuration or _is_published(file)}


def _is_published(entry: Path) -> bool:
    return entry.parent == Path() and any(fnmatchcase(entry.name, pattern) for pattern in PUBLISHED_FILES)


def _has_mark(card: Path) -> bool:
    return card.is_file() and MARK.encode() in card.read_bytes().splitlines()


def to_hub(publication: Publication, repository: str) -> dict[str, str]:
    """Upload the publication as a commit to a Hub repository. Returns where it is, as a source of params.yaml.

    A repository that does not exist is created, as public or private as its owner's default. Tensor files that an
    earlier publication left there are deleted in the same commit, since they would be read in place of new shards.

    Raises:
        InputError: the repository's name is none, it holds what has not been published by this, or the Hub refuses or
            cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever client it uses

    if repository.count("/") != 1:
        raise InputError(f"{HUB}{repository}: not a repository; write {HUB}ORG/NAME")
    api = HfApi()
    with scratch_directory() as folder:
        write(publication, folder, {"hub": repository, "revision": "<commit>"})
        try:
            api.create_repo(repository, exist_ok=True)
            _refuse_foreign_repository(api, repository, folder)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"{publication.name} with its Fisher",
                delete_patterns=list(TENSOR_FILES),
            )
        except InputError:
            raise
        except (HTTPError, OSError, ValueError) as error:  # ValueError: a name that the Hub does not allow
            reason = " ".join(str(error).split())[:400]
            raise InputError(f"{HUB}{repository}: {reason}") from None
    return {"hub": repository, "revision": commit.oid}


def _refuse_foreign_repository(api: "HfApi", repository: str, folder: Path) -> None:
    """Refuse to replace files of a Hub repository that no earlier publication has written.

    Args:
        api: the Hub's client.
        repository: an existing one.
        folder: what is to be uploaded.
    """
    there = api.list_repo_files(repository)
    uploaded = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    lost = sorted(file for file in there if file in uploaded or _is_published(Path(file)))
    if lost and not (CARD in there and _has_mark(Path(api.hf_hub_download(repository, CARD)))):
        raise InputError(f"{HUB}{repository}: holds {lost[0]}, which would be lost; name a new or an empty repository")


def write(publication: Publication, directory: Path, source: Mapping[str, str]) -> None:
    """Write checkpoint, Fisher and cards into an existing directory; `source` is where others will take them from."""
    checkpoint, fisher = publication.checkpoint, publication.fisher
    copy_configuration(checkpoint.directory, directory)
    if (base := publication.adapted) is not None:
        _write_adapter_config(checkpoint.directory, *base, directory)
    copy_files([CHECKPOINT_CARD], checkpoint.directory, directory)
    checkpoint.tensors.copy_to(directory)
    copy_files([fisher.card_file.name], fisher.card_file.parent, directory)
    fisher.tensors.copy_to(directory)
    (directory / CARD).write_text(model_card(publication, source), encoding="utf-8")


def _write_adapter_config(adapter: Path, base: str, source: Source | None, directory: Path) -> None:
    """Write an adapter's configuration, in which its base has the name that others know it by."""
    known = None if source is None else source.hub or source.package
    write_json(directory / ADAPTER_CONFIG, adapter_config(adapter) | {BASE: known or base})


def main() -> None:
    """Read the command line; print what takes the publication, or one line of what is wrong."""
    parser = ArgumentParser(prog="python -m stages.publish", description="Publish a finished model with its Fisher.")
    parser.add_argument("model", metavar="MODEL", help="a model of params.yaml that `dvc repro` has made")
    parser.add_argument(
        "--to", required=True, metavar="DIRECTORY|hub:ORG/NAME", help="where to; for the Hub, `hf auth login` first"
    )
    arguments = parser.parse_args()
    try:
        lines = publish(arguments.model, arguments.to)
    except InputError as error:
        sys.exit(f"error: {said(error)}")
    print(f"{arguments.model} is published. Another project's params.yaml takes it by:\n\n{lines}")


if __name__ == "__main__":
    main()
