"""Update pipelines of the records: pure builders, one per transition, by subject.

Called by `store/records` only. A pipeline reads the record as it is on the server and decides
there; values that come from documents, users or messages appear only as field paths or inside
`$literal`, never as expressions. `$$NOW` is the only clock.

The bookkeeping sub-document `_r` of a record:

=============  ================================================================================
`at`           cluster time of the newest observation
`gen`          generation of the definition under which it was made
`changedAt`    server time of the first change that no run has started on yet (B-16)
`claim`        `{token, worker, beats, before, forced, company, deleted, values}` while running; `before`:
               attempts before the run, `forced`: a manual retry started it, `deleted`: the deletion that it
               handles, `values`: what it is for, where the task tracks changes
`fence`        grows with each claim (B-27)
`sent`         a message is on its way (`wakeAt` is its deadline)
`sentAt`       when the newest message was sent
`dispatches`   messages sent since the record last became pending
`wakeAt`       when the planner must look at the record next; null when it need not
`cycle`        counts chains of attempts, for Celery's task ids
`deferrals`    since the last change or success
`done`         token of the last run that was settled, so that a repeated statement knows its own
`reset`        `{version, at}` of the handler's version for which the record was last made to run again (B-44)
`deleted`      cluster time of a deletion that is a run of its own and has not been handled (B-61)
`handled`      watched values of the last completed run, where the task tracks changes (B-63)
`error`        type and traceback that belong to `lastError`
`wrote`        `{at, by}` of the newest change, and
`loop`         `{n, to, by, again}` of the last run: whether runs cause each other (B-64, `loops`)
=============  ================================================================================

and flags that are absent unless true: `alone` (must travel in a message of its own), `forced` (a
manual retry waits), `touched` (an event with the same values came during the run), `gone`, `left`
(the document's absence was observed), `skipped` (its last run was skipped unhandled), `fresh` (the
next run starts from attempt 1), `held` (a deferral that changes do not cut short), `unrun` (made
without a run by a scan under `backfill=False`), `guarded` (taken out by the loop guard).
"""

from celery_reactive.store.pipelines.by_hand import discard, reprocess, retry_by_hand, revoke
from celery_reactive.store.pipelines.dispatching import expire_sent, is_in_flight, mark_sent, mark_unsent
from celery_reactive.store.pipelines.expressions import EPOCH, is_before, is_past, literal, milliseconds, state_is
from celery_reactive.store.pipelines.loops import guard, is_looped, resume
from celery_reactive.store.pipelines.planning import (
    OBSERVED,
    TO_COMPARE,
    adopt_snapshot,
    apply_observation,
    as_observed,
    beside_known,
    delete,
    leave,
    new_record,
    snapshots_to_adopt,
    unless_touched,
    unlike,
)
from celery_reactive.store.pipelines.running import renew, settle, start_attempt, took_each

__all__ = [
    "EPOCH",
    "OBSERVED",
    "TO_COMPARE",
    "adopt_snapshot",
    "apply_observation",
    "as_observed",
    "beside_known",
    "delete",
    "discard",
    "expire_sent",
    "guard",
    "is_before",
    "is_in_flight",
    "is_looped",
    "is_past",
    "leave",
    "literal",
    "mark_sent",
    "mark_unsent",
    "milliseconds",
    "new_record",
    "renew",
    "reprocess",
    "resume",
    "retry_by_hand",
    "revoke",
    "settle",
    "snapshots_to_adopt",
    "start_attempt",
    "state_is",
    "took_each",
    "unless_touched",
    "unlike",
]
