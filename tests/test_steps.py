"""Sets of steps: whatever the order and the gaps, as Python's own sets have it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from layerlab.steps import Steps

SETS = st.sets(st.integers(0, 60), max_size=40)


@settings(derandomize=True, deadline=None)
@given(SETS, SETS, st.integers(0, 70), st.integers(0, 70))
def test_steps_are_sets(one: set[int], other: set[int], first: int, end: int) -> None:
    steps, others = Steps.of([*one, *one]), Steps.of(other)
    assert [step for step in range(70) if step in steps] == sorted(one)
    assert len(steps) == len(one)
    assert steps | others == Steps.of(one | other)
    assert steps.end == max(one, default=-1) + 1
    assert steps.whole == next(step for step in range(70) if step not in one)
    gaps = [step for start, stop in steps.missing(first, end) for step in range(start, stop)]
    assert gaps == [step for step in range(first, end) if step not in one]


def test_a_million_steps_are_one_span() -> None:
    assert Steps.of(range(10**6)).spans == ((0, 10**6),)
