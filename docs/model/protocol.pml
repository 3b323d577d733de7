/*
 * The protocol between planners, workers and the database, for one document and one task, in Promela.
 *
 * Run by tools/model.py; docs/evidence/model.md says what is modelled, what is left out, and what was found. Each
 * `inline` that is named in capitals is one guarded statement of store/records, and reads like its pipeline in
 * store/pipelines. A process between two statements may be overtaken by anything: a paused process is one that is
 * not scheduled. A crash is a choice.
 *
 * Time is abstracted away. Cluster time counts the writes to the document: event i has time 2i, everything else that
 * happens between it and the next event has time 2i+1. A wait may end at any moment. A lease can only run out
 * for a worker that is dead or frozen.
 *
 * What is fixed by -D: WRITES, the number of writes; TAKEOVER, a second planner that may take over at any moment while
 * the first goes on; SCAN, reconciliation, from a record that is there or not; LOSE, one lost stream position; OFF, the
 * document may leave the filter, be deleted, inserted again; TXN, deletion and insertion in one transaction; GEN, the
 * second planner has another filter; WORKERS; CRASHES, FREEZES, FAILURES, DEFERS, RETRIES, LOSSES, DOUBLES, how often
 * each may happen; CLEAN, cleanup; OWN, handlers that read by themselves. MUTANT_x takes one part of the protocol out.
 */

#ifndef WRITES
#define WRITES 2
#endif
#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef FREEZES
#define FREEZES 0
#endif
#ifndef FAILURES
#define FAILURES 0
#endif
#ifndef DEFERS
#define DEFERS 0
#endif
#ifndef RETRIES
#define RETRIES 0
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifndef DOUBLES
#define DOUBLES 0
#endif
#define MAX_ATTEMPTS 2
#ifdef DISPATCH
#define AFTER_A_WAIT false
#else
#define AFTER_A_WAIT true      /* without dispatch a worker tries when it likes */
#endif

/* --- the document ---------------------------------------------------------------------------------------------- */

#define NONE 0
#define A 1
#define B 2
#define C 3

byte hist[WRITES + 1];          /* its states: hist[i] after event i */
bool shares[WRITES + 1];        /* event i has the time of event i + 1: one transaction */
byte n;                         /* events so far */

#define DOC hist[n]
#define TIME_OF(i) (2 * ((i) + shares[i]))
#define KNOWN_TIME (2 * n + 1)

/* Filters: C is outside the first; with GEN the second takes C in and leaves B out. */
#define MATCHES(g, v) ((v) == A || ((v) == B && (g) == 1) || ((v) == C && (g) == 2))
#ifdef GEN
#define LAST_GEN 2
#else
#define LAST_GEN 1
#endif
byte stored_gen = 1;            /* what workers read before they claim */

/* --- the record ------------------------------------------------------------------------------------------------ */

#define ABSENT 0
#define PENDING 1
#define PROCESSING 2
#define DIRTY 3
#define COMPLETED 4
#define FAILED 5
#define IS_RUNNING (r_status == PROCESSING || r_status == DIRTY)
#define IS_FINAL (r_status == COMPLETED || r_status == FAILED)

byte r_status, r_vals, r_at, r_gen, r_attempts, r_before;
bool r_due, r_sent;             /* nextRunAt has come; a message is on its way */
bool r_changed;                 /* changedAt: a change that no run has started on */
bool r_touched, r_forced, r_gone, r_left, r_fresh, r_claim_forced, r_beat;
bool r_claimed;                 /* claim is not null */

/* Whose run the record's claim is: tokens are told apart by whether they are the present claim's. */
#define NOBODYS 0
#define PRESENT 1
#define FORMER 2
byte token[WORKERS];
byte seen_token;                /* the rescuer's: what it saw standing still */
bool seen_beat;

/* --- what happens outside -------------------------------------------------------------------------------------- */

