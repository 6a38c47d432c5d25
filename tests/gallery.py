"""A gallery of wrong tiers: each is right but for one mistake that people make.

`GALLERY` says of each which checks must fail and which tensor the report must name first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from layerlab.tier import Params, Recipe, Tier

NAMES = ("w1", "w2", "b1", "b2")
SGD = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=True)
ADAM = Recipe(optimizer="adam", lr=1e-4, init="linear", bias=True)


@dataclass(frozen=True)
class Exhibit:
    """A wrong tier, and how it must be found out.

    Attributes:
        tier_class: The tier.
        check: A check that must fail.
        tensor: The tensor that the check must name, or a word of its report.
        step: The step that it must name, where the mistake shows at a certain one.
    """

    tier_class: type[Tier]
    check: str
    tensor: str
    step: int | None = None


GALLERY: list[Exhibit] = []


def wrong(check: str, tensor: str, step: int | None = None) -> Any:
    def add(tier_class: type[Tier]) -> type[Tier]:
        GALLERY.append(Exhibit(tier_class, check, tensor, step))
        return tier_class

    return add


class ByHand(Tier):
    """The right one: everything by hand, every part of it a method to be got wrong."""

    contract_version = 1
    precisions = frozenset({"32-true", "64-true"})
    recipe = SGD

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        self.lr, self.done = lr, 0
        self.p = {
            name: torch.tensor(p, device=device, dtype=dtype)
            for name, p in params._asdict().items()
            if p is not None
        }
        self.g: dict[str, Tensor] = {}

    def hidden(self, x: Tensor) -> Tensor:
        h = x @ self.p["w1"]
        return h + self.p["b1"] if "b1" in self.p else h

    def relu(self, h: Tensor) -> Tensor:
        return h.clamp(min=0)

    def output(self, a: Tensor) -> Tensor:
        y_pred = a @ self.p["w2"]
        return y_pred + self.p["b2"] if "b2" in self.p else y_pred

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.hidden(x)
        self.a = self.relu(self.h)
        return self.output(self.a)

    def loss(self, diff: Tensor) -> Tensor:
        return diff.square().sum()

    def grad_y(self, diff: Tensor) -> Tensor:
        return 2 * diff

    def mask(self) -> Tensor:
        return self.h > 0

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        diff = y_pred - y
        d_y = self.grad_y(diff)
        d_h = (d_y @ self.p["w2"].t()) * self.mask()
        self.g = {"w1": x.t() @ d_h, "w2": self.a.t() @ d_y, "b1": d_h.sum(0), "b2": d_y.sum(0)}
        self.g = {name: g for name, g in self.g.items() if name in self.p}
        return self.loss(diff)

    def update(self) -> None:
        for name, g in self.g.items():
            self.p[name] -= self.lr * g
        self.done += 1

    def gradients(self) -> list[Tensor]:
        return [self.g[name] for name in NAMES if name in self.g]

    def params(self) -> Params:
        return Params.copy_of(*(self.p.get(name) for name in NAMES))

    def state(self) -> dict[str, Any]:
        return {name: p.clone() for name, p in self.p.items()}

    def load_state(self, state: Any) -> None:
        for name, p in state.items():
            self.p[name].copy_(p)


class Whole(Tier):
    """The same in one `step`, which shows no gradient."""

    contract_version = 1
    precisions = frozenset({"32-true", "64-true"})
    recipe = SGD
    inner: ClassVar[type[ByHand]] = ByHand

    def __init__(self, params: Params, **run: Any) -> None:
        self.t = self.inner(params, **run)

    def forward(self, x: Tensor) -> Tensor:
        return self.t.forward(x)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return self.t.step(x, y)

    def params(self) -> Params:
        return self.t.params()


class ByHandAdam(ByHand):
    """The right one under Adam."""

    recipe = ADAM
    betas = (0.9, 0.999)
    eps = 1e-8

    def __init__(self, params: Params, **run: Any) -> None:
        super().__init__(params, **run)
        self.m = {name: torch.zeros_like(p) for name, p in self.p.items()}
        self.v = {name: torch.zeros_like(p) for name, p in self.p.items()}

    def corrections(self) -> tuple[float, float]:
        return 1 - self.betas[0] ** self.done, 1 - self.betas[1] ** self.done

    def denominator(self, v_hat: Tensor) -> Tensor:
        return v_hat.sqrt() + self.eps

    def update(self) -> None:
        self.done += 1
        c1, c2 = self.corrections()
        for name, g in self.g.items():
            self.m[name].mul_(self.betas[0]).add_(g, alpha=1 - self.betas[0])
            self.v[name].mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
            self.p[name] -= self.lr * (self.m[name] / c1) / self.denominator(self.v[name] / c2)

    def state(self) -> dict[str, Any]:
        copies = {key: {n: t.clone() for n, t in getattr(self, key).items()} for key in ("p", "m", "v")}
        return {**copies, "done": self.done}

    def load_state(self, state: Any) -> None:
        self.done = int(state["done"])
        for key in ("p", "m", "v"):
            for name, tensor in state[key].items():
                getattr(self, key)[name].copy_(tensor)


RIGHT: list[type[Tier]] = [ByHand, Whole, ByHandAdam]


# --- the derivative of ReLU ---------------------------------------------------------------------------------


@wrong("full-batch", "grad_w1")
class ForgottenMask(ByHand):
    def mask(self) -> Tensor:
        return torch.ones_like(self.h)


@wrong("full-batch", "grad_w1")
class MaskByTheOutput(ByHand):
    """`>= 0` on what comes out of ReLU, which is never negative, instead of what goes in."""

    def mask(self) -> Tensor:
        return self.a >= 0


@wrong("full-batch", "grad_w1")
class MaskWithoutTheBias(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        self.bare = x @ self.p["w1"]
        return super().forward(x)

    def mask(self) -> Tensor:
        return self.bare > 0


@wrong("zeros-at-relu", "grad_w1")
class AtZeroItPasses(ByHand):
    """`>=` for `>`."""

    def mask(self) -> Tensor:
        return self.h >= 0


@wrong("zeros-at-relu", "w1")
class AtZeroItPassesUnseen(Whole):
    inner = AtZeroItPasses


@wrong("full-batch", "grad_w1")
class MaskOfTheGradient(ByHand):
    """The gradient's own sign decides (a "guided" backward pass)."""

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        d_h = (2 * (y_pred - y) @ self.p["w2"].t()).clamp(min=0) * self.mask()
        self.g["w1"] = x.t() @ d_h
        return loss


