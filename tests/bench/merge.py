"""A streamed merge against reading its inputs and writing its output, and against mergekit."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch

from stages.merging import merge_checkpoints
from stages.running.command import leave
from stages.storage.cards import write_json
from stages.storage.checkpoint_files import CHECKPOINT_CARD
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles, write_tensors
from tests.bench.timing import medians, table

SLOW = 30.0  # seconds; what takes longer is run once
TOUCH_MEMORY = "import mmap; memory = mmap.mmap(-1, 3 << 30); memory[::4096] = bytes(3 << 18)"
FLOOR = "cat of four inputs, cp of one output"


def make_models(root: Path, count: int, layers: int = 24) -> tuple[dict[str, Path], dict[str, Path]]:
    """Models of BERT-large's shape (335 M parameters with 24 layers) with random weights, and their random Fishers."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model = BertForSequenceClassification(
            BertConfig(hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096)
        )
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    checkpoints, fishers = {}, {}
    for number in range(count):
        name = f"model{number}"
        generator = torch.Generator().manual_seed(number)
        checkpoints[name], fishers[name] = root / name, root / f"{name}-fisher"
        for directory in (checkpoints[name], fishers[name]):
            directory.mkdir(parents=True)
        weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        write_tensors(checkpoints[name], "model", weights)
        del weights
        model.config.architectures = ["BertForSequenceClassification"]
        model.config.save_pretrained(checkpoints[name])
        write_json(checkpoints[name] / CHECKPOINT_CARD, {"base_model_prefix": "bert"})
        diagonal = {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}
        write_statistic(fishers[name], "diagonal", diagonal, TensorFiles(checkpoints[name]), {})
        del diagonal
    return checkpoints, fishers


def merge(checkpoints: Mapping[str, Path], fishers: Mapping[str, Path], out: Path, method: str) -> None:
    """One of our merges, with equal λ; the first model is the base, for methods that need one."""
    merge_checkpoints(
        checkpoints,
        out,
        method=method,
        coefficients=dict.fromkeys(checkpoints, 1.0),
        statistics=fishers,
        base=next(iter(checkpoints.values())),
    )


def bench(repeats: int) -> str:
    """Two models of 335 M float32 parameters with float32 Fishers, their files in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # In another process: a stage does not make its inputs either.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            checkpoints, fishers = maker.submit(make_models, root / "base", 2).result()
        return "\n\n".join(
            [
                bench_engine(root, checkpoints, fishers, repeats),
                bench_processes(root, checkpoints, 3),
                bench_memory(root, checkpoints, fishers),
            ]
        )


def bench_engine(root: Path, checkpoints: Mapping[str, Path], fishers: Mapping[str, Path], repeats: int) -> str:
    """The merge itself, in a running process, against copying the same bytes."""
    weights = [directory / "model.safetensors" for directory in checkpoints.values()]
    inputs = [*weights, *(directory / "fisher.safetensors" for directory in fishers.values())]

    def floor() -> None:
        subprocess.run(["cat", *inputs], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cp", weights[0], root / "out.safetensors"], check=True)

    candidates: dict[str, Callable[[], object]] = {
        FLOOR: floor,
        "Fisher merge": lambda: merge(checkpoints, fishers, root / "out", "fisher"),
        "isotropic merge": lambda: merge(checkpoints, fishers, root / "out", "isotropic"),
    }
    seconds = medians(candidates, repeats, before=lambda: same_start(root))
    return table("Merging two models of 335 M float32 parameters with float32 Fishers, torch imported", seconds, FLOOR)


def same_start(root: Path) -> None:
    """Let no candidate pay for, or gain by, what ran before it: outputs are gone and memory is at hand.

    On a virtual machine free memory may have been given back to the host; the first to use it again then pays.
    """
    for output in root.glob("out*"):
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    os.sync()
    subprocess.run([sys.executable, "-c", TOUCH_MEMORY], check=True)


def bench_processes(root: Path, checkpoints: Mapping[str, Path], repeats: int) -> str:
    """Whole processes, with their imports, against mergekit's."""
    both = [f"{name}={directory}" for name, directory in checkpoints.items()]
    ours, own = "isotropic merge, this project", (sys.executable, "-m", "tests.bench.merge")
    processes: dict[str, Callable[[], object]] = {
        ours: lambda: run(*own, "isotropic", str(root / "out"), *both),
        "ties merge, this project": lambda: run(*own, "ties", str(root / "out"), *both),
        "import of torch alone": lambda: run(sys.executable, "-c", "import torch"),
    }
    remarks = {}
    if find_spec("mergekit") is None:
        remarks["mergekit"] = "not installed; `make bench` installs it"
    else:
        mergekit = str(Path(sys.executable).with_name("mergekit-yaml"))
        for method in ("linear", "ties"):
            config = root / f"{method}.yaml"
            write_json(config, mergekit_config(method, list(checkpoints.values())))  # JSON is YAML
            command = [mergekit, str(config), str(root / f"out-mergekit-{method}"), "--no-copy-tokenizer"]
            processes[f"{method} merge, mergekit"] = lambda command=command: run(*command)  # type: ignore[misc]
    seconds = medians(processes, repeats, SLOW, before=lambda: same_start(root))
    return table("The same two models, whole processes", seconds, ours, remarks)


