"""What can be wrong between the splits of a table: leaks, empty classes, unknown labels. No video is opened."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillmotion.data.table import Sample, Table, TableError, comma_list


@dataclass(frozen=True)
class Leak:
    """A group, or a file, that stands in several splits. `str` gives one line for a person.

    Args:
        kind: `group` or `file`.
        name: Which one.
        samples: Its samples by split.
    """

    kind: str
    name: str
    samples: dict[str, list[Sample]]

    def __str__(self) -> str:
        places = " and ".join(f"{split} ({_lines(samples)})" for split, samples in self.samples.items())
        return f"{self.kind} {self.name!r} is in {places}; keep it in one split"


def check_leaks(table: Table, splits: Sequence[str] = ()) -> list[Leak]:
    """Groups with samples in several splits, and files with ranges in several (without a group).

    Args:
        table: With splits; samples without one are passed over.
        splits: Which splits to compare; empty: all.
    """
    found: dict[tuple[str, str], dict[str, list[Sample]]] = {}
    for s in table:
        if s.split is not None and (not splits or s.split in splits):
            key = ("group", s.group) if s.group is not None else ("file", s.name)
            found.setdefault(key, {}).setdefault(s.split, []).append(s)
    return [Leak(kind, name, sides) for (kind, name), sides in found.items() if len(sides) > 1]


Names = Callable[[Sequence[str]], Sequence[str]]
"""From the values of a column to the classes that they name."""


def check_classes(table: Table, train: str, test: str | None, target: str = "label", names: Names = list) -> list[str]:
    """Compares the classes of two splits.

    Args:
        table: With both splits.
        train, test: Names of the splits; without a test split there is nothing to compare.
        target: Column of the class.
        names: Classes in its values.

    Returns:
        A warning, if classes have training samples and no test samples.

    Raises:
        TableError: A class has test samples but none in training, or no training sample has a label.
    """
    known = names(table.select(train).classes(target))
    if test is None:
        return []
    tested = table.select(test)
    found = set(names([s.targets[target] for s in tested if target in s.targets]))
    for name in sorted(found - set(known)):
        lines = _lines([s for s in tested if target in s.targets and name in names([s.targets[target]])])
        numbers = all(re.fullmatch(r"-?[0-9]+\.[0-9]+", other) for other in (name, known[0]) if known)
        raise TableError(
            f"{table.source} {lines}: class {name!r} has samples in split {test!r} and none in {train!r}; add training "
            "samples, correct the label, or remove these rows"
            + (f"; if these are numbers to be learned as such, write {target}:score" if numbers else "")
        )
    missing = [repr(c) for c in known if c not in found]
    if not missing:
        return []
    classes = f"class {missing[0]} has" if len(missing) == 1 else f"classes {comma_list(missing)} have"
    return [f"{table.source}: {classes} samples in split {train!r} and none in {test!r}"]


def check_labels(table: Table, known: Sequence[str], target: str = "label", names: Names = list) -> None:
    """Refuses labels that a model does not know; samples without a label pass.

    Args:
        table: The samples.
        known: Classes of the model.
        target: Column of the class.
        names: Classes in its values.

    Raises:
        TableError: Naming file, lines and label.
    """
    expected = set(known)
    for s in table:
        value = s.targets.get(target)
        if value is not None and (unknown := [name for name in names([value]) if name not in expected]):
            lines = _lines([t for t in table if t.targets.get(target) == value])
            raise TableError(
                f"{table.source} {lines}: unknown {target} {unknown[0]!r}; classes: {comma_list(known)}; "
                "correct the label, or leave it empty for an unlabelled sample"
            )


def _lines(samples: Sequence[Sample]) -> str:
    names = [str(s.line) if s.line else s.name for s in samples]
    kind = "line" if samples[0].line else "file"
    return f"{kind}{'s' if len(names) > 1 else ''} {comma_list(names, 5)}"