@wrong("full-batch", "y_pred")
class LeakyReLU(ByHand):
    def relu(self, h: Tensor) -> Tensor:
        return torch.where(h > 0, h, 0.01 * h)


# --- sums, means and factors --------------------------------------------------------------------------------


@wrong("full-batch", "loss")
class MeanLoss(ByHand):
    """`MSELoss()` with its default reduction."""

    def loss(self, diff: Tensor) -> Tensor:
        return diff.square().mean()

    def grad_y(self, diff: Tensor) -> Tensor:
        return 2 * diff / diff.numel()


@wrong("full-batch", "loss")
class MeanOverTheBatch(ByHand):
    def loss(self, diff: Tensor) -> Tensor:
        return diff.square().sum(1).mean()


@wrong("full-batch", "grad_w2")
class MeanGradient(ByHand):
    def grad_y(self, diff: Tensor) -> Tensor:
        return 2 * diff / len(diff)


@wrong("full-batch", "grad_w2")
class FactorTwoLost(ByHand):
    def grad_y(self, diff: Tensor) -> Tensor:
        return diff


@wrong("full-batch", "w2")
class FactorTwoLostUnseen(Whole):
    inner = FactorTwoLost


@wrong("full-batch", "grad_w2")
class WrongSign(ByHand):
    def grad_y(self, diff: Tensor) -> Tensor:
        return -2 * diff


