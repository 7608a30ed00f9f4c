"""Every class of transformers' auto mappings, in processes of their own, and the table of what came of them."""

import multiprocessing
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from tests.architectures.judge import OUTCOMES, Result, judge_class

MAPPINGS = {
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
}
# What takes seconds to import, and is then shared by all processes.
PRELOADED = ["tests.architectures.judge", "torch._dynamo", "transformers.models.bert.modeling_bert"]
SECONDS = 120  # for one class
Head = tuple[str, str, str]  # task, architecture, class
Judge = Callable[[str, str, str], list[Result]]


def heads() -> list[Head]:
    """Every class once per mapping, with the architecture whose name it bears."""
    from transformers.models.auto import modeling_auto

    found: dict[tuple[str, str], Head] = {}
    for task, mapping in MAPPINGS.items():
        for architecture, classes in getattr(modeling_auto, mapping).items():
            for class_name in [classes] if isinstance(classes, str) else classes:
                if (task, class_name) not in found or _named_after(class_name, architecture):
                    found[task, class_name] = (task, architecture, class_name)
    return list(found.values())


def _named_after(class_name: str, architecture: str) -> bool:
    name = re.sub("[^a-z0-9]", "", architecture)
    return bool(re.match(f"{name}(for|lmhead|withlmhead|$)", class_name.lower()))


def census(chosen: Sequence[Head], processes: int = 2) -> Iterator[Result]:
    """The results, architecture by architecture; a process that dies or hangs takes nothing else with it."""
    by_architecture: dict[str, list[Head]] = {}
    for head in chosen:
        by_architecture.setdefault(head[1], []).append(head)
    with ThreadPoolExecutor(processes) as pool:
        for results in pool.map(in_processes, by_architecture.values()):
            yield from results


def in_processes(chosen: Sequence[Head], judge: Judge = judge_class, seconds: float = SECONDS) -> list[Result]:
    """The results of classes that one process judges after the other; it is started again where it died or hung."""
    results: list[Result] = []
    left = list(chosen)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    while left:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(left, judge, sender), daemon=True)
        process.start()
        sender.close()
        try:
            while left:
                if not receiver.poll(seconds):
                    results += _failed(left.pop(0), f"no answer within {seconds} s")
                    break
                results += receiver.recv()
                left.pop(0)
        except EOFError:
            process.join()
            results += _failed(left.pop(0), f"the process died (exit code {process.exitcode})")
        finally:
            process.kill()
            process.join()
    return results


def _failed(head: Head, why: str) -> list[Result]:
    return [Result(*head, "all", "crashing", why)]


def _work(chosen: Sequence[Head], judge: Judge, sender: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # transformers' advice
    import torch

    torch.set_num_threads(1)
    for head in chosen:
        sender.send(judge(*head))


def worst(results: Sequence[Result]) -> dict[Head, str]:
    """The worst outcome of each class; where it can be built in one type only, that one's."""
    found: dict[Head, str] = {}
    for result in results:
        head = (result.task, result.architecture, result.class_name)
        found[head] = max(found.get(head, OUTCOMES[0]), result.outcome, key=OUTCOMES.index)
    return found


def table(results: Sequence[Result]) -> str:
    """Markdown: a row per mapping."""
    outcomes = worst(results)
    counts = Counter((head[0], outcome) for head, outcome in outcomes.items())
    columns = [*OUTCOMES[1:], OUTCOMES[0]]
    names = ["exact at full speed", "exact, slow in part", "refused by name", "wrong", "crashing", "not buildable"]
    rows = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for task in MAPPINGS:
        rows.append(f"| {task} | " + " | ".join(str(counts[task, outcome]) for outcome in columns) + " |")
    rows.append("| all | " + " | ".join(str(sum(counts[t, o] for t in MAPPINGS)) for o in columns) + " |")
    return "\n".join(rows)


def details(results: Sequence[Result], outcomes: Sequence[str]) -> str:
    """A line for each result with one of these outcomes."""
    return "\n".join(
        f"{result.outcome}: {result.task} {result.architecture} {result.class_name} ({result.setting}): {result.detail}"
        for result in results
        if result.outcome in outcomes
    )


def run(patterns: Sequence[str]) -> int:
    """Print the table and what is bad; everything, for the architectures that are named. 1 if anything is bad."""
    start = time.monotonic()
    chosen = [head for head in heads() if not patterns or head[1] in patterns or head[2] in patterns]
    results = list(census(chosen))
    print(details(results, OUTCOMES if patterns else OUTCOMES[2:] + OUTCOMES[:1]), end="\n\n")
    print(table(results))
    print(f"\n{len(chosen)} classes in {time.monotonic() - start:.0f} s")
    return int(bool({"wrong", "crashing"} & set(worst(results).values())))
