"""Where every artefact lies, from the project's root. dvc.yaml says the same to DVC."""

from pathlib import Path

SOURCES = Path("data/sources")
TASKS = Path("data/tasks")
FINETUNED = Path("models/finetuned")
FISHERS = Path("models/fishers")
MERGED = Path("models/merged")
TRAINING = Path("results/training")
EVAL = Path("results/eval")
REPORT = Path("results/report")