@wrong("full-batch", "grad_b1")
class BiasGradientMissing(ByHand):
    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        if "b1" in self.g:
            self.g["b1"] = torch.zeros_like(self.p["b1"])
        return loss


@wrong("full-batch", "grad_b2")
class BiasGradientAveraged(ByHand):
    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        if "b2" in self.g:
            self.g["b2"] = self.g["b2"] / len(x)
        return loss


@wrong("full-batch", "b1")
class BiasNotUpdated(ByHand):
    def update(self) -> None:
        for name in ("w1", "w2", "b2"):
            if name in self.g:
                self.p[name] -= self.lr * self.g[name]


# --- the order of things ------------------------------------------------------------------------------------


@wrong("full-batch", "grad_w2", 1)
class GradientsNotZeroed(ByHand):
    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        before = self.g
        loss = super().backward(x, y_pred, y)
        self.g = {name: g + before[name] if before else g for name, g in self.g.items()}
        return loss


@wrong("full-batch", "w2", 0)
class GradientsZeroedBeforeUse(ByHand):
    def update(self) -> None:
        for g in self.g.values():
            g.zero_()
        super().update()


@wrong("full-batch", "grad_w1", 0)
class UpdateBeforeTheOtherGradient(ByHand):
    """The second layer is updated before the gradient goes back through it."""

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        diff = y_pred - y
        d_y = 2 * diff
        self.g = {"w2": self.a.t() @ d_y}
        self.p["w2"] -= self.lr * self.g["w2"]
        d_h = (d_y @ self.p["w2"].t()) * self.mask()
        self.g |= {"w1": x.t() @ d_h, "b1": d_h.sum(0), "b2": d_y.sum(0)}
        self.g = {name: g for name, g in self.g.items() if name in self.p}
        return self.loss(diff)

    def update(self) -> None:
        for name, g in self.g.items():
            if name != "w2":
                self.p[name] -= self.lr * g


@wrong("full-batch", "w1", 0)
class UpdateBeforeTheOtherGradientUnseen(Whole):
    inner = UpdateBeforeTheOtherGradient


@wrong("full-batch", "w2", 0)
class SecondLayerFromUpdatedWeights(Whole):
    """The first layer is updated, then the second one's gradient taken from what it gives now."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        t = self.t
        y_pred = t.forward(x)
        loss = t.backward(x, y_pred, y)
        d_y = 2 * (y_pred - y)
        t.p["w1"] -= t.lr * t.g["w1"]
        t.g["w2"] = t.relu(t.hidden(x)).t() @ d_y
        for name in ("w2", "b1", "b2"):
            if name in t.g:
                t.p[name] -= t.lr * t.g[name]
        return loss


@wrong("loss-is-a-number", "requires a gradient")
class LossWithItsGraph(Whole):
    """Nobody detached it: a record of the losses keeps every step in memory."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return super().step(x, y).requires_grad_()


@wrong("loss-is-a-number", "shape (1,)")
class LossInARow(Whole):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return super().step(x, y).reshape(1)


@wrong("loss-is-before-the-update", "after it")
class LossAfterTheUpdate(ByHand):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        super().step(x, y)
        return self.loss(self.forward(x) - y)


@wrong("full-batch", "loss", 0)
class LossAfterTheUpdateUnseen(Whole):
    inner = LossAfterTheUpdate


