"""A run in its four parts: prepare, build, train, finish.

One job is carried out in its folder. The members of a group (`config.grouping`) are trained side by
side: teacher and data set lie in the group's folder, everything else in `members/<key>`. Alone or
in a group, a student is the same, byte for byte on the CPU.
"""

import dataclasses
import logging
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence

import torch

from workers.distill import errors
from workers.distill.config import grouping
from workers.distill.config.devices import Share
from workers.distill.methods import catalog
from workers.distill.run import failures, loops, members, prepare, requests
from workers.distill.run.context import JobRequest
from workers.distill.run.failures import Failures
from workers.distill.run.members import GroupMember
from workers.distill.run.phase import Phase
from workers.distill.runtime import events, rank_processes, signals
from workers.distill.runtime.device import keep_memory
from workers.distill.runtime.ranks import ALONE, Ranks, join

LOG = logging.getLogger(__name__)


def execute(
    config_path: pathlib.Path,
    workdir: pathlib.Path,
    reporter: events.Reporter,
    stop: signals.Stop,
) -> int:
    """Run one config or a group; report every way it can end, and return the exit code."""
    jobs: list[JobRequest] = []

    def read_and_run() -> int:
        jobs.extend(requests.read(config_path, workdir, reporter))
        devices = jobs[0].config.devices
        if devices == 1:
            return run(jobs, workdir, stop)
        for job in jobs:
            prepare.check_config(job.config, has_dataset=(workdir / "dataset").is_dir())
        return run_ranks(jobs[0], devices, stop)

    return report_failure(read_and_run, reporter, jobs)


def report_failure(
    work: Callable[[], int], reporter: events.Reporter, jobs: Sequence[JobRequest]
) -> int:
    """Do the work of jobs, report how it failed if it does, and return the exit code."""
    try:
        return work()
    except errors.Interrupted:
        return signals.EXIT_CODE
    except errors.RankLost:  # whoever started the ranks knows which one ended, and why
        LOG.exception("another rank was lost")
        return rank_processes.PEER_LOST
    except Exception as error:  # the one door through which failures leave
        LOG.exception("the engine failed")
        batch_size = jobs[0].config.training.batch_size if jobs else None
        failures.report(reporter, failures.translate(error, batch_size=batch_size))
        return 1


def run_ranks(job: JobRequest, count: int, stop: signals.Stop) -> int:
    """Run one job on several devices, a process for each, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="ranks-", dir=job.workdir) as folder:
        meeting = pathlib.Path(folder) / "meeting"

        def work(rank: int) -> int:
            share = Share(rank, count)
            # A failure is told by the rank that meets it, everything else by the first one.
            reporter = job.reporter if rank == 0 else events.FailureReporter(job.reporter)
            own = dataclasses.replace(job, reporter=reporter)

            def train() -> int:
                device = prepare.choose_device(job.config.accelerator, rank=rank)
                if device.type == "cpu":
                    torch.set_num_threads(max(torch.get_num_threads() // count, 1))
                return run([own], job.workdir, stop, join(share, meeting, device))

            return report_failure(train, reporter, [own])

        return rank_processes.RankProcesses(count, job.reporter, stop).run(work)


def run(
    jobs: Sequence[JobRequest], workdir: pathlib.Path, stop: signals.Stop, ranks: Ranks = ALONE
) -> int:
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
    shared = loop.prepare(first, workdir, stop, strong=strong, ranks=ranks)
    running = []
    for job in fitting:
        with failed.isolate(job.config, job.reporter):
            running.append(GroupMember(prepare.job_context(shared, job)))
    members.resume(running)
    members.check_ranks(running, ranks)
    for member in running:
        members.report_start(member)
    # Equal for all: only a job alone may have a second phase.
    for name in running[0].context.phases if running else ():
        Phase(name, running, shared, failed, began=began).run()
    return grouping.SOME_FAILED if failed.count else 0
