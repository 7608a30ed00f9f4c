"""Whose calls a parameter's gradients are taken from: the modules that own it or, where these do not do, larger ones.

A module that owns a parameter may never be called (its weight is used by another), or be called once for the whole
batch (relative positions), so that its examples' gradients do not arrive apart. Then the parameter's gradient is that
of the nearest module around it that is called example by example: of this module alone, not of the whole model.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from stages.curvature.calls import Layout
from stages.curvature.rules import Rule, local_rule, rule_for

LARGEST_SHARE = 0.5  # of a model's parameters: beyond that, a module's passes cost what the whole model's do

Owners = Mapping[nn.Module, dict[str, str]]  # module → its name of a parameter → the model's


@dataclass(frozen=True)
class Unit:
    """A module whose calls are observed.

    Attributes:
        module: the module.
        names: its name of a parameter (`weight`, or with a path, `attention.weight`) → the model's.
        rule: how its squared gradients come about.
        layouts: of its calls, in their order; empty where no gradients are taken.
    """

    module: nn.Module
    names: Mapping[str, str]
    rule: Rule
    layouts: Sequence[Layout] = ()


class Homes:
    """For each parameter the modules whose calls its gradients are taken from.

    Args:
        model: whose parameters these are.
        names: of the parameters.
        layouts: of the modules that are called example by example.
        called: all modules that are called.

    Attributes:
        lost: the parameters for which there are no such modules.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Collection[str],
        layouts: Mapping[nn.Module, Sequence[Layout]],
        called: Collection[nn.Module],
    ) -> None:
        self._layouts = layouts
        self._path = {module: path for path, module in model.named_modules()}
        self._module = dict(model.named_modules())
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        most = LARGEST_SHARE * sum(parameter.numel() for parameter in model.parameters())
        self._small = {
            module for module in self._path if sum(parameter.numel() for parameter in module.parameters()) <= most
        }
        self._homes: dict[str, set[nn.Module]] = {}
        self.lost: set[str] = set()
        self._owners: defaultdict[str, set[nn.Module]] = defaultdict(set)
        for module, own in owners(model, names).items():
            for name in own.values():
                self._owners[name].add(module)
        for name in names:
            # An owner that is never called (the table that BART's encoder and decoder share) has no use of its own.
            self._settle(name, self._owners[name] & set(called) or self._owners[name])

    def widen(self, name: str) -> None:
        """Take the parameter's gradients from the next larger module around all that they were taken from."""
        homes = self._homes.pop(name, set())
        around = self._around(homes) if homes else None
        self._settle(name, set() if around is None else {around})

    def units(self, names: Collection[str]) -> list[Unit]:
        """The modules that the gradients of these parameters are taken from."""
        found: defaultdict[nn.Module, dict[str, str]] = defaultdict(dict)
        for name in names:
            for module in self._homes.get(name, ()):
                found[module] |= self._keys(module, name)
        return [Unit(module, keys, self._rule(module, keys), self._layouts[module]) for module, keys in found.items()]

    def beside(self, name: str) -> set[str]:
        """The other parameters that the modules with this one's gradients own."""
        homes = self._homes.get(name, set())
        return {other for other, owned in self._owners.items() if other != name and not homes.isdisjoint(owned)}

    def is_its_owners(self, name: str) -> bool:
        """Whether the parameter's gradients are taken from modules that own it."""
        return self._homes.get(name, set()) <= self._owners[name]

    def called(self, name: str, calls: Collection[nn.Module]) -> bool:
        """Whether one of the modules that own the parameter is among those."""
        return not self._owners[name].isdisjoint(calls)

    def _rule(self, module: nn.Module, keys: Mapping[str, str]) -> Rule:
        return local_rule() if any("." in key for key in keys) else rule_for(module)

    def _keys(self, module: nn.Module, name: str) -> dict[str, str]:
        """What the module calls the parameter; one of its names does for all uses inside."""
        own = [key for key, parameter in module.named_parameters() if self._names[id(parameter)] == name]
        return {own[0]: name}

    def _settle(self, name: str, modules: Collection[nn.Module]) -> None:
        """Make the nearest modules around these that are called by example the parameter's; lost if one has none."""
        found = {self._suitable(module) for module in modules}
        if not found or None in found:
            self.lost.add(name)
            return
        paths = {self._path[module]: module for module in found if module is not None}
        outer = {path for path in paths if not any(_inside(path, other) for other in paths)}
        self._homes[name] = {paths[path] for path in outer}

    def _suitable(self, module: nn.Module) -> nn.Module | None:
        """The module itself or the nearest around it that is called by example and is not most of the model."""
        if module in self._layouts:
            return module
        path = self._path[module].rpartition(".")[0]
        while path:
            around = self._module[path]
            if around in self._layouts and around in self._small:
                return around
            path = path.rpartition(".")[0]
        return None

    def _around(self, modules: Collection[nn.Module]) -> nn.Module | None:
        paths = [self._path[module].split(".") for module in modules]
        if len(paths) == 1:
            common = paths[0][:-1]
        else:
            common = []
            for parts in zip(*paths, strict=False):
                if len(set(parts)) > 1:
                    break
                common.append(parts[0])
        return self._module[".".join(common)] if common else None


def _inside(path: str, other: str) -> bool:
    return path.startswith(f"{other}.") or (other == "" and path != "")


def owners(model: nn.Module, names: Collection[str]) -> Owners:
    """The modules that own the named parameters directly: module → its name of the parameter → the model's.

    A parameter that several modules share has one name in the model and several owners; a module that has it from one
    of its submodules (the bias of BERT's decoder) leaves its use to that one.
    """
    model_name = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for module in model.modules():
        inner = {id(parameter) for child in module.children() for parameter in child.parameters()}
        own = {
            key: model_name[id(parameter)]
            for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if model_name[id(parameter)] in names and id(parameter) not in inner
        }
        if own:
            found[module] = own
    return found
