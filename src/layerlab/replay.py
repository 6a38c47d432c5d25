"""How the steps of a block are made: one call of the tier each, or, on CUDA, replayed from a graph.

A GPU is through with a step of a small network in a few microseconds, and Python takes ten to a hundred times
as long to tell it what to do: the host is what a step waits for. A CUDA graph is a step that was written down
once and is started as one from then on (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It
does again what the device did, at the very addresses, and nothing of what Python did: a tier says itself
whether that is all of its step (`Tier.capturable`).
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
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
    if device.type == "cpu":
        return ReadSteps(tier, dtype)
    losses = torch.zeros(LONGEST_BLOCK, dtype=dtype, device=device)
    if replays(type(tier), device):
        return ReplayedSteps(tier, losses, CudaGraphs(device), in_place=in_place)
    return CalledSteps(tier, losses)


def replays(tier_class: type[Tier], device: torch.device) -> bool:
    """Whether the steps of a tier are replayed on a device."""
    return tier_class.says_capturable() and device.type == "cuda"


class ReadSteps:
    """Calls `Tier.step` for every batch and reads its loss: on the CPU it is a number as soon as it is there.

    A list keeps them. To write one into an array takes a tenth of a microsecond by itself, and many times as
    long between two steps, whose products leave nothing of NumPy's in the caches.

    Args:
        tier: The tier.
        dtype: What its losses are kept in.
    """

    def __init__(self, tier: Tier, dtype: torch.dtype) -> None:
        self._step, self._dtype = tier.step, np.float64 if dtype is torch.float64 else np.float32

    def run(self, steps: range, batches: Iterable[Batch]) -> Array:
        """As `Steps.run`."""
        step = self._step
        losses: list[float] = []
        try:
            for x, y in batches:
                losses.append(float(step(x, y)))
        except (Exception, SystemExit) as error:
            raise _failed(steps[min(len(losses), len(steps) - 1)], error) from error
        return np.array(losses, dtype=self._dtype)


class CalledSteps:
    """Calls `Tier.step` for every batch; nobody waits for the device.

    Args:
        tier: The tier.
        losses: Where their losses are kept, a tensor on the device with a place for each step of a block.
    """

    def __init__(self, tier: Tier, losses: Tensor) -> None:
        self._step, self._losses = tier.step, losses

    def run(self, steps: range, batches: Iterable[Batch]) -> Array:
        """As `Steps.run`."""
        step, losses = self._step, self._losses
        i = 0
        try:
            for i, (x, y) in enumerate(batches):
                losses[i] = _detached(step(x, y))
            return host_copy(losses[: len(steps)])
        except (Exception, SystemExit) as error:
            raise _failed(steps[i], error) from error


class ReplayedSteps:
    """Captures a step for each number of rows, after `WARM_UP` of them that are called, and replays it.

    A batch that is always in the same memory is read where it is; others are copied to one place for each
    number of rows, for the called steps too: what is compiled for a layout is compiled before it is captured.
    The graph writes its loss into the place of the step, which it counts itself.

    Args:
        tier: A tier that is capturable.
        losses: Where losses are kept, a tensor on the device with a place for each step of a block.
        graphs: What captures.
        in_place: Whether every batch is the same tensors.
    """

    def __init__(self, tier: Tier, losses: Tensor, graphs: Graphs, *, in_place: bool) -> None:
        self._step, self._losses, self._graphs, self._in_place = tier.step, losses, graphs, in_place
        self._place = torch.zeros(1, dtype=torch.int64, device=losses.device)  # of the next replayed loss
        # by rows: where batches are copied to, how many steps were called, and what was captured
        self._copies: dict[int, Batch] = {}
        self._called: Counter[int] = Counter()
        self._replays: dict[int, Replay] = {}

    def run(self, steps: range, batches: Iterable[Batch]) -> Array:
        """As `Steps.run`.

        Raises:
            TierError: A step raised, waits for the device, or cannot be captured.
        """
        i, counted = 0, -1  # the loss that the graphs would write next
        try:
            with self._graphs.stream():
                for i, (x, y) in enumerate(batches):
                    rows = x.shape[0]
                    if not self._in_place:
                        x, y = self._copied(rows, x, y)  # noqa: PLW2901 -- the batch from here on
                    replay = self._replays.get(rows)
                    if replay is None:
                        if self._called[rows] < WARM_UP:
                            self._losses[i] = self._call(rows, x, y)
                            continue
                        replay = self._replays[rows] = self._capture(x, y)
                    if counted != i:
                        self._place.fill_(i)
                    replay()
                    counted = i + 1
                return host_copy(self._losses[: len(steps)])
        except (Exception, SystemExit) as error:
            raise _failed(steps[i], error) from error

    def _copied(self, rows: int, x: Tensor, y: Tensor) -> Batch:
        """The batch where the graph reads it."""
        there = self._copies.get(rows)
        if there is None:
            there = self._copies[rows] = torch.empty_like(x), torch.empty_like(y)
        there[0].copy_(x)
        there[1].copy_(y)
        return there

    def _call(self, rows: int, x: Tensor, y: Tensor) -> Any:
        """A step as it stands, and its loss; the last one before the capture must not wait for the device."""
        self._called[rows] += 1
        last = self._called[rows] == WARM_UP
        with self._graphs.watched() if last else nullcontext():
            return _detached(self._step(x, y))

    def _capture(self, x: Tensor, y: Tensor) -> Replay:
        # Where what raised spoiled the capture, the end of it raises too, and knows no reason.
        raised: BaseException | None = None

        def work() -> None:
            nonlocal raised
            try:
                loss = self._step(x, y)
                if not torch.is_tensor(loss):
                    raise TypeError(
                        f"its loss is a {type(loss).__name__}, and no tensor that is written anew"
                    )
                self._losses.index_copy_(0, self._place, loss.detach().to(self._losses.dtype).reshape(1))
                self._place.add_(1)
            except BaseException as error:
                raised = error
                raise

        try:
            return self._graphs.capture(work)
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise _not_capturable(raised or error) from error


class Graphs(Protocol):
    """Writes down what is done on a device, to do it again."""

    def stream(self) -> AbstractContextManager[None]:
        """Where everything is done that is captured later, and what was captured."""

    def watched(self) -> AbstractContextManager[None]:
        """Where it raises to wait for the device, which cannot be captured."""

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

    def watched(self) -> AbstractContextManager[None]:
        """As `Graphs.watched`."""
        return nothing_waits()

    def capture(self, work: Callable[[], None]) -> Replay:
        """As `Graphs.capture`; it waits for the device."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with (
                _nothing_collected(),
                _own_workspaces(),
                _casting_anew(),
                torch.cuda.stream(self._stream),  # left in any case; the next one does not where it fails
                torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"),
            ):
                work()
        except BaseException:
            # A capture that was spoiled leaves the allocator in it, for good: it would never empty its cache
            # again, and fail at it. Where only Python raised it has ended, which torch says with an error.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self._stream.device_index, pool)
                self._out_of_capture()
            raise
        replay: Replay = graph.replay
        return replay

    def _out_of_capture(self) -> None:
        """Has the device's generator out of a capture that was spoiled.

        Torch before 2.13 (https://github.com/pytorch/pytorch/pull/176752) would leave it there, and whoever
        draws on the device next could not: the end of a capture that ends well takes it out.
        """
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream, capture_error_mode="thread_local"):
            torch.zeros(1, device=self._device)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Has torch raise a RuntimeError where the host waits for a CUDA device.

    https://docs.pytorch.org/docs/stable/generated/torch.cuda.set_sync_debug_mode.html
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # torch says so the first time, to whoever it is, and nobody asked
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _casting_anew() -> AbstractContextManager[Any]:
    """Under autocast: a weight that was cast before would be cast no more, whatever becomes of it.

    Elsewhere nothing is touched: to torch.compile this is a switch, and one that is turned a reason to
    compile anew.
    """
    if not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), cache_enabled=False)


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


def _detached(loss: Any) -> Any:
    """A loss without what led to it, which would be held for as long as the loss is."""
    return loss.detach() if torch.is_tensor(loss) else loss


def _not_capturable(reason: BaseException) -> TierError:
    said = f"the tier says that it is capturable, and its step cannot be captured: {reason}"
    return TierError(said, hint=getattr(reason, "hint", None) or "capturable = False")


def _failed(step: int, error: BaseException) -> TierError:
    if "called a synchronizing CUDA operation" in str(error):
        error = _not_capturable(error)
    kind = "" if isinstance(error, TierError) else f"{type(error).__name__}: "
    return TierError(f"step {step} failed: {kind}{error}", hint=getattr(error, "hint", None))
