"""The search for λ: real tiny models, merged and scored again by independent means."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.artifacts import CHECKPOINT_CARD, read_json, tree_sha256, write_json
from stages.errors import InputError
from stages.finetune import bring_in
from stages.fisher import estimate
from stages.merging import merge_checkpoints
from stages.merging.ingredients import Ingredients
from stages.params import FisherSettings, Isotropic, Params, Search, Task, parse_params
from stages.plan import base_directory, search_tasks, statistics_directories
from stages.progress import Progress
from stages.search import search_coefficients
from stages.searching.live_model import LiveModel
from stages.tasks.data import TaskData, examples_fingerprint, write_task
from stages.tensors import TensorFiles, fingerprint
from tests.cards import rewrite_card
from tests.test_finetune import make_texts
from tests.test_fisher import Killed
from tests.tiny import save_base, sentiment_table, tiny_bert, tiny_masked_lm, tiny_tokenizer

BINARY = ["bad", "good"]
# Random models as far apart as these make different mistakes, which depend on λ.
MODELS: dict[str, tuple[str, list[str], int]] = {  # task, labels, seed
    "ann": ("books", BINARY, 1),
    "bob": ("films", BINARY, 3),
    "cid": ("films", BINARY, 5),
    "dan": ("plays", ["awful", "fair", "great"], 5),
}
TASKS = {"books": BINARY, "films": BINARY, "plays": ["awful", "fair", "great"]}
TASKS_OF_TWO = ["books", "films"]
THREE = {"ann": 1.0, "bob": 1.0, "cid": 2.0}
OUT = Path("results/search/it")


def make_task(directory: Path, labels: Sequence[str], seed: int) -> None:
    directory.mkdir(parents=True)
    table = sentiment_table(110, seed)
    kind = (table["label"] == "good").astype(int)
    position = kind if len(labels) == 2 else kind * 2 - (table["text"].str.len() % 2)
    frame = table.assign(label=position.clip(lower=0))
    settings = Task(source="base", file="f.csv", labels=list(labels), max_length=16)
    write_task(directory, settings, {"train": frame[:20], "validation": frame[20:80], "test": frame[80:]}, {})


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's artefacts, but for the test splits: nothing that a search does may need them."""
    root = tmp_path_factory.mktemp("workshop")
    save_base(root / "data/sources/base")
    for seed, (name, labels) in enumerate(TASKS.items(), start=1):
        make_task(root / "data/tasks" / name, labels, seed)
    for name, (task_name, labels, seed) in MODELS.items():
        source = root / "sources" / name
        tiny_bert(labels, seed=seed, noise=0.5).save_pretrained(source)
        tiny_tokenizer().save_pretrained(source)
        task = TaskData.open(root / "data/tasks" / task_name)
        checkpoint = root / "models/finetuned" / name
        checkpoint.mkdir(parents=True)
        bring_in(source, task, checkpoint)
        estimate(checkpoint, task, FisherSettings(examples=12), root / "models/fishers" / name)
    for file in root.glob("data/tasks/*/test.parquet"):
        file.unlink()
    return root


