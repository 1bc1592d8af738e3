"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

import math

from workers.distill.config.training import Constant, Cosine, Schedule, Step
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
        case Cosine():
            if moment.step <= warmup:
                return rising
            left = max(epochs * moment.steps_per_epoch - warmup, 1)
            done = min((moment.step - 1 - warmup) / left, 1.0)
            final = schedule.final_factor
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * max(done, 0.0)))
        case Constant():
            return rising
