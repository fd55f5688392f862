"""New splits and fewer labels: hold groups out, make folds over groups, drop labels. Functions of table and seed."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stillmotion.data.table import Sample, Table, TableError, read_table


def drop_labels(
    table: Table,
    columns: Sequence[str],
    fraction: float,
    seed: int,
    *,
    stratum: Callable[[Sample], str | None],
) -> Table:
    """Keeps the labels of a share of the samples, class by class; the others stay in the table without them.

    A smaller share keeps a part of what a larger one keeps (same seed), so that tables over shares compare.

    Args:
        table: The samples.
        columns: Of the labels; a sample keeps all that it has, or none.
        fraction: Share of the labelled samples of each class that keep them, rounded; at least one of each class.
        seed: Which ones.
        stratum: Class of a sample, None without a label.

    Raises:
        ValueError: The fraction is not in (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"label_fraction={fraction}: must be above 0 and at most 1")
    keep: set[int] = set()
    strata: dict[str, list[int]] = {}
    for row, sample in enumerate(table):
        if (name := stratum(sample)) is not None:
            strata.setdefault(name, []).append(row)
    for label, rows in strata.items():
        random.Random(f"{seed}/{label}").shuffle(rows)
        keep.update(rows[: max(1, round(fraction * len(rows)))])
    samples = tuple(s if row in keep else _without(s, columns) for row, s in enumerate(table))
    return replace(table, samples=samples)


def hold_out(
    table: Table, fraction: float, seed: int, *, strata: Callable[[Sample], Sequence[str]]
) -> tuple[Table, Table]:
    """Divides a table into training and validation by group, classes in proportion.

    Groups are drawn at random and taken as long as that brings the classes nearer to their share. Every class with
    two groups or more is in both parts, so with few large groups more than `fraction` is held out. Samples without a
    group each are their own.

    Args:
        table: The samples; those without a label go with their group.
        fraction: Share of the samples of each class that is held out.
        seed: Which groups.
        strata: Classes of a sample, that of every column; none without a label.

    Returns:
        The table to train on, the one to validate with.

    Raises:
        TableError: No class has two groups.
    """
    groups: dict[str, Counter[str]] = {}
    for name, s in zip(_group_names(table), table, strict=True):
        groups.setdefault(name, Counter()).update(strata(s))
    total = sum(groups.values(), Counter[str]())
    left = Counter(label for counts in groups.values() for label in counts)
    order = list(groups)
    random.Random(f"{seed}/hold_out").shuffle(order)
    held: set[str] = set()
    taken: Counter[str] = Counter()
    for name in order:
        counts = groups[name]
        if not counts or any(left[label] == 1 for label in counts):
            continue
        gain = sum(
            abs(taken[c] - fraction * total[c]) - abs(taken[c] + k - fraction * total[c]) for c, k in counts.items()
        )
        if gain > 0 or any(not taken[label] for label in counts):
            held.add(name)
            taken.update(counts)
            left.subtract(counts.keys())
    if not held:
        raise TableError(f"{table.source}: no class has two groups, so none can be held out; name a validation split")
    train, val = _divide(table, held)
    return train, val


def write_splits(
    source: str | Path,
    output: str | Path,
    shares: Mapping[str, float],
    *,
    target: str | None = "label",
    seed: int = 0,
    root: str | None = None,
) -> Table:
    """Divides a table that has no splits into `train` and others, and writes it as CSV.

    Args:
        source: CSV or Parquet table, or a folder of class folders.
        output: The CSV.
        shares: Share of each other split in what the ones before it left; 0 leaves it out.
        target: Column of the classes that are kept in proportion; None: groups alone.
        seed: Which groups.
        root: Folder that relative paths start from.

    Returns:
        The table, its rows in their order.

    Raises:
        ValueError: The table has splits already, no such column, or a share that is not in [0, 1).
    """
    table = read_table(source, root=root)
    if table.splits:
        raise TableError(f"{source}: has the splits {', '.join(table.splits)} already; remove them to draw new ones")
    if Path(output).suffix.lower() != ".csv":
        raise ValueError(f"output={output}: give a name that ends in .csv")
    if target is not None:
        table.classes(target)  # says which columns there are

    def strata(sample: Sample) -> list[str]:
        return [""] if target is None else [sample.targets[target]] if target in sample.targets else []

    split_of: dict[str, str] = {}
    rest = table
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise ValueError(f"{name}_share={share}: must be at least 0 and below 1")
        if share:
            rest, held = hold_out(rest, share, seed, strata=strata)
            split_of |= {s.id: name for s in held}
    divided = replace(table, samples=tuple(replace(s, split=split_of.get(s.id, "train")) for s in table))
    divided.write(output)
    return divided


def group_folds(
    table: Table, folds: int, seed: int, *, stratum: Callable[[Sample], str | None]
) -> Iterator[tuple[Table, Table]]:
    """Folds over groups, classes in proportion as far as the groups allow (scikit-learn's `StratifiedGroupKFold`).

    Args:
        table: The samples. Those without a group each are their own.
        folds: Number of folds.
        seed: Which groups go together.
        stratum: Class of a sample; those without one count as a class of their own.

    Yields:
        The table to train on, the one to test with; every sample is in one test table.

    Raises:
        ValueError: There are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = _group_names(table)
    if not 2 <= folds <= len(set(names)):
        raise ValueError(f"{table.source}: {folds} folds over {len(set(names))} groups; give 2 to {len(set(names))}")
    labels = [stratum(s) or "" for s in table]
    # Classes with fewer samples than folds are no mistake here, so its warning says nothing new: it asks for balance.
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for _, test in splitter.split(names, labels, names):
        yield _divide(table, {names[row] for row in test})


def leave_one_group_out(table: Table) -> Iterator[tuple[Table, Table]]:
    """Leaves out each group once, in the order of the table.

    Yields:
        The table to train on, the group to test with.

    Raises:
        TableError: A sample has no group, or there is only one.
    """
    if without := next((s for s in table if s.group is None), None):
        raise TableError(f"{table.source} line {without.line} ({without.name}): no group; fill in the column `group`")
    if len(table.groups) < 2:
        raise TableError(f"{table.source}: only the group {table.groups[0]!r}; leaving one out needs two")
    for group in table.groups:
        yield _divide(table, {f"group {group}"})


def _divide(table: Table, held: set[str]) -> tuple[Table, Table]:
    names = _group_names(table)
    inside = tuple(s for name, s in zip(names, table, strict=True) if name in held)
    outside = tuple(s for name, s in zip(names, table, strict=True) if name not in held)
    return replace(table, samples=outside), replace(table, samples=inside)


def _group_names(table: Table) -> list[str]:
    return [f"sample {row}" if s.group is None else f"group {s.group}" for row, s in enumerate(table)]


def _without(sample: Sample, columns: Sequence[str]) -> Sample:
    return replace(sample, targets={c: v for c, v in sample.targets.items() if c not in columns})
