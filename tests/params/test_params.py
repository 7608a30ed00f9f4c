"""params.yaml: what is refused, and how it is said."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.merging.methods import METHODS
from stages.params import FinetuneSettings, FisherSettings, Merge, Params, Search, load_params, parse_params
from stages.running.errors import InputError
from stages.tasks.kinds.image_classification.settings import ImageClassification, Images
from stages.tasks.kinds.text_classification.settings import TextClassification
from tests.metrics import RootMeanSquaredError, kind_with
from tests.project import ROOT

CONTENT: dict[str, Any] = {
    "sources": {"base": {"path": "base", "sha256": 64 * "0"}},
    "tasks": {"reviews": {"source": "base", "file": "reviews.csv", "labels": ["bad", "good"]}},
    "finetune": {"epochs": 3},
    "fisher": {"examples": 100},
    "models": {
        "one": {"base": "base", "task": "reviews"},
        "two": {"base": "base", "task": "reviews", "finetune": {"seed": 7}, "fisher": {"examples": None}},
    },
    "merges": {"both": {"method": "fisher", "coefficients": {"two": 1, "one": 0.5}}},
}


def edited(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    edit(content)
    return content


def merging(*models: str, **settings: Any) -> Callable[[dict[str, Any]], object]:
    """An edit: other settings of the merge, with a third model, and a task and a source that no model has."""

    def edit(content: dict[str, Any]) -> None:
        content["models"]["three"] = {"base": "base", "task": "reviews"}
        content["tasks"]["plays"] = content["tasks"]["reviews"]
        content["sources"]["other"] = content["sources"]["base"]
        content["merges"]["both"] |= {"coefficients": dict.fromkeys(models or ("one", "two"), 1)} | settings

    return edit


def adam(edit: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """The edit, and the model `two` keeps the optimizer's moments for its Fisher."""

    def both(content: dict[str, Any]) -> None:
        edit(content)
        content["models"]["two"]["fisher"] = {"estimator": "adam"}

    return both


