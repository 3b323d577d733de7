/*
 * Records that travel in company: two documents of one task, one of whose handlers kills its process.
 *
 * Run by tools/model.py. A message may name both records; a worker claims what is pending of them with one statement,
 * runs one after the other, and dies at the first. What must hold: the healthy document completes, and its record never
 * fails or spends an attempt for its neighbour's sake; the deadly one fails after MAX_ATTEMPTS runs of its own; and this
 * comes to an end. MUTANT_x takes one part out.
 */

#define MAX_ATTEMPTS 2
#define DEADLY 0
#define HEALTHY 1

#define PENDING 1
#define RUNNING 2
#define COMPLETED 3
#define FAILED 4

byte status[2] = PENDING;
byte attempts[2];
byte before[2];
bool alone[2];
bool company[2];                /* claimed by one statement with another */
byte claim[2];                  /* number of the worker, plus one */
bool sent[2];
byte both, single[2];           /* messages */
bool dead[2];                   /* workers whose process has died and whose claims stand */
byte deaths;                    /* of the deadly handler: before each attempt of its own it may die once in company */
byte doubles = 1;               /* messages that the broker may yet deliver twice */

inline CLAIM(i, w, in_company) {
	before[i] = attempts[i]; attempts[i]++; status[i] = RUNNING; claim[i] = w + 1; company[i] = in_company;
	alone[i] = false; sent[i] = false
}

proctype Dispatcher() {
end:	do
	:: d_step { status[0] == PENDING && status[1] == PENDING && !sent[0] && !sent[1] && !alone[0] && !alone[1] ->
		sent[0] = true; sent[1] = true; both++ }
	:: d_step { both > 0 && doubles > 0 -> doubles--; both++ }
	:: d_step { status[0] == PENDING && !sent[0] -> sent[0] = true; single[0]++ }
	:: d_step { status[1] == PENDING && !sent[1] -> sent[1] = true; single[1]++ }
	od
}

#ifdef MUTANT_COMPANY_ALONE
#define MAY_JOIN(i) (status[i] == PENDING)
#else
#define MAY_JOIN(i) (status[i] == PENDING && !alone[i])
#endif

proctype Worker(byte me) {
	byte i;
end:	do
	:: d_step { both > 0 -> both--;
		if
		:: MAY_JOIN(0) -> CLAIM(0, me, true)
		:: else -> sent[0] = (status[0] == PENDING -> false : sent[0])
		fi;
		if
		:: MAY_JOIN(1) -> CLAIM(1, me, true)
		:: else -> sent[1] = (status[1] == PENDING -> false : sent[1])
		fi };
		goto runs
	:: d_step { single[0] > 0 -> single[0]--;
		if
		:: status[0] == PENDING -> CLAIM(0, me, false)
		:: else -> skip
		fi };
		goto runs
	:: d_step { single[1] > 0 -> single[1]--;
		if
		:: status[1] == PENDING -> CLAIM(1, me, false)
		:: else -> skip
		fi };
		goto runs
	od;
runs:	do
	:: d_step { claim[DEADLY] == me + 1 -> dead[me] = true; deaths++; assert(deaths <= 2 * MAX_ATTEMPTS) };
		!dead[me];              /* a new process, once the parent has ended the claims */
		goto end
	:: d_step { claim[HEALTHY] == me + 1 ->
		assert(before[HEALTHY] == 0);
		status[HEALTHY] = COMPLETED; claim[HEALTHY] = 0 }
	:: d_step { claim[HEALTHY] == me + 1 && company[HEALTHY] ->     /* its turn comes too late */
#ifdef MUTANT_COMPANY_GIVE_BACK
		attempts[HEALTHY] = 1;
#else
		attempts[HEALTHY] = before[HEALTHY];
#endif
		company[HEALTHY] = false; status[HEALTHY] = PENDING; claim[HEALTHY] = 0 }
	:: atomic { claim[0] != me + 1 && claim[1] != me + 1 -> goto end }
	od
}

inline END_LOST(i) {
	d_step { claim[i] == w + 1 ->
		claim[i] = 0;
		if
#ifndef MUTANT_COMPANY_UNPUNISHED
		:: company[i] -> status[i] = PENDING; attempts[i] = before[i];
#ifndef MUTANT_COMPANY_MARK_ALONE
			alone[i] = true
#endif
#endif
		:: else ->
			status[i] = (attempts[i] >= MAX_ATTEMPTS -> FAILED : PENDING)
		fi }
}

proctype Rescuer() {
	byte w;
end:	do
	:: dead[0] -> w = 0; goto ends
	:: dead[1] -> w = 1; goto ends
	od;
ends:	do
	:: END_LOST(0)
	:: END_LOST(1)
	:: atomic { claim[0] != w + 1 && claim[1] != w + 1 -> dead[w] = false; w = 0; goto end }
	od
}

proctype Judge() {
	timeout;
	assert(status[DEADLY] == FAILED);
	assert(status[HEALTHY] == COMPLETED)
}

init {
	atomic { run Dispatcher(); run Worker(0); run Worker(1); run Rescuer(); run Judge() }
}
