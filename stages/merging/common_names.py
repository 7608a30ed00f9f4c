"""One name for each tensor of a merge, though files spell it differently: the target's, wherever transformers loads
two files' tensors into one place."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stages.running.errors import InputError
from stages.storage import naming
from stages.storage.checkpoint import BaseWeights, Checkpoint
from stages.storage.naming import Model
from stages.storage.statistic_files import StatisticFiles
from stages.storage.tensors import TensorFiles

_PROBES = 16  # values of a tensor that are looked at to see whether it may be another's copy


@dataclass(frozen=True)
class Spelled:
    """All of a merge whose tensors have names."""

    checkpoints: Mapping[str, Checkpoint]
    statistics: dict[str, dict[str, StatisticFiles]]
    further: dict[str, StatisticFiles]
    base: BaseWeights | None

    @property
    def target(self) -> Checkpoint:
        """The first of the checkpoints."""
        return next(iter(self.checkpoints.values()))

    def alike(self, *, donors_may_lack: bool) -> bool:
        """Whether equal names mean equal tensors and no others do, as far as names alone can say.

        Cheap: it asks no library and reads a few values. Where it says no, `common_names` knows better.

        Args:
            donors_may_lack: whether tensors that are the target's alone are no reason to doubt.
        """
        return (
            all(
                _alike(self.target, other, donors_may_lack)
                for other in self.checkpoints.values()
                if other is not self.target
            )
            and not any(_may_repeat(checkpoint.tensors) for checkpoint in self.checkpoints.values())
            and (self.base is None or _base_alike(self.target, self.base))
            and all(
                _statistic_alike(files, self.checkpoints[name].tensors)
                for statistics in self.statistics.values()
                for name, files in statistics.items()
            )
            and all(_further_alike(self.target, fisher) for fisher in self.further.values())
        )


def common_names(spelled: Spelled) -> Spelled:
    """The same with all tensors under the target's names; as it was where transformers does not know the model.

    Of a tied tensor one copy is left, and nothing of what transformers does not load.

    Raises:
        InputError: some of the models hold tied tensors with values of their own, and others do not.
    """
    models = _models(spelled.checkpoints.values())
    model = models.get(spelled.target.architecture)
    if model is None:
        return spelled
    ties = naming.ties(model)
    found = {}
    for name, checkpoint in spelled.checkpoints.items():
        own = models.get(checkpoint.architecture, model)
        found[name] = _own_head(own, checkpoint.tensors) if own is not model else {}
        found[name] |= _names(model, checkpoint)
        if own is not model:
            checkpoint.beyond = naming.model_names(own, checkpoint.tensors).keys() - found[name].keys()
    untied = _untied(spelled.checkpoints, found, ties)
    common = {name: own[0] for name, own in next(iter(found.values())).items()}
    for name, checkpoint in spelled.checkpoints.items():
        called = {common.get(model_name, model_name): model_name for model_name in found[name]}
        stored = {ours: found[name][model_name] for ours, model_name in called.items()}
        copies = {copy: ours for ours, own in stored.items() for copy in own[1:]}
        checkpoint.call({ours: own[0] for ours, own in stored.items()}, called, copies)
    if spelled.base is not None:
        theirs = naming.model_names(model, spelled.base.tensors)
        # A base whose embeddings are tied has its head's tensor too.
        theirs |= {name: theirs[ties[name]] for name in untied - theirs.keys() if ties[name] in theirs}
        spelled.base.call({common[name]: own[0] for name, own in theirs.items() if name in common})

    tied = {name: source for name, source in ties.items() if name not in untied}

    def renamed(files: StatisticFiles, own: Model) -> StatisticFiles:
        placed = {name: place.name for name, place in naming.places(own, _parameters(files)).items()}
        if own is not model:
            placed |= {name: p.name for name, p in naming.places(model, _parameters(files)).items()}
        return _renamed(files, {name: tied.get(found, found) for name, found in placed.items()}, common)

    statistics = {
        kind: {
            name: renamed(files, models.get(spelled.checkpoints[name].architecture, model))
            for name, files in those.items()
        }
        for kind, those in spelled.statistics.items()
    }
    further = {option: renamed(fisher, model) for option, fisher in spelled.further.items()}
    return Spelled(spelled.checkpoints, statistics, further, spelled.base)


def _models(checkpoints: Iterable[Checkpoint]) -> dict[str | None, Model]:
    """A model without values of every class of the checkpoints that transformers knows.

    An adapter's ties embeddings as its base does: what is untied then has its tied value in the base.
    """
    models: dict[str | None, Model] = {}
    for checkpoint in checkpoints:
        if checkpoint.architecture not in models:
            models[checkpoint.architecture] = naming.empty_model(checkpoint.configured, tied_as=checkpoint.base)
    return {architecture: model for architecture, model in models.items() if model is not None}


def _names(model: Model, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The files' names of a checkpoint's tensors, by the model's; an adapter that unties a pair has two, if equal."""
    if checkpoint.adapted is not None and checkpoint.adapted.untied:
        return {place.name: [own] for own, place in naming.places(model, checkpoint.tensors.specs).items()}
    return naming.model_names(model, checkpoint.tensors)


