"""Publishing: what is written can be loaded, merged and taken as a source; what is wrong leaves nothing behind."""

import contextlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.evaluate import evaluate
from stages.fetch import fetch
from stages.finetune import finetune
from stages.fisher import fisher
from stages.merging import merge_checkpoints
from stages.params import FisherSettings
from stages.params.loading import load_params, parse_params
from stages.pipeline.places import EVAL, FINETUNED, FISHERS, TASKS
from stages.prepare import prepare
from stages.publish import main, open_publication, publish
from stages.results.model_card import ESTIMATORS, model_card
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint_files import WEIGHTS
from stages.storage.digests import write_contents
from stages.storage.statistic import GIVEN
from stages.storage.tensors import TensorFiles, TensorWriter
from stages.tasks.kinds import KINDS
from tests.cards import reseal, rewrite_card
from tests.metrics import CrossEntropy, kind_with
from tests.project import tiny_params
from tests.tiny import tiny_bert

Tensors = dict[str, torch.Tensor]
W = "bert.encoder.layer.0.attention.output.dense.weight"
MODELS = ("books", "films")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's directory in which every stage of two models has run."""
    root = tmp_path_factory.mktemp("finished")
    YAML().dump(tiny_params(root / "inputs"), root / "params.yaml")
    with contextlib.chdir(root):
        for source in ("base", "tables"):
            fetch(source)
        for task in MODELS:
            prepare(task)
        for model in MODELS:
            finetune(model)
            fisher(model)
            evaluate(model)
    return root


@pytest.fixture(autouse=True)
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, the current directory."""
    copy = tmp_path / "project"
    shutil.copytree(finished, copy)
    monkeypatch.chdir(copy)
    return copy


def merged(root: Path, checkpoints: dict[str, Path], fishers: dict[str, Path]) -> bytes:
    merge_checkpoints(checkpoints, root / "merged", coefficients={"books": 0.3, "films": 0.7}, statistics=fishers)
    return (root / "merged/model.safetensors").read_bytes()


def merge_of_originals(root: Path) -> bytes:
    return merged(root, {name: FINETUNED / name for name in MODELS}, {name: FISHERS / name for name in MODELS})


def change_fisher(edit: Callable[[Tensors], object]) -> None:
    """Damage the Fisher of `books`, whose card goes on to say that all is well."""
    file = FISHERS / "books/fisher.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    reseal(FISHERS / "books")


def shard_fisher() -> None:
    """The same Fisher of `books` in several files."""
    directory = FISHERS / "books"
    tensors, specs = load_file(directory / "fisher.safetensors"), TensorFiles(directory, "fisher").specs
    (directory / "fisher.safetensors").unlink()
    with TensorWriter(directory, "fisher", specs, max_shard_bytes=9000) as writer:
        for name, values in tensors.items():
            writer.write(name, values)


def refused(to: Path, message: str) -> None:
    """Publishing `books` there is refused in one line, and leaves the place and its neighbours as they were."""
    before = sorted(to.parent.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        publish("books", str(to))
    assert "\n" not in str(caught.value)
    assert sorted(to.parent.rglob("*")) == before


def test_a_merge_of_what_is_published_has_the_bits_of_a_merge_of_the_originals(tmp_path: Path) -> None:
    places = {name: tmp_path / "shared" / name for name in MODELS}
    for name, place in places.items():
        publish(name, str(place))
    assert merged(tmp_path, places, places) == merge_of_originals(tmp_path)
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == list(MODELS)


def test_transformers_loads_what_is_published(tmp_path: Path) -> None:
    publish("books", str(tmp_path / "out"))
    loaded, original = (
        AutoModelForSequenceClassification.from_pretrained(place, local_files_only=True).eval()
        for place in (tmp_path / "out", FINETUNED / "books")
    )
    words = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)("a superb film", return_tensors="pt")
    assert torch.equal(loaded(**words).logits, original(**words).logits)
    assert loaded.config.id2label == {0: "bad", 1: "good"}


def test_another_project_takes_it_by_the_lines_that_are_returned(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = merge_of_originals(tmp_path)
    lines = YAML(typ="safe").load(publish("books", str(tmp_path / "out")))
    other = tmp_path / "other"
    shutil.copytree(project / TASKS, other / TASKS)
    monkeypatch.chdir(other)
    params = tiny_params(tmp_path / "inputs") | {"merges": {}}
    YAML().dump(
        params | {"sources": params["sources"] | lines["sources"], "models": lines["models"]}, other / "params.yaml"
    )
    fetch("books")
    finetune("books")
    fisher("books")
    taken = FINETUNED / "books"
    films = project / FINETUNED / "films", project / FISHERS / "films"
    fishers = {"books": FISHERS / "books", "films": films[1]}
    assert merged(tmp_path, {"books": taken, "films": films[0]}, fishers) == wanted


def make_adapter(base: str, of: str | None = None) -> None:
    """Let the project's `films` be an adapter, of the source `base` or of the model `books`."""
    params = YAML(typ="safe").load(Path("params.yaml"))
    lora = {"type": "lora", "rank": 2, "targets": ["query"], "save": ["classifier"]}
    params["models"]["films"] = {"base": base, "task": "films", "finetune": {"adapter": lora, "epochs": 1}}
    params["models"]["films"]["fisher"] = {} if of is None else {"of": of}
    params["merges"] = {}
    YAML().dump(params, Path("params.yaml"))
    for place in (FINETUNED, FISHERS, EVAL):
        shutil.rmtree(place / "films")
    finetune("films")
    fisher("films")


