"""Sets of steps, nearly always without a gap: a million of them are one pair of numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Steps:
    """A set of steps, as spans without a gap.

    Attributes:
        spans: First step and the one after the last, of every span, in order.
    """

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, steps: Iterable[int]) -> Self:
        """The set of some steps, in whatever order, some perhaps twice."""
        spans: list[tuple[int, int]] = []
        for step in sorted(steps):
            if spans and step <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], step + 1))
            else:
                spans.append((step, step + 1))
        return cls(tuple(spans))

    def __or__(self, other: Steps) -> Steps:
        """The steps of both."""
        spans: list[tuple[int, int]] = []
        for first, end in sorted((*self.spans, *other.spans)):
            if spans and first <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], end))
            else:
                spans.append((first, end))
        return Steps(tuple(spans))

    def __len__(self) -> int:
        """How many there are."""
        return sum(end - first for first, end in self.spans)

    def __contains__(self, step: int) -> bool:
        """Whether a step is one of them."""
        i = bisect_right(self.spans, (step, float("inf"))) - 1
        return i >= 0 and step < self.spans[i][1]

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.spans[-1][1] if self.spans else 0

    @property
    def whole(self) -> int:
        """The first step, from 0 on, that is missing."""
        return self.spans[0][1] if self.spans and self.spans[0][0] == 0 else 0

    def missing(self, first: int, end: int) -> list[tuple[int, int]]:
        """The spans of the steps from ``first`` to before ``end`` that are none of them."""
        gaps = []
        for had, after in self.spans:
            if had >= end:
                break
            if first < had:
                gaps.append((first, had))
            first = max(first, after)
        return [*gaps, (first, end)] if first < end else gaps