def _own_head(model: Model, tensors: TensorFiles) -> dict[str, list[str]]:
    """The files' names of the tensors outside the model's body, by the model's."""
    body = f"{model.base_model_prefix}."
    return {name: own for name, own in naming.model_names(model, tensors).items() if not name.startswith(body)}


def _untied(
    checkpoints: Mapping[str, Checkpoint], found: Mapping[str, Mapping[str, Sequence[str]]], ties: Mapping[str, str]
) -> set[str]:
    """The names that a configuration ties, and of which all files have copies that differ."""
    untied = {
        name: {alias for alias in ties if alias in names and ties[alias] in names} for name, names in found.items()
    }
    every = set.intersection(*untied.values())
    for name, aliases in untied.items():
        for alias in sorted(aliases - every):
            other = next(other for other in untied if alias not in untied[other])
            raise InputError(
                f"{checkpoints[name].tensors.file}: tensor {found[name][alias][0]} is tied to "
                f"{found[name][ties[alias]][0]} by its config.json, but has other values, while {other}'s are tied; "
                "set `tie_word_embeddings` to false in the config.json of all models whose head is their own"
            )
    return every


def _renamed(files: StatisticFiles, placed: Mapping[str, str], common: Mapping[str, str]) -> StatisticFiles:
    """A statistic under the target's names.

    Args:
        files: of the statistic.
        placed: the model's name of each parameter that it is of; other parameters are left out.
        common: the target's name of each of the model's tensors.
    """
    names: dict[str, str] = {}
    for own, model_name in sorted(placed.items()):
        name = common.get(model_name, model_name)
        if files.kind.is_of_parameters and name in names:
            raise InputError(
                f"{files.tensors.file}: has two tensors, {names[name]} and {own}, of one tied parameter, whose "
                "Fisher is not their sum; estimate this Fisher again"
            )
        both = zip(files.kind.keys(name), files.kind.keys(own), strict=True)
        names |= {key: stored for key, stored in both if stored in files.tensors.specs}
    return replace(files, tensors=files.tensors.called(names))


def _parameters(files: StatisticFiles) -> set[str]:
    """The names of the parameters that a statistic is of."""
    return {files.kind.parameter(key) for key in files.tensors.specs}


def _alike(target: Checkpoint, other: Checkpoint, donors_may_lack: bool) -> bool:
    if target.tensors.specs.keys() == other.tensors.specs.keys():
        return True
    if target.architecture == other.architecture:
        return False
    ours, theirs = target.tensors.specs.keys() - target.head(), other.tensors.specs.keys() - other.head()
    return ours == theirs or bool(donors_may_lack and theirs and theirs <= ours)


def _may_repeat(tensors: TensorFiles) -> bool:
    """Whether a tensor may be a copy of another: of one shape, outside the numbered layers, with equal values."""
    first: dict[tuple[object, ...], list[str]] = {}
    for name, spec in tensors.specs.items():
        if spec.is_floating and spec.elements > 1 and not any(part.isdigit() for part in name.split(".")):
            first.setdefault(spec.shape, []).append(name)
    for names in first.values():
        probes = [_probe(tensors, name) for name in names] if len(names) > 1 else []
        telling = [probe for probe in probes if len(set(probe)) > 1]  # biases of zeros are no copies of each other
        if len(set(telling)) < len(telling):
            return True
    return False


def _probe(tensors: TensorFiles, name: str) -> tuple[float, ...]:
    values = tensors.read(name).reshape(-1)
    return tuple(float(values[i * (len(values) - 1) // (_PROBES - 1)]) for i in range(_PROBES))


def _base_alike(target: Checkpoint, base: BaseWeights) -> bool:
    missing = {name for name in _floating(target.tensors) if base.name_of(name) is None}
    extra = _floating(base.tensors) - {base.name_of(name) for name in target.tensors.specs}
    if base.architecture == target.architecture:
        return not missing
    return not missing or not extra or missing <= target.head()


def _statistic_alike(statistic: StatisticFiles, checkpoint: TensorFiles) -> bool:
    parameters = _parameters(statistic)
    complete = not statistic.kind.is_of_parameters or _floating(checkpoint) <= parameters
    return complete and parameters <= checkpoint.specs.keys()


def _further_alike(target: Checkpoint, fisher: StatisticFiles) -> bool:
    return (target.tensors.specs.keys() & _floating(target.tensors)) - target.head() <= fisher.tensors.specs.keys()


def _floating(tensors: TensorFiles) -> set[str]:
    return {name for name, spec in tensors.specs.items() if spec.is_floating}
