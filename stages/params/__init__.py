"""The schema of params.yaml: every knob, its default and its bounds, in one place."""

from stages.params.loading import PARAMS_FILE, load_params, parse_params
from stages.params.merges import Ensemble, Merge, Search, Weighted
from stages.params.schema import FinetuneSettings, FisherSettings, Model, Params
from stages.storage.source import Source

__all__ = [
    "PARAMS_FILE",
    "Ensemble",
    "FinetuneSettings",
    "FisherSettings",
    "Merge",
    "Model",
    "Params",
    "Search",
    "Source",
    "Weighted",
    "load_params",
    "parse_params",
]