byte messages;                  /* at the broker */
bool lost;                      /* since the last dispatch a message may have been lost: only then a deadline passes */
byte leader;                    /* index of the leading planner */
byte position;                  /* events covered by the stored stream position */
byte planned;                   /* events planned by some planner, for OWN */
byte crashes = CRASHES, freezes = FREEZES, failures = FAILURES, defers = DEFERS, retries = RETRIES;
byte losses = LOSSES, doubles = DOUBLES;
bool scan_wanted, scanned;

/* --- ghosts: what the properties speak of ---------------------------------------------------------------------- */

#define LIVE 0
#define FROZEN 1
#define STALE 2                 /* woken, lease not yet renewed: it knows that its lease may be lost */
#define DEAD 3
byte life;                      /* of the worker of the present claim */
byte owner;                     /* its number */
bool busy[WORKERS];             /* runs what it has claimed, and nobody has ended that for it */
byte handled_n;                 /* events before the read of the last run that completed */
bool handled;                   /* there was one */
byte born_n;                    /* events when the document was last inserted */
bool unseen;                    /* its deletion went with a lost position: nobody can tell its insertion from a change */
bool owed;                      /* seen gone or outside since the last completed run */

hidden byte q, ok, newer, runs, again, dirty, accepted;  /* used within one step only */

/* --- statements: planning -------------------------------------------------------------------------------------- */

inline FORGET_FLAGS() {
	r_touched = false; r_forced = false; r_gone = false; r_left = false; r_claimed = false; r_sent = false;
	r_attempts = 0; r_before = 0; r_claim_forced = false; r_beat = false; r_due = AFTER_A_WAIT
}

/* apply_observations: value v read at or after time at, laid over the record. */
inline APPLY(v, time, gen, stamps) {
	if
	:: !MATCHES(gen, v) -> skip
	:: MATCHES(gen, v) && r_status == ABSENT ->
		FORGET_FLAGS();
		r_status = PENDING; r_vals = v; r_at = time; r_gen = gen; r_changed = true; r_fresh = false
	:: MATCHES(gen, v) && r_status != ABSENT ->
#ifdef MUTANT_APPLY_AT
		accepted = gen >= r_gen;
#elif defined(MUTANT_APPLY_EQUAL)
		accepted = time > r_at && gen >= r_gen;
#elif defined(MUTANT_APPLY_GEN)
		accepted = time >= r_at;
#else
		accepted = time >= r_at && gen >= r_gen;
#endif
		newer = accepted && time > r_at;
#ifdef MUTANT_REENTRY_GONE
		runs = accepted && (r_vals != v || r_left);
#elif defined(MUTANT_REENTRY_LEFT)
		runs = accepted && (r_vals != v || r_gone);
#else
		runs = accepted && (r_vals != v || r_gone || r_left);
#endif
#ifndef MUTANT_TOUCHED
		r_touched = r_touched || (IS_RUNNING && newer && !runs);
#endif
		if
		:: runs && IS_RUNNING ->
#ifndef MUTANT_DIRTY
			r_status = DIRTY;
#endif
			r_changed = true; r_attempts = 0
		:: runs && !IS_RUNNING ->
			r_status = PENDING; r_changed = true; r_attempts = 0; r_due = AFTER_A_WAIT; r_sent = false
		:: else -> skip
		fi;
		if
		:: accepted && (runs || stamps) -> r_at = time
		:: else -> skip
		fi;
		if
		:: accepted ->
			assert(gen >= r_gen);   /* no planner takes a record back to an older definition */
			r_vals = v; r_gen = gen; r_gone = false; r_left = false
		:: else -> skip
		fi
	fi
}

inline SKIP_PENDING() {
	r_status = COMPLETED; r_due = false; r_sent = false; r_changed = false; r_fresh = true
}

