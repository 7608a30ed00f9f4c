"""Fine-tuning and bringing in: the checkpoint they leave, and what they refuse."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    Trainer,
    TrainingArguments,
    pipeline,
)

from stages.params import FinetuneSettings
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.tensors import TensorFiles, fingerprint
from stages.tasks.data import TaskData
from stages.tasks.kinds.masked_lm.settings import MaskedLM
from stages.tasks.kinds.text_classification.kind import KIND
from stages.tasks.kinds.text_classification.settings import TextClassification
from stages.training.finetuning import second_moments, train, training_arguments
from stages.training.finished import bring_in
from tests.tasks.in_memory import write_task
from tests.tiny import save_base, sentiment_table, tiny_bert, tiny_tokenizer


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_task(tmp_path / "reviews", ["bad", "good"])


def make_task(directory: Path, labels: list[str], max_length: int = 16) -> TaskData:
    directory.mkdir()
    table = sentiment_table(60, 0)
    frame = table.assign(label=(table["label"] == "good").astype(int))
    settings = TextClassification(source="s", file="f.csv", labels=labels, max_length=max_length)
    write_task(directory, settings, {"train": frame[:40], "validation": frame[40:50], "test": frame[50:]}, {})
    return TaskData.open(directory)


def make_texts(directory: Path) -> TaskData:
    """A masked-LM task of sixty texts, every other one long enough for two masks."""
    directory.mkdir()
    sentences = sentiment_table(60, 0)["text"]
    frame = pd.DataFrame({"text": [f"{text} {text}" if row % 2 else text for row, text in enumerate(sentences)]})
    settings = MaskedLM(source="s", file="f.csv", max_length=16)
    write_task(directory, settings, {"train": frame[:40], "validation": frame[40:50], "test": frame[50:]}, {})
    return TaskData.open(directory)


def outputs(tmp_path: Path, name: str = "out") -> tuple[Path, Path, Path]:
    """Where the checkpoint, the curves and the training's progress go."""
    for part in ("checkpoint", "curves"):
        (tmp_path / name / part).mkdir(parents=True)
    return tmp_path / name / "checkpoint", tmp_path / name / "curves", tmp_path / name / "progress"


