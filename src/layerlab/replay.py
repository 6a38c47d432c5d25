"""How the steps of a block are made: one call of the tier each, or, on CUDA, replayed from a graph.

A GPU is through with a step of a small network in a few microseconds, and Python takes ten to a hundred times
as long to tell it what to do: the host is what a step waits for. A CUDA graph is a step that was written down
once and is started as one from then on (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It
does again what the device did, at the very addresses, and nothing of what Python did: a tier says itself
whether that is all of its step (`Tier.capturable`).
"""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from layerlab.batches import LONGEST_BLOCK
from layerlab.errors import TierError
from layerlab.tier import host_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor

    from layerlab.tier import Array, Tier

    # Does again on the device what was captured.
    Replay = Callable[[], None]
    Batch = tuple[Tensor, Tensor]

# What libraries, compilers and optimizers set up in their first steps cannot be captured.
WARM_UP = 3


class Steps(Protocol):
    """Makes steps."""

    def run(self, steps: range, batches: Iterable[Batch]) -> Array:
        """Trains on one batch after the other.

        Args:
            steps: The numbers of the steps, at most `LONGEST_BLOCK`.
            batches: As many: inputs (B, n_in) and targets (B, n_out).

        Returns:
            Their losses, on the host; a device is waited for once, for all of them.

        Raises:
            TierError: A step raised.
        """


def steps_of(tier: Tier, *, device: torch.device, dtype: torch.dtype, in_place: bool) -> Steps:
    """What makes a tier's steps: replayed on CUDA where the tier is capturable, else called.

    Args:
        tier: The tier.
        device: Where it runs.
        dtype: What its losses are kept in.
        in_place: Whether every step gets the same batch, in the same memory.
    """
    if replays(tier, device):
        return ReplayedSteps(tier, loss_buffer(device, dtype), CudaGraphs(device), in_place=in_place)
    return CalledSteps(tier, loss_buffer(device, dtype))


def replays(tier: Tier | type[Tier], device: torch.device) -> bool:
    """Whether the steps of a tier are replayed on a device."""
    return tier.capturable and device.type == "cuda"


def loss_buffer(device: torch.device, dtype: torch.dtype) -> Any:
    """Where the losses of a block are kept.

    On the CPU a loss is a number as soon as it is there, and a plain array keeps it for a tenth of what a
    tensor costs. On a device nobody may wait for it.
    """
    buffer = torch.zeros(LONGEST_BLOCK, dtype=dtype, device=device)
    return buffer.numpy() if device.type == "cpu" else buffer


class CalledSteps:
    """Calls `Tier.step` for every batch.

    Args:
        tier: The tier.
        losses: Where their losses are kept, one place for each step of a block.
    """

    def __init__(self, tier: Tier, losses: Any) -> None:
        self._step, self._losses = tier.step, losses

    def run(self, steps: range, batches: Iterable[Batch]) -> Array:
        """As `Steps.run`."""
        step, losses = self._step, self._losses
        on_host = isinstance(losses, np.ndarray)
        i = 0
        try:
            for i, (x, y) in enumerate(batches):
                loss = step(x, y)
                losses[i] = float(loss) if on_host else loss
            return host_copy(losses[: len(steps)])
        except (Exception, SystemExit) as error:
            raise _failed(steps[i], error) from error