/* leave: the document was deleted, or apply with the same time did not find it matching. */
inline LEAVE(time, gen, is_gone) {
#ifdef MUTANT_LEAVE_AT
	ok = r_gen <= gen;
#elif defined(MUTANT_LEAVE_EQUAL)
	ok = r_at <= time && r_gen <= gen;
#else
	ok = r_at < time && r_gen <= gen;
#endif
	if
	:: r_status != ABSENT && ok ->
		r_at = time; owed = true;
		if
		:: is_gone -> r_gone = true
		:: else -> r_left = true
		fi;
		if
		:: r_status == PENDING && !r_forced -> SKIP_PENDING()
#ifdef MUTANT_LEAVE_RELEASES
		:: IS_RUNNING -> SKIP_PENDING(); r_claimed = false
#endif
		:: else -> skip
		fi
	:: else -> skip
	fi
}

/* --- statements: running --------------------------------------------------------------------------------------- */

inline CLAIM(w) {
	if
	:: r_fresh -> r_before = 0
	:: else -> r_before = r_attempts
	fi;
	r_status = PROCESSING; r_attempts = r_before + 1; r_fresh = false; r_due = false; r_sent = false;
	r_claim_forced = r_forced; r_changed = false; r_beat = false; r_claimed = true;
#ifndef MUTANT_TOUCHED_STAYS
	r_touched = false;
#endif
	r_forced = false;
	token[0] = (token[0] == PRESENT -> FORMER : token[0]);
#if WORKERS > 1
	token[1] = (token[1] == PRESENT -> FORMER : token[1]);
#endif
	seen_token = (seen_token == PRESENT -> FORMER : seen_token);
	token[w] = PRESENT; owner = w; life = LIVE; busy[w] = true
}

#define COMPLETE 0
#define SKIPPED_GONE 1
#define SKIPPED_LEFT 2
#define ERRORED 3
#define EXHAUSTED 4
#define DEFERRED 5
#define OVERTAKEN 6
#define GIVEN_BACK 7

/* settle: outcome of a run that claimed at `claimed_at` and read v, under generation gen. */
inline SETTLE(outcome, checked, claimed_at, v, gen) {
	dirty = r_status == DIRTY;
	again = false;
	if
	:: outcome == COMPLETE -> again = r_touched && !checked
#ifdef MUTANT_SKIP_GEN
	:: outcome == SKIPPED_GONE || outcome == SKIPPED_LEFT -> again = r_touched
#else
	:: outcome == SKIPPED_GONE -> again = r_touched
	:: outcome == SKIPPED_LEFT -> again = r_touched || r_gen > gen
#endif
	:: else -> skip
	fi;
#ifdef MUTANT_DIRTY_SETTLE
	dirty = dirty && outcome != COMPLETE;
#endif
	newer = r_at > claimed_at;
#ifndef MUTANT_SKIP_MARKS
	newer = newer || (outcome <= SKIPPED_LEFT && (r_touched || dirty));
#endif
	if
#ifndef MUTANT_SKIP_UNMARKED
	:: outcome == SKIPPED_GONE && !newer -> r_gone = true; owed = true
#ifdef MUTANT_SKIP_GEN
	:: outcome == SKIPPED_LEFT && !newer -> r_left = true; owed = true
#else
	:: outcome == SKIPPED_LEFT && !newer && r_gen <= gen -> r_left = true; owed = true
#endif
#endif
	:: outcome == OVERTAKEN ->
		newer = newer || r_gen > gen;
#ifdef MUTANT_OVERTAKE_AT
		newer = r_gen > gen;
#endif
		if
		:: !newer -> r_vals = v; r_gen = gen;
#ifndef MUTANT_OVERTAKE_FLAGS
			r_gone = false; r_left = false;
#endif
			r_at = claimed_at
#ifdef MUTANT_OVERTAKE_STAMP
		:: newer && r_at < claimed_at -> r_at = claimed_at
#endif
		:: else -> skip
		fi;
		r_changed = true; r_attempts = 0
	:: else -> skip
	fi;
	if
	:: outcome <= SKIPPED_LEFT -> r_fresh = true; r_status = COMPLETED
	:: outcome == EXHAUSTED -> r_status = FAILED
	:: outcome == ERRORED || outcome == OVERTAKEN -> r_status = PENDING
	:: outcome == DEFERRED || outcome == GIVEN_BACK ->
		r_attempts = (r_attempts < r_before -> r_attempts : r_before); r_status = PENDING;
		r_forced = r_forced || (outcome == GIVEN_BACK && r_claim_forced)
	fi;
	if
	:: dirty || again || r_forced -> r_status = PENDING
	:: else -> skip
	fi;
	r_due = r_status == PENDING && (r_forced || AFTER_A_WAIT); r_sent = false;
	if
	:: r_status == PENDING && (r_gone || r_left) && !r_forced -> SKIP_PENDING()
	:: else -> skip
	fi;
	r_touched = false; r_claimed = false; r_beat = false;
	token[0] = (token[0] == PRESENT -> FORMER : token[0]);
#if WORKERS > 1
	token[1] = (token[1] == PRESENT -> FORMER : token[1]);
#endif
	seen_token = (seen_token == PRESENT -> FORMER : seen_token)
}

