"""The kernels of the step on CUDA, in Triton: https://triton-lang.org/main/python-api/triton.language.html.

A block of threads computes one tile of a result. Sizes that are no multiple of a tile's are masked: what lies
outside is read as 0 and never written. All arrays are contiguous. Products are in full float32: TF32 would be
another computation.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads the annotations: it gives arguments their types when it compiles, but for what is constant.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hidden_parts(
    x, w1_t, parts, n, d_in, hidden,
    TN: tl.constexpr, TH: tl.constexpr, TD: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """``x @ w1`` (N, H), summed over ``SPAN`` of the inputs each: ``parts`` (parts, N, H).

    One sum over all inputs would leave most of a GPU idle, and sums in whichever order blocks come would not
    repeat.
    """
    tl.static_assert(SPAN % TD == 0)  # a tile does not reach into the next part
    tile_h, tile_n, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = tile_n * TN + tl.arange(0, TN)
    units = tile_h * TH + tl.arange(0, TH)
    total = tl.zeros((TN, TH), tl.float32)
    for start in range(0, SPAN, TD):
        inputs = part * SPAN + start + tl.arange(0, TD)
        there = inputs < d_in
        a = tl.load(x + rows[:, None] * d_in + inputs[None, :], (rows < n)[:, None] & there[None, :], 0.0)
        b = tl.load(
            w1_t + units[None, :] * d_in + inputs[:, None], (units < hidden)[None, :] & there[:, None], 0.0
        )
        total += tl.dot(a, b, input_precision="ieee")
    tl.store(
        parts + (part * n + rows[:, None]) * hidden + units[None, :],
        total,
        (rows < n)[:, None] & (units < hidden)[None, :],
    )


@triton.jit
def middle(
    parts, y, w2, b1, b2, h, grad, diff, n, hidden, d_out,
    PARTS: tl.constexpr, TN: tl.constexpr, TH: tl.constexpr, TO: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Of some rows all that lies between the two products with the inputs.

    ``h`` (N, H), the predictions less the targets ``diff`` (N, D_out), and what comes back to ``h`` of them:
    ``grad`` (N, H), half the gradient of the loss.
    """
    rows = tl.program_id(0) * TN + tl.arange(0, TN)
    outputs = tl.arange(0, TO)
    y_pred = tl.zeros((TN, TO), tl.float32)
    for start in range(0, hidden, TH):
        units = start + tl.arange(0, TH)
        there = (rows < n)[:, None] & (units < hidden)[None, :]
        place = rows[:, None] * hidden + units[None, :]
        total = tl.zeros((TN, TH), tl.float32)
        for part in range(PARTS):
            total += tl.load(parts + part * n * hidden + place, there, 0.0)
        if BIAS:
            total += tl.load(b1 + units, units < hidden, 0.0)[None, :]
        # a NaN must come through: that a training has diverged is seen in its loss
        total = tl.where(total < 0, 0.0, total)
        tl.store(h + place, total, there)
        weights = tl.load(
            w2 + units[:, None] * d_out + outputs[None, :],
            (units < hidden)[:, None] & (outputs < d_out)[None, :],
            0.0,
        )
        y_pred += tl.sum(total[:, :, None] * weights[None, :, :], axis=1)
    known = (rows < n)[:, None] & (outputs < d_out)[None, :]
    if BIAS:
        y_pred += tl.load(b2 + outputs, outputs < d_out, 0.0)[None, :]
    targets = tl.load(y + rows[:, None] * d_out + outputs[None, :], known, 0.0)
    off = tl.where(known, y_pred - targets, 0.0)
    tl.store(diff + rows[:, None] * d_out + outputs[None, :], off, known)
    tl.debug_barrier()  # threads read what others of the block wrote to h
    for start in range(0, hidden, TH):
        units = start + tl.arange(0, TH)
        there = (rows < n)[:, None] & (units < hidden)[None, :]
        place = rows[:, None] * hidden + units[None, :]
        weights = tl.load(
            w2 + units[:, None] * d_out + outputs[None, :],
            (units < hidden)[:, None] & (outputs < d_out)[None, :],
            0.0,
        )
        back = tl.sum(off[:, None, :] * weights[None, :, :], axis=2)
        # h is 0 exactly where the pre-activation was not positive: what relu lets through is seen in it, and
        # that is a NaN too
        tl.store(grad + place, tl.where(tl.load(h + place, there, 0.0) <= 0, 0.0, back), there)


@triton.jit
def update(
    x, w1_t, w2, b1, b2, h, grad, diff, loss, n, d_in, hidden, d_out, rate,
    TN: tl.constexpr, TH: tl.constexpr, TD: tl.constexpr, TO: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """All parameters plus ``rate`` times a product with the batch, in place; and the loss (1,)."""
    tile_h, tile_d = tl.program_id(0), tl.program_id(1)
    units = tile_h * TH + tl.arange(0, TH)
    if tile_d * TD < d_in:
        inputs = tile_d * TD + tl.arange(0, TD)
        product = tl.zeros((TH, TD), tl.float32)
        for start in range(0, n, TN):
            rows = start + tl.arange(0, TN)
            a = tl.load(
                grad + rows[None, :] * hidden + units[:, None],
                (rows < n)[None, :] & (units < hidden)[:, None],
                0.0,
            )
            b = tl.load(
                x + rows[:, None] * d_in + inputs[None, :],
                (rows < n)[:, None] & (inputs < d_in)[None, :],
                0.0,
            )
            product += tl.dot(a, b, input_precision="ieee")
        there = (units < hidden)[:, None] & (inputs < d_in)[None, :]
        place = w1_t + units[:, None] * d_in + inputs[None, :]
        tl.store(place, tl.load(place, there, 0.0) + rate * product, there)
    else:  # the last block of each row of tiles has all that belongs to the units and is not w1
        outputs = tl.arange(0, TO)
        of_w2 = tl.zeros((TH, TO), tl.float32)
        of_b1 = tl.zeros((TH,), tl.float32)
        of_b2 = tl.zeros((TO,), tl.float32)
        squares = tl.zeros((TO,), tl.float32)
        for start in range(0, n, TN):
            some = start + tl.arange(0, TN)
            known = (some < n)[None, :] & (units < hidden)[:, None]
            place_h = some[None, :] * hidden + units[:, None]
            off = tl.load(
                diff + some[:, None] * d_out + outputs[None, :],
                (some < n)[:, None] & (outputs < d_out)[None, :],
                0.0,
            )
            of_w2 += tl.dot(tl.load(h + place_h, known, 0.0), off, input_precision="ieee")
            of_b1 += tl.sum(tl.load(grad + place_h, known, 0.0), axis=1)
            of_b2 += tl.sum(off, axis=0)
            squares += tl.sum(off * off, axis=0)
        within = (units < hidden)[:, None] & (outputs < d_out)[None, :]
        place_w2 = w2 + units[:, None] * d_out + outputs[None, :]
        tl.store(place_w2, tl.load(place_w2, within, 0.0) + rate * of_w2, within)
        if BIAS:
            tl.store(b1 + units, tl.load(b1 + units, units < hidden, 0.0) + rate * of_b1, units < hidden)
        if tile_h == 0:
            if BIAS:
                old = tl.load(b2 + outputs, outputs < d_out, 0.0)
                tl.store(b2 + outputs, old + rate * of_b2, outputs < d_out)
            tl.store(loss, tl.sum(squares, axis=0))
