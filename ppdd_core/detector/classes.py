"""Joining the classes of several sources by name, and saying what stands in the way. Torch-free.

The texts are read on the command line, where a class map is given with `--map A=B`, and over REST, where it is the
field `class_map`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ppdd_core.errors import BadConfigError

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