/* --- the user -------------------------------------------------------------------------------------------------- */

inline WRITE(v) {
	n++; hist[n] = v;
	if
	:: hist[n - 1] == NONE && !unseen -> born_n = n
	:: else -> skip
	fi;
	unseen = false
}

proctype Writer() {
end:	do
	:: atomic { n < WRITES && DOC != A && DOC != NONE -> WRITE(A) }
	:: atomic { n < WRITES && DOC != B && DOC != NONE -> WRITE(B) }
#if defined(OFF) || defined(GEN)
	:: atomic { n < WRITES && DOC != C && DOC != NONE -> WRITE(C) }
#endif
#ifdef OFF
	:: atomic { n < WRITES && DOC != NONE -> WRITE(NONE) }
	:: atomic { n < WRITES && DOC == NONE -> WRITE(A) }
	:: atomic { n < WRITES && DOC == NONE -> WRITE(B) }
#endif
#ifdef TXN
	:: atomic { n + 1 < WRITES && DOC != NONE -> WRITE(NONE); shares[n] = true; WRITE(A) }
#endif
	:: atomic { n < WRITES -> break }
	od
}

/* --- planners -------------------------------------------------------------------------------------------------- */

proctype Planner(byte me; byte gen) {
	byte at_event = 0, to = 0, value = 0;
	bool deleted = false, written = false, may_have_left = false;
#ifdef TAKEOVER
	if
	:: me == 1 ->
		if
		:: atomic { leader == 0 -> leader = 1; at_event = position; stored_gen = (gen > stored_gen -> gen : stored_gen)
#ifdef GEN
			; scan_wanted = true
#endif
			}
		:: atomic { true -> goto stop }
		fi
	:: else -> skip
	fi;
#endif
end:	do
	:: atomic { at_event < n -> to = at_event + 1; deleted = false; written = false; may_have_left = false;
		do
		:: to < n -> to++
		:: break
		od;
		q = at_event + 1;
		do
		:: q <= to ->
			if
			:: hist[q] == NONE -> deleted = true
			:: hist[q] != NONE ->
				written = true;
				may_have_left = may_have_left || hist[q - 1] != NONE
			fi;
			q++
		:: else -> break
		od
#ifdef MUTANT_POSITION
		; position = (leader == me -> to : position)
#endif
		};
#ifndef MUTANT_ORDER
		if
		:: atomic { leader != me -> goto stop }
		:: d_step { deleted -> LEAVE(TIME_OF(to), gen, true) }
		:: atomic { !deleted -> skip }
		fi;
#endif
		if
		:: atomic { leader != me -> goto stop }
		:: atomic { written -> value = DOC };
			if
			:: atomic { leader != me -> goto stop }
			:: d_step { APPLY(value, TIME_OF(to), gen, true); value = 0 }
			fi
		:: atomic { !written -> skip }
		fi;
#ifdef MUTANT_ORDER
		if
		:: d_step { deleted -> LEAVE(TIME_OF(to), gen, true) }
		:: atomic { !deleted -> skip }
		fi;
#endif
		if
		:: atomic { leader != me -> goto stop }
		:: d_step { if
			:: may_have_left -> LEAVE(TIME_OF(to), gen, false)
			:: else -> skip
			fi;
			at_event = to; to = 0; deleted = false; written = false; may_have_left = false;
			planned = (at_event > planned -> at_event : planned) }
		fi
#ifndef MUTANT_POSITION
	:: atomic { leader == me && position != at_event -> position = at_event }
#endif
#ifdef LOSE
	:: atomic { leader == me && at_event < n && !scanned && !scan_wanted ->
		at_event = n; position = n; planned = n; born_n = 0; unseen = DOC == NONE; scan_wanted = true }
#endif
	:: atomic { leader != me -> goto stop }
	od;
stop:	at_event = 0; value = 0; to = 0; deleted = false; written = false; may_have_left = false
}

