"""Where every artefact lies, from the project's root. dvc.yaml says the same to DVC."""

from pathlib import Path

from stages.storage.statistics import STATISTICS

SOURCES = Path("data/sources")
TASKS = Path("data/tasks")
FINETUNED = Path("models/finetuned")
STATISTIC_PLACES = {name: Path("models") / kind.directory for name, kind in STATISTICS.items()}
FISHERS = STATISTIC_PLACES["diagonal"]
SETTINGS = Path("results/settings")
CODE = Path("results/code")
SEARCH = Path("results/search")
MERGED = Path("models/merged")
TRAINING = Path("results/training")
EVAL = Path("results/eval")
SIMILARITY = Path("results/similarity")
SCORES = Path("results/scores")
REPORT = Path("results/report")


def settings_file(stage: str) -> Path:
    """What the stage of that name is told by params.yaml."""
    return SETTINGS / f"{stage}.json"


def code_file(stage: str) -> Path:
    """The files of code that the stage of that name runs, with their SHA-256."""
    return CODE / f"{stage}.json"