@wrong("full-batch", "w2", 0)
class StepIsNotItsParts(ByHand):
    """`backward` and `update` are right, and `step`, which is what trains, is not."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().step(x, y)
        self.p["w2"] *= 1.001
        return loss


# --- what is remembered too long ----------------------------------------------------------------------------


@wrong("full-batch", "grad_w2", 1)
class StaleActivations(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "first") and self.first[0].shape[0] == len(x):
            y_pred = super().forward(x)
            self.h, self.a = self.first
            return y_pred
        y_pred = super().forward(x)
        self.first = self.h, self.a
        return y_pred


@wrong("full-batch", "y_pred", 1)
class OutputCachedByAddress(ByHand):
    """One answer for one address."""

    def forward(self, x: Tensor) -> Tensor:
        cache = self.__dict__.setdefault("cache", {})
        key = x.data_ptr(), x.shape
        if key not in cache:
            cache[key] = super().forward(x)
        return cache[key]


@wrong("full-batch", "y_pred", 4)
class LastOutputCachedByAddress(ByHand):
    """The same, and the answer to the last call only."""

    def forward(self, x: Tensor) -> Tensor:
        key = x.data_ptr(), x.shape
        if getattr(self, "last", (None,))[0] != key:
            self.last = key, super().forward(x)
        return self.last[1]


@wrong("minibatches", "y_pred", 1)
class InputCachedByAddress(ByHand):
    """What an address held when it was first seen."""

    def hidden(self, x: Tensor) -> Tensor:
        seen = self.__dict__.setdefault("seen", {})
        return super().hidden(seen.setdefault((x.data_ptr(), x.shape), x.clone()))


@wrong("minibatches", "loss")
class FirstBatchForEver(Whole):
    """The device copy of the batch is made once."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        if not hasattr(self, "batch"):
            self.batch = x.clone(), y.clone()
        return self.t.step(*self.batch)


@wrong("minibatches", "loss", 6)
class ReadsWhereTheFirstBatchWas(Whole):
    """A graph reads the memory that it was captured with, and nobody copied the batch there."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        captured = self.__dict__.setdefault("captured", {})
        return self.t.step(*captured.setdefault(x.shape, (x, y)))


@wrong("minibatches", "loss", 2)
class LastBatchPadded(Whole):
    """Buffers of the largest batch: what a smaller one leaves of the last is counted again."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        if hasattr(self, "x") and len(x) < len(self.x):
            self.x[: len(x)], self.y[: len(y)] = x, y
        else:
            self.x, self.y = x.clone(), y.clone()
        return self.t.step(self.x, self.y)


@wrong("forward-changes-nothing", "another loss")
class StepTrustsTheLastForward(Whole):
    """`step` skips its own forward pass where `forward` was called before on as many rows."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        t = self.t
        y_pred = t.output(t.a) if len(getattr(t, "a", ())) == len(x) else t.forward(x)
        loss = t.backward(x, y_pred, y)
        t.update()
        return loss


# --- the optimizer ------------------------------------------------------------------------------------------


@wrong("full-batch", "w2", 0)
class RateAppliedTwice(ByHand):
    def update(self) -> None:
        for name, g in self.g.items():
            self.p[name] -= self.lr * self.lr * g


@wrong("full-batch", "w2", 0)
class RateIsItsOwn(ByHand):
    """The recipe's rate, whatever the run says."""

    def __init__(self, params: Params, *, lr: float, **run: Any) -> None:
        super().__init__(params, lr=self.recipe.lr, **run)


@wrong("full-batch", "w2", 1)
class MomentumSneakedIn(ByHand):
    def update(self) -> None:
        last = getattr(self, "velocity", {})
        self.velocity = {name: g + 0.9 * last[name] if last else g for name, g in self.g.items()}
        for name, v in self.velocity.items():
            self.p[name] -= self.lr * v


@wrong("full-batch", "w2", 0)
class WeightDecaySneakedIn(ByHand):
    def update(self) -> None:
        for name, g in self.g.items():
            self.p[name] -= self.lr * (g + 1e-2 * self.p[name])


@wrong("far-target", "w2", 0)
class GradientsClipped(ByHand):
    def update(self) -> None:
        norm = math.sqrt(sum(float(g.square().sum()) for g in self.g.values()))
        for name, g in self.g.items():
            self.p[name] -= self.lr * g * min(1.0, 1e4 / norm)


@wrong("full-batch", "w2", 0)
class AdamWithoutBiasCorrection(ByHandAdam):
    def corrections(self) -> tuple[float, float]:
        return 1.0, 1.0


