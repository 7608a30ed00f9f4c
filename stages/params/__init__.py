"""The schema of params.yaml: every knob, its default and its bounds, in one place."""

from stages.params.loading import PARAMS_FILE, load_params, parse_params
from stages.params.merges import Ensemble, Merge, Search, Weighted
from stages.params.schema import (
    SPLITS,
    Corruption,
    FinetuneSettings,
    FisherSettings,
    Images,
    Model,
    Params,
    Split,
    Task,
    TaskSplit,
)
from stages.storage.source import Source

__all__ = [
    "PARAMS_FILE",
    "SPLITS",
    "Corruption",
    "Ensemble",
    "FinetuneSettings",
    "FisherSettings",
    "Images",
    "Merge",
    "Model",
    "Params",
    "Search",
    "Source",
    "Split",
    "Task",
    "TaskSplit",
    "Weighted",
    "load_params",
    "parse_params",
]
