"""The life of one record on a real server against a small model of the rules, in any order Hypothesis can think of.

The model says which state and how many attempts each step leads to; the promise (B-10) is asked for at the end: when
nothing is left to do, the last finished run has read the document as it is, or somebody knows why not; and where
deletions are runs, the deletion of what the planner has seen last has had its own (B-61). What the model leaves out:
times, several tasks, changed definitions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from datetime import timedelta

import bson
import pytest
from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from celery_reactive.core.outcome import (
    Completed,
    Deferred,
    Errored,
    Exhausted,
    Failure,
    GivenBack,
    Outcome,
    Overtaken,
    Skipped,
)
from celery_reactive.core.record import CODEC, Claim
from celery_reactive.core.states import RUNNING, RecordState
from celery_reactive.errors import LeaseLostError
from celery_reactive.store import documents, records
from celery_reactive.store.change_stream import Change
from tests.integration.bench import TOOK, Bench, Desk
from tests.integration.conftest import MakeBench, MakeDesk

PENDING, PROCESSING, DIRTY, COMPLETED, FAILED = RecordState
BROKEN = Failure("broken", "ValueError")
SOON = timedelta(seconds=5)
ENOUGH_RUNS = 20


@dataclasses.dataclass
class Model:
    """What the rules say of the record. Named as in the store's bookkeeping."""

    status: RecordState
    observed: str
    at: Timestamp
    on_delete: bool
    attempts: int = 0
    off: bool = False
    """The document's absence was observed."""
    gone: bool = False
    """Its deletion was observed by a task that has deletions run."""
    deleted: Timestamp | None = None
    """A deletion that waits for its run."""
    fresh: bool = False
    forced: bool = False
    touched: bool = False
    before: int = 0
    claim_forced: bool = False
    claim_deleted: Timestamp | None = None

    @property
    def running(self) -> bool:
        """Whether a claim owns it."""
        return self.status in RUNNING

    def skip_when_off(self) -> None:
        """B-8: what would be pending for a document that is not there completes, unless retried by hand."""
        if self.status is PENDING and (self.off or self.gone) and not self.forced and self.deleted is None:
            self.status, self.fresh = COMPLETED, True

    def leave(self, at: Timestamp) -> None:
        """The document is outside the filter, or gone and the task is told of no deletions."""
        if at > self.at:
            self.at, self.off = at, True
            self.skip_when_off()

    def delete(self, at: Timestamp) -> None:
        """The document is gone; B-61: a deletion is a change like any other, and told once."""
        if not self.on_delete:
            self.leave(at)
        elif at > self.at:
            self.at = at
            if not self.gone:
                self.attempts, self.deleted = 0, at
                self.status = DIRTY if self.running else PENDING
            self.gone = True

    def observe(self, value: str, at: Timestamp) -> None:
        """B-13, B-14: the document matches."""
        if at < self.at:
            return
        if value != self.observed or self.off or self.gone:
            self.attempts = 0
            self.status = DIRTY if self.running else PENDING
        elif self.running and at > self.at:
            self.touched = True
        self.observed, self.at = value, at
        self.is_there()

    def is_there(self) -> None:
        """The document was seen to match."""
        self.off, self.gone, self.deleted = False, False, None

    def claim(self) -> None:
        """B-23."""
        self.attempts = self.before = 0 if self.fresh else self.attempts
        self.attempts += 1
        self.claim_forced, self.claim_deleted = self.forced, self.deleted
        self.fresh = self.forced = self.touched = False
        self.status = PROCESSING

    def settle(self, outcome: Outcome, claimed_at: Timestamp) -> None:
        """B-24 to B-28, B-33, B-34: what waits decides first, then what the run came to."""
        again = self.status is DIRTY or self.forced
        own = PENDING
        match outcome:
            case Completed(document_checked=checked):
                own, self.fresh = COMPLETED, True
                again = again or (self.touched and not checked)
            case Skipped(gone=gone, left=left):
                own, self.fresh = COMPLETED, True
                again = again or self.touched
                is_off = left or (gone and not self.on_delete)
                self.off = self.off or (is_off and self.at <= claimed_at and not again)
            case Exhausted():
                own = FAILED
            case Deferred():
                self.attempts = min(self.attempts, self.before)
            case GivenBack():
                self.attempts = min(self.attempts, self.before)
                self.forced = self.forced or self.claim_forced
            case Overtaken(values=values):
                self.attempts = 0
                if self.at <= claimed_at:
                    self.observed = bson.decode(values.raw)["v"]["v"]
                    self.is_there()
                self.at = max(self.at, claimed_at)
            case Errored():
                pass
        self.touched = False
        self.status = PENDING if again else own
        self.skip_when_off()
        if isinstance(outcome, Completed | Skipped) and self.deleted == self.claim_deleted:
            self.deleted = None

    def retry(self) -> bool:
        """B-52; whether it had any effect: a running record that will run again anyway does not run twice more."""
        before = (self.status, self.forced)
        self.status, self.forced = (DIRTY if self.running else PENDING), True
        return self.status is PENDING or before != (self.status, self.forced)

    def discard(self) -> bool:
        """B-52; whether it had any effect."""
        if self.status not in (PENDING, FAILED):
            return False
        self.status, self.fresh, self.forced, self.deleted = COMPLETED, True, False, None
        return True


