"""Where every artefact lies, from the project's root. dvc.yaml says the same to DVC."""

from pathlib import Path

SOURCES = Path("data/sources")
TASKS = Path("data/tasks")
FINETUNED = Path("models/finetuned")
FISHERS = Path("models/fishers")
KFAC = Path("models/kfac")
GRAM = Path("models/gram")
SETTINGS = Path("results/settings")
SEARCH = Path("results/search")
MERGED = Path("models/merged")
TRAINING = Path("results/training")
EVAL = Path("results/eval")
SIMILARITY = Path("results/similarity")
SCORES = Path("results/scores")
REPORT = Path("results/report")