@pytest.mark.parametrize("base", ["base", "books"])
def test_an_adapter_names_its_own_base(tmp_path: Path, base: str) -> None:
    """If that is a model, not the source that the model was made from: on that it would be another model."""
    make_adapter(base)
    params = YAML(typ="safe").load(Path("params.yaml"))
    params["sources"]["base"] = {"hub": "org/base", "revision": 40 * "0"}
    YAML().dump(params, Path("params.yaml"))
    lines = YAML(typ="safe").load(publish("films", str(tmp_path / "out")))
    assert lines["models"]["films"] | {"fisher": None} == {
        "base": base, "adapter": "films", "task": "films", "fisher": None
    }  # fmt: skip
    named = {"base": "org/base", "books": "books"}[base]
    assert read_json(tmp_path / "out/adapter_config.json")["base_model_name_or_path"] == named
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model == ("org/base" if base == "base" else None)
    assert "a tensor per weight that the adapter changes" in (tmp_path / "out/README.md").read_text()


def test_an_adapters_fisher_of_all_weights(tmp_path: Path) -> None:
    make_adapter("base", "weights")
    publication = open_publication("films", load_params())
    assert "has a tensor per weight of the adapter's model, under" in model_card(publication, {"path": "p"})


def test_shards_are_published_and_replace_what_was_published_before(tmp_path: Path) -> None:
    wanted, out = merge_of_originals(tmp_path), tmp_path / "out"
    publish("books", str(out))
    shard_fisher()
    publish("books", str(out))
    assert not (out / "fisher.safetensors").exists()
    assert len(list(out.glob("fisher-*.safetensors"))) > 1
    places = {"books": out, "films": FINETUNED / "films"}
    assert merged(tmp_path, places, {"books": out, "films": FISHERS / "films"}) == wanted


