"""What a check says: an ailment, found on something."""

from __future__ import annotations

import dataclasses
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """It does not work, or loses something."""
    WARNING = "warning"
    """It works, and will hurt some day."""
    NOTE = "note"
    """It may be meant."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Something that is probably wrong."""

    code: str
    """Stable, for programs."""
    severity: Severity
    subject: str
    """On what: a setting, a task, a collection, a worker."""
    problem: str
    """What is so."""
    remedy: str
    """What to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ailment:
    """Something that can be wrong, with its remedy."""

    code: str
    severity: Severity
    remedy: str

    def on(self, subject: str, problem: str) -> Finding:
        """Return that it was found on *subject*."""
        return Finding(self.code, self.severity, subject, problem, self.remedy)


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found, the worst first."""

    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]
    """What could not be looked at, with the reason."""

    @property
    def is_healthy(self) -> bool:
        """Whether there is no error and no warning."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)


def error(code: str, remedy: str) -> Ailment:
    """Return an ailment of severity error."""
    return Ailment(code, Severity.ERROR, remedy)


def warning(code: str, remedy: str) -> Ailment:
    """Return an ailment of severity warning."""
    return Ailment(code, Severity.WARNING, remedy)


def note(code: str, remedy: str) -> Ailment:
    """Return an ailment that may be meant."""
    return Ailment(code, Severity.NOTE, remedy)
