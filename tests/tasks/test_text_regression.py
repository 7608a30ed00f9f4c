"""Regression of texts: how numbers are read, what the models are, their Fisher and their metrics."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import root_mean_squared_error
from torch import Tensor

from stages.params import FinetuneSettings
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.storage.cards import read_json
from stages.tasks import task_likelihood
from stages.tasks.data import TaskData, examples_fingerprint
from stages.tasks.kinds.text_regression.kind import KIND
from stages.tasks.kinds.text_regression.metrics import Pearson, RootMeanSquaredError, Spearman
from stages.tasks.kinds.text_regression.reading import READER
from stages.tasks.kinds.text_regression.settings import TextRegression
from stages.tasks.metrics import Metric
from stages.tasks.prediction import examples_for, predict, targets
from stages.training.finetuning import train
from stages.training.finished import bring_in
from tests.curvature.reference import assert_same_fisher, gaussian
from tests.tasks.heads import (
    assert_padding_before_the_text,
    estimated,
    reference,
    save_bert,
    save_gpt2,
    save_xlnet,
    written_task,
)
from tests.tasks.in_memory import read_examples, read_table, split_examples, write_task
from tests.tiny import WORDS, save_base, sentiment_table

TARGETS = ["praise", "length"]
VARIANCE = 0.3


def settings(**changes: Any) -> TextRegression:
    content: dict[str, Any] = {"source": "s", "file": "t.csv", "targets": TARGETS, "max_length": 16}
    return TextRegression(**(content | changes))


def scored(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """Sentences with how much their words praise, and how many they are."""
    texts = sentiment_table(rows, seed)["text"]
    words = texts.str.split()
    praise = words.map(lambda own: np.mean([word in WORDS[4:8] for word in own]))
    return pd.DataFrame({"text": texts, "praise": praise, "length": words.map(len) / 8})


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return made_task(tmp_path / "task", TARGETS)


def made_task(directory: Path, names: list[str], **changes: Any) -> TaskData:
    table = scored()
    frame = table[["text"]].assign(label=pd.Series(list(np.array(table[names], order="C")), dtype=object))
    return written_task(directory, settings(targets=names, variance=VARIANCE, **changes), frame)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_from_a_table_to_a_task(tmp_path: Path, name: str) -> None:
    table = scored().round(3)
    if name.endswith(".jsonl"):
        table.to_json(tmp_path / name, orient="records", lines=True)
    elif name.endswith(".parquet"):
        table.astype({"praise": "float32"}).to_parquet(tmp_path / name)
    else:
        table.to_csv(tmp_path / name, index=False, sep="\t" if name == "t.tsv" else ",")
    it = settings(file=name, part=[0, 0.9], variance=2)
    splits, dropped = split_examples(it, tmp_path)
    assert set(dropped.values()) == {0}
    (tmp_path / "task").mkdir()
    write_task(tmp_path / "task", it, splits, dropped)
    task = TaskData.open(tmp_path / "task")
    wanted = {row.text: [row.praise, row.length] for row in table.itertuples()}
    for split, part in splits.items():
        again = task.read(split)
        assert examples_fingerprint(again) == examples_fingerprint(part)
        for text, numbers in zip(again["text"], again["label"], strict=True):
            assert numbers.tolist() == pytest.approx(wanted[text], abs=1e-7 if name == "t.parquet" else 0)
    assert (task.labels, task.max_length, task.card["variance"]) == (tuple(TARGETS), 16, 2.0)
    assert task.card["counts"]["train"] == len(splits["train"])
    found = task_likelihood(task)
    assert (found.name, found.parameters) == ("gaussian", {"variance": 2.0})
    assert [metric.name for metric in task.metrics] == ["pearson", "spearman", "root_mean_squared_error"]


@pytest.mark.parametrize(
    ("form", "column", "value", "message"),
    [
        ("csv", "praise", "much", r"t\.csv: line 3: praise = 'much' is not a number$"),
        ("csv", "length", "1,5", r"t\.csv: line 3: length = '1,5' is not a number$"),
        ("csv", "praise", "", r"t\.csv: line 3: has no praise \(1 such rows\)$"),
        ("csv", "praise", "nan", r"t\.csv: line 3: praise = 'nan' is not a number$"),
        ("csv", "praise", "inf", r"line 3: praise = 'inf' is not finite, or too large for a model$"),
        ("csv", "praise", "-1e39", r"line 3: praise = '-1e\+39' is not finite, or too large for a model$"),
        ("jsonl", "length", None, r"t\.jsonl: line 2: has no length \(1 such rows\)$"),
        ("jsonl", "length", [1.0], r"t\.jsonl: line 2: length = '\[1\.0\]' is not a number$"),
        ("jsonl", "length", True, r"t\.jsonl: line 2: length = 'True' is not a number$"),
        ("jsonl", "length", {"of": 1}, r"t\.jsonl: line 2: length = .* is not a number$"),
        ("jsonl", "text", 5, r"t\.jsonl: line 2: text is not a text \(1 such rows\)$"),
        ("parquet", "praise", float("inf"), r"t\.parquet: row 2: praise = 'inf' is not finite"),
        ("parquet", "praise", None, r"t\.parquet: row 2: has no praise"),
    ],
)
def test_what_is_no_number(tmp_path: Path, form: str, column: str, value: object, message: str) -> None:
    rows: list[dict[str, Any]] = [{"text": f"text {i}", "praise": 0.5, "length": i} for i in range(3)]
    rows[1][column] = value
    table, file = pd.DataFrame(rows), tmp_path / f"t.{form}"
    if form == "csv":
        table.to_csv(file, index=False)
    elif form == "jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        table.to_parquet(file)
    with pytest.raises(InputError, match=message) as caught:
        read_examples(READER, settings(file=file.name), {file.name: read_table(file, None)})
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,praise\na,1\n")
    with pytest.raises(InputError, match=r"t\.csv: has no column 'length'; its columns: text, praise$"):
        split_examples(settings(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": []}, "at least 1 item"),
        ({"targets": ["praise", "praise"]}, "`targets` names a column twice"),
        ({"targets": ["text"]}, "`text`, `text_pair`, `targets` must be different columns"),
        ({"variance": 0}, "greater than 0"),
        ({"variance": float("inf")}, "finite"),
        ({"metric": "accuracy"}, "none of this task's: pearson, spearman, root_mean_squared_error"),
        ({"labels": ["a"]}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)
    assert settings().exact_passes == 2
    assert settings().variance == 1.0


@pytest.mark.parametrize("names", [TARGETS, TARGETS[:1]], ids=["two", "one"])
def test_encoding_and_loss(tmp_path: Path, names: list[str]) -> None:
    task = made_task(tmp_path / "task", names)
    save_bert(tmp_path / "model", names, None)
    model, tokenizer = KIND.load_model(tmp_path / "model", names), KIND.load_processor(tmp_path / "model")
    frame = task.read("test")
    encoded = KIND.encode(tokenizer, frame, task, model, seed=0)
    assert encoded["labels"] == [numbers.tolist() for numbers in frame["label"]]
    order = KIND.largest_first(encoded)
    lengths = [len(encoded["input_ids"][row]) for row in order]
    assert lengths == sorted(lengths, reverse=True)
    for rows in (order, order[:1]):
        batch = KIND.collator(tokenizer, model)([{key: own[row] for key, own in encoded.items()} for row in rows])
        assert batch["labels"].dtype == torch.float32
        found = model.eval()(**batch)
        assert found.logits.shape == batch["labels"].shape == (len(rows), len(names))
        torch.testing.assert_close(found.loss, (found.logits - batch["labels"]).square().mean())


def test_a_base_learns_and_its_targets_are_in_its_config(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    out = tmp_path / "out"
    for part in ("checkpoint", "curves"):
        (out / part).mkdir(parents=True)
    learning = FinetuneSettings(epochs=12, batch_size=8, learning_rate=5e-3)
    train(tmp_path / "base", task, learning, out / "checkpoint", out / "curves", out / "progress")
    config = json.loads((out / "checkpoint/config.json").read_text())
    assert config["id2label"] == {"0": "praise", "1": "length"}
    assert config["problem_type"] == "regression"
    card = read_json(out / "checkpoint/checkpoint.json")
    assert card["labels"] == TARGETS
    losses = pd.read_csv(out / "curves/eval/loss.tsv", sep="\t")["loss"].tolist()
    assert losses[-1] < 0.3 * losses[0]
    model = KIND.load_model(out / "checkpoint", TARGETS)
    examples = examples_for(KIND, out / "checkpoint", model, task.rows("validation"), task, Placement())
    found = Pearson().value(predict(model, examples, task.metrics), targets(examples))
    assert found == pytest.approx(card["origin"]["validation_pearson"], abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "problem", "message"),
    [
        (["praise", "size"], None, r"the labels are \['praise', 'size'\], but the task task has"),
        (TARGETS, "single_label_classification", r"problem_type is single_label_classification, but models of the"),
        (TARGETS, "regression", None),
        (TARGETS, None, None),
        (["LABEL_0", "LABEL_1"], "regression", None),
    ],
)
def test_finished_models_that_are_brought_in(
    tmp_path: Path, task: TaskData, outputs: list[str], problem: str | None, message: str | None
) -> None:
    save_bert(tmp_path / "model", outputs, problem)
    (tmp_path / "out").mkdir()
    if message is None:
        bring_in(tmp_path / "model", task, tmp_path / "out")
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert (list(config["id2label"].values()), config["problem_type"]) == (TARGETS, "regression")
    else:
        with pytest.raises(InputError, match=message):
            bring_in(tmp_path / "model", task, tmp_path / "out")


def test_what_is_not_loaded_is_no_classifier_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": "x"}')
    (tmp_path / "model.safetensors").write_text("xx")
    with pytest.raises(InputError, match="cannot be loaded as a regression model"):
        KIND.load_model(tmp_path, TARGETS)


def test_the_exact_fisher_whatever_the_batches(tmp_path: Path, task: TaskData) -> None:
    save_bert(tmp_path / "model", TARGETS, None)
    wanted = reference(tmp_path / "model", task, partial(gaussian, variance=VARIANCE))
    for batch_size in (1, 5):
        out = tmp_path / f"fisher-{batch_size}"
        assert_same_fisher(estimated("diagonal", tmp_path / "model", task, out, batch_size=batch_size), wanted)
    card = read_json(out / "fisher.json")
    assert (card["likelihood"], card["likelihood_parameters"]) == ("gaussian", {"variance": VARIANCE})


def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """The numbers that are there, as the only outcome."""
    return [(1.0, -((batch["labels"][0].to(z) - z) ** 2).sum() / (2 * VARIANCE))]


@pytest.mark.parametrize("names", [TARGETS, TARGETS[:1]], ids=["two", "one"])
def test_the_empirical_fisher_is_of_the_numbers(tmp_path: Path, names: list[str]) -> None:
    task = made_task(tmp_path / "task", names)
    save_bert(tmp_path / "model", names, None)
    labels = [numbers.tolist() for numbers in task.read("train")["label"]]
    found = estimated("diagonal", tmp_path / "model", task, tmp_path / "fisher", estimator="empirical")
    assert_same_fisher(found, reference(tmp_path / "model", task, observed, labels))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("names", [TARGETS, TARGETS[:1]], ids=["two", "one"])
def test_padding_without_a_padding_token(tmp_path: Path, names: list[str], side: str) -> None:
    """At the end, on whichever side the tokenizer would pad, of texts of which some are cut."""
    task = made_task(tmp_path / "task", names)
    save_gpt2(tmp_path / "model", names, side)
    found = estimated("diagonal", tmp_path / "model", task, tmp_path / "fisher")
    wanted = reference(tmp_path / "model", task, partial(gaussian, variance=VARIANCE))
    assert_same_fisher(found, wanted, tolerance=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("names", [TARGETS, TARGETS[:1]], ids=["two", "one"])
def test_padding_before_the_text_where_the_head_reads_the_last_position(
    tmp_path: Path, names: list[str], side: str
) -> None:
    """On whichever side the tokenizer would pad."""
    task = made_task(tmp_path / "task", names, max_length=40)
    save_xlnet(tmp_path / "model", names, side)
    assert_padding_before_the_text(KIND, tmp_path / "model", task, partial(gaussian, variance=VARIANCE))


def made_up(seed: int, examples: int = 200, outputs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of which many are the same, and targets far from zero."""
    random = np.random.default_rng(seed)
    wanted = random.gamma(1.0, size=(examples, outputs)) + 1000
    found = np.round(wanted + random.normal(size=wanted.shape) * np.arange(1, outputs + 1), 1)
    return found.astype(np.float32), wanted


