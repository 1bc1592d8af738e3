"""Job states and every legal move, as data. Pure: no session, no clock, no row.

The table is the one of the life-cycle specification; `models_registry/jobs/jobs.py: move` is the
only code that applies it. One column is ours: `released`, a worker that stops on purpose
(deployment, Ctrl-C) hands its job back without using up one of the attempts of the job.
"""

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
    PAUSED_BY_CALLER = "paused_by_caller"
    RESUMED_BY_CALLER = "resumed_by_caller"
    INPUT_REJECTED = "input_rejected"
    WAITING_FOR_INPUT = "waiting_for_input"
    ATTEMPT_LOST = "attempt_lost"
    ATTEMPT_FAILED = "attempt_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    WORKER_SHUTDOWN = "worker_shutdown"
    COMPANION_STOPPED = "companion_stopped"
    SHARED_ENGINE_FAILED = "shared_engine_failed"
    DEADLINE = "deadline"
    QUEUE_DEADLINE = "queue_deadline"
    ENGINE_FAILED = "engine_failed"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
# States in which a worker holds a lease.
HELD = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING})
USER_EVENTS = (Event.PAUSE, Event.RESUME, Event.CANCEL)

_S, _A = State, Answer
_ROWS: dict[State, tuple[State | Answer, ...]] = {
    #               valid       invalid    claim        started     stopped     complete
    #               fail        retryable  released     pause       resume      cancel
    #               lease       deadline
    State.VALIDATING: (
        *(_S.QUEUED, _S.FAILED, _A.NEVER, _A.NEVER, _A.NEVER, _A.NEVER),
        *(_A.NEVER, _A.NEVER, _A.NEVER, _A.CONFLICT, _A.CONFLICT, _S.CANCELLED),
        *(_A.NEVER, _S.FAILED),
    ),
    State.QUEUED: (
        *(_A.SAME, _A.NEVER, _S.STARTING, _A.STALE, _A.STALE, _A.STALE),
        *(_A.STALE, _A.STALE, _A.STALE, _S.PAUSED, _A.SAME, _S.CANCELLED),
        *(_A.NEVER, _S.FAILED),
    ),
    State.STARTING: (
        *(_A.NEVER, _A.NEVER, _A.DROP, _S.RUNNING, _A.NEVER, _A.STALE),
        *(_S.FAILED, _A.RETRY, _S.QUEUED, _S.PAUSING, _A.CONFLICT, _S.CANCELLING),
        *(_A.RETRY, _S.CANCELLING),
    ),
    State.RUNNING: (
        *(_A.NEVER, _A.NEVER, _A.DROP, _A.SAME, _A.NEVER, _S.SUCCEEDED),
        *(_S.FAILED, _A.RETRY, _S.QUEUED, _S.PAUSING, _A.CONFLICT, _S.CANCELLING),
        *(_A.RETRY, _S.CANCELLING),
    ),
    State.PAUSING: (
        *(_A.NEVER, _A.NEVER, _A.DROP, _A.SAME, _S.PAUSED, _S.SUCCEEDED),
        *(_S.FAILED, _S.PAUSED, _S.PAUSED, _A.SAME, _A.CONFLICT, _S.CANCELLING),
        *(_S.PAUSED, _S.CANCELLING),
    ),
    State.PAUSED: (
        *(_A.NEVER, _A.NEVER, _A.DROP, _A.STALE, _A.STALE, _A.STALE),
        *(_A.STALE, _A.STALE, _A.STALE, _A.SAME, _S.QUEUED, _S.CANCELLED),
        *(_A.NEVER, _A.NEVER),
    ),
    State.CANCELLING: (
        *(_A.NEVER, _A.NEVER, _A.DROP, _A.SAME, _A.TARGET, _A.TARGET),
        *(_A.TARGET, _A.TARGET, _A.TARGET, _A.CONFLICT, _A.CONFLICT, _A.SAME),
        *(_A.TARGET, _A.SAME),
    ),
    **dict.fromkeys(
        (State.SUCCEEDED, State.FAILED, State.CANCELLED),
        (
            *(_A.DROP, _A.DROP, _A.DROP, _A.STALE, _A.STALE, _A.STALE),
            *(_A.STALE, _A.STALE, _A.STALE, _A.CONFLICT, _A.CONFLICT, _A.SAME),
            *(_A.NEVER, _A.SAME),
        ),
    ),
}
_ORDER = (
    *(Event.VALID, Event.INVALID, Event.CLAIM, Event.STARTED, Event.STOPPED, Event.COMPLETE),
    *(Event.FAIL, Event.FAIL_RETRYABLE, Event.RELEASED, Event.PAUSE, Event.RESUME, Event.CANCEL),
    *(Event.LEASE_EXPIRED, Event.DEADLINE),
)
TABLE: dict[State, dict[Event, State | Answer]] = {
    state: dict(zip(_ORDER, row, strict=True)) for state, row in _ROWS.items()
}


@dataclass(frozen=True)
class Situation:
    """What a move may depend on, beside the state: attempts, and a cancellation's target."""

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