def rebased(edit: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """The edit, and the model `two` is from another base."""

    def both(content: dict[str, Any]) -> None:
        edit(content)
        content["models"]["two"]["base"] = "other"

    return both


def brought(**fisher: Any) -> Callable[[dict[str, Any]], object]:
    """An edit: the model `two` has its Fisher from a repository on the Hub, with these keys besides."""

    def edit(content: dict[str, Any]) -> None:
        content["models"]["two"]["fisher"] = {"hub": "org/name", "revision": 40 * "0"} | fisher

    return edit


def unlabelled(edit: Callable[[dict[str, Any]], object], **fisher: str) -> Callable[[dict[str, Any]], object]:
    """The edit, and the model `two` is a masked-LM model with these Fisher settings, on a task `texts`."""

    def both(content: dict[str, Any]) -> None:
        edit(content)
        content["tasks"]["texts"] = {"kind": "masked-lm", "source": "base", "file": "texts.csv"}
        content["models"]["two"] |= {"task": "texts", "fisher": fisher}

    return both


def test_the_default_file_is_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert list(params.models) == ["amazon", "movie", "nyt", "tweets"]
    assert params.merges["fisher"].coefficients == dict.fromkeys(params.models, 0.25)


def test_a_models_own_settings_lie_over_the_global_ones() -> None:
    params = parse_params(CONTENT)
    assert params.finetune_settings("one") == FinetuneSettings(epochs=3)
    assert params.finetune_settings("two") == FinetuneSettings(epochs=3, seed=7)
    assert params.fisher_settings("one").examples == 100
    assert params.fisher_settings("two").examples is None


def test_the_target_does_not_depend_on_the_order_in_the_file() -> None:
    params = parse_params(CONTENT)
    assert params.merges["both"].models == ["one", "two"]
    named = parse_params(edited(lambda c: c["merges"]["both"].update(target="two")))
    assert named.merges["both"].models == ["two", "one"]


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("sources: {}\ntasks: {}\nmodels: {}\nfinetune: {learning_rate: 1e-4}\n")
    assert load_params(file).finetune.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(merge={}), "merge: unknown key; allowed: .*did you mean merges"),
        (lambda c: c["finetune"].update(epoch=1), "finetune.epoch: unknown key; allowed: .*epochs"),
        (lambda c: c["models"]["one"].update(finetune={"epoch": 1}), "models.one.finetune.epoch: unknown key"),
        (lambda c: c["models"]["one"].update(finetune={"epochs": 0}), "models.one.finetune.epochs = 0: .*greater"),
        (
            lambda c: c["fisher"].update(estimator="adam"),
            r"fisher.estimator = 'adam': .* put `fisher: \{estimator: adam\}` under each model",
        ),
        (
            lambda c: c["models"]["one"].update(finetune=False, fisher={"estimator": "adam"}),
            "models.one.fisher.estimator = 'adam': this model is brought in",
        ),
        (lambda c: c["models"]["one"].update(fisher={"estimator": "rough"}), "fisher.estimator = 'rough': .*'exact'"),
        (lambda c: c["models"]["one"].update(task="review"), "models.one.task: unknown task 'review'.*mean reviews"),
        (
            lambda c: c["models"]["one"].update(base="bass"),
            "one.base: unknown source or model 'bass'.*mean base",
        ),
        (lambda c: c["tasks"]["reviews"].update(source="x"), "tasks.reviews.source: unknown source 'x'; known: base"),
        (lambda c: c["merges"]["both"]["coefficients"].update(tow=1), "coefficients.tow: unknown model 'tow'"),
        (lambda c: c["merges"]["both"]["coefficients"].update(two=-1), "both.coefficients.two = -1: .*greater"),
        (lambda c: c["merges"]["both"]["coefficients"].update(two=float("nan")), "coefficients.two = nan: .*finite"),
        (lambda c: c["merges"]["both"]["coefficients"].update(two="1"), "coefficients.two = '1': .*number"),
        (
            lambda c: c["merges"]["both"].update(coefficients={"one": 0, "two": 0.0}),
            "both: `coefficients` are all zero",
        ),
        (lambda c: c["merges"]["both"].update(coefficients={}), "merges.both.coefficients = {}: .*at least 1"),
        (
            lambda c: c["merges"]["both"].update(method="fischer"),
            "both.method = 'fischer': unknown method; allowed: dare, ensemble, fisher",
        ),
        (
            lambda c: c["merges"]["both"].pop("method"),
            "merges.both.method: missing; allowed: dare, ensemble, fisher",
        ),
        (
            lambda c: c["merges"]["both"].update(target="three"),
            "`target` is 'three', which `coefficients` does not list",
        ),
        (lambda c: c["merges"].update({"a.b": c["merges"]["both"]}), r"merges.a\.b: bad name; allowed: a letter"),
        (lambda c: c["merges"].update({"../up": c["merges"]["both"]}), "bad name"),
        (lambda c: c["merges"].update({7: c["merges"]["both"]}), "merges.7: bad name"),
        (lambda c: c["models"].update({"Big": c["models"]["one"]}), "models.Big: bad name"),
        (lambda c: c["merges"].update(one=c["merges"]["both"]), "merges.one: there is a model of that name too"),
        (
            merging("one", "two", "three", search={"sampler": "grid"}),
            "merges.both: `search.sampler: grid` is for two models; take simplex, tpe or cma-es",
        ),
        (merging("one", search={"sampler": "tpe"}), "merges.both: `search` needs two models or more"),
        (
            merging(method="ensemble", search={"sampler": "grid"}),
            "merges.both.search: unknown key; allowed: coefficients, method, target",
        ),
        (merging(search={"sampler": "random"}), "merges.both.search.sampler = 'random': .*'grid', 'simplex', 'tpe'"),
        (merging(search={"points": 3}), "merges.both.search.sampler: missing"),
        (merging(search={"sampler": "grid", "points": 1}), "merges.both.search.points = 1: .*greater"),
        (
            merging(search={"sampler": "grid", "point": 5}),
            r"merges.both.search.point: unknown key; allowed: .*\(did you mean points\?\)",
        ),
        (
            merging(search={"sampler": "grid", "tasks": ["play"]}),
            r"merges.both.search.tasks: unknown task 'play'; .*\(did you mean plays\?\)",
        ),
        (
            merging(search={"sampler": "grid", "tasks": ["reviews", "plays"], "normalize": True}),
            "merges.both.search.normalize: plays is the task of none of the merged models",
        ),
        (
            merging(search={"sampler": "grid", "metric": "f1"}),
            "merges.both.search.metric = 'f1': reviews, whose kind is text-classification, has no such metric; "
            "its metrics: accuracy, macro_f1$",
        ),
        (merging(search={"sampler": "grid", "metric": 1}), "merges.both.search.metric = 1: .*string"),
        (merging("one", "two", "three", method="slerp"), "merges.both: the method slerp merges 2 models, not 3"),
        (
            merging(method="uncertainty", prior="tree"),
            r"merges.both.prior: unknown model 'tree'; .*\(did you mean three\?\)",
        ),
        (merging(method="regmean", alpha=1.5), "merges.both.alpha = 1.5: .*less than or equal to 1"),
        (merging(method="ties", floor=0.1), "merges.both.floor: unknown key; allowed: .*density"),
        (merging(max_shard_size="5 GB"), "merges.both.max_shard_size: '5 GB' is no size; give bytes, or .*5GB"),
        (merging(vocabulary="both"), "merges.both.vocabulary = 'both': .*'same', 'shared' or 'union'"),
        (merging(max_shard_size=0), "merges.both.max_shard_size: 0 is no size"),
        (
            adam(merging(method="kfac")),
            "merges.both: kfac needs the K-FAC factors of two, which its fisher.estimator, adam, does not give",
        ),
        (
            rebased(merging(method="task_arithmetic")),
            r"merges.both: task_arithmetic needs models of one base \(one from base, two from other\)",
        ),
        (
            lambda c: (c["models"]["one"].update(base="two"), c["models"]["two"].update(base="one")),
            r"models.one.base: goes round in a circle: one, two, one",
        ),
        (lambda c: c["models"]["one"].update(base="one"), "models.one.base: goes round in a circle: one, one"),
        (
            lambda c: c["models"]["two"].update(fisher=False),
            "merges.both: fisher needs the Fisher of two, which has `fisher: false`",
        ),
        (
            unlabelled(merging()),
            r"models\.two\.fisher\.estimator = 'exact': .* kind masked-lm has too many; .* \{estimator: sketch\}",
        ),
        (
            unlabelled(merging(search={"sampler": "grid", "tasks": ["texts"]}), estimator="sketch"),
            r"merges\.both\.search\.tasks: texts has no metric to score λ by: its kind is masked-lm",
        ),
        (
            unlabelled(merging(method="ensemble"), estimator="sketch"),
            r"merges\.both: two is of the kind masked-lm, whose outputs have no mean .* has no part in an ensemble",
        ),
        (
            brought(file="exp_avg_sq.safetensors"),
            r"two\.fisher: `file`: nothing binds exp_avg_sq\.safetensors to the checkpoint.* `unverified: true`$",
        ),
        (brought(file="x.safetensors", unverified=False), r"models\.two\.fisher: `file`: nothing binds x.safetensors"),
        (brought(unverified=True), r"models\.two\.fisher: `unverified` is for a `file` of second moments"),
        (brought(file="optimizer.pt", unverified=True), r"`file`: 'optimizer\.pt' must end in \.safetensors"),
        (brought(file="../x.safetensors", unverified=True), r"fisher\.file: .*must stay inside the source"),
        (brought(files="x", file=7), r"models\.two\.fisher\.files = 'x': .*; models\.two\.fisher\.file = 7: "),
        (brought(fil="x.safetensors"), r"models\.two\.fisher\.fil: unknown key; .*did you mean file"),
        (lambda c: c["sources"]["base"].pop("sha256"), "sources.base: a path source needs `sha256`"),
        (lambda c: c["sources"]["base"].update(hub="a/b"), "exactly one of package, hub, path, url"),
        (
            lambda c: c["sources"]["base"].update(dtype="bfloat16"),
            "sources.base: `dtype` is for sources with `gguf` only",
        ),
        (lambda c: c["sources"]["base"].update(gguf="../x.gguf"), r"base\.gguf: .*must stay inside the source"),
        (
            lambda c: c["models"]["two"].update(fisher={"path": "a", "sha256": 64 * "0", "gguf": "a.gguf"}),
            r"models\.two\.fisher\.gguf: a Fisher is no GGUF file",
        ),
        (lambda c: c["sources"].update(x={"url": "https://h/a.csv"}), "sources.x: a url source needs `sha256`"),
        *(
            (lambda c, url=url: c["sources"].update(x={"url": url, "sha256": 64 * "0"}), rf"sources\.x\.url: {message}")
            for url, message in {
                "h/a.csv": "must begin with http://",
                "https://h/a.csv#part": "must begin with http://, .* without #",
                "https://h/folder/?file=a.csv": r"must end with the name of a file, before the \?",
                "https://h": "must end with the name of a file",
                "https://h/a%2Fb": "must end with the name of a file",
                "https://me:pass/word@h/a.csv": r"has no host and port that can be read; in a password write / as %2F",
                "zip://a.csv::https://h/a.zip": "must be of one file; .* `inside`",
            }.items()
        ),
        (lambda c: c["sources"].update(x={"hub": "a/b", "revision": "main"}), "sources.x.revision = 'main': .*pattern"),
        (lambda c: c["tasks"]["reviews"].update(text_pair="text"), "reviews: .* must be different columns"),
        (lambda c: c["tasks"]["reviews"].update(labels=["a"]), "`labels` must name at least two"),
        (lambda c: c["tasks"]["reviews"].pop("labels"), r"tasks\.reviews\.labels: missing"),
        (
            lambda c: c["tasks"]["reviews"].update(kind="masked-lm"),
            r"tasks\.reviews\.labels: is for tasks of .*, and this one is masked-lm; remove it",
        ),
        (lambda c: c["tasks"]["reviews"].update(file=[]), r"tasks\.reviews\.file"),
        (lambda c: c["tasks"]["reviews"].update(file=["a.csv", "../b.csv"]), "must stay inside the source"),
        (lambda c: c["tasks"]["reviews"].update(labels=["a", "a"]), "names a label twice"),
        (lambda c: c["tasks"]["reviews"].update(labels={"a": [0, 2], "b": [1, 3]}), "two intervals both hold 1"),
        (lambda c: c["tasks"]["reviews"].update(split={"validation": 0.5, "test": 0.5}), "must leave some rows"),
        (lambda c: c.pop("models"), "models: missing"),
        (lambda c: c.update(tasks=1, models=2), "tasks = 1: .* dictionary; models = 2: "),
        (lambda c: c["models"].update({f"{i}": 1 for i in range(20)}), "models.9: bad name.*; and 10 more$"),
        (lambda c: c["models"].update({"a\nb": c["models"]["one"]}), r"models\.a\\nb: bad name"),
        (lambda c: c["models"].update({"A" * 10**5: 1}), "models.AAA.*A[.]{3}: bad name"),
        (lambda c: c["tasks"]["reviews"].update(file="../x.csv"), "reviews.file: .*must stay inside the source"),
        (lambda c: c["tasks"]["reviews"].update(file="/x.csv"), "reviews.file: .*must stay inside the source"),
        (
            lambda c: c["tasks"]["reviews"].update(file={"train": "a.csv", "test": "a/../../b.csv"}),
            "reviews.file.*test: .*must stay inside the source",
        ),
        (lambda c: c["sources"]["base"].update(files=["a\0"]), r"base.files.0: 'a\\x00' must stay inside the source"),
        (lambda c: c["tasks"]["reviews"].update(split={"seed": 2**32}), "split.seed = 4294967296: .*less"),
        (lambda c: c["finetune"].update(learning_rate=float("inf")), "finetune.learning_rate = inf: .*finite"),
        (lambda c: c["finetune"].update(weight_decay=float("inf")), "finetune.weight_decay = inf: .*finite"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_place(
    edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_params(edited(edit))
    assert str(caught.value).startswith("params.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"tasks": ["texts", "reviews"]},
            r"merges\.both\.search\.metric: missing, and the tasks have different primary metrics \(texts: rmse, "
            r"reviews: accuracy\); name one that all of them have, or list other tasks under `search\.tasks`$",
        ),
        (
            {"metric": "accuracy"},
            r"merges\.both\.search\.metric = 'accuracy': texts, whose kind is masked-lm, has no such metric; "
            r"its metrics: rmse$",
        ),
        ({"tasks": ["texts"], "metric": "rmse"}, None),
        ({"tasks": ["texts"]}, None),
    ],
)
def test_the_metric_of_a_search_is_one_that_all_tasks_have(search: dict[str, Any], message: str | None) -> None:
    content = edited(unlabelled(merging(search={"sampler": "grid", **search}, heads="each"), estimator="sketch"))
    with kind_with("masked-lm", RootMeanSquaredError()):
        if message is None:
            parse_params(content)
        else:
            with pytest.raises(InputError, match=message) as caught:
                parse_params(content)
            assert "\n" not in str(caught.value)