@wrong("full-batch", "w2", 1)
class AdamCountsFromZero(ByHandAdam):
    """The exponent of the correction is the step before."""

    def corrections(self) -> tuple[float, float]:
        t = max(self.done - 1, 1)
        return 1 - self.betas[0] ** t, 1 - self.betas[1] ** t


@wrong("small-gradients", "w2", 0)
class AdamEpsilonInsideTheRoot(ByHandAdam):
    def denominator(self, v_hat: Tensor) -> Tensor:
        return (v_hat + self.eps).sqrt()


@wrong("small-gradients", "w2", 0)
class AdamWithAnotherEpsilon(ByHandAdam):
    eps = 1e-7


@wrong("full-batch", "w2", 1)
class AdamWithAnotherBeta(ByHandAdam):
    betas = (0.9, 0.99)


@wrong("full-batch", "w2", 0)
class AdamW(ByHandAdam):
    """Decoupled weight decay, with its usual 0.01."""

    def update(self) -> None:
        for p in self.p.values():
            p.mul_(1 - 0.01 * self.lr)
        super().update()


@wrong("state-resumes", "its losses are others")
class AdamForgetsItsMeans(ByHandAdam):
    """What `state` gives is the parameters alone."""

    def state(self) -> dict[str, Any]:
        return ByHand.state(self)

    def load_state(self, state: Any) -> None:
        ByHand.load_state(self, state)


@wrong("full-batch", "w2", 0)
class SgdUnderTheNameOfAdam(ByHand):
    recipe = ADAM


# --- layout -------------------------------------------------------------------------------------------------


@wrong("full-batch", "grad_w1")
class TransposedWhereSquare(ByHand):
    """A gradient in the other layout, which only a square matrix lets through."""

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        if self.g["w1"].shape[0] == self.g["w1"].shape[1]:
            self.g["w1"] = self.g["w1"].t()
        return loss


@wrong("full-batch", "grad_b2", 0)
class GradientsInAnotherOrder(ByHand):
    """Biases swapped."""

    def gradients(self) -> list[Tensor]:
        return [self.g[name] for name in ("w1", "w2", "b2", "b1") if name in self.g]


@wrong("strided-inputs", "y_pred")
class TakesMemoryForRows(ByHand):
    """Reads the batch's memory as if it were contiguous, as a kernel that is given a pointer does."""

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(torch.as_strided(x, x.shape, (x.shape[1], 1), x.storage_offset()))


@wrong("full-batch", "loss")
class BroadcastTarget(ByHand):
    """A target of shape (N,) against predictions (N, 1): an (N, N) of differences."""

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        return (y_pred - y.squeeze(1)).square().sum() if y.shape[1] == 1 else loss


# --- precision ----------------------------------------------------------------------------------------------


@wrong("full-batch", "y_pred", 0)
class Float16Inside(ByHand):
    def output(self, a: Tensor) -> Tensor:
        return super().output(a.half().to(a.dtype))


@wrong("full-batch", "grad_w2", 0)
class Float16Gradients(ByHand):
    def grad_y(self, diff: Tensor) -> Tensor:
        return (2 * diff).half().to(diff.dtype)


@wrong("full-batch", "y_pred", 0)
class SinglePrecisionInside(ByHand):
    """Right in float32; float64 is declared and not kept."""

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x.float().to(x.dtype))


@wrong("precision-is-kept", "float32")
class ParametersInSinglePrecision(ByHand):
    def __init__(self, params: Params, *, dtype: torch.dtype, **run: Any) -> None:
        del dtype
        super().__init__(params, dtype=torch.float32, **run)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        return super().backward(x.float(), y_pred, y.float())


# --- rows and units -----------------------------------------------------------------------------------------


@wrong("full-batch", "y_pred", 0)
class OneUnitSkipped(ByHand):
    """A loop that ends one unit early."""

    def output(self, a: Tensor) -> Tensor:
        last = torch.ones_like(a)
        last[:, -1] = 0
        return super().output(a * last)


@wrong("full-batch", "grad_w2", 0)
class OneRowSkipped(ByHand):
    """Off by one in the batch, in the gradient only."""

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        kept = y_pred.clone()
        kept[-1] = y[-1]
        super().backward(x, kept, y)
        return loss


