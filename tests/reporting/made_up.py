"""Scores like those of a real run: four models on four tasks, merges, a baseline, sweeps along λ, a search, Fishers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stages.results.scores import Contributions, Result, Scores
from stages.tasks.metrics import Accuracy

TASKS = ("books", "films", "news", "posts")
EXAMPLES = 200
QUARTERS = dict.fromkeys(TASKS, 0.25)


def made_up_scores() -> Scores:
    """Everything that a report can show, the same in every run."""
    random = np.random.default_rng(0)
    difficulty = {task: random.normal(size=EXAMPLES) for task in TASKS}

    def result(
        name: str, role: str, skills: dict[str, float], origin: dict[str, Any], searched: bool = False
    ) -> Result:
        per_example: dict[str, Contributions] = {}
        metrics = {}
        for task, skill in skills.items():
            right = (skill + 0.5 * random.normal(size=EXAMPLES) > difficulty[task]).astype(int)
            low, high = Accuracy().interval(right)
            accuracy = float(right.mean())
            metrics[task] = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
            metrics[task] |= {"macro_f1": accuracy - 0.01, "examples": EXAMPLES}
            examples = f"the test split of {task}"
            per_example[task] = {"examples": examples, "metric": "accuracy", "values": right.tolist()}
        return Result(name, role, metrics, origin, searched, per_example)

    def skills(λ: dict[str, float], bonus: float = 0.0) -> dict[str, float]:
        return {task: 0.7 + bonus + 1.1 * λ.get(task, 0.0) ** 0.7 for task in TASKS}

    finetuned = {"method": "finetuned", "base": "base", "examples": 2000, "epochs": 2, "learning_rate": 1e-4, "seed": 0}
    results = [
        result(name, "model", skills({name: 1.0}), finetuned | {"task": name, "batch_size": 32}) for name in TASKS
    ]
    for name, method, bonus in (
        ("average", "isotropic", 0.1),
        ("fisher", "fisher", 0.15),
        ("regmean", "regmean", 0.35),
        ("kfac", "kfac", 0.35),
    ):
        results.append(result(name, "merge", skills(QUARTERS, bonus), merged(method, QUARTERS)))
    sought = {"books": 0.4, "films": 0.3, "news": 0.2, "posts": 0.1}
    results.append(result("fisher-searched", "merge", skills(sought, 0.2), merged("fisher", sought), searched=True))
    for method, bonus in (("isotropic", 0.0), ("fisher", 0.1)):
        for step in range(0, 11, 2):
            λ = {"books": step / 10, "films": 1 - step / 10}
            hump = bonus * 4 * λ["books"] * λ["films"]
            results.append(result(f"{method}-{step}", "merge", skills(λ, hump), merged(method, λ)))
    results.append(result("ensemble", "baseline", skills(QUARTERS), {"method": "ensemble", "coefficients": QUARTERS}))
    return Scores(results, {"fisher-searched": _points(random)}, _fishers(random))


def made_up_transfers(results: Sequence[Result]) -> list[Result]:
    """Merges of `books` with one donor each, as good as the average of all, that keep its head."""
    average = next(result for result in results if result.name == "average")
    kept = {"target": "books", "heads": "target"}
    return [
        replace(average, name=f"books-{donor}", origin=merged("fisher", {"books": 0.7, donor: 0.3}) | kept)
        for donor in ("news", "posts")
    ]


def merged(method: str, λ: dict[str, float]) -> dict[str, Any]:
    """The origin of a merge, as the evaluation has it."""
    fisher = {"estimator": "exact", "likelihood": "categorical", "examples": 512, "seed": 0}
    return {
        "method": method,
        "options": {"floor": 1e-6, "favor_target": True, "normalize": "l2"} if method == "fisher" else {},
        "precision": "float32",
        "target": min(λ),
        "heads": "merge",
        "coefficients": λ,
        "models": {name: {"task": name} | ({"fisher": fisher} if method == "fisher" else {}) for name in λ},
    }


def _points(random: np.random.Generator) -> list[dict[str, float]]:
    points = []
    for number, λ in enumerate(random.dirichlet(np.ones(len(TASKS)), size=30)):
        score = 0.85 - float(((λ - 0.25) ** 2).sum()) / 5
        row = {f"λ {task}": float(value) for task, value in zip(TASKS, λ, strict=True)}
        points.append({"point": float(number), **row, **{f"{task} accuracy": score for task in TASKS}, "score": score})
    return points


def _fishers(random: np.random.Generator) -> dict[str, Any]:
    parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    parts += ["intermediate.dense", "output.dense", "output.LayerNorm"]
    names = ["bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.weight"]
    names += [f"bert.encoder.layer.{i}.{part}.weight" for i in range(6) for part in parts]
    names += ["bert.pooler.dense.weight", "classifier.weight"]
    tensors = {
        task: {name: {"entries": 100, "sum": float(random.lognormal(sigma=1.5))} for name in names} for task in TASKS
    }
    matrix = {a: {b: 1.0 if a == b else 0.6 + 0.05 * abs(len(a) - len(b)) for b in TASKS} for a in TASKS}
    return {
        "cosine": matrix,
        "overlap": matrix,
        "shared": {a: dict.fromkeys(TASKS, 1.0) for a in TASKS},
        "tensors": tensors,
    }
