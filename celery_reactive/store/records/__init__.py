"""Every statement that changes a record. One function, one guarded statement; by subject.

Called by the planner's stages, the worker and management. Nothing here decides *whether* a
transition should happen, and no comparison uses this process's clock: `$$NOW` is the server's.
The driver repeats single-document statements itself; `update_many` and `$merge` it does not, so each
of those here does the same when it is done twice (a test does so).
"""

from celery_reactive.store.records.by_hand import discard, reprocess, resume, retry_by_hand, revoke
from celery_reactive.store.records.collection import Records
from celery_reactive.store.records.dispatching import (
    count_in_flight,
    expire_sent,
    find_due,
    find_sent,
    guard,
    mark_sent,
    mark_unsent,
    run_times,
    seconds_until_next_wake,
)
from celery_reactive.store.records.planning import (
    Observation,
    Unlike,
    adopt_snapshots,
    apply_observations,
    exchange_records,
    find_absent,
    find_matching,
    find_unlike,
    forget_observations,
    leave,
    make_records,
    newest_generation,
)
from celery_reactive.store.records.running import (
    Settled,
    claim,
    claimed_with,
    find_claims,
    is_completed_by,
    is_running,
    renew,
    rescue,
    running,
    settle,
    settle_by_token,
    settle_each,
    settle_together,
    settled_by,
    states_of,
    was_settled_by,
)

__all__ = [
    "Observation",
    "Records",
    "Settled",
    "Unlike",
    "adopt_snapshots",
    "apply_observations",
    "claim",
    "claimed_with",
    "count_in_flight",
    "discard",
    "exchange_records",
    "expire_sent",
    "find_absent",
    "find_claims",
    "find_due",
    "find_matching",
    "find_sent",
    "find_unlike",
    "forget_observations",
    "guard",
    "is_completed_by",
    "is_running",
    "leave",
    "make_records",
    "mark_sent",
    "mark_unsent",
    "newest_generation",
    "renew",
    "reprocess",
    "rescue",
    "resume",
    "retry_by_hand",
    "revoke",
    "run_times",
    "running",
    "seconds_until_next_wake",
    "settle",
    "settle_by_token",
    "settle_each",
    "settle_together",
    "settled_by",
    "states_of",
    "was_settled_by",
]
