"""A project of images with real dvc."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from stages.storage.digests import tree_sha256
from stages.tasks.data import TaskData
from stages.tasks.task import SPLITS
from tests.project import Project
from tests.tiny import pixel_table, save_image_processor, stripes, tiny_vit

LABELS = ["across", "down"]


def test_a_project_of_images(tmp_path: Path) -> None:
    """From pixels to the report with real dvc: clean and corrupted halves, two merges, a search."""
    inputs = tmp_path / "inputs"
    tiny_vit().config.save_pretrained(inputs / "base")
    save_image_processor(inputs / "base")
    (inputs / "tables").mkdir()
    pixel_table(*stripes(120, 0)).to_csv(inputs / "tables" / "stripes.csv.gz", index=False, header=False)
    task: dict[str, Any] = {
        "kind": "image-classification",
        "source": "tables",
        "file": "stripes.csv.gz",
        "columns": ["pixels", "label"],
        "image": {"pixels": [8, 8]},
        "labels": LABELS,
    }
    halves = {"clean": 0.5, "dark": 0.5}
    methods: dict[str, dict[str, Any]] = {
        "sought": {"method": "fisher", "search": {"sampler": "grid", "points": 3}},
        "blocks": {"method": "kfac"},
    }
    params = {
        "sources": {
            name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
        },
        "tasks": {
            "clean": {**task, "part": [0, 0.5]},
            "dark": {**task, "part": [0.5, 1], "corruptions": [{"invert": True}, {"gaussian_noise": 0.05}]},
        },
        "finetune": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "from_scratch": True},
        "fisher": {"examples": 20, "batch_size": 4},
        "models": {name: {"base": "base", "task": name} for name in halves},
        "merges": {name: {**entry, "coefficients": dict(halves)} for name, entry in methods.items()},
    }
    project = Project(tmp_path / "project", params)
    project.run("python", "-m", "stages.plan")
    project.repro()
    clean = TaskData.open(project.root / "data/tasks/clean")
    read = [clean.read(split)["pixels"] for split in SPLITS]
    assert 40 < len(set(pd.concat(read))) < 80
    for name in methods:
        found = json.loads((project.root / "results/eval" / name / "metrics.json").read_text())
        assert found["tasks"].keys() == {"clean", "dark"}
    assert len(pd.read_csv(project.root / "results/search/sought/sweep.csv")) == 3
    assert "sought" in (project.root / "results/report/report.html").read_text()
