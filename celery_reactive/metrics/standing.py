"""What the planner of this process is doing, as its events tell: which groups it stands for, and which it leads.

Asked by `/readyz` and for `planner_leader`, which no database can answer: two processes may both take themselves for
the leader, and that is what one wants to see.
"""

from __future__ import annotations

from celery_reactive.events import Event, LeadershipEnded, LeadershipWon, PlannerStarted, PlannerStopped


class Standing:
    """Listens to the events of one process's planners."""

    def __init__(self) -> None:
        self.groups: frozenset[str] = frozenset()
        """For which a planner runs here."""
        self.terms: dict[str, int] = {}
        """Of the groups that it leads."""

    def __call__(self, event: Event) -> None:
        """Note what *event* says about a planner of this process."""
        match event:
            case PlannerStarted():
                self.groups |= {event.group}
            case PlannerStopped():
                self.groups -= {event.group}
            case LeadershipWon():
                self.terms = {**self.terms, event.group: event.term}
            case LeadershipEnded():
                self.terms = {group: term for group, term in self.terms.items() if group != event.group}
            case _:
                pass