@wrong("full-batch", "loss", 0)
class TargetsShifted(ByHand):
    """Each row is compared with the target of the row before."""

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        return super().backward(x, y_pred, y.roll(1, 0))


@wrong("full-batch", "y_pred", 0)
class LargeSizesCut(ByHand):
    """A kernel whose block is 128 wide and takes no more than one."""

    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        return torch.cat([h[:, :128], torch.zeros_like(h[:, 128:])], dim=1)


@wrong("default-size", "y_pred", 0)
class LongRowsCut(ByHand):
    """A row is read 512 numbers at a time, once."""

    def hidden(self, x: Tensor) -> Tensor:
        rest = torch.ones_like(x)
        rest[:, 512:] = 0
        return super().hidden(x * rest)


@wrong("default-size", "grad_w2", 0)
class LargeBatchesCut(ByHand):
    """No more than 256 rows count towards the gradient."""

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        d_y = 2 * (y_pred - y)
        self.g["w2"] = self.a[:256].t() @ d_y[:256]
        return loss


# --- what a tier should not touch, share or skip ------------------------------------------------------------


@wrong("params-are-copies", "params() gave")
class ParamsAreViews(ByHand):
    def params(self) -> Params:
        return Params(*(self.p[name].numpy() if name in self.p else None for name in NAMES))


@wrong("params-are-copies", "it was given")
class ArgumentsAreKept(ByHand):
    def __init__(self, params: Params, **run: Any) -> None:
        super().__init__(params, **run)
        self.p = {name: torch.from_numpy(p) for name, p in params._asdict().items() if p is not None}


@wrong("params-are-copies", "changes the tier")
class ArgumentsAreSharedUnwritten(ByHand):
    """The caller's arrays, never written to: until the caller does."""

    def __init__(self, params: Params, **run: Any) -> None:
        super().__init__(params, **run)
        self.p = {name: torch.from_numpy(p) for name, p in params._asdict().items() if p is not None}

    def update(self) -> None:
        self.p = {name: p - self.lr * self.g[name] for name, p in self.p.items()}


@wrong("full-batch", "b1", 0)
class BiasesInvented(ByHand):
    """None is taken for zeros."""

    def __init__(self, params: Params, **run: Any) -> None:
        zeros = np.zeros(params.w1.shape[1]), np.zeros(params.w2.shape[1])
        filled = (z if b is None else b for b, z in zip((params.b1, params.b2), zeros, strict=True))
        super().__init__(Params(params.w1, params.w2, *filled), **run)


@wrong("state-resumes", "no bias")
class StateNeedsBiases(ByHand):
    def state(self) -> dict[str, Any]:
        return {name: self.p[name].clone() if name in self.p else torch.zeros(1) for name in NAMES}

    def load_state(self, state: Any) -> None:
        for name in NAMES:
            if name not in self.p:
                self.p[name] = torch.ones(1, dtype=self.p["w1"].dtype)
            self.p[name].copy_(state[name])


@wrong("state-resumes", "64-true")
class StateInSinglePrecision(ByHand):
    def state(self) -> dict[str, Any]:
        return {name: p.float() for name, p in super().state().items()}


@wrong("state-resumes", "a second time")
class StateIsKeptByWhoLoadsIt(ByHandAdam):
    """What `load_state` is given becomes the tier's own, and is written into."""

    def load_state(self, state: Any) -> None:
        self.done = int(state["done"])
        self.p, self.m, self.v = (dict(state[key]) for key in ("p", "m", "v"))


@wrong("state-resumes", "a second time")
class StepsCountedOn(ByHandAdam):
    """Going back to an earlier state keeps the later count of steps."""

    def load_state(self, state: Any) -> None:
        later = self.done
        super().load_state(state)
        self.done = max(self.done, later)


@wrong("state-resumes", "state()")
class StateIsAView(ByHand):
    def state(self) -> dict[str, Any]:
        return dict(self.p)


