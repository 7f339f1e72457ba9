"""Which packages can be learned from together, under which classes and for which network. Torch-free.

The texts are read on the command line, where a class map is given with `--map A=B`, and over REST, where it is the
field `class_map`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ppdd_core.config import NetConfig
from ppdd_core.errors import BadConfigError

Name = tuple[str, str, str]  # of a package: name, version, sha256 of the manifest

HOW = "(--map on the command line, class_map in a request)"


def join_classes(offered: Iterable[str], class_map: Mapping[str, str]) -> tuple[str, ...]:
    """Return the joined classes, sorted, of all classes that are `offered`, renamed by `class_map`.

    BadConfigError: the map renames a class that is not there, or twice, or to nothing; two names look like one and the
    map neither joins them nor keeps them apart; fewer than two classes are left.
    """
    names = set(offered)
    _check_map(names, class_map)
    classes = tuple(sorted({class_map.get(name, name) for name in names}))
    _refuse_alike(classes, {name for name, new in class_map.items() if name == new})
    if len(classes) < 2:
        raise BadConfigError(
            f"a detector needs at least two classes, and what is left is: {', '.join(classes)}"
        )
    return classes


def choose_net(wanted: str | None, nets: Sequence[NetConfig], names: Sequence[Name]) -> NetConfig:
    """Return the network to train: the architecture `wanted`, else the one that all packages were distilled for.

    Of the wanted architecture the shape that a package was distilled for is taken, where there is one. BadConfigError
    where none is wanted and the packages differ.
    """
    if wanted is not None:
        same = [net for net in nets if net.architecture == wanted]
        return same[0] if same else NetConfig(architecture=wanted)  # type: ignore[arg-type]  # checked by NetConfig
    for name, net in zip(names, nets, strict=True):
        if net != nets[0]:
            raise BadConfigError(
                f"{name[0]} was distilled for another network than {names[0][0]}; "
                f"choose one (--net on the command line, net in a request)"
            )
    return nets[0]


def refuse_repeated(names: Sequence[Name]) -> None:
    """Refuse with BadConfigError a package that is there twice: it would count double."""
    digests = [digest for _, _, digest in names]
    for name, version, digest in names:
        if digest and digests.count(digest) > 1:
            raise BadConfigError(f"the package {name} {version} was given twice; give it once")


def refuse_sizes(sizes: Sequence[int], names: Sequence[Name]) -> None:
    """Refuse with BadConfigError packages of different image sizes."""
    for (name, _, _), size in zip(names, sizes, strict=True):
        if size != sizes[0]:
            raise BadConfigError(
                f"{name} has images of {size} pixels, {names[0][0]} of {sizes[0]}; a distilled image cannot be "
                f"resized, so train a detector for each or ask for a package of the same size"
            )


def _check_map(names: set[str], class_map: Mapping[str, str]) -> None:
    unknown = sorted(set(class_map) - names)
    if unknown:
        raise BadConfigError(
            f"the class map renames {unknown[0]!r}, but no package or local image has that class; "
            f"there are {', '.join(sorted(names))}"
        )
    for old, new in sorted(class_map.items()):
        if class_map.get(new, new) != new:
            raise BadConfigError(
                f"the class map renames {old!r} to {new!r} and {new!r} to {class_map[new]!r}; "
                f"name the last one for both"
            )
        if not new.strip():
            raise BadConfigError(f"the class map gives {old!r} an empty name")


def _refuse_alike(classes: tuple[str, ...], kept_apart: set[str]) -> None:
    alike: dict[str, str] = {}
    for name in classes:
        folded = "".join(letter for letter in name.casefold() if letter.isalnum())
        other = alike.setdefault(folded, name)
        if other != name and not {other, name} & kept_apart:
            raise BadConfigError(
                f"the classes {other!r} and {name!r} look like one: join them by mapping {other}={name}, "
                f"or keep them apart by mapping {other}={other} {HOW}"
            )