def by_scipy(metric: Metric, found: np.ndarray, wanted: np.ndarray) -> float:
    if isinstance(metric, RootMeanSquaredError):
        return float(root_mean_squared_error(wanted.ravel(), found.ravel().astype(float)))
    correlation: Any = pearsonr if isinstance(metric, Pearson) else spearmanr
    return float(np.mean([correlation(x.astype(float), y).statistic for x, y in zip(found.T, wanted.T, strict=True)]))


@pytest.mark.parametrize("metric", [Pearson(), Spearman(), RootMeanSquaredError()], ids=lambda metric: metric.name)
def test_metrics_against_scipy_and_their_bootstrap(metric: Metric) -> None:
    for seed in range(4):
        found, wanted = made_up(seed, examples=[3, 9, 50, 400][seed])
        assert metric.value(found, wanted) == pytest.approx(by_scipy(metric, found, wanted), rel=1e-9)
    (first, wanted), (second, _) = made_up(7), made_up(7)
    second = second + np.random.default_rng(2).normal(size=second.shape)
    rows, others = metric.per_example(first, wanted), metric.per_example(second, wanted)
    assert metric.summary(np.array(rows.tolist())) == metric.summary(rows)  # as the file of an evaluation has them
    random = np.random.default_rng(3)
    drawn = [random.integers(0, 200, 200) for _ in range(1500)]
    ours = np.array([by_scipy(metric, first[each], wanted[each]) for each in drawn])
    theirs = np.array([by_scipy(metric, second[each], wanted[each]) for each in drawn])
    low, high = metric.interval(rows)
    assert (low, high) == metric.interval(rows)
    assert (low, high) == pytest.approx(np.quantile(ours, [0.025, 0.975]), abs=0.25 * float(ours.std()))
    differences = metric.resampled_differences(rows, others, np.random.default_rng(0), 2000)
    spread = float((ours - theirs).std())
    assert differences.mean() == pytest.approx((ours - theirs).mean(), abs=0.15 * spread)
    assert differences.std() == pytest.approx(spread, rel=0.08)
    assert not metric.resampled_differences(rows, rows, np.random.default_rng(0), 20).any()


