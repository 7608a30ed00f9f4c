"""fetch@SOURCE: a pinned package archive, Hub repository, local path or URL → data/sources/SOURCE/."""

from stages.pipeline.places import SOURCES
from stages.pipeline.stage_settings import stage_params
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.storage.sources import fetch_source


def fetch(name: str) -> None:
    """Bring the source `name` in, whole, after checking it against its pin."""
    sources = stage_params(f"fetch@{name}").sources
    if name not in sources:
        raise InputError(f"params.yaml: sources: there is no source {name!r}")
    fetch_source(sources[name], SOURCES / name)


if __name__ == "__main__":
    run_stage(fetch, "source")
