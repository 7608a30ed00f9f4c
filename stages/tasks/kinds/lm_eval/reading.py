"""Preparation of a harness task: its YAML files and data, whole, and a card that says what is evaluated of them."""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from stages.running.errors import InputError
from stages.running.scratch import scratch_directory
from stages.storage.cards import FORMAT_VERSION, library_versions, write_json
from stages.storage.digests import tree_sha256
from stages.tasks.data import TASK_CARD
from stages.tasks.kinds.lm_eval.harness import Terms, built, check_items, sandboxed
from stages.tasks.kinds.lm_eval.settings import LmEval
from stages.tasks.kinds.lm_eval.yaml_files import find_tasks, read_task
from stages.tasks.reading import Preparer

FILES = "harness"  # the directory of YAML files and data, in a prepared task


class HarnessPreparer(Preparer[LmEval]):
    """Copies what tasks are made of, and has lm_eval read it once, so that nothing is found out after training."""

    def prepare(self, task: LmEval, source: Path, directory: Path) -> list[str]:
        """Write `harness/`, the files as the source has them, and the card; see `Preparer`."""
        terms = Terms(task.few_shot, task.seed, task.limit, task.chat_template)
        inner = directory / FILES
        found = {own.name: own for own in find_tasks(source, task.included, task.tasks)}
        for name in dict.fromkeys(name for own in found.values() for name in own.files):
            (inner / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, inner / name)
        counts = {}
        with scratch_directory() as cache, sandboxed():
            for name, own in found.items():
                try:
                    copied = read_task(inner, own.file)
                    counts[name] = check_items(built(copied, task.measures, terms, cache), copied, task.limit)
                except InputError as error:  # of the source's files, where a user looks for them
                    message = str(error).replace(str(inner.resolve()), str(source))
                    raise InputError(message.replace(str(inner), str(source))) from None
        files = {name: own.file for name, own in found.items()}
        evaluated = {**library_versions("lm_eval"), "files": files, **asdict(terms)}
        fingerprint = json.dumps([evaluated, tree_sha256(inner)], sort_keys=True, ensure_ascii=False)
        card = {
            "format_version": FORMAT_VERSION,
            "kind": task.kind,
            "labels": task.output_names,
            "metrics": [metric.name for metric in task.possible_metrics],
            **evaluated,
            "counts": {"test": sum(counts.values())},
            "items": counts,
            "fingerprints": {"test": sha256(fingerprint.encode()).hexdigest()},
        }
        write_json(directory / TASK_CARD, card)
        return []


PREPARER = HarnessPreparer()
