"""The exact diagonal Fisher against a training step on the same batches, and against other libraries."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from stages.curvature import diagonal_fisher
from tests.bench.rivals import RIVALS, UNAVAILABLE
from tests.bench.timing import medians, table

EXAMPLES = 128
SLOW = 5.0  # seconds; a rival that takes longer is run once

Batches = Sequence[dict[str, Tensor]]


def minilm(classes: int) -> BertForSequenceClassification:
    """A random model of MiniLM-L6's shape, 22 M parameters."""
    names = {k: str(k) for k in range(classes)}
    return random_bert(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, id2label=names)
    )


def random_bert(config: BertConfig) -> BertForSequenceClassification:
    """A classifier in eval mode, its weights from a fixed seed."""
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


def make_batches(batch_size: int) -> list[dict[str, torch.Tensor]]:
    """Batches of random ids, in lengths as tweets have them, sorted and padded to each batch's longest."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 40, (EXAMPLES,), generator=generator).sort(descending=True).values
    made = []
    for part in lengths.split(batch_size):
        ids = torch.randint(1000, 30000, (len(part), int(part.max())), generator=generator)
        mask = (torch.arange(ids.shape[1]) < part[:, None]).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


def bench(repeats: int) -> str:
    """For 2 and 4 classes, in batches of 16 and of 32: this engine beside a training step."""
    tables = []
    for classes in (2, 4):
        model = minilm(classes)
        for batch_size in (16, 32):
            seconds = medians(_engine(model, make_batches(batch_size)), repeats)
            tables.append(table(_title(model, classes, batch_size), seconds, "training step"))
    return "\n\n".join(tables)


def bench_rivals(repeats: int, device: str) -> str:
    """For 2 and 4 classes, in batches of 16: the same beside the other libraries, on a CPU or on a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        return "Other libraries on a GPU: not measured, there is none here"
    tables = []
    for classes in (2, 4):
        model = minilm(classes)
        torch.nn.Module.to(model, device)
        batches = [{key: value.to(device) for key, value in batch.items()} for batch in make_batches(16)]
        rivals, remarks = usable_rivals(model, batches)
        candidates = {name: partial(finished, run) for name, run in (_engine(model, batches) | rivals).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds = medians(candidates, repeats, SLOW)
        tables.append(table(_title(model, classes, 16), seconds, "training step", remarks))
    return "\n\n".join(tables)


def finished(run: Callable[[], object]) -> None:
    """Run, and wait for what it has started on a GPU."""
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _engine(model: BertForSequenceClassification, batches: Batches) -> dict[str, Callable[[], object]]:
    return {
        "training step": partial(training_step, model, batches),
        "exact Fisher": partial(diagonal_fisher, model, batches),
        "sketched Fisher": partial(diagonal_fisher, model, batches, estimator="sketch"),
    }


def _title(model: BertForSequenceClassification, classes: int, batch_size: int) -> str:
    return f"MiniLM's shape, {EXAMPLES} sentences, {classes} classes, batches of {batch_size}, {where(model)}"


def bench_gpu(repeats: int) -> str:
    """BERT-base's shape on a GPU: 1024 examples of 128 tokens, 2 classes, in three precisions and two batch sizes."""
    if not torch.cuda.is_available():
        return "BERT-base on a GPU: not measured, there is none here"
    model = random_bert(BertConfig(id2label={0: "0", 1: "1"}))
    torch.nn.Module.to(model, "cuda")
    ids = torch.randint(1000, 30000, (1024, 128), generator=torch.Generator().manual_seed(0)).cuda()
    tables = []
    for precision, matmul, autocast in (
        ("float32", "highest", False),
        ("TF32", "high", False),
        ("bfloat16", "high", True),
    ):
        torch.set_float32_matmul_precision(matmul)
        for size in (32, 256):
            batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(size)]

            def timed(run: Callable[[], object], autocast: bool = autocast) -> None:
                with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                    finished(run)

            seconds = medians(
                {
                    "training step": partial(timed, partial(training_step, model, batches)),
                    "exact Fisher": partial(timed, partial(diagonal_fisher, model, batches)),
                },
                repeats,
            )
            title = f"BERT-base, {len(batches)} batches of {size} × 128, {precision}, {where(model)}"
            tables.append(table(title, seconds, "training step"))
    torch.set_float32_matmul_precision("highest")
    return "\n\n".join(tables)


def training_step(model: BertForSequenceClassification, batches: Batches) -> None:
    """Forward and backward pass of every batch, without the optimizer's update."""
    for batch in batches:
        labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long, device=batch["input_ids"].device)
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
    model.zero_grad()


def usable_rivals(
    model: BertForSequenceClassification, batches: Batches
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The rivals that can handle the model; for every one, its relative error and coverage, or why it cannot."""
    exact = diagonal_fisher(model, batches[-1:])
    everything = sum(value.numel() for value in exact.values())
    usable: dict[str, Callable[[], object]] = {}
    remarks = {name: f"not available: {reason}" for name, reason in UNAVAILABLE.items()}
    for name, rival in RIVALS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = rival(model, batches[-1:])
        except Exception as failure:  # whatever it is, it is that library's answer
            remarks[name] = f"cannot: {type(failure).__name__}: {str(failure).splitlines()[0][:90]}"
            continue
        wanted = torch.cat([exact[key].flatten() for key in found])
        error = float((torch.cat([value.flatten() for value in found.values()]) - wanted).norm() / wanted.norm())
        share = wanted.numel() / everything
        remarks[name] = f"relative error {error:.0e}" + ("" if share == 1 else f", of {share:.0%} of the parameters")
        usable[name] = partial(rival, model, batches)
    return usable, remarks


def where(model: torch.nn.Module) -> str:
    """What the model computes on."""
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
