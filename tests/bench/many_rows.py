"""Anonymous memory and time of a text task of many rows: prepared, sampled and encoded.

`python -m tests.bench.many_rows [ROWS] [csv|jsonl|parquet]` makes a table in a temporary directory (TMPDIR; some
600 MB for five million rows, and a few GB for what becomes of it) and works on it in a process of its own.
"""

import multiprocessing
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil

LABELS = ["bad", "good"]
WORDS = 30  # of a text, at most


def texts(rows: int) -> Iterator[tuple[str, str]]:
    """Texts that hardly ever repeat, with labels."""
    from tests.tiny import WORDS as VOCABULARY

    draw = random.Random(0)
    for row in range(rows):
        yield " ".join([str(row), *draw.choices(VOCABULARY, k=draw.randint(5, WORDS))]), LABELS[row % 2]


def make_table(file: Path, rows: int) -> None:
    """Write the table in the form that the file's name says."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    found = texts(rows)
    if file.suffix == ".parquet":
        schema = pa.schema({"text": pa.string(), "label": pa.string()})
        with pq.ParquetWriter(file, schema) as writer:
            while part := [row for _, row in zip(range(100_000), found, strict=False)]:
                writer.write_table(pa.table(dict(zip(schema.names, zip(*part, strict=True), strict=True)), schema))
        return
    with file.open("w") as stream:
        if file.suffix == ".csv":
            stream.write("text,label\n")
            stream.writelines(f"{text},{label}\n" for text, label in found)
        else:
            stream.writelines(f"{json.dumps({'text': text, 'label': label})}\n" for text, label in found)


def anonymous_memory() -> float:
    """That of this process and its children, in MB; what processes share counts once."""
    total = 0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            status = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        found = re.search(r"Pss_Anon:\s*(\d+) kB", status)
        total += int(found[1]) if found else 0
    return total / 1000


@contextmanager
def measured(step: str) -> Iterator[None]:
    """Print the time that a step takes and the peak of anonymous memory meanwhile."""
    done, peak = Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous_memory())

    watcher, began = Thread(target=watch), time.perf_counter()
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    print(f"{step:<9} {time.perf_counter() - began:7.0f} s  {peak[0]:6.0f} MB", flush=True)


def work(folder: Path, file: str) -> None:
    """Prepare the task, draw examples, and encode all of them and some."""
    from stages.tasks.kinds.text_classification.settings import TextClassification
    from stages.tasks.tables import split_examples, write_task

    task = TextClassification.model_validate({"source": "s", "file": file, "labels": LABELS, "max_length": 64})
    directory = folder / "task"
    directory.mkdir()
    with measured("prepared"):
        splits, dropped = split_examples(task, folder)
        write_task(directory, task, splits, dropped)
        del splits


def encode_it(folder: Path) -> None:
    """Draw examples, and encode these and all."""
    from stages.tasks.data import TaskData, draw_examples, encoding_fingerprint, examples_fingerprint
    from stages.tasks.encoding import encode
    from stages.tasks.kinds.text_classification.kind import KIND
    from tests.tiny import tiny_bert, tiny_tokenizer

    task, tokenizer, model = (
        TaskData.open(folder / "task"),
        tiny_tokenizer(),
        tiny_bert(LABELS, max_position_embeddings=64),
    )
    with measured("opened"):
        rows = task.rows("train")
    with measured("sampled"):
        examples_fingerprint(draw_examples(rows, len(rows) // 2, 0))
    with measured("encoded"):
        encoded = encode(KIND, tokenizer, rows, task, model, 0)
    with measured("read"):
        KIND.refuse_unknown(tokenizer, encoded, task)
        KIND.largest_first(encoded)
    with measured("digested"):
        encoding_fingerprint(encoded)


def alone(function: Callable[..., None], *arguments: object) -> None:
    """Run a function in a process of its own, as a stage is. Raises `RuntimeError` if it fails."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} has failed")


def main(rows: int, form: str) -> None:
    """Make the table, and work on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(make_table, folder / f"t.{form}", rows)
        print(f"{rows} rows, {form}, {(folder / f't.{form}').stat().st_size / 1e6:.0f} MB", flush=True)
        alone(work, folder, f"t.{form}")
        alone(encode_it, folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000, sys.argv[2] if len(sys.argv) > 2 else "csv")
