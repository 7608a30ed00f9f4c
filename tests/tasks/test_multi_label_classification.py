"""Multi-label tasks: how their labels are read, what their models are, their Fisher and their metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from stages.params import FinetuneSettings
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.storage.cards import read_json
from stages.storage.checkpoint import Checkpoint
from stages.tasks.data import TaskData, examples_fingerprint
from stages.tasks.kinds.multi_label_classification.kind import KIND
from stages.tasks.kinds.multi_label_classification.metrics import MeanAveragePrecision, MultiLabelMacroF1
from stages.tasks.kinds.multi_label_classification.reading import READER
from stages.tasks.kinds.multi_label_classification.settings import MultiLabelClassification
from stages.tasks.kinds.text_classification.kind import KIND as SINGLE
from stages.tasks.metrics import Metric
from stages.tasks.prediction import examples_for, predict, targets
from stages.training.finetuning import train
from stages.training.finished import bring_in
from tests.curvature.reference import assert_same_fisher, bernoulli
from tests.tasks.heads import (
    assert_padding_before_the_text,
    estimated,
    reference,
    save_bert,
    save_gpt2,
    save_xlnet,
    written_task,
)
from tests.tasks.in_memory import read_examples, read_table, rows_of, split_examples, write_task
from tests.tiny import WORDS, save_base, sentiment_table

NAMES = ["joy", "anger", "fear"]
TEXTS = ["a good film", "a bad book", "the day", "a dull plot"]
SETS = [[0, 2], [1], [], [0, 1, 2]]
LISTS = [["joy", "fear"], ["anger"], [], ["anger", "fear", "joy"]]


def settings(**changes: Any) -> MultiLabelClassification:
    content: dict[str, Any] = {"source": "s", "file": "t.jsonl", "labels": NAMES, "max_length": 16}
    return MultiLabelClassification(**(content | changes))


def written(directory: Path, name: str, columns: Mapping[str, Any]) -> None:
    """A table in the form that its name says."""
    frame = pd.DataFrame({"text": TEXTS[: len(next(iter(columns.values())))]} | dict(columns))
    if name.endswith(".jsonl"):
        frame.to_json(directory / name, orient="records", lines=True)
    elif name.endswith(".parquet"):
        frame.to_parquet(directory / name)
    else:
        frame.to_csv(directory / name, index=False)


def read(directory: Path, task: MultiLabelClassification) -> tuple[list[list[int]], int]:
    """The sets of a task's one file, and how many rows were dropped."""
    assert isinstance(task.file, str)
    (found,) = read_examples(READER, task, {task.file: read_table(directory / task.file, None)}).values()
    return [positions.tolist() for positions in found.examples["label"]], found.dropped


ONES = {name: [int(position in own) for own in SETS] for position, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("name", "columns", "changes"),
    [
        ("t.jsonl", {"label": LISTS}, {}),
        ("t.jsonl", {"label": [[0, 2], [1], [], [2, 1, 0]]}, {}),
        ("t.jsonl", {"emotions": LISTS}, {"label": "emotions"}),
        ("t.parquet", {"label": LISTS}, {}),
        ("t.parquet", {"label": [np.array(own, dtype=np.uint8) for own in SETS]}, {}),
        ("t.csv", {"label": [",".join(own) for own in LISTS]}, {}),
        ("t.csv", {"label": ["joy, fear", " anger", "  ", "fear ,anger ,joy"]}, {}),
        ("t.csv", {"label": ["0,2", "1", "", "2,0,1"]}, {}),
        ("t.csv", {"label": ["joy and fear", "anger", "", "joy and anger and fear"]}, {"separator": " and "}),
        ("t.jsonl", {"label": ["joy|fear", ["anger"], "", ["fear", "joy", "anger"]]}, {"separator": "|"}),
        ("t.csv", ONES, {"label": NAMES}),
        ("t.jsonl", ONES, {"label": NAMES}),
        ("t.csv", {name: [["no", "yes"][one] for one in ones] for name, ones in ONES.items()}, None),
        ("t.csv", {name: [["false", "TRUE"][one] for one in ones] for name, ones in ONES.items()}, {"label": NAMES}),
        ("t.csv", {name: [float(one) for one in ones] for name, ones in ONES.items()}, {"label": NAMES}),
        ("t.parquet", {name: [bool(one) for one in ones] for name, ones in ONES.items()}, {"label": NAMES}),
        ("t.parquet", {name: pd.Series(ones, dtype="Int8") for name, ones in ONES.items()}, {"label": NAMES}),
        ("t.csv", {f"is_{name}": ones for name, ones in ONES.items()}, {"label": ["is_joy", "is_anger", "is_fear"]}),
    ],
)
def test_every_form_of_sets(
    tmp_path: Path, name: str, columns: Mapping[str, Any], changes: dict[str, Any] | None
) -> None:
    written(tmp_path, name, columns)
    if changes is None:
        with pytest.raises(
            InputError, match=r"t\.csv: line 2: joy = 'yes' is neither 1 nor 0; list it under `unknown`"
        ):
            read(tmp_path, settings(file=name, label=NAMES))
        return
    assert read(tmp_path, settings(file=name, **changes)) == (SETS, 0)


