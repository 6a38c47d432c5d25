"""What a check of a tier found: for people, for programs, for CI."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from layerlab.errors import one_line
from layerlab.folder import written_whole
from layerlab.report import json_safe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Verdict = Literal["pass", "fail", "n/a"]


class NotApplicable(Exception):  # noqa: N818 -- nothing went wrong
    """A check has nothing to say about a tier; the message is the capability that makes it so."""


@dataclass(frozen=True)
class Finding:
    """What a check saw.

    Attributes:
        ok: Whether its claim holds.
        figure: What it measured; a proof: the largest difference as a share of its bound.
        bound: The most that the figure may be.
        detail: What was looked at, or what is wrong and where.
        where: Where two computations part, as fields; empty where they do not.
    """

    ok: bool
    figure: float | None = None
    bound: float | None = None
    detail: str = ""
    where: dict[str, Any] = field(default_factory=dict)


def as_finding(faults: list[str], looked_at: str) -> Finding:
    """What a list of faults amounts to: it should be empty."""
    unique = list(dict.fromkeys(faults))
    return Finding(not unique, float(len(unique)), 0.0, "; ".join(unique) or looked_at)


def raised(error: BaseException) -> Finding:
    """What a tier that raises amounts to."""
    return Finding(False, detail=one_line(f"raised {type(error).__name__}: {error}"))


@dataclass(frozen=True)
class CheckResult:
    """One line of the scorecard.

    Attributes:
        check: Name of the check.
        claim: What it says of every tier.
        result: "pass", "fail", or "n/a" with the capability that makes it so as the detail.
        figure: What was measured.
        bound: The most that it may be.
        detail: What was looked at, or what is wrong and where.
        where: Where two computations part: case, step, tensor, index, actual, expected, bound.
        seconds: Wall time of the check.
    """

    check: str
    claim: str
    result: Verdict
    figure: float | None
    bound: float | None
    detail: str
    where: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class CheckReport:
    """The scorecard of one tier.

    Attributes:
        tier: Name of the tier.
        distribution: The distribution that offers it; empty for a class that none does.
        version: The version of that distribution.
        suite: The version of the suite.
        seed: What the problems were drawn from.
        device: Where it ran.
        results: One entry a check, in the order of the suite.
    """

    tier: str
    distribution: str
    version: str
    suite: str
    seed: int
    device: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(result for result in self.results if result.result == "fail")

    def as_dict(self) -> dict[str, Any]:
        """Plain values; a figure that is not finite is None, for JSON has no word for it."""
        plain: dict[str, Any] = json_safe({**asdict(self), "ok": self.ok})
        return plain

    def as_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.as_dict(), indent=2)


def write_junit(reports: Sequence[CheckReport], path: Path) -> None:
    """Writes reports as a JUnit file, a test suite a tier, for the pages that CI systems make of them.

    The fields are those that CI systems agree on (https://github.com/testmoapp/junitxml).

    Args:
        reports: The reports.
        path: Where the file is to be; it is written aside and renamed into place.

    Raises:
        OSError: It cannot be written.
    """
    from xml.etree import ElementTree as ET

    root = ET.Element("testsuites", name="layerlab check")
    for report in reports:
        counts = {
            "tests": len(report.results),
            "failures": len(report.failures),
            "skipped": sum(result.result == "n/a" for result in report.results),
        }
        suite = ET.SubElement(
            root,
            "testsuite",
            {key: str(value) for key, value in counts.items()},
            name=f"layerlab check {report.tier}",
            time=f"{sum(result.seconds for result in report.results):.3f}",
        )
        for result in report.results:
            case = ET.SubElement(
                suite,
                "testcase",
                name=result.check,
                classname=f"layerlab.{report.tier}",
                time=f"{result.seconds:.3f}",
            )
            if result.result == "fail":
                ET.SubElement(case, "failure", message=_xml(result.detail)).text = _xml(result.claim)
            elif result.result == "n/a":
                ET.SubElement(case, "skipped", message=_xml(result.detail))
    ET.indent(root)
    with written_whole(path) as file:
        file.write(ET.tostring(root, encoding="utf-8", xml_declaration=True).decode())


def _xml(text: str) -> str:
    """XML has no place for control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