def test_the_card_of_a_model_that_was_brought_in_and_not_evaluated(tmp_path: Path) -> None:
    card = read_json(FINETUNED / "books/checkpoint.json")
    write_json(FINETUNED / "books/checkpoint.json", card | {"origin": {"method": "brought in", "base": "base"}})
    write_contents(FINETUNED / "books", besides=WEIGHTS)
    shutil.rmtree(EVAL / "books")
    publish("books", str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    assert "was taken as it is" in text
    assert "accuracy" not in text


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    lines = publish("books", str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    header = YAML(typ="safe").load(text.split("---\n")[1])
    assert (header["library_name"], header["pipeline_tag"]) == ("transformers", "text-classification")
    card, statistic = read_json(FINETUNED / "books/checkpoint.json"), read_json(FISHERS / "books/fisher.json")
    origin, metrics = card["origin"], read_json(EVAL / "books/metrics.json")["tasks"]
    for fact in (
        '**Task:** books. **Labels,** in the order of the outputs: ["bad", "good"].',
        "**Base:** base (local, sha256",
        "**Data:** tables (local, sha256",
        f"on {origin['examples']} training examples; epochs 1, learning rate 0.001, batch size 8",
        f"**Validation accuracy:** {100 * origin['validation_accuracy']:.1f} %",
        "| `exact`: the expectation of (∇ log p)² over the model's own predictions, computed exactly |",
        "| likelihood | categorical |",
        "| examples | 20, of the train split of books |",
        "| format version | 1 |",
        f"| fingerprint of the examples | {statistic['examples_fingerprint']} |",
        f"| fingerprint of the checkpoint | {card['fingerprint']} |",
        f"| fingerprint of the Fisher | {statistic['fingerprint']} |",
    ):
        assert fact in text
    for task in MODELS:
        assert f"| {task} | {100 * metrics[task]['accuracy']:.1f} (" in text
    snippet = text.split("```yaml\n")[1].split("```")[0]
    assert snippet.count("<sha256>") == 2
    pin = YAML(typ="safe").load(lines)["sources"]["books"]["sha256"]
    params = YAML(typ="safe").load(snippet.replace("<sha256>", pin))
    params["sources"]["tables"] = tiny_params(tmp_path / "inputs")["sources"]["tables"]
    model = parse_params(params | {"tasks": tiny_params(tmp_path / "inputs")["tasks"]}).models["books"]
    assert (model.base, model.task, model.finetune) == ("books", "books", False)
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_the_hub_learns_which_of_its_models_and_data_it_was_made_from() -> None:
    commit, params = 40 * "a", YAML(typ="safe").load(Path("params.yaml"))
    params["sources"]["bert"] = {"hub": "org/bert", "revision": commit}
    params["sources"]["tables"] = {"hub": "org/reviews", "repo_type": "dataset", "revision": commit}
    params["models"]["books"]["base"] = "films"
    params["models"]["films"]["base"] = "bert"
    card = read_json(FINETUNED / "books/checkpoint.json")
    write_json(FINETUNED / "books/checkpoint.json", card | {"origin": card["origin"] | {"base": "films"}})
    write_contents(FINETUNED / "books", besides=WEIGHTS)
    shutil.rmtree(EVAL / "books")
    text = model_card(open_publication("books", parse_params(params)), {"hub": "team/books", "revision": "<commit>"})
    header = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    assert (header["base_model"], header["datasets"]) == ("org/bert", ["org/reviews"])
    assert (header["pipeline_tag"], header["library_name"]) == ("text-classification", "transformers")
    link = f"revision `{commit}`)"
    assert f"- **Base:** films, which goes back to bert ([org/bert](https://huggingface.co/org/bert), {link}." in text
    place = "https://huggingface.co/datasets/org/reviews"
    assert f"- **Data:** tables ([org/reviews]({place}), {link}: books.csv." in text


def test_the_card_explains_every_estimator(tmp_path: Path) -> None:
    assert ESTIMATORS.keys() == {*get_args(FisherSettings.model_fields["estimator"].annotation), GIVEN}
    card = read_json(FISHERS / "books/fisher.json")
    for of_passes in ("examples", "examples_fingerprint", "likelihood"):  # it takes none
        del card[of_passes]
    write_json(FISHERS / "books/fisher.json", card)
    rewrite_card(FISHERS / "books", {"estimator": "adam"})
    publish("books", str(tmp_path / "out"))
    table = (tmp_path / "out/README.md").read_text().split("## The Fisher")[1]
    assert "| `adam`: the optimizer's mean of squared gradients" in table
    assert "| examples |" not in table


def test_metrics_of_an_earlier_training_are_refused(tmp_path: Path) -> None:
    origin = read_json(EVAL / "books/origin.json")
    write_json(EVAL / "books/origin.json", origin | {"seed": 7})
    refused(tmp_path / "out", r"metrics\.json: is of an earlier books; run `dvc repro models/dvc\.yaml:evaluate-books`")


def test_metrics_without_one_that_the_kind_has_meanwhile_are_refused(tmp_path: Path) -> None:
    content = read_json(EVAL / "books/metrics.json")
    del content["tasks"]["books"]["macro_f1"]
    write_json(EVAL / "books/metrics.json", content)
    refused(tmp_path / "out", r"metrics\.json: tasks\.books: lacks macro_f1, .* run `dvc repro models/dvc\.yaml:eval")


def test_the_fisher_of_another_model_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(FISHERS / "books")
    shutil.copytree(FISHERS / "films", FISHERS / "books")
    refused(tmp_path / "out", r"fisher\.json: belongs to the checkpoint .* estimate the fisher of this checkpoint")


def test_a_checkpoint_that_is_not_what_its_card_says_is_refused(tmp_path: Path) -> None:
    tiny_bert(seed=5).save_pretrained(FINETUNED / "books")
    write_contents(FINETUNED / "books", besides=WEIGHTS)
    refused(tmp_path / "out", r"model\.safetensors: its contents are not what checkpoint\.json says")


def entry(value: float) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[W].view(-1)[3] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (entry(float("nan")), f"tensor {W} has a NaN entry"),
        (entry(float("inf")), f"tensor {W} has an infinite entry"),
        (entry(-1e-9), f"tensor {W} has a negative entry"),
        (lambda tensors: tensors.update({W: torch.ones(16, 3)}), rf"tensor {W} is float32 \[16, 3\]"),
        (lambda tensors: tensors.pop(W), f"lacks the tensor {W}"),
        (lambda tensors: tensors.update(stray=torch.ones(2)), "tensor stray is of no parameter"),
    ],
)
def test_a_damaged_fisher_is_refused(tmp_path: Path, edit: Callable[[Tensors], object], message: str) -> None:
    change_fisher(edit)
    refused(tmp_path / "out", rf"fisher\.safetensors: {message}")


