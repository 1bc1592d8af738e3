"""Chooses the values of a search's next trials with Optuna.

Optuna keeps nothing: for each question a study in memory is told all past trials, so that the
database has the only record of them, in our own rows (decision 26).
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models_registry.studies.search_spec import SearchSpec, TrialState
from models_registry.studies.search_variants import METHODS
from models_registry.studies.searches import PastTrial, Proposal, Question, Suggestions
from models_registry.studies.spaces import Axis, CategoricalSpace, FloatSpace, IntSpace

if TYPE_CHECKING:
    import optuna

_TRIES = 20
"""Proposals of the sampler itself before another way is taken to new values."""


def propose(question: Question) -> Suggestions:
    """Return values for as many trials as are wanted, none of which was tried before.

    The same question has the same answer.
    """
    past = list(question.past)
    proposals = []
    for _ in range(question.count):
        proposal = _propose_one(question, past)
        proposals.append(proposal)
        # To the next one, this trial runs already.
        running = TrialState.RUNNING
        number = len(past) + 1
        past.append(PastTrial(number, running, proposal.place, proposal.choices, None, {}))
    return Suggestions(question.revision, proposals)


def _propose_one(question: Question, past: Sequence[PastTrial]) -> Proposal:
    known = {_key(trial.place, trial.choices) for trial in past}
    proposal = None
    for attempt in range(_TRIES):
        proposal = _ask(question, past, attempt)
        if _key(proposal.place, proposal.choices) not in known:
            return proposal
    for other in _all(question):  # few values are left
        if _key(other.place, other.choices) not in known:
            return other
    if proposal is None:
        raise RuntimeError("the sampler was not asked")
    return proposal


def _ask(question: Question, past: Sequence[PastTrial], attempt: int) -> Proposal:
    import optuna  # takes a second, and most processes never need it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = _seed(question.search.seed, len(past) + 1, attempt)
    study = optuna.create_study(
        direction="minimize" if question.lower_is_better else "maximize",
        sampler=_sampler(question.search, seed),
    )
    for trial in past:
        study.add_trial(_told(question, trial))
    asked = study.ask()
    places = sorted(question.axes)
    place = places[0]
    if len(places) > 1:
        place = asked.suggest_categorical(METHODS, places)
    choices = {axis.pointer: _suggest(asked, axis) for axis in question.axes[place]}
    return Proposal(place, choices)


def _sampler(search: SearchSpec, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)


def _told(question: Question, trial: PastTrial) -> "optuna.trial.FrozenTrial":
    import optuna

    places = sorted(question.axes)
    distributions = {axis.pointer: _distribution(axis) for axis in question.axes[trial.place]}
    params = dict(trial.choices)
    if len(places) > 1:
        distributions[METHODS] = optuna.distributions.CategoricalDistribution(places)
        params[METHODS] = trial.place
    states = {
        TrialState.RUNNING: optuna.trial.TrialState.RUNNING,
        TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
        TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
        TrialState.FAILED: optuna.trial.TrialState.FAIL,
    }
    return optuna.trial.create_trial(
        state=states[trial.state],
        value=trial.value if trial.state is TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        intermediate_values=dict(trial.at_rungs),
    )


def _distribution(axis: Axis) -> "optuna.distributions.BaseDistribution":
    from optuna import distributions

    match axis.space:
        case FloatSpace(low=low, high=high, log=log):
            return distributions.FloatDistribution(low, high, log=log)
        case IntSpace(low=low, high=high, log=log):
            return distributions.IntDistribution(low, high, log=log)
        case CategoricalSpace(choices=choices):
            return distributions.CategoricalDistribution(range(len(choices)))


def _suggest(asked: "optuna.trial.Trial", axis: Axis) -> Any:  # Any: as `Proposal.choices`
    match axis.space:
        case FloatSpace(low=low, high=high, log=log):
            # As it is written into the spec, so that the next trials are told what was tried.
            return axis.space.value_of(asked.suggest_float(axis.pointer, low, high, log=log))
        case IntSpace(low=low, high=high, log=log):
            return asked.suggest_int(axis.pointer, low, high, log=log)
        case CategoricalSpace(choices=choices):
            return asked.suggest_categorical(axis.pointer, range(len(choices)))


def _all(question: Question) -> Iterator[Proposal]:
    """Return all proposals of methods without floats; none of the others."""
    return itertools.chain.from_iterable(
        (
            Proposal(place, dict(zip((axis.pointer for axis in axes), values, strict=True)))
            for values in itertools.product(*(_values(axis) for axis in axes))
        )
        for place, axes in sorted(question.axes.items())
        if all(_values(axis) for axis in axes)
    )


def _values(axis: Axis) -> range:
    """Return all choices of an axis; an empty range where there is no end of them."""
    match axis.space:
        case IntSpace(low=low, high=high):
            return range(low, high + 1)
        case CategoricalSpace(choices=choices):
            return range(len(choices))
    return range(0)


def _key(place: int, choices: Mapping[str, Any]) -> str:
    return json.dumps([place, choices], sort_keys=True)


def _seed(seed: int, number: int, attempt: int) -> int:
    """Return the seed for one trial: that of the search alone would give all the same values."""
    digest = hashlib.sha256(f"{seed} {number} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
