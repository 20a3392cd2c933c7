"""Mean and standard deviation over the jobs of a sweep that differ in their seed alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SEED = "seed="


@dataclass(frozen=True)
class SeedGroup:
    """Jobs that differ in their seed alone.

    Attributes:
        overrides: What they have in common, without the seed.
        seeds: Of the jobs that have a result.
        values: The numbers of every column, one for each of those jobs that has one.
    """

    overrides: tuple[str, ...]
    seeds: tuple[str, ...]
    values: Mapping[str, Sequence[float]]

    def mean(self, key: str) -> float | None:
        """The mean of a column; None if no job has a number there."""
        return statistics.fmean(self.values[key]) if self.values[key] else None

    def deviation(self, key: str) -> float | None:
        """The sample standard deviation of a column, with n - 1 in its denominator; None for fewer than two numbers."""
        return statistics.stdev(self.values[key]) if len(self.values[key]) > 1 else None

    def shown(self, key: str) -> str:
        """Mean and deviation for people; the mean of bounds is a bound, and rounded as one."""
        from wdro_train.utils import tables  # and with it Rich, which commands without a table need not load

        deviation = self.deviation(key)
        return tables.logged(key, self.mean(key)) + ("" if deviation is None else f" ± {deviation:.4f}")


def seed_groups(jobs: Sequence[tuple[Sequence[str], Mapping[str, str]]], columns: Sequence[str]) -> list[SeedGroup]:
    """The jobs of a sweep by what they have in common besides the seed, in the order of the sweep.

    Args:
        jobs: Overrides and row of each job; a row has numbers as text, empty where there is none.
        columns: Keys of the numbers.

    Returns:
        Nothing if no two jobs with results differ in their seed alone.
    """
    found: dict[tuple[str, ...], list[tuple[str, Mapping[str, str]]]] = {}
    for overrides, row in jobs:
        kept = tuple(item for item in overrides if not item.startswith(_SEED))
        seed = next((item.removeprefix(_SEED) for item in overrides if item.startswith(_SEED)), "")
        group = found.setdefault(kept, [])
        if any(row[key] for key in columns):
            group.append((seed, row))
    groups = [
        SeedGroup(
            kept,
            tuple(seed for seed, _ in rows),
            {key: [float(row[key]) for _, row in rows if row[key]] for key in columns},
        )
        for kept, rows in found.items()
    ]
    return groups if any(len(set(group.seeds)) > 1 for group in groups) else []