def test_a_search_is_on_tasks_that_the_merged_model_can_do() -> None:
    """Of models for tasks of different kinds, these are the target's, unless each keeps its head."""

    def numbers(**merge: Any) -> dict[str, Any]:
        content = edited(merging(search={"sampler": "grid"}, **merge))
        content["tasks"]["scores"] = {"kind": "text-regression", "source": "base", "file": "t.csv", "targets": ["a"]}
        content["models"]["two"]["task"] = "scores"
        return content

    for target, task in (("one", "reviews"), ("two", "scores")):
        params = parse_params(numbers(target=target))
        assert params.search_tasks(params.merges["both"]) == [task]
    with pytest.raises(InputError, match=r"search\.metric: missing, .* \(reviews: accuracy, scores: pearson\)"):
        parse_params(numbers(heads="each"))
    content = numbers(heads="target", target="one")
    content["merges"]["both"]["search"]["tasks"] = ["scores"]
    message = r"both\.search\.tasks: scores asks for other outputs than the merged model has, .* reviews; list other"
    with pytest.raises(InputError, match=message):
        parse_params(content)


def test_a_search_needs_a_task_with_a_metric() -> None:
    with (
        kind_with("text-classification"),
        pytest.raises(InputError, match=r"both\.search\.tasks: missing, and no task"),
    ):
        parse_params(edited(merging(search={"sampler": "grid"})))