@pytest.mark.parametrize("metric", [Pearson(), Spearman()], ids=lambda metric: metric.name)
def test_a_correlation_with_constants_is_zero(metric: Metric) -> None:
    """Also of numbers that floating point has no exact mean of, in a resample, and where another output varies."""
    wanted = np.random.default_rng(0).normal(size=(50, 1))
    for constant in (0.1, 1e8 + 0.3, 0.0):
        same = np.full((50, 1), constant)
        assert metric.value(same, wanted) == metric.value(wanted, same) == metric.value(same, same) == 0
        assert metric.value(np.hstack([same, wanted]), np.hstack([wanted, wanted])) == pytest.approx(0.5)
    assert metric.value(wanted[:1], wanted[:1]) == 0
    rows = metric.per_example(np.array([[0.1], [0.7], [0.1]]), np.array([[1.0], [0.3], [2.0]]))
    low, high = metric.interval(rows)
    assert -1 <= low < 0 <= high <= 1, "where the second is not drawn, the correlation is zero"


def test_the_correlation_keeps_its_digits_far_from_zero() -> None:
    """Sums of squares would have lost them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 1))
    y = x + random.normal(size=x.shape)
    wanted = float(pearsonr(x[:, 0], y[:, 0]).statistic)
    assert Pearson().value(x * 1e-6 + 1e5, y * 1e6 - 1e9) == pytest.approx(wanted, rel=1e-4)
    assert Pearson().value(x * 1e-3 + 7, y * 1e3 - 2) == pytest.approx(wanted, rel=1e-10)