@wrong("inputs-are-not-written-to", "x is written to")
class InputsCentredInPlace(ByHand):
    """Takes the inputs for its own."""

    def forward(self, x: Tensor) -> Tensor:
        y_pred = super().forward(x)
        x += 1e-3
        return y_pred


@wrong("world-is-left-alone", "torch's generator")
class SeedReset(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().forward(x)


@wrong("world-is-left-alone", "NumPy's generator")
class DrawsItsOwnWeights(ByHand):
    """Draws weights from the global generator before it takes those it was given."""

    def __init__(self, params: Params, **run: Any) -> None:
        np.random.standard_normal(params.w1.shape)
        super().__init__(params, **run)


@wrong("world-is-left-alone", "torch's threads")
class ThreadsSet(ByHand):
    """For the speed of it, and for everybody."""

    def __init__(self, params: Params, **run: Any) -> None:
        torch.set_num_threads(torch.get_num_threads() % 2 + 1)
        super().__init__(params, **run)


@wrong("world-is-left-alone", "default dtype")
class DefaultDtypeSet(ByHand):
    def __init__(self, params: Params, **run: Any) -> None:
        torch.set_default_dtype(torch.float64)
        super().__init__(params, **run)


@wrong("world-is-left-alone", "grad mode")
class GradientsSwitchedOff(ByHand):
    """Nobody needs them here, and nobody elsewhere gets them any more."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return super().forward(x)


@wrong("world-is-left-alone", "print options")
class PrintOptionsSet(ByHand):
    def __init__(self, params: Params, **run: Any) -> None:
        torch.set_printoptions(precision=3)
        super().__init__(params, **run)


@wrong("runs-repeat", "loss")
class NoiseInTheHiddenLayer(ByHand):
    """Dropout that is never switched off."""

    def relu(self, h: Tensor) -> Tensor:
        rng = np.random.default_rng()
        keep = torch.from_numpy(rng.random(tuple(h.shape)) < 0.9).to(h.dtype)
        return super().relu(h) * keep / 0.9


@wrong("full-batch", "y_pred", 0)
class ZerosReturned(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(super().forward(x))


@wrong("full-batch", "loss", 0)
class ZeroLossReturned(Whole):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return 0 * super().step(x, y)


@wrong("loss-is-before-the-update", "nan")
class NoLossReturned(Whole):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return super().step(x, y) * float("nan")


@wrong("full-batch", "w2", 0)
class NothingIsTrained(ByHand):
    def update(self) -> None:
        """Forgets."""


@wrong("full-batch", "grad_w2", 20)
class WrongFromStep20(ByHand):
    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        loss = super().backward(x, y_pred, y)
        if self.done >= 20:
            self.g["w2"] *= 1.001
        return loss


@wrong("full-batch", "w1", 20)
class WrongFromStep20Unseen(Whole):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().step(x, y)
        if self.t.done > 20:
            self.t.p["w1"] -= 1e-3 * self.t.lr * self.t.g["w1"]
        return loss


@wrong("gradients-are-used", "w1")
class GradientsAreCopies(ByHand):
    """What is written to `gradients()` is lost."""

    def gradients(self) -> list[Tensor]:
        return [g.clone() for g in super().gradients()]


@wrong("export-agrees", "disagree")
class PredictsOtherwise(Whole):
    """`forward` predicts from averaged weights, which `params` does not give."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.99 * super().forward(x)


@wrong("learns", "not finite")
class DivergesUnderItsOwnRecipe(ByHand):
    recipe = Recipe(optimizer="sgd", lr=1e6, init="normal", bias=True)


@wrong("far-target", "raised")
class GivesUp(ByHand):
    """Asserts what does not always hold."""

    def loss(self, diff: Tensor) -> Tensor:
        loss = super().loss(diff)
        if loss > 1e6:
            raise FloatingPointError("loss too large")
        return loss


@wrong("contract-is-declared", "contract_version")
class NoContractDeclared(Whole):
    contract_version = None  # type: ignore[assignment]