/* Reconciliation: every document, then every record. */
proctype Scan(byte gen) {
	byte at = 0, value = 0;
	bool exists;
end:	scan_wanted;
	atomic { scan_wanted = false; scanned = true; at = KNOWN_TIME };
	atomic { value = DOC
#ifndef MUTANT_SCAN_STAMPS
		;
		if
		:: r_status != ABSENT && r_vals == value && r_gen == gen && !IS_RUNNING && !r_gone && !r_left -> value = 0
		:: else -> skip
		fi
#endif
		};
#ifdef MUTANT_SCAN_STAMPS
	d_step { APPLY(value, at, gen, true); value = 0 };
#elif defined(MUTANT_SCAN_LATE)
	d_step { APPLY(value, KNOWN_TIME, gen, true); value = 0 };
#else
	d_step { APPLY(value, at, gen, false); value = 0 };
#endif
	at = KNOWN_TIME;
	if
	:: atomic { r_status == ABSENT || MATCHES(gen, DOC) -> goto done }
	:: atomic { r_status != ABSENT && !MATCHES(gen, DOC) -> skip }
	fi;
	exists = DOC != NONE;
#ifdef MUTANT_SCAN_OFF
	value = DOC;
	d_step { APPLY(value, at, gen, true); value = 0 };
	d_step { LEAVE(at, gen, !exists) };
#else
	d_step { LEAVE(at, gen, !exists) };
	value = DOC;
	d_step { APPLY(value, at, gen, true); value = 0 };
#endif
done:	at = 0; exists = false
}

/* Removes the record of a document that is gone, and nothing that may still have to run. */
proctype Cleaner() {
	byte at = 0;
end:	do
	:: atomic { r_status != ABSENT && r_gone && IS_FINAL && !r_changed && at == 0 -> at = r_at };
		if
#ifdef MUTANT_CLEANUP
		:: d_step { r_status != ABSENT && !IS_RUNNING -> r_status = ABSENT; r_vals = 0; r_at = 0; r_gen = 0; FORGET_FLAGS() }
#else
		:: d_step { r_gone && IS_FINAL && !r_changed && r_at == at -> r_status = ABSENT; r_vals = 0; r_at = 0; r_gen = 0;
			r_fresh = false; FORGET_FLAGS() }
#endif
		:: atomic { !(r_gone && IS_FINAL && !r_changed && r_at == at) -> skip }
		fi;
		break
	od
}

/* --- dispatch, broker, time ------------------------------------------------------------------------------------ */

proctype Dispatcher() {
#ifdef MUTANT_DEADLINE
#define PASSED false
#else
#define PASSED (lost && messages == 0)
#endif
end:	do
	:: r_status == PENDING && r_due && (!r_sent || PASSED);
#ifdef MUTANT_MARK_AFTER
		messages++;
		d_step { if
		:: r_status == PENDING && r_due -> r_sent = true
		:: else -> skip
		fi; lost = false }
#else
		d_step { if
#ifdef MUTANT_MARK_ANY
		:: r_status != ABSENT -> r_sent = true
#else
		:: r_status == PENDING && r_due -> r_sent = true
#endif
		:: else -> skip
		fi; lost = false };
		if
		:: atomic { messages < 3 -> messages++ }
		:: atomic { losses > 0 -> losses--; lost = true }   /* the planner died, or the broker did not take it */
		fi
#endif
	od
}

