"""The conformance suite as pytest: subclass `TierContract`, name the tier, done.

::

    from layerlab.testing import TierContract

    class TestMyTier(TierContract):
        tier = "my-tier"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

try:
    import pytest
except ImportError as error:
    raise ImportError("layerlab.testing needs pytest: pip install pytest") from error

from layerlab.conformance import SUITE, check, check_name

if TYPE_CHECKING:
    from layerlab.tier import Tier


class TierContract:
    """Every check of the suite as a test. A check that does not apply is skipped, with its reason.

    Attributes:
        tier: The tier's name, or its class.
        seed: What the problems are drawn from.
        accelerator: Where the tier is examined: "cpu", "gpu", or "auto": the CPU where it runs there.
    """

    tier: ClassVar[str | type[Tier]]
    seed: ClassVar[int] = 0
    accelerator: ClassVar[str] = "auto"

    @pytest.mark.parametrize("name", [check_name(single) for single in SUITE])
    def test_contract(self, name: str) -> None:
        """The claim of one check holds."""
        report = check(self.tier, seed=self.seed, accelerator=self.accelerator, only=[name])
        (result,) = report.results
        if result.result == "n/a":
            pytest.skip(result.detail)
        assert result.result == "pass", f"{result.claim}\n{result.detail}"
