"""The code that a stage runs, found by its imports: what DVC makes it depend on, and what a saved state belongs to."""

import ast
import fnmatch
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
# Imports that are not followed, and why they decide no byte of an output, or where DVC sees what they decide.
UNFOLLOWED = {
    "stages": "what is said of an interrupt while a stage is being imported",
    "stages.running.command": "how a stage is started, and how it says what went wrong",
    "stages.running.interruption": "what is said of an interrupt",
    "stages.running.errors": "the words of an error",
    "stages.pipeline.code": "which saved state is taken up; whichever is, the result is the same",
    "stages.tasks.kinds": "which kinds there are; of which of them its tasks are is in a stage's entry of dvc.yaml",
    "stages.params": "the values that it makes of params.yaml are in the stage's settings, which it depends on",
    "stages.pipeline.places": "where inputs and outputs lie is in the stage's entry of dvc.yaml",
    "stages.pipeline.needs": "which these are is there too, and in what order, if that counts, in the stage's settings",
    "stages.pipeline.graph": "the same",
    "stages.pipeline.plan_file": "only refuses",
    "stages.pipeline.stage_settings": "compares the settings with what DVC has of them",
    "stages.estimation.verification": "only refuses",
    "stages.storage.sources": "what it brings is pinned by its digest; the stage `fetch` names it",
}
CHOSEN_AT_RUN_TIME = {  # what a module imports by a name that only a run knows, as patterns
    "stages.merging": ("stages.merging.checkpoints", "stages.merging.saving"),
    "stages.estimation.accumulators": ("stages.curvature.accumulators",),  # and what the graph knows of a statistic
    "stages.merging.methods": ("stages.merging.methods.*.options",),
    "stages.merging.rules": ("stages.merging.methods.*.rule",),
    "stages.tasks.kinds": ("stages.tasks.kinds.*.settings",),
    "stages.tasks.reading": ("stages.tasks.kinds.*.reading",),
}
READ = {  # what a module reads of the project, beside what it imports
    "stages.reporting.page": "stages/reporting/templates",
    # All the statistics. The graph tells other stages of those that they use, so that a new one re-runs none of them.
    "stages.reporting.tables": "stages/storage/statistics",
    "stages.pipeline.needs": "stages/storage/statistics",
}


def code_of(*modules: str) -> list[str]:
    """The paths of the modules and of all that they import, directly or not and wherever in a function, sorted.

    A package of which all modules are among them is one path, its directory. Importing a module of a package counts as
    importing just that module: the package's own `__init__` hands on names to those who import from the package.

    Args:
        modules: below `stages`, for example `finetune`, `tasks.kinds.masked_lm.kind`.
    """
    found = _closure(tuple(f"stages.{module}" for module in modules))
    paths = {_path(module, found) for module in found} | {READ[module] for module in found & READ.keys()}
    return sorted(path for path in paths if paths.isdisjoint(map(str, Path(path).parents)))


def code_sha256(*modules: str) -> str:
    """SHA-256 of the code that `code_of` lists: a state that other code has saved is another one."""
    found = _closure(tuple(f"stages.{module}" for module in modules))
    digest = sha256()
    for module in sorted(found):
        digest.update(f"{module} {sha256(_modules()[module].read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def _closure(modules: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    ahead = list(modules)
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += (other for other in _imports(module) if other not in UNFOLLOWED)
    return frozenset(found)


@cache
def _modules() -> dict[str, Path]:
    """Module → file, of all there are."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    """The modules of `stages` that a module imports when it runs."""
    found = {
        name
        for node in _executed(ast.parse(_modules()[module].read_bytes()))
        for name in _imported_names(node)
        if name in _modules()
    }
    chosen = CHOSEN_AT_RUN_TIME.get(module, ())
    return frozenset(found.union(*(fnmatch.filter(_modules(), pattern) for pattern in chosen)))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below it, without what is for type checkers only."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _executed(other)
        else:
            yield from _executed(child)


def _imported_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in _modules() else node.module


def _path(module: str, found: frozenset[str]) -> str:
    """A module's file, or the directory of the outermost package of which all modules are found.

    Where each folder of a package may be imported, that package is one path: a new folder changes no dvc.yaml.
    """
    chosen = [pattern for other in found for pattern in CHOSEN_AT_RUN_TIME.get(other, ())]
    parts = module.split(".")
    for depth in range(2, len(parts) + 1):
        package = ".".join(parts[:depth])
        inner = {name for name in _modules() if name.startswith(f"{package}.")}
        whole = all(name in found or not _modules()[name].stat().st_size for name in inner)
        if inner and (whole or any(pattern.startswith(f"{package}.*") for pattern in chosen)):
            return _modules()[package].parent.relative_to(PACKAGE.parent).as_posix()
    return _modules()[module].relative_to(PACKAGE.parent).as_posix()
