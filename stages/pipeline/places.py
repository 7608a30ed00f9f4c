"""Where every artefact lies, from the project's root. dvc.yaml says the same to DVC."""

from pathlib import Path

from stages.storage.statistics import STATISTICS

SOURCES = Path("data/sources")
TASKS = Path("data/tasks")
FINETUNED = Path("models/finetuned")
STATISTIC_PLACES = {name: Path("models") / kind.directory for name, kind in STATISTICS.items()}
FISHERS = STATISTIC_PLACES["diagonal"]
SETTINGS = Path("results/settings")
SEARCH = Path("results/search")
MERGED = Path("models/merged")
TRAINING = Path("results/training")
EVAL = Path("results/eval")
SIMILARITY = Path("results/similarity")
SCORES = Path("results/scores")
REPORT = Path("results/report")
