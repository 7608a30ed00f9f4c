"""The code that a stage runs, found by its imports: what it depends on, and what a saved state belongs to."""

import ast
import fnmatch
import json
import os
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

from stages.pipeline.places import code_file
from stages.running.errors import InputError

RUN_BY_DVC = "DVC_STAGE"  # environment variable that DVC sets
# Also where `dvc commit` has recorded a change that the stage `settings` has not written down.
REMEDY = "run `dvc repro --force settings`, then `dvc repro` again"
PACKAGE = Path(__file__).parent.parent
# Imports that are not followed, and why they decide no byte of an output, or where DVC sees what they decide.
UNFOLLOWED = {
    "stages": "what is said of an interrupt while a stage is being imported",
    "stages.running.command": "how a stage is started, and how it says what went wrong",
    "stages.running.interruption": "what is said of an interrupt",
    "stages.running.errors": "the words of an error",
    "stages.pipeline.code": "which saved state is taken up; whichever is, the result is the same",
    "stages.tasks.kinds": "which kinds there are; those of its tasks are among its modules",
    "stages.params": "the values that it makes of params.yaml are in the stage's settings, which it depends on",
    "stages.params.adapters": "the same",
    "stages.pipeline.places": "where inputs and outputs lie is in the stage's entry of dvc.yaml",
    "stages.pipeline.needs": "which these are is there too, and in what order, if that counts, in the stage's settings",
    "stages.pipeline.graph": "the same",
    "stages.pipeline.plan_file": "only refuses",
    "stages.pipeline.stage_settings": "compares the settings with what DVC has of them",
    "stages.estimation.verification": "only refuses",
    "stages.storage.sources": "what it brings is pinned by its digest; the stage `fetch` names it",
    "stages.storage.gguf": "the stages that fetch a GGUF file name it",
}
CHOSEN_AT_RUN_TIME = {  # what a module imports by a name that only a run knows, and `stage_code` does not, as patterns
    "stages.estimation.accumulators": ("stages.curvature.accumulators",),  # and what the graph knows of a statistic
    "stages.tasks.kinds": ("stages.tasks.kinds.*.settings",),
}
READ = {  # directories below `stages` that a module reads, beside what it imports
    "stages.reporting.page": "reporting/templates",
    # All the statistics. `stage_code` names those that other stages use, so that a new one re-runs none of them.
    "stages.reporting.tables": "storage/statistics",
}


def code_of(*modules: str) -> dict[str, str]:
    """Path → SHA-256, sorted, of the modules, of all that they import, directly or not, and of what these read.

    An import counts wherever it stands, in a function too. Importing a module of a package counts as importing just
    that module: the package's own `__init__` hands on names to those who import from the package.

    Args:
        modules: below `stages`, for example `finetune`, `tasks.kinds.masked_lm.kind`, or `merging.methods.fisher.*` for
            all of a package.

    Raises:
        KeyError: there is no such module.
    """
    found = _closure(tuple(name for module in modules for name in _named(f"stages.{module}")))
    files = {_modules()[module] for module in found}
    for module in found & READ.keys():
        files |= {file for file in (PACKAGE / READ[module]).rglob("*") if file.is_file() and file.suffix != ".pyc"}
    return dict(sorted((file.relative_to(PACKAGE.parent).as_posix(), _sha256(file)) for file in files))


def code_sha256(*modules: str) -> str:
    """SHA-256 of the code that `code_of` lists: a state that other code has saved is another one."""
    return sha256("".join(f"{path} {digest}\n" for path, digest in code_of(*modules).items()).encode()).hexdigest()


def check_code(stage: str) -> None:
    """Raise `InputError` if dvc runs the stage and a file of its code is another one than dvc is going to record."""
    for path, digest in (recorded_code(stage) if RUN_BY_DVC in os.environ else {}).items():
        if not Path(path).is_file() or sha256(Path(path).read_bytes()).hexdigest() != digest:
            raise InputError(f"{path}: was changed after the stage `settings` ran; {REMEDY}")


def recorded_code(stage: str) -> dict[str, str]:
    """What the stage `settings` has written of the code of another; nothing, where its file is not here.

    Raises:
        InputError: the file is damaged.
    """
    file = code_file(stage)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (TypeError, ValueError):  # it is no text, no JSON or no mapping
        raise InputError(f"{file}: cannot be read; {REMEDY}") from None


def _named(pattern: str) -> list[str]:
    names = fnmatch.filter(_modules(), pattern)
    if not names:
        raise KeyError(pattern)
    return names


@cache
def _sha256(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


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
    """A node and the statements below it, without those that are for type checkers only."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):  # most nodes, and none is or has an import
            continue
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