def test_a_fisher_that_is_not_what_its_card_says_is_refused(tmp_path: Path) -> None:
    card = read_json(FISHERS / "books/fisher.json")
    change_fisher(entry(1.0))
    write_json(FISHERS / "books/fisher.json", card)
    refused(tmp_path / "out", r"its contents are not what fisher\.json says")


def test_an_occupied_directory_is_refused_and_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    publish("books", str(out))  # empty
    (out / "notes.txt").write_text("mine")
    refused(out, r"out: holds notes\.txt, which would be lost")
    (out / "notes.txt").unlink()
    (out / "README.md").write_text("my own card")
    refused(out, "which would be lost")
    refused(FINETUNED.resolve() / "films", "which would be lost")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "is a file; name a directory")
    refused(tmp_path / "file" / "below", "cannot be written")


class Hub:
    """Takes the place of huggingface_hub's calls; an upload is a copy."""

    COMMIT = 40 * "c"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.created: list[str] = []
        self.uploads: list[dict[str, Any]] = []
        monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, *, exist_ok: self.created.append(repo_id))
        monkeypatch.setattr(HfApi, "upload_folder", lambda _, **arguments: self._upload(arguments))
        monkeypatch.setattr(HfApi, "list_repo_files", lambda _, repo_id: self.files(repo_id))
        monkeypatch.setattr(HfApi, "hf_hub_download", lambda _, repo_id, name: str(folder / repo_id / name))

    def files(self, repository: str) -> list[str]:
        there = self.folder / repository
        return sorted(file.relative_to(there).as_posix() for file in there.rglob("*") if file.is_file())

    def _upload(self, arguments: dict[str, Any]) -> SimpleNamespace:
        shutil.copytree(arguments["folder_path"], self.folder / arguments["repo_id"], dirs_exist_ok=True)
        self.uploads.append(arguments)
        return SimpleNamespace(oid=self.COMMIT)


def test_an_upload_has_the_repository_and_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, wanted = Hub(tmp_path / "hub", monkeypatch), merge_of_originals(tmp_path)
    lines = YAML(typ="safe").load(publish("books", "hub:team/books"))
    assert lines["sources"] == {"books": {"hub": "team/books", "revision": Hub.COMMIT}}
    assert hub.created == [upload["repo_id"] for upload in hub.uploads] == ["team/books"]
    assert "token" not in hub.uploads[0]
    there = hub.folder / "team/books"
    publish("books", str(tmp_path / "out"))
    assert {file.name for file in there.iterdir()} == {file.name for file in (tmp_path / "out").iterdir()}
    assert {"README.md", "checkpoint.json", "config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in there.iterdir()
    }
    assert 'pipeline("text-classification", "team/books")' in (there / "README.md").read_text()
    places = {"books": there, "films": FINETUNED / "films"}
    assert merged(tmp_path, places, {"books": there, "films": FISHERS / "films"}) == wanted