def mergekit_config(method: str, models: list[Path]) -> dict[str, object]:
    """What mergekit-yaml reads; TIES takes the first model as the base."""
    parameters = {"weight": 0.5, "density": 0.2} if method == "ties" else {"weight": 0.5}
    config: dict[str, object] = {
        "merge_method": method,
        "dtype": "float32",
        "models": [{"model": str(model), "parameters": parameters} for model in models],
    }
    return config | ({"base_model": str(models[0])} if method == "ties" else {})


def bench_memory(root: Path, checkpoints: Mapping[str, Path], fishers: Mapping[str, Path]) -> str:
    """Peaks of anonymous memory above the imports', for Fisher merges of few, many and larger models."""
    eight = {f"copy{i}": list(checkpoints.values())[i % 2] for i in range(8)}
    eight_fishers = {f"copy{i}": list(fishers.values())[i % 2] for i in range(8)}
    large, large_fishers = make_models(root / "large", 1, layers=4 * 24 + 8)
    cases = {
        "two models of 335 M parameters": (checkpoints, fishers),
        "eight models of 335 M parameters": (eight, eight_fishers),
        "two models of 1.34 G parameters": (
            {"one": large["model0"], "two": large["model0"]},
            {"one": large_fishers["model0"], "two": large_fishers["model0"]},
        ),
    }
    lines = ["Peak anonymous memory (no mapped file pages) of a Fisher merge, above that after the imports"]
    for name, (models, statistics) in cases.items():
        arguments = [f"{model}={directory}={statistics[model]}" for model, directory in models.items()]
        peak = run(sys.executable, "-m", "tests.bench.merge", "fisher", str(root / "out"), *arguments)
        lines.append(f"{name:<34}  {int(peak):>4} MB")
    return "\n".join(lines)


def run(*command: str) -> str:
    """What the command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(method: str, out: str, *models: str) -> None:
    """Merge models given as NAME=CHECKPOINT[=FISHER]; print the peak of anonymous memory above that before, in MB."""
    parts = [model.split("=") for model in models]
    before = peak = anonymous_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(
        {name: Path(checkpoint) for name, checkpoint, *_ in parts},
        {name: Path(fisher[0]) for name, _, *fisher in parts if fisher},
        Path(out),
        method,
    )
    done.set()
    watcher.join()
    print(round((peak - before) / 1000))


def anonymous_memory() -> int:
    """This process's resident anonymous memory in kB, as Linux counts it."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()  # as the stage does
