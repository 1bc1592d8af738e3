"""Job states and every legal move, as data. Pure: no session, no clock, no row.

The table is the one of the life-cycle specification; `move` in `jobs/transitions.py` is the only
code that applies it. One event is not in the specification: `released`, by which a worker that
stops on purpose (deployment, Ctrl-C) hands its job back without using up one of its attempts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """States that a caller sees."""

    VALIDATING = "validating"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What can happen to a job; the comment names who may cause it."""

    VALID = "valid"  # validator
    INVALID = "invalid"  # validator
    CLAIM = "claim"  # worker, not yet holding a fence
    STARTED = "started"  # worker holding the fence, as all down to `released`
    STOPPED = "stopped"
    COMPLETE = "complete"
    FAIL = "fail"
    FAIL_RETRYABLE = "fail_retryable"
    RELEASED = "released"
    PAUSE = "pause"  # user
    RESUME = "resume"  # user
    CANCEL = "cancel"  # user
    LEASE_EXPIRED = "lease_expired"  # reaper
    DEADLINE = "deadline"  # reaper


class Answer(StrEnum):
    """What happens where an event does not simply lead to a state."""

    SAME = "same"  # already there: success, nothing changes
    STALE = "stale"  # the worker is out of date and must stop
    DROP = "drop"  # the message is acknowledged and forgotten
    CONFLICT = "conflict"  # the user is told which events are allowed
    NEVER = "never"  # cannot happen; an error in our own code if it does
    RETRY = "retry"  # queued again, or failed once the attempts are used up
    TARGET = "target"  # the state that the cancellation was heading for


class Reason(StrEnum):
    """Why a job is where it is; a machine word, shown as `state_reason`."""

    CANCELLED_BY_CALLER = "cancelled_by_caller"
    PRUNED = "pruned"
    PAUSED_BY_CALLER = "paused_by_caller"
    RESUMED_BY_CALLER = "resumed_by_caller"
    INPUT_REJECTED = "input_rejected"
    WAITING_FOR_INPUT = "waiting_for_input"
    WAITING_FOR_JOB = "waiting_for_job"
    DEPENDENCY_FAILED = "dependency_failed"
    ATTEMPT_LOST = "attempt_lost"
    ATTEMPT_FAILED = "attempt_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    WORKER_SHUTDOWN = "worker_shutdown"
    COMPANION_STOPPED = "companion_stopped"
    SHARED_ENGINE_FAILED = "shared_engine_failed"
    DATABASE_UNREACHABLE = "database_unreachable"
    WORKER_FAILED = "worker_failed"
    NO_ROOM = "no_room"
    TOO_FEW_DEVICES = "too_few_devices"
    RUNNING_QUOTA = "running_quota"
    WAITING_FOR_STORAGE = "waiting_for_storage"
    DEADLINE = "deadline"
    QUEUE_DEADLINE = "queue_deadline"
    ENGINE_FAILED = "engine_failed"
    RESTORED = "restored"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
# States in which a worker holds a lease.
HELD = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING})
USER_EVENTS = (Event.PAUSE, Event.RESUME, Event.CANCEL)

_S, _A, _E = State, Answer, Event
Row = Mapping[Event, State | Answer]
"""What each event does to a job in one state: the state it leads to, or an answer."""

