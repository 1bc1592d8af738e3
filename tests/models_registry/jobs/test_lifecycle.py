"""The table of moves, against a transcription of the specification's, and what follows from it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import Answer, Event, Situation, State

# Copied from the specification, section 3; `released` is ours and stands below.
SPECIFIED = """
state      | valid  | invalid | claim    | started | pause   | resume | cancel     | stopped | complete  | fail   | fail_retryable | lease_expired | deadline
validating | queued | failed  | -        | -       | 409     | 409    | cancelled  | -       | -         | -      | -              | -             | failed
queued     | -      | -       | starting | stale   | paused  | same   | cancelled  | stale   | stale     | stale  | stale          | -             | failed
starting   | -      | -       | drop     | running | pausing | 409    | cancelling | -       | stale     | failed | retry          | retry         | cancelling
running    | -      | -       | drop     | same    | pausing | 409    | cancelling | -       | succeeded | failed | retry          | retry         | cancelling
pausing    | -      | -       | drop     | -       | same    | 409    | cancelling | paused  | succeeded | failed | paused         | paused        | cancelling
paused     | -      | -       | drop     | -       | same    | queued | cancelled  | stale   | stale     | stale  | stale          | -             | -
cancelling | -      | -       | drop     | -       | 409     | 409    | same       | target  | target    | target | target         | target        | same
succeeded  | drop   | drop    | drop     | stale   | 409     | 409    | same       | stale   | stale     | stale  | stale          | -             | -
failed     | drop   | drop    | drop     | stale   | 409     | 409    | same       | stale   | stale     | stale  | stale          | -             | -
cancelled  | drop   | drop    | drop     | stale   | 409     | 409    | same       | stale   | stale     | stale  | stale          | -             | -
"""  # noqa: E501 - a table

# A worker that shuts down hands its job back: as a retryable failure, but free of charge.
RELEASED = {
    State.VALIDATING: "-",
    State.QUEUED: "stale",
    State.STARTING: "queued",
    State.RUNNING: "queued",
    State.PAUSING: "paused",
    State.PAUSED: "stale",
    State.CANCELLING: "target",
    State.SUCCEEDED: "stale",
    State.FAILED: "stale",
    State.CANCELLED: "stale",
}

ANSWERS = {
    "409": Answer.CONFLICT,
    "same": Answer.SAME,
    "stale": Answer.STALE,
    "drop": Answer.DROP,
}


def transcribed() -> dict[tuple[State, Event], str]:
    """Return the specification's word for each pair."""
    header, *rows = [
        [cell.strip() for cell in line.split("|")] for line in SPECIFIED.strip().splitlines()
    ]
    pairs = {
        (State(row[0]), Event(event)): cell
        for row in rows
        for event, cell in zip(header[1:], row[1:], strict=True)
    }
    return pairs | {(state, Event.RELEASED): word for state, word in RELEASED.items()}


PAIRS = transcribed()
every_pair = pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda word: str(word))
situations = st.builds(
    Situation,
    attempts_left=st.booleans(),
    target=st.sampled_from([State.CANCELLED, State.FAILED]),
)


class TestTable:
    def test_and_its_transcription_cover_every_pair(self) -> None:
        expected = {(state, event) for state in State for event in Event}
        assert set(PAIRS) == expected
        assert {(s, e) for s, row in lifecycle.TABLE.items() for e in row} == expected

    def test_that_lacks_an_event_or_a_state_is_named_at_import(self) -> None:
        table = {state: dict(row) for state, row in lifecycle.TABLE.items()}
        del table[State.QUEUED][Event.CLAIM], table[State.PAUSED]
        with pytest.raises(RuntimeError, match=r"queued/claim, paused/valid, paused/invalid"):
            lifecycle.check_complete(table)

    @every_pair
    def test_answers_as_specified(self, state: State, event: Event) -> None:
        word = PAIRS[state, event]
        for attempts_left in (True, False):
            for target in (State.CANCELLED, State.FAILED):
                found = lifecycle.answer(state, event, Situation(attempts_left, target))
                if word == "retry":
                    assert found is (State.QUEUED if attempts_left else State.FAILED)
                elif word == "target":
                    assert found is target
                elif word == "-":
                    # Nothing is said but that nothing happens: harmless, or an error of ours.
                    assert found in (Answer.NEVER, Answer.SAME, Answer.STALE)
                elif word in ANSWERS:
                    assert found is ANSWERS[word]
                else:
                    assert found is State(word)

    @every_pair
    def test_never_leaves_a_caller_with_an_inner_word(self, state: State, event: Event) -> None:
        assert lifecycle.answer(state, event, Situation()) not in (Answer.RETRY, Answer.TARGET)

    @every_pair
    def test_tells_users_no_or_yes_but_never_that_they_are_stale(
        self, state: State, event: Event
    ) -> None:
        if event in lifecycle.USER_EVENTS:
            found = lifecycle.answer(state, event, Situation())
            assert isinstance(found, State) or found in (Answer.SAME, Answer.CONFLICT)


class TestFinalStates:
    @given(
        start=st.sampled_from(list(State)),
        path=st.lists(st.tuples(st.sampled_from(list(Event)), situations), max_size=40),
    )
    def test_are_final_for_any_path(
        self, start: State, path: list[tuple[Event, Situation]]
    ) -> None:
        state, ended = start, None
        for event, situation in path:
            found = lifecycle.answer(state, event, situation)
            state = found if isinstance(found, State) else state
            assert ended is None or state is ended
            ended = state if lifecycle.is_final(state) else None

    def test_can_be_reached_from_every_other_state(self) -> None:
        for start in set(State) - lifecycle.FINAL:
            reached, todo = {start}, [start]
            while todo:
                state = todo.pop()
                for event, target in itertools.product(Event, (State.FAILED, State.CANCELLED)):
                    found = lifecycle.answer(state, event, Situation(target=target))
                    if isinstance(found, State) and found not in reached:
                        reached.add(found)
                        todo.append(found)
            assert reached >= {State.FAILED, State.CANCELLED}

    def test_success_is_entered_by_completion_alone(self) -> None:
        events = {
            event
            for state in State
            for event in Event
            if lifecycle.answer(state, event, Situation()) is State.SUCCEEDED
        }
        assert events == {Event.COMPLETE}


class TestHeld:
    def test_are_the_states_that_a_worker_enters_by_a_claim_and_leaves_with_it(self) -> None:
        for state in State:
            left = lifecycle.answer(state, Event.LEASE_EXPIRED, Situation())
            assert (state in lifecycle.HELD) == isinstance(left, State)
            assert left not in lifecycle.HELD


class TestAllowed:
    @pytest.mark.parametrize(
        ("state", "events"),
        [
            (State.VALIDATING, {Event.CANCEL}),
            (State.QUEUED, {Event.PAUSE, Event.CANCEL}),
            (State.RUNNING, {Event.PAUSE, Event.CANCEL}),
            (State.PAUSING, {Event.CANCEL}),
            (State.PAUSED, {Event.RESUME, Event.CANCEL}),
            (State.CANCELLING, set()),
            (State.SUCCEEDED, set()),
        ],
    )
    def test_names_what_would_move_the_job(self, state: State, events: set[Event]) -> None:
        assert set(lifecycle.allowed(state)) == events
