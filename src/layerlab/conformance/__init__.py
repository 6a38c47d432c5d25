"""The conformance kit: does a tier compute what it should, at every step, and keep the contract?

`check` puts a tier through the suite: named checks, each a function whose docstring is its claim. `proofs`
compares with the oracle at every step (`lockstep`) on small hard problems (`problems`); `contract` looks at
what is promised beside the arithmetic.
"""

from layerlab.conformance.scorecard import CheckReport, CheckResult, write_junit
from layerlab.conformance.suite import SUITE, SUITE_VERSION, check, check_name, examine, not_examined

__all__ = [
    "SUITE",
    "SUITE_VERSION",
    "CheckReport",
    "CheckResult",
    "check",
    "check_name",
    "examine",
    "not_examined",
    "write_junit",
]
