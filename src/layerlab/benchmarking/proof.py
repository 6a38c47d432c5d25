"""The proof that comes before the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerlab.benchmarking.audit import KNOWN
from layerlab.conformance import check
from layerlab.errors import TierError

if TYPE_CHECKING:
    from layerlab.registry import TierRow
    from layerlab.tier import Tier

# The checks of the kit that say what is computed.
PROOF = ("full-batch", "minibatches", "zeros-at-relu", "small-gradients", "forward-changes-nothing")
# On CUDA the steps of a training may be replayed from a graph: then that is what is timed there.
REPLAYED = "replays-agree"


def proven(row: TierRow, tier_class: type[Tier], accelerator: str) -> dict[str, Any]:
    """Puts a tier through the part of the conformance suite that says what it computes.

    Args:
        row: Where it comes from.
        tier_class: Its class.
        accelerator: "cpu" or "gpu".

    Returns:
        Whether it passed (``ok``), and what it passed or why it did not (``said``).

    Raises:
        TierError: Nobody but the tier knows what its steps should be.
    """
    optimizer = tier_class.recipe.optimizer
    if optimizer not in KNOWN:
        raise TierError(
            f"its optimizer is '{optimizer}', and the oracle makes steps of {' and '.join(KNOWN)} only: "
            "nothing would show that those that are timed were made"
        )
    only = (*PROOF, REPLAYED) if accelerator == "gpu" else PROOF
    report = check(row.selector, only=only, accelerator=accelerator)
    said = "; ".join(f"{failure.check}: {failure.detail}" for failure in report.failures)
    passed = ", ".join(result.check for result in report.results if result.result == "pass")
    return {"ok": report.ok, "said": said or f"suite {report.suite}: {passed}"}
