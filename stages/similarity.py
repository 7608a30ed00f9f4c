"""similarity: the models' Fishers → results/similarity/similarity.json: how alike they are, and where their mass lies.

The report shows both. A whole Fisher is read for them, so they are a stage of their own.
"""

from stages.pipeline.needs import models_with_fishers
from stages.pipeline.places import FISHERS, SIMILARITY
from stages.pipeline.stage_settings import stage_params
from stages.results.similarity import compare_fishers
from stages.running.command import run_stage
from stages.storage.cards import FORMAT_VERSION, SIMILARITY_FILE, write_json
from stages.storage.digests import write_contents
from stages.storage.outputs import atomic_directory


def similarity() -> None:
    """Compare the Fishers of all models of params.yaml that have one."""
    params = stage_params("similarity")
    content = compare_fishers({model: FISHERS / model for model in models_with_fishers(params)})
    with atomic_directory(SIMILARITY) as partial:
        write_json(partial / SIMILARITY_FILE, {"format_version": FORMAT_VERSION, **content})
        write_contents(partial)


if __name__ == "__main__":
    run_stage(similarity)