@pytest.fixture
def inside(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a copy of the workshop."""
    root = tmp_path / "project"
    shutil.copytree(workshop, root)
    monkeypatch.chdir(root)
    return root


def params_of(coefficients: dict[str, float], search: dict[str, Any], **merge: Any) -> Params:
    """Params with one merge, `it`, which is a Fisher merge unless it is said otherwise."""
    return parse_params(
        {
            "sources": {"base": {"path": "base", "sha256": 64 * "0"}},
            "tasks": {
                name: {"source": "base", "file": "f.csv", "labels": labels, "max_length": 16}
                for name, labels in TASKS.items()
            },
            "models": {name: {"base": "base", "task": task} for name, (task, _, _) in MODELS.items()},
            "merges": {"it": {"method": "fisher", "coefficients": coefficients, "search": search} | merge},
        }
    )


def searched(params: Params, out: Path = OUT) -> tuple[dict[str, Any], pd.DataFrame]:
    """What the search of the merge `it` leaves: its coefficients.json and its sweep."""
    merge = params.merges["it"]
    tasks = [TaskData.open(Path("data/tasks") / name) for name in search_tasks(merge, params)]
    search_coefficients(merge, params, tasks, out)
    return read_json(out / "coefficients.json"), pd.read_csv(out / "sweep.csv")


def merged_with(params: Params, coefficients: dict[str, float]) -> Path:
    """The checkpoint that merge-it would write with these λ."""
    merge = params.merges["it"]
    merge_checkpoints(
        {model: Path("models/finetuned") / model for model in merge.models},
        Path("merged"),
        method=merge.options,  # type: ignore[arg-type]  # no ensemble
        coefficients=coefficients,
        statistics=statistics_directories(merge),
        base=base_directory(merge, params),
        heads=merge.heads,
    )
    return Path("merged")


def predicted(checkpoint: Path, task: str, head: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels on a task's validation split, a sentence at a time."""
    labels = TASKS[task]
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=len(labels), ignore_mismatched_sizes=True
    )
    if head is not None:
        model.load_state_dict(load_file(head), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    frame = pd.read_parquet(Path("data/tasks") / task / "validation.parquet")
    with torch.no_grad():
        logits = [model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in frame["text"]]
    return np.stack(logits).argmax(-1), frame["label"].to_numpy()


def accuracy_of(checkpoint: Path, task: str, head: Path | None = None) -> float:
    found, labels = predicted(checkpoint, task, head)
    return float(np.mean(found == labels))


def λ_of(row: pd.Series, models: Sequence[str]) -> dict[str, float]:
    return {model: float(row[f"λ {model}"]) for model in models}


@pytest.mark.parametrize(
    ("coefficients", "search", "merge"),
    [
        ({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 9}, {}),
        ({"ann": 2, "bob": 1, "cid": 1}, {"sampler": "simplex", "points": 12, "seed": 1}, {"target": "cid"}),
        ({"ann": 1, "bob": 1, "cid": 0}, {"sampler": "tpe", "points": 14}, {"method": "isotropic"}),
        ({"ann": 1, "bob": 2, "cid": 1}, {"sampler": "cma-es", "points": 10}, {"method": "task_arithmetic"}),
    ],
    ids=["grid", "simplex", "tpe", "cma-es"],
)
def test_every_points_scores_are_those_of_the_checkpoint_that_merging_with_its_λ_writes(
    inside: Path, coefficients: dict[str, float], search: dict[str, Any], merge: dict[str, Any]
) -> None:
    params = params_of(coefficients, search, **merge)
    found, sweep = searched(params)
    models = params.merges["it"].models
    columns = ["point", *(f"λ {model}" for model in models), "books accuracy", "films accuracy", "score"]
    assert list(sweep.columns) == columns
    assert sweep["point"].tolist() == list(range(search["points"]))
    np.testing.assert_allclose(sweep[columns[1:-3]].sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(sweep["score"], (sweep["books accuracy"] + sweep["films accuracy"]) / 2, rtol=1e-12)
    assert sweep["score"].nunique() > 2  # λ matters, or this test would say nothing
    winner = sweep[sweep["score"] == sweep["score"].max()]
    assert found["score"] == sweep["score"].max()
    assert found["coefficients"] in [λ_of(row, models) for _, row in winner.iterrows()]
    assert (found["points"], found["sampler"], found["tasks"]) == (search["points"], search["sampler"], TASKS_OF_TWO)
    for _, row in sweep.iloc[[0, 1, -1]].iterrows():
        checkpoint = merged_with(params, λ_of(row, models))
        assert {task: accuracy_of(checkpoint, task) for task in TASKS_OF_TWO} == {
            task: row[f"{task} accuracy"] for task in TASKS_OF_TWO
        }
    checkpoint = merged_with(params, found["coefficients"])
    assert found["score"] == np.mean([accuracy_of(checkpoint, task) for task in TASKS_OF_TWO])
    total = sum(coefficients.values())
    at_start = merged_with(params, {model: λ / total for model, λ in coefficients.items()})
    assert found["start"] == np.mean([accuracy_of(at_start, task) for task in TASKS_OF_TWO])


def test_a_grid_that_misses_the_start_does_not_invent_its_score(inside: Path) -> None:
    found, sweep = searched(params_of({"ann": 1, "bob": 2}, {"sampler": "grid", "points": 3}))
    assert found["start"] is None
    assert sweep["λ ann"].tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("count", [2, 3])
def test_the_picture_is_an_svg_that_names_the_models(inside: Path, count: int) -> None:
    names = ["ann", "bob", "cid"][:count]
    searched(params_of(dict.fromkeys(names, 1.0), {"sampler": "simplex", "points": 4}))
    picture = (OUT / "sweep.svg").read_text()
    assert picture.startswith("<svg")
    assert all(f"λ of {name}" in picture for name in (names if count > 2 else names[:1]))
    assert all(name in picture for name in names)


@pytest.mark.parametrize(
    "method",
    [
        {"method": "isotropic"},
        {"method": "fisher"},
        {"method": "uncertainty", "prior": "cid"},
        {"method": "task_arithmetic", "scale": 0.7},
        {"method": "slerp"},
    ],
    ids=lambda method: method["method"],
)
@pytest.mark.parametrize("λ", [{"ann": 0.3, "bob": 0.7}, {"ann": 0.0, "bob": 1.0}], ids=str)
def test_the_live_model_has_the_weights_that_a_merge_writes(
    inside: Path, method: dict[str, Any], λ: dict[str, float]
) -> None:
    params = params_of({"ann": 1, "bob": 1}, {"sampler": "grid"}, **method)
    merge = params.merges["it"]
    assert merge.search is not None
    ingredients = Ingredients(
        {model: Path("models/finetuned") / model for model in merge.models},
        merge.options,  # type: ignore[arg-type]  # no ensemble
        statistics_directories(merge),
        base_directory(merge, params),
    )
    live = LiveModel(ingredients, "merge", {TaskData.open(Path("data/tasks/books")): "ann"}, merge.search)
    live.load(ingredients.at({"ann": 0.9, "bob": 0.1}))  # of which nothing may be left
    live.load(ingredients.at(λ))
    wanted = load_file(merged_with(params, λ) / "model.safetensors")
    assert live._parameters.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(live._parameters[name], value), name


def test_a_masked_lm_donor_is_searched_for_what_it_shares(inside: Path) -> None:
    """Its body goes into a classifier whose pooler and head stay; scored as the checkpoint that the merge writes."""
    tiny_masked_lm(seed=3, noise=0.5).save_pretrained("sources/eve")
    tiny_tokenizer().save_pretrained("sources/eve")
    texts, eve = make_texts(Path("data/tasks/texts")), Path("models/finetuned/eve")
    eve.mkdir()
    bring_in(Path("sources/eve"), texts, eve)
    estimate(eve, texts, FisherSettings(estimator="sketch", examples=12), Path("models/fishers/eve"))
    content = params_of({"ann": 1, "bob": 1}, {"sampler": "grid"}).model_dump(exclude={"merges"})
    content["tasks"]["texts"] = {"kind": "masked-lm", "source": "base", "file": "f.csv", "max_length": 16}
    content["models"]["eve"] = {"base": "base", "task": "texts", "fisher": {"estimator": "sketch"}}
    search = {"sampler": "grid", "points": 5, "tasks": ["books"]}
    merge = {"method": "fisher", "coefficients": {"ann": 1, "eve": 1}, "search": search, "heads": "target"}
    params = parse_params(content | {"merges": {"it": merge}})
    found, sweep = searched(params)
    for point, score in zip(sweep["λ eve"], sweep["books accuracy"], strict=True):
        λ = {"ann": 1 - point, "eve": point}
        assert score == pytest.approx(accuracy_of(merged_with(params, λ), "books"))
    assert sweep["books accuracy"].nunique() > 1
    assert found["coefficients"]["eve"] < 1
    alone = Ingredients({"ann": Path("models/finetuned/ann")}, Isotropic())
    with pytest.raises(InputError, match=r"predicts \['bad', 'good'\], but the task texts has \[\]; list other tasks"):
        LiveModel(alone, "target", {texts: "eve"}, Search(sampler="grid"))


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Save after every point, and stop dead when more than `after` are scored. Returns the numbers scored."""
    scores = LiveModel.scores
    calls: list[int] = []

    def limited(self: LiveModel) -> list[float]:
        if len(calls) == after:
            raise Killed
        calls.append(len(calls))
        return scores(self)

    monkeypatch.setattr("stages.progress.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(LiveModel, "scores", limited)
    return calls


@pytest.mark.parametrize("sampler", ["simplex", "tpe"])
def test_a_killed_search_goes_on_where_it_was_and_gives_the_same_bytes(
    inside: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    params = params_of(THREE, {"sampler": sampler, "points": 14})
    searched(params, Path("results/whole"))
    with monkeypatch.context() as patch:
        stopping(patch, after=5)
        with pytest.raises(Killed):
            searched(params)
    assert not OUT.exists()
    assert len(list(OUT.parent.glob(".partial-*"))) == 1
    save, saved = Progress.save, []

    def noted(self: Progress, tensors: Mapping[str, torch.Tensor], position: Mapping[str, int]) -> None:
        saved.append(position["done"])
        save(self, tensors, position)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save", noted)
        calls = stopping(patch, after=9)
        searched(params)
    assert len(calls) == 9  # of 14
    assert saved == list(range(6, 15))  # what was saved is never replaced by less
    for file in ("coefficients.json", "sweep.csv"):
        assert (OUT / file).read_bytes() == (Path("results/whole") / file).read_bytes()
    assert not list(OUT.parent.glob(".partial-*"))


def change_checkpoint() -> None:
    file = Path("models/finetuned/bob/model.safetensors")
    tensors = load_file(file)
    tensors["classifier.bias"][0] += 0.1
    save_file(tensors, file, metadata={"format": "pt"})
    found = fingerprint(TensorFiles(file.parent))
    own = file.parent / CHECKPOINT_CARD
    write_json(own, read_json(own) | {"fingerprint": found})
    rewrite_card(Path("models/fishers/bob"), {"checkpoint": found})  # as if its Fisher came out the same


def change_fisher(name: str) -> None:
    task = TaskData.open(Path("data/tasks") / MODELS[name][0])
    estimate(Path("models/finetuned") / name, task, FisherSettings(examples=13), Path("models/fishers") / name)


def change_validation() -> None:
    file = Path("data/tasks/films/validation.parquet")
    frame = pd.read_parquet(file)
    frame[1:].to_parquet(file, index=False)
    card = read_json(file.with_name("task.json"))
    found = examples_fingerprint(frame[1:])
    write_json(file.with_name("task.json"), card | {"fingerprints": card["fingerprints"] | {"validation": found}})


def change_max_length() -> None:
    file = Path("data/tasks/films/task.json")
    write_json(file, read_json(file) | {"max_length": 5})


def change_base() -> None:
    file = Path("data/sources/base/model.safetensors")
    save_file({name: value * 2 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        change_checkpoint,
        lambda: change_fisher("bob"),
        lambda: change_fisher("cid"),
        change_validation,
        change_max_length,
        change_base,
    ],
    ids=["checkpoint", "fisher", "prior", "validation split", "max_length", "base"],
)
def test_points_saved_of_other_inputs_are_scored_again(
    inside: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    search = {"sampler": "simplex", "points": 6}
    params = params_of({"ann": 1, "bob": 1}, search, method="uncertainty", prior="cid", scale=0.8)
    with monkeypatch.context() as patch:
        stopping(patch, after=4)
        with pytest.raises(Killed):
            searched(params)
    change()
    with monkeypatch.context() as patch:
        calls = stopping(patch, after=6)
        searched(params)
    assert len(calls) == 6
    searched(params, Path("results/fresh"))
    assert tree_sha256(OUT) == tree_sha256(Path("results/fresh"))


def test_points_saved_under_other_settings_are_scored_again(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, after=4)
        with pytest.raises(Killed):
            searched(params_of(THREE, {"sampler": "simplex", "points": 6}))
    calls = stopping(monkeypatch, after=6)
    searched(params_of(THREE, {"sampler": "simplex", "points": 6, "metric": "macro_f1"}))
    assert len(calls) == 6


def test_tasks_of_different_labels_with_heads_of_their_own(inside: Path) -> None:
    params = params_of({"ann": 1, "dan": 1}, {"sampler": "grid", "points": 5}, heads="each", method="isotropic")
    found, sweep = searched(params)
    assert found["tasks"] == ["books", "plays"]
    assert sweep["plays accuracy"].nunique() > 1
    for _, row in sweep.iloc[[0, 2, 4]].iterrows():
        checkpoint = merged_with(params, λ_of(row, ["ann", "dan"]))
        for task, model in (("books", "ann"), ("plays", "dan")):
            head = checkpoint / "heads" / f"{model}.safetensors"
            assert row[f"{task} accuracy"] == accuracy_of(checkpoint, task, head)
    # At its ends a grid has the models themselves, each with its own head for its own task.
    assert sweep["books accuracy"].iloc[0] == accuracy_of(Path("models/finetuned/ann"), "books")
    assert sweep["plays accuracy"].iloc[-1] == accuracy_of(Path("models/finetuned/dan"), "plays")


def test_scores_relative_to_the_experts(inside: Path) -> None:
    search = {"sampler": "simplex", "points": 8}
    _, plain = searched(params_of(THREE, search))
    found, sweep = searched(params_of(THREE, search | {"normalize": True}), Path("results/relative"))
    # The target comes first, and of the two models of films the first is its expert.
    experts = [
        accuracy_of(Path("models/finetuned") / name, task) for name, task in (("ann", "books"), ("bob", "films"))
    ]
    columns = [f"{task} accuracy" for task in TASKS_OF_TWO]
    pd.testing.assert_frame_equal(sweep[columns], plain[columns])
    wanted = (plain["books accuracy"] / experts[0] + plain["films accuracy"] / experts[1]) / 2
    np.testing.assert_allclose(sweep["score"], wanted, rtol=1e-12)
    assert found["score"] == pytest.approx(wanted.max())


def test_macro_f1_is_maximised_where_it_is_asked_for(inside: Path) -> None:
    search = {"sampler": "simplex", "points": 8, "metric": "macro_f1", "tasks": ["films"]}
    params = params_of(THREE, search)
    found, sweep = searched(params)
    assert (found["metric"], found["tasks"]) == ("macro_f1", ["films"])
    assert list(sweep.columns[-2:]) == ["films macro_f1", "score"]
    predictions, labels = predicted(merged_with(params, found["coefficients"]), "films")
    f1 = [
        2 * np.sum((predictions == k) & (labels == k)) / (np.sum(predictions == k) + np.sum(labels == k))
        for k in range(2)
    ]
    assert found["score"] == pytest.approx(np.mean(f1)) == sweep["films macro_f1"].max()


def test_parameters_may_have_older_names_in_the_file(inside: Path) -> None:
    """A merge works on the file's names, transformers on its own: the search scores the same models by either."""
    params = params_of({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 3}, method="isotropic")
    _, wanted = searched(params, Path("results/wanted"))
    for name in ("ann", "bob"):
        file = Path("models/finetuned") / name / "model.safetensors"
        tensors = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        card = file.with_name(CHECKPOINT_CARD)
        write_json(card, read_json(card) | {"fingerprint": fingerprint(TensorFiles(file.parent))})
    _, sweep = searched(params)
    assert sweep.equals(wanted)


def test_parameters_that_the_file_has_otherwise_are_refused(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if transformers had no name in the file for what it holds in memory: nothing would fill it."""
    monkeypatch.setattr(
        "stages.searching.live_model.stored_names", lambda model: {name: f"other.{name}" for name in model.state_dict()}
    )
    with pytest.raises(
        InputError, match=r"ann.model\.safetensors: has the parameter other\.bert\..* under another name"
    ):
        searched(params_of({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 3}, method="isotropic"))


@pytest.mark.parametrize(
    ("tasks", "heads", "message"),
    [
        (
            ["books", "plays"],
            "merge",
            r"predicts \['bad', 'good'\], but the task plays has \['awful', 'fair', 'great'\]",
        ),
        (["books", "plays"], "each", "the task plays is that of none of the merged models"),
    ],
)
def test_a_task_that_the_merged_model_cannot_do_is_an_error_in_one_line(
    inside: Path, tasks: list[str], heads: str, message: str
) -> None:
    params = params_of({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 3, "tasks": tasks}, heads=heads)
    with pytest.raises(InputError, match=message) as caught:
        searched(params)
    assert "\n" not in str(caught.value)
    assert not Path("results").exists()
