"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

import math

from workers.distill.config.training import Constant, Cosine, Poly, Schedule, Step
from workers.distill.methods.base import Moment


def rate_factor(schedule: Schedule, moment: Moment, epochs: int) -> float:
    """Return the share of the learning rate that a step uses."""
    warmup = schedule.warmup_epochs * moment.steps_per_epoch
    rising = moment.step / warmup if moment.step < warmup else 1.0
    match schedule:
        case Step():
            # "After epoch 150" means from epoch 151 on: the milestone's own epoch is unchanged.
            passed = sum(moment.epoch > milestone for milestone in schedule.milestones or ())
            return rising * math.pow(schedule.factor, passed)
        case Cosine() | Poly():
            if moment.step <= warmup:
                return rising
            left = max(epochs * moment.steps_per_epoch - warmup, 1)
            done = max(min((moment.step - 1 - warmup) / left, 1.0), 0.0)
            if isinstance(schedule, Poly):
                share = math.pow(1 - done, schedule.power)
            else:
                share = 0.5 * (1 + math.cos(math.pi * done))
            return schedule.final_factor + (1 - schedule.final_factor) * share
        case Constant():
            return rising