def test_training_learns_and_leaves_a_safe_checkpoint(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    out, curves, progress = outputs(tmp_path)
    train(tmp_path / "base", task, FinetuneSettings(epochs=12, batch_size=8, learning_rate=5e-3), out, curves, progress)
    losses = [float(line.split("\t")[1]) for line in (curves / "eval/loss.tsv").read_text().splitlines()[1:]]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert (curves / "eval/accuracy.tsv").is_file()
    assert not any("runtime" in path.name or "second" in path.name for path in curves.rglob("*"))
    assert not list(out.glob("*.bin"))
    assert not list(out.glob("*.pt"))
    card = read_json(out / "checkpoint.json")
    assert card["fingerprint"] == fingerprint(TensorFiles(out))
    assert (card["base_model_prefix"], card["labels"], card["task"]) == ("bert", ["bad", "good"], "reviews")
    assert card["origin"]["examples"] == 40


def test_same_seed_same_bits_other_seed_other_bits(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    prints = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out, curves, progress = outputs(tmp_path, name)
        train(
            tmp_path / "base",
            task,
            FinetuneSettings(epochs=1, batch_size=8, seed=seed, examples=24),
            out,
            curves,
            progress,
        )
        prints.append(read_json(out / "checkpoint.json")["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


def test_second_moments_are_a_mean_of_squared_gradients() -> None:
    """Against Adam's definition in float64: unequal weights that sum to one, times the batch size."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    squares = []
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        assert model.weight.grad is not None
        squares.append(model.weight.grad.double().square())
        optimizer.step()
    weights = torch.tensor([0.99 ** (4 - step) for step in range(5)], dtype=torch.float64)
    wanted = 4 * sum(weight * square for weight, square in zip(weights / weights.sum(), squares, strict=True))
    found = second_moments(optimizer, model, batch_size=4)
    assert found.keys() == {"weight", "bias"}
    torch.testing.assert_close(found["weight"].double(), wanted, rtol=1e-5, atol=0)


def test_moments_are_kept_where_wanted(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    settings = FinetuneSettings(epochs=1, batch_size=8, examples=24)
    plain, keeping = outputs(tmp_path, "plain"), outputs(tmp_path, "keeping")
    train(tmp_path / "base", task, settings, *plain)
    train(tmp_path / "base", task, settings, *keeping, keep_moments=True)
    assert not (plain[0] / "adam.safetensors").exists()
    assert TensorFiles(keeping[0], "adam").specs.keys() == TensorFiles(keeping[0]).specs.keys()
    assert read_json(plain[0] / "checkpoint.json") == read_json(keeping[0] / "checkpoint.json")


def test_moments_of_what_no_step_or_not_every_step_uses() -> None:
    """Against the mean of all steps' squares in float64: torch's optimizers pass over a gradient that is None."""
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2) for name in ("always", "sometimes", "never")})
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-9, betas=(0.9, 1 - 1e-7))
    squares = []
    for step in range(6):
        optimizer.zero_grad()
        inputs = torch.randn(4, 3)
        used = [parts["always"], parts["sometimes"]] if step in (1, 4) else [parts["always"]]
        output = torch.stack([part(inputs) for part in used]).sum(0)
        output.square().mean().backward()
        gradient = parts.get_parameter("sometimes.weight").grad
        squares.append(torch.zeros(2, 3) if gradient is None else gradient.double().square())
        optimizer.step()
    found = second_moments(optimizer, parts, batch_size=4)
    assert found.keys() == dict(parts.named_parameters()).keys()
    torch.testing.assert_close(found["sometimes.weight"].double(), 4 * sum(squares) / 6, rtol=1e-2, atol=0)
    assert found["never.weight"].dtype == torch.float32
    assert found["never.weight"].shape == (2, 3)
    assert not found["never.weight"].any()


def test_one_gpu_whatever_the_process_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers multiply a batch by the number of GPUs that they see, unless a launcher gives each process one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("stages.training.finetuning.compute_device", lambda: torch.device("cuda"))
    plain = TrainingArguments(str(tmp_path / "plain"), per_device_train_batch_size=8, dataloader_pin_memory=False)
    assert plain.train_batch_size == 32
    arguments = training_arguments(FinetuneSettings(batch_size=8), tmp_path / "progress", KIND)
    assert arguments.n_gpu == 1
    examples = [{"input_ids": [2, 3], "labels": 0}] * 40
    trainer = Trainer(tiny_bert(), arguments, train_dataset=examples, eval_dataset=examples)
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == 8
    assert len(trainer.get_train_dataloader()) == 5


def test_a_base_without_a_padding_token_leaves_a_checkpoint_that_has_one(tmp_path: Path, task: TaskData) -> None:
    """As GPT-2 is published; others that load the checkpoint get for a batch what they get for its texts alone."""
    torch.manual_seed(0)
    GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=24)).save_pretrained(
        tmp_path / "base"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "base").pad_token is None
    out, curves, progress = outputs(tmp_path)
    train(tmp_path / "base", task, FinetuneSettings(epochs=1, batch_size=8), out, curves, progress)
    assert read_json(out / "config.json")["pad_token_id"] == 3
    assert AutoTokenizer.from_pretrained(out).pad_token == "[SEP]"
    classify = pipeline("text-classification", str(out))
    texts = task.read("test")["text"].tolist()
    together, alone = classify(texts, batch_size=5), [classify(text)[0] for text in texts]
    assert [found["score"] for found in together] == pytest.approx([one["score"] for one in alone], rel=1e-4)


def test_what_the_base_has_besides_is_kept(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    kept = {"chat_template.jinja": "{{ messages }}", "spm.model": "x", "1_Pooling/config.json": "{}", "LICENSE": "free"}
    left = {
        "README.md": "# the base",
        "modeling_own.py": "x = 1",
        "pytorch_model.bin": "x",
        "special_tokens_map.json": '{"pad_token": "[MASK]"}',
    }
    for name, content in {**kept, **left}.items():
        (tmp_path / "base" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_text(content)
    write_json(tmp_path / "base/tokenizer_config.json", read_json(tmp_path / "base/tokenizer_config.json"))
    trained, brought = outputs(tmp_path, "trained"), outputs(tmp_path, "brought")
    train(tmp_path / "base", task, FinetuneSettings(epochs=1, batch_size=8), *trained)
    (tmp_path / "base/special_tokens_map.json").unlink()
    for name, content in {**kept, **left}.items():
        if name in left:
            assert not (trained[0] / name).exists()
        else:
            assert (trained[0] / name).read_text() == content
    (trained[0] / "spm.model").write_text("y")
    bring_in(trained[0], task, brought[0])
    assert (brought[0] / "spm.model").read_text() == "y"
    assert (brought[0] / "1_Pooling/config.json").is_file()


def test_a_base_whose_tokenizer_knows_nothing_of_the_task(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    """With training, or as a finished model; and a model that says more than its logits is measured by these alone."""
    write_json(checkpoint / "config.json", read_json(checkpoint / "config.json") | {"output_hidden_states": True})
    train(checkpoint, task, FinetuneSettings(epochs=1, batch_size=8), *outputs(tmp_path, "well"))
    tiny_tokenizer([f"w{number}" for number in range(15)]).save_pretrained(checkpoint)
    with pytest.raises(
        InputError, match=r"does not know (\d+) of the \1 tokens \(100%\) of the training texts of reviews"
    ):
        train(checkpoint, task, FinetuneSettings(), *outputs(tmp_path, "strange"))
    with pytest.raises(InputError, match=r"does not know (\d+) of the \1 tokens"):
        bring_in(checkpoint, task, outputs(tmp_path, "brought")[0])
    for file in checkpoint.glob("*token*"):
        file.unlink()
    with pytest.raises(InputError, match="its tokenizer knows no words; BertTokenizer reads them from vocab"):
        bring_in(checkpoint, task, outputs(tmp_path, "none")[0])


def test_a_finished_model_that_cannot_read_its_task(tmp_path: Path, checkpoint: Path) -> None:
    long = make_task(tmp_path / "long", ["bad", "good"], max_length=25)
    with pytest.raises(InputError, match=r"tasks\.long\.max_length = 25: the model reads at most 24 tokens"):
        bring_in(checkpoint, long, outputs(tmp_path)[0])


def test_diverged_training_is_an_error(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    out, curves, progress = outputs(tmp_path)
    with pytest.raises(
        InputError, match=r"has NaN or infinite entries: training diverged; lower finetune\.learning_rate"
    ):
        train(
            tmp_path / "base", task, FinetuneSettings(epochs=2, batch_size=8, learning_rate=1e38), out, curves, progress
        )


def test_a_base_that_lacks_a_tensor_is_refused(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    tensors = load_file(tmp_path / "base/model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    out, curves, progress = outputs(tmp_path)
    with pytest.raises(InputError, match=r"lacks the tensor bert\.encoder\.layer\.1\.output\.dense\.weight"):
        train(tmp_path / "base", task, FinetuneSettings(), out, curves, progress)


def test_texts_longer_than_the_model(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    out, curves, progress = outputs(tmp_path)
    long = make_task(tmp_path / "long", ["bad", "good"], max_length=100)
    with pytest.raises(InputError, match=r"tasks\.long\.max_length = 100: the model reads at most 24 tokens"):
        train(tmp_path / "base", long, FinetuneSettings(), out, curves, progress)


def test_a_finished_checkpoint_is_copied_bit_for_bit(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    out, *_ = outputs(tmp_path)
    bring_in(checkpoint, task, out)
    assert (out / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert read_json(out / "checkpoint.json")["labels"] == ["bad", "good"]


def test_nameless_labels_take_the_tasks_names(tmp_path: Path, task: TaskData, checkpoint: Path) -> None:
    tiny_bert(("LABEL_0", "LABEL_1")).save_pretrained(checkpoint)
    out, *_ = outputs(tmp_path)
    bring_in(checkpoint, task, out)
    assert read_json(out / "config.json")["id2label"] == {"0": "bad", "1": "good"}


def test_what_cannot_be_brought_in(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    out, *_ = outputs(tmp_path)
    swapped = make_task(tmp_path / "swapped", ["good", "bad"])
    with pytest.raises(InputError, match=r"labels are \['bad', 'good'\], but the task swapped has \['good', 'bad'\]"):
        bring_in(checkpoint, swapped, out)
    tensors = load_file(checkpoint / "model.safetensors")
    good = tensors["classifier.weight"].clone()
    tensors["classifier.weight"][0, 0] = torch.nan
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor classifier\.weight has NaN or infinite entries"):
        bring_in(checkpoint, task, out)
    save_file(
        {**tensors, "classifier.weight": good[:1].clone()}, checkpoint / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(InputError, match=r"tensor classifier\.weight has another shape than the config says"):
        bring_in(checkpoint, task, out)
    del tensors["classifier.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the tensor classifier\.weight"):
        bring_in(checkpoint, task, out)


def test_masked_lm_training_learns_and_leaves_no_accuracy(tmp_path: Path) -> None:
    """Its checkpoint has the head, tied to the embeddings; fixed masks make the curve one of the model alone."""
    save_base(tmp_path / "base")
    texts = make_texts(tmp_path / "texts")
    out, curves, progress = outputs(tmp_path)
    settings = FinetuneSettings(epochs=6, batch_size=8, learning_rate=5e-3)
    train(tmp_path / "base", texts, settings, out, curves, progress)
    losses = [float(line.split("\t")[1]) for line in (curves / "eval/loss.tsv").read_text().splitlines()[1:]]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert not (curves / "eval/accuracy.tsv").exists()
    card = read_json(out / "checkpoint.json")
    assert (card["base_model_prefix"], card["labels"], card["task"]) == ("bert", [], "texts")
    assert card["origin"]["validation_loss"] == losses[-1]
    assert "validation_accuracy" not in card["origin"]
    model, loading = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight

    brought = outputs(tmp_path, "brought")[0]
    bring_in(out, texts, brought)
    assert read_json(brought / "checkpoint.json")["fingerprint"] == card["fingerprint"]
    with pytest.raises(InputError, match=r"lacks the tensor cls\.predictions\.bias"):
        bring_in(tmp_path / "base", texts, brought)


def test_a_classifier_from_a_masked_lm_model_has_a_pooler_of_the_seed(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    adapted = outputs(tmp_path, "adapted")
    train(tmp_path / "base", make_texts(tmp_path / "texts"), FinetuneSettings(epochs=1), *adapted)
    assert not any("pooler" in name for name in TensorFiles(adapted[0]).specs)
    prints = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out, curves, progress = outputs(tmp_path, name)
        train(adapted[0], task, FinetuneSettings(epochs=1, batch_size=8, seed=seed), out, curves, progress)
        prints.append(read_json(out / "checkpoint.json")["fingerprint"])
        assert "bert.pooler.dense.weight" in TensorFiles(out).specs
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(InputError, match=r"lacks the tensor bert\.pooler\.dense\.bias"):
        bring_in(adapted[0], task, outputs(tmp_path, "brought")[0])
