"""Who checks the checker: a gallery of wrong tiers, each of which the suite must catch and name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gallery import ADAM, GALLERY, RIGHT, SGD, ByHand, ByHandAdam, Exhibit, Whole
from layerlab.conformance import check

if TYPE_CHECKING:
    from layerlab.tier import Tier

# How a test tells the end of the session what became of its exhibit: conftest.py prints the score.
SCORE = "wrong tiers"


@pytest.mark.parametrize("exhibit", GALLERY, ids=lambda e: e.tier_class.__name__)
def test_a_wrong_tier_is_caught_and_named(exhibit: Exhibit, record_property: Any) -> None:
    """The check that looks for the mistake fails, and names the tensor and the step, or the deed."""
    record_property(SCORE, "tried")
    (result,) = check(exhibit.tier_class, only=[exhibit.check]).results
    assert result.result == "fail", result
    if result.where:
        assert result.where["tensor"] == exhibit.tensor, result.detail
        assert exhibit.step in (None, result.where["step"]), result.detail
        assert exhibit.tensor in result.detail
    else:
        assert exhibit.tensor in result.detail
        assert exhibit.step is None
    record_property(SCORE, "caught")


def test_the_gallery_is_of_different_tiers() -> None:
    """No exhibit is shown twice, and each is a tier by the letter of the contract."""
    shown = [exhibit.tier_class for exhibit in GALLERY]
    assert len(set(shown)) == len(shown) >= 25
    assert not [tier.__name__ for tier in shown if tier.contract_fault()]


@pytest.mark.parametrize("tier_class", RIGHT, ids=lambda c: c.__name__)
def test_what_they_are_made_of_is_right(tier_class: type[Tier]) -> None:
    """The tiers that the wrong ones are derived from pass: it is the mistake that is caught."""
    report = check(tier_class)
    assert report.ok, report.failures


def scaled(parent: type[ByHand], tensor: str, precisions: frozenset[str], factor: float) -> type[ByHand]:
    class Scaled(parent):  # type: ignore[misc, valid-type]
        def backward(self, x: Any, y_pred: Any, y: Any) -> Any:
            loss = super().backward(x, y_pred, y)
            if tensor in self.g:
                self.g[tensor] = self.g[tensor] * factor
            return loss

    Scaled.precisions = precisions
    return Scaled


@pytest.mark.parametrize("bits", ["32-true", "64-true"])
@pytest.mark.parametrize("tensor", ["w1", "w2", "b1", "b2"])
@pytest.mark.parametrize("parent", [ByHand, ByHandAdam], ids=["sgd", "adam"])
@pytest.mark.parametrize("shown", [True, False], ids=["split", "whole"])
def test_a_thousandth_of_one_gradient_is_seen(
    parent: type[ByHand], tensor: str, bits: str, shown: bool
) -> None:
    """In either precision, whether or not the tier shows its gradients, and under Adam, which scales them."""
    inner_class = scaled(parent, tensor, frozenset({bits}), 1.001)
    tier_class: type[Tier] = inner_class
    if not shown:

        class Hidden(Whole):
            inner = inner_class
            precisions = frozenset({bits})
            recipe = ADAM if parent is ByHandAdam else SGD

        tier_class = Hidden
    proofs = ["full-batch", "minibatches", "single-row", "small-gradients"]
    failures = check(tier_class, only=proofs).failures
    assert failures
    expected = f"grad_{tensor}" if shown else tensor
    assert {failure.where["tensor"] for failure in failures} == {expected}
