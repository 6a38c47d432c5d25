"""The oracle: network, loss, gradients and updates in NumPy, in the dtype of what they are given.

In float64 it is what tiers are judged against. It shares no code with any of them.

The gradients are those of the chain rule (Rumelhart, Hinton and Williams, "Learning representations by
back-propagating errors", 1986), written out for this network in `gradients`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from layerlab.seeding import generator
from layerlab.tier import Params

if TYPE_CHECKING:
    from layerlab.tier import Array, Init


def initial_params(n_in: int, n_hidden: int, n_out: int, *, init: Init, bias: bool, seed: int) -> Params:
    """Draws the first parameters of a run, in float64.

    Args:
        n_in: Number of inputs.
        n_hidden: Number of hidden units.
        n_out: Number of outputs.
        init: "normal": weights standard normal, biases 0. "linear": all uniform in ±1/sqrt(fan_in), the
            rule of `torch.nn.Linear`.
        bias: Whether there are biases. The weights are the same with and without.
        seed: The seed of the run.
    """
    rng = generator(seed, "params")
    if init == "normal":
        w1, w2 = rng.standard_normal((n_in, n_hidden)), rng.standard_normal((n_hidden, n_out))
        return Params(w1, w2, *((np.zeros(n_hidden), np.zeros(n_out)) if bias else (None, None)))
    bound1, bound2 = n_in**-0.5, n_hidden**-0.5
    w1, w2 = rng.uniform(-bound1, bound1, (n_in, n_hidden)), rng.uniform(-bound2, bound2, (n_hidden, n_out))
    if not bias:
        return Params(w1, w2)
    return Params(w1, w2, rng.uniform(-bound1, bound1, n_hidden), rng.uniform(-bound2, bound2, n_out))


def hidden(params: Params, x: Array) -> Array:
    """Pre-activations ``x @ w1 + b1``, shape (N, H), for inputs of shape (N, n_in)."""
    h = x @ params.w1  # (N, H)
    return h if params.b1 is None else h + params.b1


def predictions(params: Params, h: Array) -> Array:
    """Predictions ``relu(h) @ w2 + b2``, shape (N, n_out), for pre-activations of shape (N, H)."""
    y_pred = np.maximum(h, 0) @ params.w2  # (N, D_out)
    return y_pred if params.b2 is None else y_pred + params.b2


def forward(params: Params, x: Array) -> Array:
    """Predictions ``relu(x @ w1 + b1) @ w2 + b2``, shape (N, n_out), for inputs of shape (N, n_in)."""
    return predictions(params, hidden(params, x))


def loss(y_pred: Array, y: Array) -> float:
    """The sum over batch and outputs of ``(y_pred - y)**2``."""
    return float(np.square(y_pred - y).sum())


def gradients(params: Params, x: Array, y: Array, h: Array | None = None) -> tuple[float, Params]:
    """The loss of a batch and its gradient by every parameter.

    Args:
        params: Where the gradient is taken.
        x: Inputs, shape (N, n_in).
        y: Targets, shape (N, n_out).
        h: The pre-activations, shape (N, H), where they are at hand.

    Returns:
        The loss, and the gradients in the layout of `Params`.
    """
    h = hidden(params, x) if h is None else h  # (N, H)
    y_pred = predictions(params, h)  # (N, D_out)
    d_y = 2 * (y_pred - y)  # (N, D_out)
    d_h = (d_y @ params.w2.T) * (h > 0)  # (N, H), relu'(0) = 0
    return loss(y_pred, y), Params(
        w1=x.T @ d_h,
        w2=np.maximum(h, 0).T @ d_y,
        b1=None if params.b1 is None else d_h.sum(axis=0),
        b2=None if params.b2 is None else d_y.sum(axis=0),
    )


def sgd(params: Params, grads: Params, *, lr: float) -> Params:
    """One step of gradient descent: ``p - lr * g``."""
    return Params(*(None if p is None else p - lr * g for p, g in zip(params, grads, strict=True)))  # type: ignore[arg-type, operator]


@dataclass
class Adam:
    """Adam (Kingma and Ba, https://arxiv.org/abs/1412.6980, algorithm 1) over `Params`.

    Attributes:
        lr: Learning rate.
        beta1: Decay of the running mean of gradients.
        beta2: Decay of the running mean of squared gradients.
        eps: Added to the root, outside of it.
        t: Updates made.
        m: Running means of the gradients, one for every parameter that there is.
        v: Running means of their squares.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    t: int = field(default=0, init=False)
    m: list[Array] = field(default_factory=list, init=False)
    v: list[Array] = field(default_factory=list, init=False)

    def update(self, params: Params, grads: Params) -> Params:
        """The parameters after one more step along ``grads``."""
        if not self.m:
            self.m = [np.zeros_like(p) for p in params if p is not None]
            self.v = [np.zeros_like(p) for p in params if p is not None]
        self.t += 1
        updated: list[Array | None] = []
        moments = iter(range(len(self.m)))
        for p, g in zip(params, grads, strict=True):
            if p is None or g is None:
                updated.append(None)
                continue
            i = next(moments)
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g * g
            m_hat = self.m[i] / (1 - self.beta1**self.t)
            v_hat = self.v[i] / (1 - self.beta2**self.t)
            updated.append(p - self.lr * m_hat / (np.sqrt(v_hat) + self.eps))
        return Params(*updated)  # type: ignore[arg-type]