def test_rows_whose_labels_nobody_knows_are_dropped(tmp_path: Path) -> None:
    written(tmp_path, "t.csv", ONES | {"joy": [1, -1, 0, 1], "fear": ["1", "0", "?", "1"]})
    task = settings(file="t.csv", label=NAMES, unknown=[-1, -2, "?"])
    assert read(tmp_path, task) == ([[0, 2], [0, 1, 2]], 2)
    written(tmp_path, "t.parquet", ONES | {"joy": [1.0, -1.0, 0.0, 1.0]})
    assert read(tmp_path, settings(file="t.parquet", label=NAMES, unknown=[-1]))[1] == 1


def columns_with(position: int, name: str, value: object) -> dict[str, Any]:
    found: dict[str, Any] = {column: list(ones) for column, ones in ONES.items()}
    found[name][position] = value
    return found


@pytest.mark.parametrize(
    ("name", "columns", "changes", "message"),
    [
        ("t.jsonl", {"label": [["joy"], ["rage"]]}, {}, r"line 2: the label 'rage' is not one of the task's: joy, ang"),
        (
            "t.jsonl",
            {"label": [["joy"], [0]]},
            {},
            r"line 2: the label '0' is a position and no name, and 'joy' .*name",
        ),
        ("t.jsonl", {"label": [[0], [3]]}, {}, r"line 2: the label '3' is not one .* \(their positions are 0 to 2\)$"),
        ("t.jsonl", {"label": [["joy"], ["fear", "joy", "fear"]]}, {}, r"line 2: has the label 'fear' twice; name it"),
        (
            "t.jsonl",
            {"label": [["joy"], None]},
            {},
            r"line 2: has no label; an empty list or text is what has no label$",
        ),
        ("t.jsonl", {"label": [["joy"], 3]}, {}, r"line 2: label = '3' is neither a list of labels nor a text that"),
        ("t.jsonl", {"label": [["joy"], {"joy": 1}]}, {}, r"line 2: label = \".*\" is neither a list of labels nor"),
        ("t.jsonl", {"label": [["joy"], ["fear", ""]]}, {}, r"line 2: label names an empty label; remove it$"),
        ("t.jsonl", {"label": [["joy"], ["fear", None]]}, {}, r"line 2: label names an empty label; remove it$"),
        ("t.jsonl", {"label": [["joy"], [["fear"]]]}, {}, r"line 2: the label .* is not one of the task's"),
        ("t.parquet", {"label": [[["joy", "fear"]], [["fear"]]]}, {}, r"row 1: the label .* is not one of the task's"),
        ("t.csv", {"label": ["joy", "joy,"]}, {}, r"t\.csv: line 3: label names an empty label; remove it$"),
        ("t.csv", {"label": ["joy", "joy;fear"]}, {}, r"t\.csv: line 3: the label 'joy;fear' is not one of the task's"),
        ("t.csv", {"label": ["joy", "joy,joy"]}, {}, r"t\.csv: line 3: has the label 'joy' twice"),
        (
            "t.csv",
            {"label": ["joy", "a"]},
            {"labels": ["joy", "a", "joy,a"]},
            r"line 2: its labels are a text, and the label 'joy,a' has the separator ','; choose another `separator`$",
        ),
        ("t.csv", {"joy": ["1"]}, {}, r"t\.csv: has no column 'label'; its columns: text, joy$"),
        ("t.csv", {"joy": ["1"], "fear": ["0"]}, {"label": NAMES}, r"t\.csv: has no column 'anger'"),
        ("t.csv", columns_with(2, "anger", 2), {"label": NAMES}, r"line 4: anger = '2' is neither 1 nor 0; list it"),
        ("t.csv", columns_with(2, "anger", ""), {"label": NAMES}, r"line 4: has no anger; write 1 or 0$"),
        ("t.parquet", columns_with(1, "fear", None), {"label": NAMES}, r"row 2: has no fear; write 1 or 0$"),
        ("t.parquet", columns_with(1, "fear", 0.5), {"label": NAMES}, r"row 2: fear = '0.5' is neither 1 nor 0"),
        (
            "t.csv",
            columns_with(0, "joy", -1),
            {"label": NAMES, "unknown": [-2]},
            r"line 2: joy = '-1' is neither 1 nor",
        ),
        ("t.jsonl", {"text": [1, 2], "label": [["joy"], []]}, {}, r"line 1: text is not a text \(2 such rows\)$"),
    ],
)
def test_what_is_no_set_of_labels(
    tmp_path: Path, name: str, columns: Mapping[str, Any], changes: dict[str, Any], message: str
) -> None:
    written(tmp_path, name, columns)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, settings(file=name, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": []}, "at least 1 item"),
        ({"labels": ["joy", "joy"]}, "`labels` names a label twice"),
        ({"labels": ["joy", ""]}, "`labels` has an empty name"),
        ({"label": ["a", "b"]}, "`label` lists 2 columns, and there are 3 `labels`"),
        ({"label": ["a", "b", "a"]}, "`label` names a column twice"),
        ({"label": ["a", "b", "text"]}, "`text`, `text_pair`, `label` must be different columns"),
        ({"label": "text"}, "`text`, `text_pair`, `label` must be different columns"),
        ({"unknown": [-1]}, "`unknown` is for a `label` that lists a column per label"),
        ({"separator": ""}, "at least 1 character"),
        ({"metric": "macro_f1"}, "none of this task's: multi_label_macro_f1, mean_average_precision"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)
    assert settings(labels=["joy"]).exact_passes == 1
    assert settings().exact_passes == 3
    assert settings().output_names == NAMES


def test_from_a_table_to_a_task(tmp_path: Path) -> None:
    """Also where nothing has a label: what is written is what is read again."""
    texts = sentiment_table(60, 0)["text"]
    for name, sets in (
        ("some", [["joy"] * (row % 2) + ["fear"] * (row % 3 == 0) for row in range(60)]),
        ("none", [[]]),
    ):
        frame = pd.DataFrame({"text": texts, "label": sets * (60 // len(sets))})
        frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
        splits, dropped = split_examples(settings(part=[0, 0.9]), tmp_path)
        assert dropped == {"label_unknown": 0, "repeated_text": 0}
        (tmp_path / name).mkdir()
        write_task(tmp_path / name, settings(), splits, dropped)
        task = TaskData.open(tmp_path / name)
        for split, part in splits.items():
            again = task.read(split)
            assert examples_fingerprint(again) == examples_fingerprint(part)
            assert [own.tolist() for own in again["label"]] == [own.tolist() for own in part["label"]]
            assert task.card["counts"][split]["fear"] == sum(2 in own for own in part["label"])
        assert task.card["max_length"] == 16
        remarks = list(READER.remarks(settings(), rows_of(splits)))
        missing = "label 'anger'" if name == "some" else "labels 'joy', 'anger', 'fear'"
        assert remarks == [f"no example of the {missing} in any split"]


def sets_of(texts: pd.Series) -> pd.Series:
    """Labels that words decide: `joy` of a kind word, `anger` of an unkind one, `fear` of the film."""
    words = [set(text.split()) for text in texts]
    found = [[bool(own & set(WORDS[4:8])), bool(own & set(WORDS[:4])), "film" in own] for own in words]
    return pd.Series([np.flatnonzero(own) for own in found], dtype=object)


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    texts = sentiment_table(60, 0)["text"]
    return written_task(tmp_path / "task", settings(), pd.DataFrame({"text": texts, "label": sets_of(texts)}))


def test_encoding_and_batches(tmp_path: Path, task: TaskData) -> None:
    save_bert(tmp_path / "model", NAMES, None)
    model, tokenizer = KIND.load_model(tmp_path / "model", NAMES), KIND.load_processor(tmp_path / "model")
    frame = pd.DataFrame({"text": TEXTS, "label": [np.array(own, dtype=int) for own in SETS]})
    encoded = KIND.encode(tokenizer, frame, task, model, seed=0)
    assert encoded["labels"] == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert KIND.largest_first(encoded).tolist() == [0, 1, 3, 2]
    rows = [{key: values[row] for key, values in encoded.items()} for row in (2, 0)]
    batch = KIND.collator(tokenizer, model)(rows)
    assert batch["labels"].tolist() == [[0, 0, 0], [1, 0, 1]]
    assert batch["labels"].dtype == torch.float32
    loss = model.eval()(**batch).loss
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])
    torch.testing.assert_close(loss, wanted)
    save_gpt2(tmp_path / "gpt2", NAMES, "right")
    gpt2, of_bytes = KIND.load_model(tmp_path / "gpt2", NAMES), KIND.load_processor(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"its tokenizer makes no token of the text"):
        KIND.encode(of_bytes, frame.assign(text=""), task, gpt2, seed=0)


def test_a_base_learns_and_its_labels_are_in_its_config(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    out = tmp_path / "out"
    for part in ("checkpoint", "curves"):
        (out / part).mkdir(parents=True)
    learning = FinetuneSettings(epochs=12, batch_size=8, learning_rate=5e-3)
    train(tmp_path / "base", task, learning, out / "checkpoint", out / "curves", out / "progress")
    config = json.loads((out / "checkpoint/config.json").read_text())
    assert config["id2label"] == {"0": "joy", "1": "anger", "2": "fear"}
    assert config["problem_type"] == "multi_label_classification"
    card = read_json(out / "checkpoint/checkpoint.json")
    assert card["labels"] == NAMES
    assert card["origin"]["validation_multi_label_macro_f1"] > 0.5
    model = KIND.load_model(out / "checkpoint", NAMES)
    examples = examples_for(KIND, out / "checkpoint", model, task.rows("validation"), task, Placement())
    found = MultiLabelMacroF1().value(predict(model, examples, task.metrics), targets(examples))
    assert found == pytest.approx(card["origin"]["validation_multi_label_macro_f1"])


@pytest.mark.parametrize(
    ("outputs", "problem", "message"),
    [
        (["joy", "anger", "love"], None, r"the labels are \['joy', 'anger', 'love'\], but the task task has"),
        (NAMES, "single_label_classification", r"problem_type is single_label_classification, but models of the task"),
        (NAMES, "regression", r"problem_type is regression, but models of the task task, whose kind is multi-label-cl"),
        (NAMES, "multi_label_classification", None),
        (NAMES, None, None),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None, None),
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
        assert list(config["id2label"].values()) == NAMES
        assert config["problem_type"] == "multi_label_classification"
    else:
        with pytest.raises(InputError, match=message):
            bring_in(tmp_path / "model", task, tmp_path / "out")


def test_a_multi_label_model_is_no_single_label_classifier(tmp_path: Path, task: TaskData) -> None:
    save_bert(tmp_path / "model", NAMES, "multi_label_classification")
    other = TaskData(tmp_path / "reviews", "text-classification", tuple(NAMES), 16, {})
    with pytest.raises(InputError, match=r"problem_type is multi_label_classification, .* are for single_label_clas"):
        SINGLE.refuse_other_outputs(Checkpoint(tmp_path / "model"), other)


def test_the_exact_fisher_whatever_the_batches(tmp_path: Path, task: TaskData) -> None:
    save_bert(tmp_path / "model", NAMES, None)
    wanted = reference(tmp_path / "model", task, bernoulli)
    for batch_size in (1, 5):
        out = tmp_path / f"fisher-{batch_size}"
        assert_same_fisher(estimated("diagonal", tmp_path / "model", task, out, batch_size=batch_size), wanted)
    card = read_json(out / "fisher.json")
    assert (card["likelihood"], card["examples"], card["estimator"]) == ("bernoulli", 40, "exact")


def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """The labels that are there, as the only outcome."""
    y = batch["labels"][0].to(z)
    return [(1.0, (y * torch.nn.functional.logsigmoid(z) + (1 - y) * torch.nn.functional.logsigmoid(-z)).sum())]


def test_the_empirical_fisher_is_of_the_labels(tmp_path: Path, task: TaskData) -> None:
    save_bert(tmp_path / "model", NAMES, None)
    labels = [[float(k in own) for k in range(3)] for own in task.read("train")["label"]]
    found = estimated("diagonal", tmp_path / "model", task, tmp_path / "fisher", estimator="empirical")
    assert_same_fisher(found, reference(tmp_path / "model", task, observed, labels))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_padding_token(tmp_path: Path, task: TaskData, side: str) -> None:
    """At the end, on whichever side the tokenizer would pad, of texts of which some are cut; also of one output."""
    for names in (NAMES, NAMES[:1]):
        place = tmp_path / f"model-{len(names)}"
        save_gpt2(place, names, side)
        frame = task.read("train")
        own = pd.concat([frame] * 2, ignore_index=True)[:60]
        own["label"] = [positions[positions < len(names)] for positions in own["label"]]
        with_names = written_task(tmp_path / f"task-{len(names)}", settings(labels=names), own)
        found = estimated("diagonal", place, with_names, tmp_path / f"fisher-{len(names)}")
        assert_same_fisher(found, reference(place, with_names, bernoulli), tolerance=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_before_the_text_where_the_head_reads_the_last_position(tmp_path: Path, side: str) -> None:
    """On whichever side the tokenizer would pad."""
    texts = sentiment_table(60, 0)["text"]
    frame = pd.DataFrame({"text": texts, "label": sets_of(texts)})
    save_xlnet(tmp_path / "model", NAMES, side)
    assert_padding_before_the_text(
        KIND, tmp_path / "model", written_task(tmp_path / "task", settings(max_length=40), frame), bernoulli
    )


def made_up(seed: int, examples: int = 200, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits of which many are the same, and labels of which the last never occurs."""
    random = np.random.default_rng(seed)
    present = random.random((examples, labels)) < np.linspace(0.6, 0, labels)
    logits = np.round(random.normal(size=(examples, labels)) + present, 1).astype(np.float32)
    return logits, present.astype(float)


def by_sklearn(metric: Metric, logits: np.ndarray, present: np.ndarray) -> float:
    if isinstance(metric, MultiLabelMacroF1):
        return float(f1_score(present, logits > 0, average="macro", zero_division=0.0))
    occurs = present.any(0)
    each = average_precision_score(present[:, occurs], logits[:, occurs], average=None) if occurs.any() else [0.0]
    return float(np.sum(each) / present.shape[1])


@pytest.mark.parametrize("metric", [MultiLabelMacroF1(), MeanAveragePrecision()], ids=lambda metric: metric.name)
def test_metrics_against_sklearn_and_their_bootstrap(metric: Metric) -> None:
    for seed in range(5):
        logits, present = made_up(seed, examples=[1, 2, 9, 50, 400][seed])
        assert metric.value(logits, present) == pytest.approx(by_sklearn(metric, logits, present), abs=1e-12)
    (first, present), (second, _) = made_up(7), made_up(8)
    rows, others = metric.per_example(first, present), metric.per_example(second, present)
    assert metric.summary(np.array(rows.tolist())) == metric.summary(rows)  # as the file of an evaluation has them
    random = np.random.default_rng(3)
    drawn = [random.integers(0, 200, 200) for _ in range(1500)]
    ours = np.array([by_sklearn(metric, first[each], present[each]) for each in drawn])
    theirs = np.array([by_sklearn(metric, second[each], present[each]) for each in drawn])
    low, high = metric.interval(rows)
    assert (low, high) == metric.interval(rows)
    assert (low, high) == pytest.approx(np.quantile(ours, [0.025, 0.975]), abs=0.25 * float(ours.std()))
    found = metric.resampled_differences(rows, others, np.random.default_rng(0), 2000)
    assert found.shape == (2000,)
    spread = float((ours - theirs).std())
    assert found.mean() == pytest.approx((ours - theirs).mean(), abs=0.15 * spread)
    assert found.std() == pytest.approx(spread, rel=0.08)
    assert not metric.resampled_differences(rows, rows, np.random.default_rng(0), 20).any()


def test_labels_that_do_not_occur_count_as_zero() -> None:
    logits, present = np.array([[1.0, -1.0], [-1.0, -1.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    assert MultiLabelMacroF1().value(logits, present) == 0.5
    assert MeanAveragePrecision().value(logits, present) == 0.5
