"""publish MODEL --to DIRECTORY|hub:ORG/NAME: a finished model with its Fisher and a model card, for others to merge.

No stage of the pipeline: it is run by hand, on what `dvc repro` has made. The Hub's token comes from `hf auth login` or
the environment, as huggingface_hub finds it.
"""

import json
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.estimation.verification import verified_fisher
from stages.params import Params, load_params
from stages.pipeline.places import EVAL, FINETUNED, FISHERS
from stages.running.errors import InputError
from stages.storage.cards import CHECKPOINT_CARD, METRICS, ORIGIN, read_json
from stages.storage.configuration import configuration_files, copy_configuration
from stages.storage.digests import tree_sha256
from stages.storage.outputs import atomic_directory, copy_files, refuse_foreign
from stages.storage.source import Source

if TYPE_CHECKING:  # they import torch, which a misspelt name need not wait for
    from huggingface_hub import HfApi

    from stages.storage.checkpoint import Checkpoint, StatisticFiles

HUB = "hub:"  # what a destination on the Hugging Face Hub begins with
CARD = "README.md"
MARK = "<!-- written by stages.publish, which replaces a directory that has this line -->"
TENSOR_FILES = tuple(
    f"{stem}{rest}" for stem in ("model", "fisher") for rest in (".safetensors*", "-*-of-*.safetensors")
)
PUBLISHED_FILES = (CARD, CHECKPOINT_CARD, "fisher.json", *TENSOR_FILES)  # beside the checkpoint's configuration

ESTIMATORS = {
    "exact": "the expectation of (∇ log p)² over the model's own predictions, computed exactly",
    "sketch": "the expectation of (∇ log p)² over the model's own predictions, estimated without bias by random signs",
    "sampled": "the expectation of (∇ log p)² over the model's own predictions, estimated without bias by drawn labels",
    "empirical": "(∇ log p)² of the observed labels, which is not the Fisher but resembles it",
    "adam": "the optimizer's mean of squared gradients while it was fine-tuned, a rough stand-in for the Fisher",
}

PIPELINES = {"masked-lm": "fill-mask"}  # what transformers calls a kind, where that has another name

PIN_ADVICE = {
    "hub": "`<commit>` is the commit to take, in full: the newest is the first in this repository's history.",
    "path": "`<sha256>` was printed when this was published; the error about 64 zeros in its place says it too.",
}


@dataclass(frozen=True)
class Publication:
    """A model and its Fisher, verified, and what its card says beside their own cards.

    Attributes:
        name: the model's name.
        kind: the kind of its task, for example `text-classification`.
        checkpoint: its weights, configuration and card.
        fisher: its diagonal Fisher.
        base: the source that it was made from, if params.yaml still has it.
        metrics: on the test splits, by task; empty if it has not been evaluated.
    """

    name: str
    kind: str
    checkpoint: "Checkpoint"
    fisher: "StatisticFiles"
    base: Source | None
    metrics: Mapping[str, Mapping[str, float]]


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
    origin = read_json(FINETUNED / name / CHECKPOINT_CARD)["origin"]
    checkpoint, fisher = verified_fisher(name, FINETUNED / name, FISHERS / name)
    return Publication(
        name=name,
        kind=params.tasks[params.models[name].task].kind,
        checkpoint=checkpoint,
        fisher=fisher,
        base=params.sources.get(origin["base"]),
        metrics=_metrics(EVAL / name, origin),
    )


