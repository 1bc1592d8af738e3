"""A run in its four parts: prepare, build, train, finish.

One job is carried out in its folder. The members of a group (`config.grouping`) are trained side by
side: teacher and data set lie in the group's folder, everything else in `members/<key>`. Alone or
in a group, a student is the same, byte for byte on the CPU.
"""

import logging
import pathlib
import time
from collections.abc import Sequence

from workers.distill import errors
from workers.distill.config import grouping
from workers.distill.methods import catalog
from workers.distill.run import failures, loops, members, prepare, requests
from workers.distill.run.context import JobRequest
from workers.distill.run.failures import Failures
from workers.distill.run.members import GroupMember
from workers.distill.run.phase import Phase
from workers.distill.runtime import events, signals
from workers.distill.runtime.device import keep_memory

LOG = logging.getLogger(__name__)


def execute(
    config_path: pathlib.Path,
    workdir: pathlib.Path,
    reporter: events.Reporter,
    stop: signals.Stop,
) -> int:
    """Run one config or a group; report every way it can end, and return the exit code."""
    batch_size: int | None = None
    try:
        jobs = requests.read(config_path, workdir, reporter)
        batch_size = jobs[0].config.training.batch_size
        return run(jobs, workdir, stop)
    except errors.Interrupted:
        return signals.EXIT_CODE
    except Exception as error:  # the one door through which failures leave
        LOG.exception("the engine failed")
        failures.report(reporter, failures.translate(error, batch_size=batch_size))
        return 1


def run(jobs: Sequence[JobRequest], workdir: pathlib.Path, stop: signals.Stop) -> int:
    """Run jobs side by side from where their checkpoints stand, and return the exit code."""
    began = time.monotonic()
    keep_memory()
    failed = Failures(alone=jobs[0].key is None)
    fitting, strong, has_dataset = [], False, (workdir / "dataset").is_dir()
    for job in jobs:
        with failed.isolate(job.config, job.reporter):
            prepare.check_config(job.config, has_dataset=has_dataset)
            method, _ = catalog.find(job.config.method)
            strong |= method.uses_strong_view
            fitting.append(job)
    if not fitting:
        return grouping.SOME_FAILED
    first = fitting[0].config
    loop = loops.of_method(catalog.find(first.method)[0])
    shared = loop.prepare(first, workdir, stop, strong=strong)
    running = []
    for job in fitting:
        with failed.isolate(job.config, job.reporter):
            running.append(GroupMember(prepare.job_context(shared, job)))
    members.resume(running)
    for member in running:
        members.report_start(member)
    # Equal for all: only a job alone may have a second phase.
    for name in running[0].context.phases if running else ():
        Phase(name, running, shared, failed, began=began).run()
    return grouping.SOME_FAILED if failed.count else 0