/* Broker, clock and operator. */
proctype Others() {
end:	do
#ifdef DISPATCH
	:: atomic { messages > 0 && losses > 0 -> messages--; losses--; lost = true }
	:: atomic { messages > 0 && messages < 3 && doubles > 0 -> messages++; doubles-- }
	:: atomic { r_status == PENDING && !r_due -> r_due = true }
#endif
	:: d_step { r_status != ABSENT && retries > 0 -> retries--;
		if
		:: IS_RUNNING -> r_status = DIRTY
		:: else -> r_status = PENDING; r_due = true; r_sent = false
		fi;
		r_forced = true }
	od
}

/* --- workers --------------------------------------------------------------------------------------------------- */

#define OWNS (r_claimed && token[me] == PRESENT && IS_RUNNING)

inline END_RUN() {
	busy[me] = false; token[me] = NOBODYS; claimed_at = 0; observed = 0; claimed_gen = 0; gen = 0; value = 0; read_n = 0;
	outcome = 0; checked = false; has_read = false
}

/* The worker dies here, or stops and goes on later. */
inline MISHAP() {
	if
	:: atomic { crashes > 0 -> crashes--; lost = true;
		life = (token[me] == PRESENT -> DEAD : life);
		goto dead }
	:: atomic { freezes > 0 && token[me] == PRESENT -> freezes--; life = FROZEN };
		life = (token[me] == PRESENT -> STALE : life);
		if
		:: d_step { OWNS && life == STALE -> r_beat = true; life = LIVE }
		:: true
		fi
	:: true
	fi
}

/* The handler: reads the document through its context, or by itself, and returns, raises, defers or is stopped. */
inline READ_AND_RUN() {
	if
	:: has_read -> checked = true
	:: !has_read -> value = DOC; read_n = n;
		if
#ifdef OWN
		:: skip
#endif
		:: value == NONE -> outcome = SKIPPED_GONE
		:: value != NONE && !MATCHES(gen, value) -> outcome = SKIPPED_LEFT
		:: MATCHES(gen, value) && value != observed -> outcome = OVERTAKEN
		:: MATCHES(gen, value) && value == observed -> checked = true
		fi
	fi;
	if
	:: outcome == COMPLETE && failures > 0 ->
		failures--; outcome = (r_before + 1 >= MAX_ATTEMPTS -> EXHAUSTED : ERRORED)
	:: outcome == COMPLETE && defers > 0 -> defers--; outcome = DEFERRED
	:: outcome == COMPLETE && defers > 0 -> defers--; outcome = GIVEN_BACK
	:: true
	fi
}