def test_old_tensor_files_on_the_hub_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a single file of an earlier publication would be read in place of new shards."""
    hub = Hub(tmp_path / "hub", monkeypatch)
    publish("books", "hub:team/books")
    old = ["model.safetensors", "fisher-00001-of-00002.safetensors", "fisher.safetensors.index.json"]
    others = ["README.md", ".gitattributes", "notes/model.md", "fisher.json"]
    patterns = hub.uploads[0]["delete_patterns"]
    assert list(filter_repo_objects(old + others, allow_patterns=patterns)) == old


def test_a_repository_with_files_of_others_is_not_uploaded_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub", monkeypatch)
    there = hub.folder / "team/books"
    for name in ("README.md", "model-00001-of-00002.safetensors"):
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir(parents=True)
        (there / name).write_text("of another")
        (there / ".gitattributes").write_text("")
        with pytest.raises(InputError, match=f"^hub:team/books: holds {name}, which would be lost"):
            publish("books", "hub:team/books")
        assert not hub.uploads
    (there / name).rename(there / "notes.txt")  # which no publication replaces
    publish("books", "hub:team/books")
    publish("books", "hub:team/books")  # over what is its own
    assert len(hub.uploads) == 2


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("hub:books", "hub:books: not a repository; write hub:ORG/NAME"),
        ("hub:team/--books", r"hub:team/--books: Repo id must"),
        ("hub:team/books", "hub:team/books: .*offline"),  # the tests are
    ],
)
def test_what_the_hub_does_not_take_is_one_line(to: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        publish("books", to)
    assert "\n" not in str(caught.value)


def test_no_connection_to_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_repo(*_: object, exist_ok: bool) -> None:
        raise HTTPError("Connection\nrefused")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    with pytest.raises(InputError, match="hub:team/books: Connection refused"):
        publish("books", "hub:team/books")


def test_a_swapped_fisher_is_not_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub", monkeypatch)
    shutil.copyfile(FISHERS / "films/fisher.json", FISHERS / "books/fisher.json")
    with pytest.raises(InputError, match="belongs to the checkpoint"):
        publish("books", "hub:team/books")
    assert not hub.created
    assert not hub.uploads


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["publish", "books", "--to", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert 'books: {path: "' in capsys.readouterr().out
    assert (tmp_path / "out/fisher.json").is_file()
    monkeypatch.setattr(sys, "argv", ["publish", "boks", *command[2:]])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == "error: params.yaml: models: there is no model 'boks'"


def test_the_card_has_the_metrics_of_the_models_kind(tmp_path: Path) -> None:
    """Numbers as they are, each under its title."""
    card = read_json(FINETUNED / "books/checkpoint.json")
    origin = {key: value for key, value in card["origin"].items() if not key.startswith("validation_")}
    entry = {"cross_entropy": 0.61234, "cross_entropy_low": 0.5, "cross_entropy_high": 1.25, "examples": 1200}
    write_json(FINETUNED / "books/checkpoint.json", card | {"origin": origin | {"validation_cross_entropy": 0.5}})
    write_contents(FINETUNED / "books", besides=WEIGHTS)
    shutil.rmtree(EVAL / "books")
    with kind_with("text-classification", CrossEntropy(), *KINDS["text-classification"].metrics):
        found = open_publication("books", load_params())
        metrics = {"books": entry | {"accuracy": 0.75, "macro_f1": 0.5}}
        measured_by = {"books": found.task.own_metrics}
        text = model_card(replace(found, metrics=metrics, measured_by=measured_by), {"path": "it", "sha256": "0"})
    assert "| task | cross-entropy | accuracy, % | macro F1, % | examples |" in text
    assert "| books | 0.6123 (0.5000–1.250) | 75.0 | 50.0 | 1,200 |" in text
    assert "Cross-entropy with its 95 % bootstrap interval." in text
    assert "- **Validation cross-entropy:** 0.5000.\n" in text
    assert "validation cross" not in text


def test_a_masked_lm_model_is_published(project: Path) -> None:
    """It has no labels and no accuracy, and transformers has another name for what it does."""
    params = YAML(typ="safe").load(project / "params.yaml")
    texts = {"kind": "masked-lm", "source": "tables", "file": ["books.csv", "films.csv"], "max_length": 16}
    params["tasks"]["texts"] = texts
    params["models"]["adapted"] = {"base": "base", "task": "texts", "fisher": {"estimator": "sketch", "examples": 8}}
    YAML().dump(params, project / "params.yaml")
    prepare("texts")
    finetune("adapted")
    fisher("adapted")
    lines = publish("adapted", "published")
    card = (project / "published/README.md").read_text()
    assert "pipeline_tag: fill-mask\n" in card
    assert 'pipeline("fill-mask", ' in card
    assert "**Validation loss:** " in card
    assert "accuracy" not in card
    assert "abels" not in lines
    taken = YAML(typ="safe").load(lines)
    sources = taken["sources"] | {"tables": params["sources"]["tables"]}
    theirs = parse_params(taken | {"sources": sources, "tasks": {"texts": texts}})
    assert theirs.fisher_source("adapted") is not None
