"""The C of a step: see _step.c."""

WIDEST: int
BATCH: int
TILE: int

def step(plan: bytes, x: int, y: int, threads: int, /) -> float: ...