proctype Worker(byte me) {
	byte claimed_at = 0, observed = 0, claimed_gen = 0, gen = 0, value = 0, read_n = 0, outcome = 0;
	bool checked = false, has_read = false;
dead:	atomic { END_RUN() };
end:	do
#ifdef DISPATCH
	:: atomic { messages > 0 -> messages--; gen = stored_gen
#else
	:: atomic { r_status == PENDING -> gen = stored_gen
#endif
#ifdef MUTANT_READ_FIRST
		; value = DOC; read_n = n; has_read = true
#endif
		};
		if
#ifdef MUTANT_CLAIM_STATE
		:: d_step { (r_status == PENDING && r_due) || IS_RUNNING ->
#else
		:: d_step { r_status == PENDING && r_due ->
#endif
			assert(!busy[0]);
#if WORKERS > 1
			assert(!busy[1]);
#endif
			CLAIM(me); claimed_at = KNOWN_TIME; observed = r_vals; claimed_gen = r_gen }
		:: atomic { !(r_status == PENDING && r_due) -> skip };
#ifndef MUTANT_NOT_UNSENT
			atomic { if
			:: r_status == PENDING && r_sent -> r_sent = false
			:: else -> skip
			fi };
#endif
			goto dead
		fi;
#if CRASHES > 0 || FREEZES > 0
		MISHAP();
#endif
		atomic { READ_AND_RUN() };
#if CRASHES > 0 || FREEZES > 0
		MISHAP();
#endif
#if defined(OWN) && !defined(GAP)
		/* A handler's own read is covered as far as its change is planned before the run ends. */
		checked || outcome != COMPLETE || planned >= read_n;
#endif
		d_step { if
#ifdef MUTANT_TOKEN
		:: IS_RUNNING && r_claimed ->
#else
		:: OWNS ->
#endif
			SETTLE(outcome, checked, claimed_at, value, gen);
			if
			:: outcome == COMPLETE ->
				assert(!handled || read_n >= handled_n);
				handled = true; handled_n = read_n;
				owed = (MATCHES(gen, value) -> false : owed)
			:: else -> skip
			fi
		:: else -> skip
		fi;
		END_RUN() };
	od
}

/* The leader's rescuer: two readings of a claim that stands still, then its end. */
proctype Rescuer() {
end:	do
	:: atomic { IS_RUNNING && r_claimed && (life == FROZEN || life == DEAD) && seen_token == NOBODYS ->
		seen_token = PRESENT; seen_beat = r_beat };
		d_step { if
#ifdef MUTANT_BEATS
		:: IS_RUNNING && seen_token == PRESENT ->
#elif defined(MUTANT_RESCUE_TOKEN)
		:: IS_RUNNING && r_beat == seen_beat ->
#else
		:: IS_RUNNING && seen_token == PRESENT && r_beat == seen_beat ->
#endif
			assert(life != LIVE);
			busy[owner] = false;
			if
			:: r_attempts >= MAX_ATTEMPTS -> SETTLE(EXHAUSTED, false, 0, 0, 0)
			:: else -> SETTLE(ERRORED, false, 0, 0, 0)
			fi
		:: else -> skip
		fi;
		seen_token = NOBODYS; seen_beat = false }
	od
}

/* --- what must hold when nothing moves any more ---------------------------------------------------------------- */

proctype Judge() {
	timeout;
	d_step {
		assert(messages == 0);
		assert(r_status != PROCESSING && r_status != DIRTY && r_status != PENDING);
		if
		:: MATCHES(stored_gen, DOC) ->
			assert(r_status != ABSENT);
			assert(r_vals == DOC);
			assert(!r_gone && !r_left);
			if
			:: r_status == COMPLETED ->
				assert(handled);
				assert(hist[handled_n] == DOC);
				assert(handled_n >= born_n);
				assert(!owed)
			:: else -> skip
			fi
		:: else ->
			assert(r_status == ABSENT || r_gone || r_left)
		fi
	}
}

init {
	atomic {
		hist[0] = A;
#ifdef SCAN
		scan_wanted = true;
		if
		:: skip
		:: r_status = COMPLETED; r_vals = A; r_gen = 1; r_fresh = true; handled = true
		fi;
#else
		r_status = COMPLETED; r_vals = A; r_gen = 1; r_fresh = true; handled = true;
#endif
		run Writer(); run Planner(0, 1); run Others(); run Worker(0); run Judge();
#ifdef DISPATCH
		run Dispatcher();
#endif
#ifdef TAKEOVER
		run Planner(1, LAST_GEN);
#endif
#if WORKERS > 1
		run Worker(1);
#endif
#if CRASHES > 0 || FREEZES > 0
		run Rescuer();
#endif
#if defined(SCAN) || defined(LOSE) || defined(GEN)
		run Scan(LAST_GEN);
#endif
#ifdef CLEAN
		run Cleaner();
#endif
	}
}