# A table to be compared line by line: the formatter would give each entry a line of its own.
# fmt: off
_FINAL: Row = {
    _E.VALID: _A.DROP, _E.INVALID: _A.DROP, _E.CLAIM: _A.DROP, _E.STARTED: _A.STALE,
    _E.STOPPED: _A.STALE, _E.COMPLETE: _A.STALE, _E.FAIL: _A.STALE,
    _E.FAIL_RETRYABLE: _A.STALE, _E.RELEASED: _A.STALE,
    _E.PAUSE: _A.CONFLICT, _E.RESUME: _A.CONFLICT, _E.CANCEL: _A.SAME,
    _E.LEASE_EXPIRED: _A.NEVER, _E.DEADLINE: _A.SAME,
}
TABLE: Mapping[State, Row] = {
    _S.VALIDATING: {
        _E.VALID: _S.QUEUED, _E.INVALID: _S.FAILED, _E.CLAIM: _A.NEVER, _E.STARTED: _A.NEVER,
        _E.STOPPED: _A.NEVER, _E.COMPLETE: _A.NEVER, _E.FAIL: _A.NEVER,
        _E.FAIL_RETRYABLE: _A.NEVER, _E.RELEASED: _A.NEVER,
        _E.PAUSE: _A.CONFLICT, _E.RESUME: _A.CONFLICT, _E.CANCEL: _S.CANCELLED,
        _E.LEASE_EXPIRED: _A.NEVER, _E.DEADLINE: _S.FAILED,
    },
    _S.QUEUED: {
        _E.VALID: _A.SAME, _E.INVALID: _A.NEVER, _E.CLAIM: _S.STARTING, _E.STARTED: _A.STALE,
        _E.STOPPED: _A.STALE, _E.COMPLETE: _A.STALE, _E.FAIL: _A.STALE,
        _E.FAIL_RETRYABLE: _A.STALE, _E.RELEASED: _A.STALE,
        _E.PAUSE: _S.PAUSED, _E.RESUME: _A.SAME, _E.CANCEL: _S.CANCELLED,
        _E.LEASE_EXPIRED: _A.NEVER, _E.DEADLINE: _S.FAILED,
    },
    _S.STARTING: {
        _E.VALID: _A.NEVER, _E.INVALID: _A.NEVER, _E.CLAIM: _A.DROP, _E.STARTED: _S.RUNNING,
        _E.STOPPED: _A.NEVER, _E.COMPLETE: _A.STALE, _E.FAIL: _S.FAILED,
        _E.FAIL_RETRYABLE: _A.RETRY, _E.RELEASED: _S.QUEUED,
        _E.PAUSE: _S.PAUSING, _E.RESUME: _A.CONFLICT, _E.CANCEL: _S.CANCELLING,
        _E.LEASE_EXPIRED: _A.RETRY, _E.DEADLINE: _S.CANCELLING,
    },
    _S.RUNNING: {
        _E.VALID: _A.NEVER, _E.INVALID: _A.NEVER, _E.CLAIM: _A.DROP, _E.STARTED: _A.SAME,
        _E.STOPPED: _A.NEVER, _E.COMPLETE: _S.SUCCEEDED, _E.FAIL: _S.FAILED,
        _E.FAIL_RETRYABLE: _A.RETRY, _E.RELEASED: _S.QUEUED,
        _E.PAUSE: _S.PAUSING, _E.RESUME: _A.CONFLICT, _E.CANCEL: _S.CANCELLING,
        _E.LEASE_EXPIRED: _A.RETRY, _E.DEADLINE: _S.CANCELLING,
    },
    _S.PAUSING: {
        _E.VALID: _A.NEVER, _E.INVALID: _A.NEVER, _E.CLAIM: _A.DROP, _E.STARTED: _A.SAME,
        _E.STOPPED: _S.PAUSED, _E.COMPLETE: _S.SUCCEEDED, _E.FAIL: _S.FAILED,
        _E.FAIL_RETRYABLE: _S.PAUSED, _E.RELEASED: _S.PAUSED,
        _E.PAUSE: _A.SAME, _E.RESUME: _A.CONFLICT, _E.CANCEL: _S.CANCELLING,
        _E.LEASE_EXPIRED: _S.PAUSED, _E.DEADLINE: _S.CANCELLING,
    },
    _S.PAUSED: {
        _E.VALID: _A.NEVER, _E.INVALID: _A.NEVER, _E.CLAIM: _A.DROP, _E.STARTED: _A.STALE,
        _E.STOPPED: _A.STALE, _E.COMPLETE: _A.STALE, _E.FAIL: _A.STALE,
        _E.FAIL_RETRYABLE: _A.STALE, _E.RELEASED: _A.STALE,
        _E.PAUSE: _A.SAME, _E.RESUME: _S.QUEUED, _E.CANCEL: _S.CANCELLED,
        _E.LEASE_EXPIRED: _A.NEVER, _E.DEADLINE: _A.NEVER,
    },
    _S.CANCELLING: {
        _E.VALID: _A.NEVER, _E.INVALID: _A.NEVER, _E.CLAIM: _A.DROP, _E.STARTED: _A.SAME,
        _E.STOPPED: _A.TARGET, _E.COMPLETE: _A.TARGET, _E.FAIL: _A.TARGET,
        _E.FAIL_RETRYABLE: _A.TARGET, _E.RELEASED: _A.TARGET,
        _E.PAUSE: _A.CONFLICT, _E.RESUME: _A.CONFLICT, _E.CANCEL: _A.SAME,
        _E.LEASE_EXPIRED: _A.TARGET, _E.DEADLINE: _A.SAME,
    },
    _S.SUCCEEDED: _FINAL,
    _S.FAILED: _FINAL,
    _S.CANCELLED: _FINAL,
}
# fmt: on


def check_complete(table: Mapping[State, Row]) -> None:
    """Raise `RuntimeError`, naming the pairs, unless `table` answers each event in each state."""
    missing = [f"{s}/{e}" for s in State for e in Event if e not in table.get(s, {})]
    if missing:
        raise RuntimeError(f"the table of moves has no entry for {', '.join(missing)}")


check_complete(TABLE)


@dataclass(frozen=True)
class Situation:
    """What a move depends on beside the state: attempts that are left, a cancellation's target."""

    attempts_left: bool = True
    target: State = State.CANCELLED


def answer(state: State, event: Event, situation: Situation) -> State | Answer:
    """Return the state that `event` leads to, or the answer where the state stays."""
    entry = TABLE[state][event]
    if entry is Answer.RETRY:
        return State.QUEUED if situation.attempts_left else State.FAILED
    if entry is Answer.TARGET:
        return situation.target
    return entry


def is_final(state: State) -> bool:
    """Return whether no move leads out of `state`."""
    return state in FINAL


def allowed(state: State) -> tuple[Event, ...]:
    """Return the events by which a user can move a job out of `state`."""
    return tuple(event for event in USER_EVENTS if isinstance(TABLE[state][event], State))