@pytest.mark.parametrize(
    "edit",
    [
        merging("one", "two", "three", search={"sampler": "simplex", "tasks": ["plays"]}),
        merging(search={"sampler": "grid", "tasks": ["reviews"], "normalize": True}),
        merging(search={"sampler": "grid", "metric": "macro_f1"}),
        merging(method="uncertainty", prior="three"),
        merging(max_shard_size="500MB"),
        merging(vocabulary="union"),
        unlabelled(merging(), estimator="empirical"),
        unlabelled(merging(), path="/a", sha256=64 * "0"),
        adam(merging(method="regmean")),
        rebased(merging(method="isotropic")),
    ],
)
def test_what_is_next_to_an_error_is_allowed(edit: Callable[[dict[str, Any]], object]) -> None:
    assert parse_params(edited(edit)).merges["both"].coefficients


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"a: 1\na: 2", "not valid YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"- 1", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"a: " + b"[" * 10_000, "not valid YAML: nested too deeply"),
        (b"a: !!int x", "not valid YAML: invalid literal"),
        (b"a: 2001-99-99", "not valid YAML: month must be"),
        (b"a: " + b"9" * 5000, "not valid YAML: .*digits"),
        (b"#" * 1_000_001, "larger than 1,000,000 bytes"),
        (b"a: &a [*a]", "its aliases stand for more than 1,000,000 characters"),
        (b"a: &a " + b"x" * 9999 + b"\nb: &b [" + b"*a," * 20 + b"]\nmodels: [" + b"*b," * 20 + b"]", "its aliases"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        load_params(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not found"):
        load_params(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_params(tmp_path)


def test_defaults_are_part_of_what_has_been_computed() -> None:
    """Whoever changes one of these changes the results of everybody who leaves it out."""
    assert FinetuneSettings().model_dump() == {
        "epochs": 2,
        "examples": None,
        "learning_rate": 1e-4,
        "batch_size": 32,
        "weight_decay": 0.01,
        "warmup": 0.1,
        "seed": 0,
    }
    assert FisherSettings().model_dump() == {
        "estimator": "exact",
        "samples": 1,
        "examples": 256,
        "batch_size": 16,
        "seed": 0,
        "precision": "float32",
        "dtype": "float32",
    }
    merge = Merge.model_validate({"method": "fisher", "coefficients": {"a": 1.0}})
    assert merge.model_dump(exclude={"coefficients", "options"}) == {
        "target": None,
        "heads": "merge",
        "precision": "float32",
        "max_shard_size": "5GB",
        "search": None,
    }
    search = Search(sampler="simplex").model_dump(exclude={"sampler"})
    assert search == {"points": 50, "metric": None, "tasks": None, "normalize": False, "seed": 0}
    weighted = {"floor": 1e-6, "favor_target": True, "normalize": "l2"}
    assert {name: options().model_dump(exclude={"method"}) for name, options in METHODS.items()} == {
        "isotropic": {},
        "fisher": weighted,
        "regmean": {"alpha": 0.9},
        "kfac": {**weighted, "normalize": "none", "damping": 0.0, "iterations": 20, "tolerance": 1e-6},
        "uncertainty": {"scale": 1.0, "delta": 1e-6, "prior": None},
        "task_arithmetic": {"scale": 1.0},
        "ties": {"scale": 1.0, "density": 0.2, "trim": "tensor"},
        "dare": {"scale": 1.0, "density": 0.5, "seed": 0},
        "slerp": {},
    }
    given = {"source", "file", "labels", "image"}
    images = ImageClassification(source="s", file="f", labels=["a", "b"], image=Images(pixels=[8, 8]))
    assert images.model_dump(exclude=given) == {
        "kind": "image-classification",
        "columns": None,
        "label": "label",
        "corruptions": [],
        "part": None,
        "examples": None,
        "split": {"validation": 0.15, "test": 0.15, "seed": 0},
    }
    task = TextClassification(source="s", file="f", labels=["a", "b"]).model_dump(exclude=given)
    assert task == {
        "kind": "text-classification",
        "columns": None,
        "text": "text",
        "text_pair": None,
        "label": "label",
        "max_length": 128,
        "part": None,
        "examples": None,
        "split": {"validation": 0.15, "test": 0.15, "seed": 0},
    }
    assert set(Params.model_fields) == {"sources", "tasks", "finetune", "fisher", "models", "merges", "ensembles"}


@pytest.mark.parametrize(
    ("file", "files"),
    [
        (None, ["fisher.json", "fisher.safetensors", "fisher.safetensors.index.json", "fisher-*-of-*.safetensors"]),
        ("m.safetensors", ["m.safetensors", "m.safetensors.index.json", "m-*-of-*.safetensors"]),
        ("a/m.safetensors.index.json", ["a/m.safetensors.index.json", "a/m-*-of-*.safetensors"]),
        ("m-00002-of-00007.safetensors", ["m.safetensors.index.json", "m-*-of-*.safetensors"]),
        ("m[1].safetensors", ["m[[]1].safetensors", "m[[]1].safetensors.index.json", "m[[]1]-*-of-*.safetensors"]),
    ],
)
def test_the_files_of_a_fisher_that_is_brought_in(file: str | None, files: list[str]) -> None:
    """A source without `file` says to its stage what it said before there was such a key."""
    keys = {} if file is None else {"file": file, "unverified": True}
    source = parse_params(edited(brought(**keys))).fisher_source("two")
    assert source is not None
    always = {"hub", "revision", "repo_type", "package", "path", "sha256", "inside", "files"}
    assert source.model_dump().keys() == always | keys.keys()
    assert source.files == files


def test_a_urls_secrets_are_said_nowhere() -> None:
    """Neither in what is wrong with it, nor in a stage's settings."""
    url = "https://me:secret@h/a%2Fb?token=secret"
    with pytest.raises(InputError) as caught:
        parse_params(edited(lambda c: c["sources"].update(x={"url": url, "sha256": 64 * "0"})))
    assert "secret" not in str(caught.value)
    content = edited(lambda c: c["sources"].update(x={"url": url.replace("%2F", "/"), "sha256": 64 * "0"}))
    assert parse_params(content).sources["x"].model_dump()["url"] == "https://h/a/b"


def test_a_source_is_told_as_before_there_were_urls() -> None:
    """Or every source would be fetched again."""
    told = parse_params(CONTENT).sources["base"].model_dump()
    assert list(told) == ["package", "hub", "repo_type", "revision", "path", "sha256", "inside", "files"]