class ReplayedSteps:
    """Captures a step for each number of rows, after `WARM_UP` of them that are called, and replays it.

    A batch that is always in the same memory is read where it is; others are copied to where the graph reads
    them. The graph writes its loss into the place of the step, which it counts itself.

    Args:
        tier: A tier that is capturable.
        losses: Where losses are kept, a tensor on the device with a place for each step of a block.
        graphs: What captures.
        in_place: Whether every batch is the same tensors.
    """

    def __init__(self, tier: Tier, losses: Tensor, graphs: Graphs, *, in_place: bool) -> None:
        self._step, self._losses, self._graphs, self._in_place = tier.step, losses, graphs, in_place
        self._place = torch.zeros(1, dtype=torch.int64, device=losses.device)  # of the next replayed loss
        self._called: Counter[int] = Counter()  # steps, by rows
        self._replays: dict[int, tuple[Tensor, Tensor, Replay]] = {}  # by rows

    def run(self, steps: range, batches: Iterable[Batch]) -> Array:
        """As `Steps.run`.

        Raises:
            TierError: A step raised, or cannot be captured.
        """
        i, counted = 0, -1  # the loss that the graphs would write next
        try:
            with self._graphs.stream():
                for i, (x, y) in enumerate(batches):
                    rows = x.shape[0]
                    captured = self._replays.get(rows)
                    if captured is None:
                        if self._called[rows] < WARM_UP:
                            self._called[rows] += 1
                            self._losses[i] = self._step(x, y)
                            continue
                        captured = self._replays[rows] = self._capture(x, y)
                    if not self._in_place:
                        captured[0].copy_(x)
                        captured[1].copy_(y)
                    if counted != i:
                        self._place.fill_(i)
                    captured[2]()
                    counted = i + 1
                return host_copy(self._losses[: len(steps)])
        except (Exception, SystemExit) as error:
            raise _failed(steps[i], error) from error

    def _capture(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Replay]:
        """A step, and where it reads its batch: held, so that nothing else comes to lie there."""
        if not self._in_place:
            x, y = torch.empty_like(x), torch.empty_like(y)

        def work() -> None:
            loss = self._step(x, y)
            if not torch.is_tensor(loss):
                raise TypeError(f"its loss is a {type(loss).__name__}, and no tensor that is written anew")
            self._losses.index_copy_(0, self._place, loss.detach().to(self._losses.dtype).reshape(1))
            self._place.add_(1)

        try:
            return x, y, self._graphs.capture(work)
        except (Exception, SystemExit) as error:
            said = f"the tier says that it is capturable, and its step cannot be captured: {error}"
            raise TierError(said, hint="capturable = False") from error


class Graphs(Protocol):
    """Writes down what is done on a device, to do it again."""

    def stream(self) -> AbstractContextManager[None]:
        """Where everything is done that is captured later, and what was captured."""

    def capture(self, work: Callable[[], None]) -> Replay:
        """Writes down what ``work`` has the device do; nothing of it is done."""


class CudaGraphs:
    """CUDA graphs.

    All is on one stream of its own, as nothing is captured on a device's default one. What autograd remembers
    of parameters, it would bring along from another stream, and a capture does not let it.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types for it

    @contextmanager
    def stream(self) -> Iterator[None]:
        """As `Graphs.stream`; on the device it waits for what was begun before, and what follows for it."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Replay:
        """As `Graphs.capture`; it waits for the device."""
        graph = torch.cuda.CUDAGraph()
        with (
            _nothing_collected(),
            _own_workspaces(),
            # A weight that was cast before would be cast no more, whatever becomes of it.
            torch.autocast(
                "cuda",
                enabled=torch.is_autocast_enabled("cuda"),
                dtype=torch.get_autocast_dtype("cuda"),
                cache_enabled=False,
            ),
            torch.cuda.stream(self._stream),  # left in any case; the next one does not where a capture fails
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        replay: Replay = graph.replay
        return replay


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Garbage may hold a graph, and to destroy one breaks a capture that is under way."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Products need memory to work in, which cuBLAS makes at the first one on a stream and keeps.

    A graph must neither bake in what other graphs write to, nor leave what is its own to others.
    """
    torch._C._cuda_clearCublasWorkspaces()  # torch has no public name for it; its own graphs do the same
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _failed(step: int, error: BaseException) -> TierError:
    kind = "" if isinstance(error, TierError) else f"{type(error).__name__}: "
    return TierError(f"step {step} failed: {kind}{error}", hint=getattr(error, "hint", None))
