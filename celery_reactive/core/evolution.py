"""Generations of a definition: whose snapshots can be compared with what a document's watched values are now (B-43).

Made by the store from what it keeps of a task's earlier definitions; read by planner and worker. Values only.
"""

from __future__ import annotations

import dataclasses

from celery_reactive.core.projection import Projection


@dataclasses.dataclass(frozen=True, slots=True)
class Lineage:
    """What is known of the generations of one task."""

    generation: int
    """The present one."""
    comparable: frozenset[int] = frozenset()
    """Generations with the present projection: their snapshots are compared as they stand. The present one is."""
    earlier: tuple[tuple[frozenset[int], Projection], ...] = ()
    """Generations with other projections, each with what was watched then. Any other is not known any more."""

    def projection_of(self, generation: int) -> Projection | None:
        """Return the projection of an earlier *generation*, None where it is the present one or is not known."""
        return next((projection for numbers, projection in self.earlier if generation in numbers), None)