@dataclasses.dataclass
class Run:
    """A live claim, and the document as its handler has read it last."""

    claim: Claim
    seen: tuple[int, str] | None
    speaks_of: int
    """The incarnation that the record spoke of."""
    checked: bool = False


class Life(RuleBasedStateMachine):
    """One document, its record, a planner and any number of workers that try."""

    bench: Bench
    desk: Desk
    doc_ids: Iterator[int]

    @initialize()
    def begin(self) -> None:
        """A document is inserted and planned."""
        self.doc_id = next(self.doc_ids)
        self.document: tuple[int, str] | None = None
        """Incarnation and value of the document that matches."""
        self.exists = False
        self.incarnation = 0
        self.waiting: list[Change] = []
        self.told: list[tuple[Change, Timestamp]] = []
        self.model: Model | None = None
        self.run: Run | None = None
        self.lost: list[Claim] = []
        self.handled: tuple[int, str] | None = None
        self.observed = self.told_of = 0
        """Incarnations: the newest that the record speaks of, and the one whose deletion has had its run."""
        self.write(value="A", on=True, planned=True)

    # --- the user ----------------------------------------------------------------------------

    @rule(value=st.sampled_from("ABC"), on=st.sampled_from([True, True, True, False]), planned=st.booleans())
    def write(self, *, value: str, on: bool, planned: bool) -> None:
        """The document is inserted or replaced, inside or outside the filter, and the event may come soon or late."""
        if not self.exists:
            self.incarnation += 1
        self.bench.put({"_id": self.doc_id, "on": on, "v": value})
        self.exists = True
        self.document = (self.incarnation, value) if on else None
        self._tell(self.desk.written(self.doc_id), planned=planned)

    @precondition(lambda self: self.document is not None)
    @rule()
    def change(self) -> None:
        """What the task watches changes, and the event comes soon."""
        other = "B" if self.document is not None and self.document[1] == "A" else "A"
        self.write(value=other, on=True, planned=True)

    @precondition(lambda self: self.exists)
    @rule(planned=st.booleans())
    def delete(self, *, planned: bool) -> None:
        """The document is deleted, and the event may come soon or late."""
        self.bench.delete(self.doc_id)
        self.exists, self.document = False, None
        self._tell(self.desk.deleted(self.doc_id), planned=planned)

    def _tell(self, change: Change, *, planned: bool) -> None:
        self.waiting.append(change)
        self.told.append((change, self.bench.cluster_time()))
        if planned:
            self.plan()

    # --- the planner -------------------------------------------------------------------------

    @precondition(lambda self: self.waiting)
    @rule()
    def plan(self) -> None:
        """The leader plans all that has come in, as one batch."""
        self._plan(self.waiting, self.bench.cluster_time())
        self.waiting = []

    @precondition(lambda self: len(self.told) > len(self.waiting))
    @rule(data=st.data())
    def plan_again(self, data: st.DataObject) -> None:
        """A former leader wakes up and plans an old batch, under the time that it knew."""
        change, at = data.draw(st.sampled_from(self.told[: len(self.told) - len(self.waiting)]))
        self._plan([change], at)

    def _plan(self, changes: list[Change], at: Timestamp) -> None:
        self.desk.planning.plan_changes(changes, at=at)
        # On a busy machine a statement may take longer than a lock is waited for.
        self.desk.planning.retry_locked()
        kinds = {change.kind for change in changes}
        if self.model is not None and self.desk.deleted(0).kind in kinds:
            self.model.delete(at)
        if self.desk.written(0).kind in kinds:
            if self.document is None:
                if self.model is not None:
                    self.model.leave(at)
            elif self.model is None:
                self.model = Model(PENDING, self.document[1], at, self.bench.task.on_delete)
                self.observed = self.incarnation
            else:
                self._observed_by(at)
                self.model.observe(self.document[1], at)

    def _observed_by(self, at: Timestamp) -> None:
        """The document is seen as it was at a time, unless the record knows better."""
        if self.model is not None and at >= self.model.at:
            self.observed = self.incarnation

    @rule()
    def mark_sent(self) -> None:
        """The planner dispatches the record if it is due."""
        day = timedelta(days=1)
        records.mark_sent(self.bench.records, [self.bench.key(self.doc_id)], first_deadline=day, longest_deadline=day)

    # --- the worker --------------------------------------------------------------------------

    @precondition(lambda self: self.model is not None)
    @rule()
    def claim(self) -> None:
        """A message for the record reaches a worker, at a time when a pending record is due."""
        self.bench.make_due(self.doc_id)
        claims = self.bench.claim(self.doc_id)
        if self.model is None or self.model.status is not PENDING:
            assert claims == [], "a record was claimed that was not pending"
            return
        assert self.run is None, "two live claims"
        self.model.claim()
        (claim,) = claims
        assert claim.attempt == self.model.attempts
        self.run = Run(claim, self.document, self.observed)

    @precondition(lambda self: self.run is not None)
    @rule()
    def read(self) -> None:
        """The handler calls `get_document`; a failed check ends the run as it does in the worker."""
        run = self._running()
        with self.bench.connection.causal_session() as session:
            answer = documents.read(
                self.bench.source,
                self.bench.task,
                run.claim,
                projection=None,
                session=session,
                collated=False,
                options={},
            )
        match answer:
            case documents.Read():
                run.seen, run.checked = self.document, True
            case documents.Gone():
                self._settle(Skipped("gone", TOOK, gone=True))
            case documents.Left():
                self._settle(Skipped("left", TOOK, left=True))
            case documents.MovedOn(values=values):
                self._settle(
                    Overtaken(
                        RawBSONDocument(values, codec_options=CODEC.with_options(document_class=RawBSONDocument)),
                        1,
                        TOOK,
                    )
                )

    @precondition(lambda self: self.run is not None)
    @rule()
    def succeed(self) -> None:
        """The handler returns."""
        run = self._running()
        self._settle(Completed(TOOK, document_checked=run.checked))
        self.handled = run.seen

    @precondition(lambda self: self.run is not None)
    @rule(how=st.sampled_from(["fail", "exhaust", "defer", "give back"]))
    def end_otherwise(self, how: str) -> None:
        """The handler raises or defers, or the worker is stopped."""
        outcomes: dict[str, Outcome] = {
            "fail": Errored(BROKEN, TOOK, SOON),
            "exhaust": Exhausted(BROKEN, TOOK),
            "defer": Deferred(self.bench.now() + SOON),
            "give back": GivenBack(),
        }
        self._settle(outcomes[how])

    @precondition(lambda self: self.run is not None)
    @rule(outcome=st.sampled_from([Errored(BROKEN, TOOK, SOON), Exhausted(BROKEN, TOOK), GivenBack(alone=True)]))
    def vanish(self, outcome: Outcome) -> None:
        """The worker vanishes, and the leader rescues the record."""
        run = self._running()
        (lease,) = records.claimed_with(self.bench.records, [run.claim.key], run.claim.token)
        settled = records.rescue(self.bench.records, self.bench.task, lease, outcome)
        self._ended(outcome, Timestamp(0, 1), settled.state)
        self.lost.append(run.claim)

    @precondition(lambda self: self.lost)
    @rule()
    def write_too_late(self) -> None:
        """A worker that was taken for dead finishes, whatever the record does meanwhile: nothing is written."""
        with pytest.raises(LeaseLostError):
            self.bench.complete(self.lost[-1])

    def _running(self) -> Run:
        assert self.run is not None
        return self.run

    def _settle(self, outcome: Outcome) -> None:
        claim = self._running().claim
        settled = self.bench.settle(claim, outcome)
        self._ended(outcome, claim.cluster_time, settled.state)

    def _ended(self, outcome: Outcome, observed_at: Timestamp, state: RecordState) -> None:
        assert self.model is not None
        run, self.run = self._running(), None
        match outcome:
            case Overtaken():
                self._observed_by(observed_at)
            case Completed() | Skipped() if run.claim.gone:
                self.told_of = run.speaks_of
            case _:
                pass
        self.model.settle(outcome, observed_at)
        assert state is self.model.status

    # --- by hand -----------------------------------------------------------------------------

    @rule()
    def retry(self) -> None:
        """Somebody retries the record."""
        changed = self.bench.retry(self.doc_id)
        assert changed == (self.model is not None and self.model.retry())

    @rule()
    def discard(self) -> None:
        """Somebody discards the record: what it was to run for counts as handled."""
        if self.model is not None and self.model.deleted is not None and self.run is None:
            self.told_of = self.observed
        changed = self.bench.discard(self.doc_id)
        assert changed == (self.model is not None and self.model.discard())
        if changed and self.model is not None:
            self.handled = (self.incarnation, self.model.observed)

    # --- what holds --------------------------------------------------------------------------

    @invariant()
    def the_record_is_as_the_rules_say(self) -> None:
        """State and attempts, after each step."""
        found = self.bench.records.find_one({"_id": self.bench.key(self.doc_id).id})
        assert (found is None) == (self.model is None)
        if found is not None and self.model is not None:
            stored = (
                found["status"],
                found["attempts"],
                found["lastObservedValues"]["v"],
                found["_r"]["claim"] is not None,
                found["_r"].get("deleted"),
            )
            model = self.model
            assert stored == (model.status, model.attempts, model.observed, self.run is not None, model.deleted)

    def teardown(self) -> None:
        """B-10: let everything come to rest; the final state of the document has been handled."""
        if not hasattr(self, "doc_id"):
            return
        if self.waiting:
            self.plan()
        for _ in range(ENOUGH_RUNS):
            if self.run is not None:
                self.succeed()
            if self.model is not None:
                self.claim()
            if self.run is None:
                break
        assert self.run is None, "the record never comes to rest"
        if self.document is None or self.model is None:
            assert self.document is None, "a document that matches has no record"
            self._check_deletion()
            return
        if self.model.status is FAILED:
            assert self.model.observed == self.document[1], "a change of a failed record was forgotten"
        else:
            assert self.handled == self.document, f"handled {self.handled}, the document is {self.document}"

    def _check_deletion(self) -> None:
        """B-61: a document that is gone for good has had a run for that, unless its attempts are spent."""
        if self.bench.task.on_delete and self.model is not None and not self.exists and self.model.status is not FAILED:
            assert self.told_of == self.observed, f"told of {self.told_of}, the record speaks of {self.observed}"


@pytest.mark.parametrize("on_delete", [False, True])
def test_one_record_lives_by_the_rules(make_bench: MakeBench, make_desk: MakeDesk, *, on_delete: bool) -> None:
    """B-8, B-10, B-13 to B-18, B-23 to B-28, B-33, B-34, B-52, B-61: whatever comes before or during what."""
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, on_delete=on_delete)

    class LifeHere(Life):
        """A life on this test's server."""

    LifeHere.bench, LifeHere.desk, LifeHere.doc_ids = bench, make_desk(bench), itertools.count(1)
    run_state_machine_as_test(
        LifeHere,
        settings=settings(
            max_examples=100,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