def _metrics(directory: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a model of this origin, or none; its settings and accuracy tell another training's apart."""
    file = directory / METRICS
    if not file.is_file():
        return {}
    evaluated = read_json(directory / ORIGIN)
    if any(evaluated.get(key) != value for key, value in origin.items()):
        stage = f"models/dvc.yaml:evaluate-{directory.name}"
        raise InputError(f"{file}: is of an earlier {directory.name}; run `dvc repro {stage}`")
    return dict(read_json(file)["tasks"])


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
    with tempfile.TemporaryDirectory() as folder:
        write(publication, Path(folder), {"hub": repository, "revision": "<commit>"})
        try:
            api.create_repo(repository, exist_ok=True)
            _refuse_foreign_repository(api, repository, Path(folder))
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
    copy_files([CHECKPOINT_CARD], checkpoint.directory, directory)
    checkpoint.tensors.copy_to(directory)
    copy_files([fisher.card_file.name], fisher.card_file.parent, directory)
    fisher.tensors.copy_to(directory)
    (directory / CARD).write_text(model_card(publication, source), encoding="utf-8")


def taking(publication: Publication, source: Mapping[str, str]) -> str:
    """The lines of another project's params.yaml that take the publication from `source`."""
    name, card = publication.name, publication.checkpoint.card
    place = ", ".join(f"{key}: {_json(value)}" for key, value in source.items())
    return f"""\
sources:
  {name}: {{{place}}}
models: # the task is one of yours{f", with the labels {_json(card['labels'])} in this order" if card["labels"] else ""}
  {name}: {{base: {name}, task: {card["task"]}, finetune: false, fisher: {{{place}}}}}"""


def model_card(publication: Publication, source: Mapping[str, str]) -> str:
    """The model card (README.md, as the Hub has them) of a publication that others take from `source`."""
    name, kind, card = publication.name, publication.kind, publication.checkpoint.card
    pipeline = PIPELINES.get(kind, kind)
    base_model = f"base_model: {publication.base.hub}\n" if publication.base and publication.base.hub else ""
    return f"""\
---
library_name: transformers
pipeline_tag: {pipeline}
tags: [fisher-merging, fisher-information]
{base_model}---

{MARK}

# {name}

A {kind} model with its Fisher information: how much its predictions depend on each of its parameters. By that,
models of one base are merged into one ([Matena & Raffel 2022](https://arxiv.org/abs/2111.09832)).

- **Task:** {card["task"]}.{_labels(card["labels"])}
{_making(publication)}
{_test_results(publication.metrics)}
## The Fisher

`{publication.fisher.tensors.stem}.safetensors` has a tensor per parameter, under the parameter's name and in its shape.

{_fisher_facts(publication.fisher.card)}

It fits these weights only: a merge compares the fingerprints and refuses it beside any other.

## Use

With transformers:

```python
from transformers import pipeline

model = pipeline({_json(pipeline)}, {_json(source.get("hub", source.get("path")))})
```

In another project of the Fisher merging pipeline, in `params.yaml`:

```yaml
{taking(publication, source)}
```

{PIN_ADVICE["hub" if "hub" in source else "path"]}
Without `fisher`, `dvc repro` estimates one on that project's own examples.

`{CHECKPOINT_CARD}` and `fisher.json` say the same for programs.
"""


def _labels(labels: Sequence[str]) -> str:
    return f" **Labels,** in the order of the outputs: {_json(labels)}." if labels else ""


def _making(publication: Publication) -> str:
    """Base, fine-tuning and validation accuracy (or loss), as items of a list."""
    origin = dict(publication.checkpoint.card["origin"])
    method, base = origin.pop("method"), origin.pop("base")
    items = [f"**Base:** {base}{_where(publication.base)}."]
    if method == "finetuned":
        examples, accuracy = origin.pop("examples"), origin.pop("validation_accuracy", None)
        loss = origin.pop("validation_loss", None)
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in origin.items())
        items.append(f"**Fine-tuning:** of all weights, by AdamW, on {examples:,} training examples; {settings}.")
        if accuracy is not None:
            items.append(f"**Validation accuracy:** {_percent(accuracy)} %.")
        if loss is not None:
            items.append(f"**Validation loss:** {loss:.4g} per hidden token.")
    else:
        items.append("**Fine-tuning:** none here; the base is a finished model and was taken as it is.")
    return "\n".join(f"- {item}" for item in items)


def _where(base: Source | None) -> str:
    if base is None:
        return ""
    if base.hub:
        return f" ([{base.hub}](https://huggingface.co/{base.hub}), revision `{base.revision}`)"
    return f" (from the package `{base.package}`)" if base.package else f" (a local checkpoint, sha256 `{base.sha256}`)"


def _test_results(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The section on the test splits; nothing where there are no results."""
    rows = []
    for task, entry in metrics.items():
        interval = f"{_percent(entry['accuracy_low'])}–{_percent(entry['accuracy_high'])}"
        accuracy = f"{_percent(entry['accuracy'])} ({interval})"
        rows.append(f"| {task} | {accuracy} | {_percent(entry['macro_f1'])} | {entry['examples']:,} |")
    if not rows:
        return ""
    header = ["| task | accuracy, % | macro F1, % | examples |", "| --- | --- | --- | --- |"]
    return "\n".join(
        ["", "## On the test splits", "", "Accuracy with its 95 % bootstrap interval.", "", *header, *rows, ""]
    )


def _fisher_facts(card: Mapping[str, Any]) -> str:
    """What a Fisher's card says, as a table."""
    estimator = card["estimator"]
    facts = {
        "estimator": f"`{estimator}`: {ESTIMATORS[estimator]}",
        "draws per example": card["samples"] if estimator in ("sketch", "sampled") else None,
        "likelihood": card.get("likelihood"),
        "examples": f"{card['examples']:,}, of the train split of {card['task']}" if "examples" in card else None,
        "fingerprint of the examples": card.get("examples_fingerprint"),
        "seed": card["seed"],
        "precision of the passes": card["precision"],
        "type of the entries": card["dtype"],
        "format version": card["format_version"],
        "fingerprint of the checkpoint": card["checkpoint"],
        "fingerprint of the Fisher": card["fingerprint"],
        "libraries": ", ".join(f"{library} {version}" for library, version in card["libraries"].items()),
    }
    rows = [f"| {fact} | {value} |" for fact, value in facts.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _json(value: object) -> str:
    """A string or a list of strings as JSON, which YAML and Python read too."""
    return json.dumps(value, ensure_ascii=False)


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
        sys.exit(f"error: {error}")
    print(f"{arguments.model} is published. Another project's params.yaml takes it by:\n\n{lines}")


if __name__ == "__main__":
    main()
