"""One engine process and the jobs it trains: claim, stage, supervise, end each job.

The only module that connects database rows and the engine. Most engines train one job; jobs of one
study may share one, with the same results as alone. Whatever happens to this process, the database
stays consistent: every write proves the fence, and a job whose worker has died is found by its
expired lease.
"""

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy.exc
import structlog
from sqlalchemy.orm import Session

from models_registry import errors, logs
from models_registry.artifacts.dataset_sources import SourceInputs
from models_registry.jobs import leases, workers
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import counters, tables
from models_registry.persistence.counters import Counter
from workers import (
    child_files,
    disk_space,
    engine_process,
    job_grouping,
    machine_health,
    patience,
    source_files,
    staging,
)
from workers.attempt import Attempt
from workers.context import Context
from workers.engine_process import EngineGuard, EngineProcess, Report
from workers.inspector import builtin_dataset
from workers.log_shipping import LogShipping
from workers.machine_health import MachineFault
from workers.source_reading import SourceRefused

log = structlog.get_logger()

_TICK_SECONDS = 0.2
_LOOK_AGAIN_SECONDS = 2.0
_MOST_SKIPPED = 20
_TRACE_LINES = 30
_NAME_CHARACTERS = 500
_GROUP_STOPPED = (
    "A job that shared the engine was paused or cancelled; this one goes on from its newest "
    "checkpoint."
)
_GROUP_SILENT = (
    "A job that shared the engine could not renew its lease, so the engine was stopped; this one "
    "goes on from its newest checkpoint."
)
_LOST_SERVER = "The process that the engine was forked from has ended, and the engine with it."
_ALONE = "Several jobs shared the engine; this one is tried again alone."
# In a shared engine, another student may have caused this failure.
_PERHAPS_BY_ANOTHER = "internal_error"
_WORKER_FAILED = "worker_failed"
# Failures that a full disk or a lack of memory also causes.
_PERHAPS_THE_MACHINE = ("internal_error", "host_out_of_memory")


def run_next(context: Context, announced: str) -> str | None:
    """Work on the job whose turn it is, of those that this worker takes; return its id, if any.

    `announced` is the job that a message names. A job for which there is no room here, or that
    another worker has claimed a moment before, is passed over. Where jobs wait, and other slots of
    this worker have the devices that they need, this slot waits for these, and takes no message.
    """
    message: str | None = announced
    skipped: set[str] = set()
    while len(skipped) < _MOST_SKIPPED and context.health.suspension is None:
        with contextlib.ExitStack() as turn:
            has_turn = turn.enter_context(
                context.device_pool.turn(hopeless=context.shutting_down.is_set)
            )
            if not has_turn:
                return None
            choice = _Choice(context, message, frozenset(skipped))
            try:
                chosen = context.persist(choice, hopeless=context.shutting_down.is_set)
            except errors.Unavailable as error:
                log.warning("claim_given_up", because=str(error))
                return None
            if chosen.job_id is not None:
                if _run_chosen(context, chosen, turn) is not None:
                    return chosen.job_id
                skipped.add(chosen.job_id)
        if chosen.job_id is None and not chosen.awaits_devices:
            log.info("nothing_claimable", skipped=sorted(skipped))
            return None
        if chosen.job_id is None:
            if message is not None:
                log.info("devices_awaited")
            if context.shutting_down.wait(_LOOK_AGAIN_SECONDS):
                return None
        message = None  # it has been answered: the job it names is chosen, or has a new one
    log.warning("job_left_to_others", job_id=announced, skipped=len(skipped))
    return None


def _run_chosen(
    context: Context, chosen: leases.NextJob, turn: contextlib.ExitStack
) -> State | None:
    """Take devices for the chosen job and work on it; the turn ends once it is claimed."""
    if chosen.job_id is None:
        raise ValueError("no job was chosen")
    devices = context.device_pool.take(chosen.devices)
    try:
        with logs.bind(job_id=chosen.job_id, devices=devices):
            return run_job(context, chosen.job_id, devices=devices, on_claimed=turn.close)
    finally:
        context.device_pool.release()


@dataclass(frozen=True)
class _Choice:
    """Finds out whose turn it is, in this slot's turn."""

    context: Context
    announced: str | None
    skipped: frozenset[str]

    def __call__(self, session: Session) -> leases.NextJob:
        return leases.choose(
            session,
            announced=self.announced,
            queues=self.context.job_queues,
            devices=workers.offered_devices(session, worker_id=self.context.worker_id),
            free_devices=self.context.device_pool.count_free(),
            running_limit=self.context.settings.quota_jobs_running,
            skipped=self.skipped,
        )


def run_job(
    context: Context,
    job_id: str,
    *,
    devices: Sequence[int] = (),
    on_claimed: Callable[[], None] = lambda: None,
) -> State | None:
    """Work on a job if it can be claimed; return the state it was left in, None where unclaimed.

    Other jobs of its study may be claimed with it, to share its engine. `on_claimed` is called when
    all are. `devices` are those of this worker that the engine may use; none: all of them.
    """
    if context.health.suspension is not None:
        log.warning("job_left_to_others", job_id=job_id, because=context.health.suspension.message)
        return None  # it is announced again
    if not _has_room(context, job_id):
        return None
    guard = EngineGuard()
    with contextlib.ExitStack() as heartbeats:
        leader = _begin(context, job_id, guard, heartbeats)
        if leader is None:
            log.info("job_unclaimable", job_id=job_id)
            return None
        attempts = [leader]
        try:
            for other_id in _find_groupable(context, leader):
                other = _begin(context, other_id, guard, heartbeats, leader=leader)
                attempts += [other] if other is not None else []
        except errors.StaleFence as error:
            leader.give_up(str(error))
        on_claimed()
        _Run(context, attempts, guard, devices).run()
    for attempt in attempts:
        attempt.return_lost()
    return leader.state


def _has_room(context: Context, job_id: str) -> bool:
    """Return whether the disk has room for the job; if not, the job says so."""
    try:
        shortfall = disk_space.make_room(context, job_id)
    except OSError as error:
        context.health.suspend(machine_health.of_error(error))
        return False
    except sqlalchemy.exc.SQLAlchemyError as error:
        log.warning("room_unknown", job_id=job_id, error=str(error))  # the claim waits for it
        return True
    if shortfall is None:
        return True
    log.warning("job_left_to_others", job_id=job_id, because=shortfall)
    with context.sessions.begin() as session:
        leases.decline(session, job_id=job_id, message=shortfall)
    fault = machine_health.check(context.settings)
    if fault is not None:  # no job has room here
        context.health.suspend(fault)
    return False


def _begin(
    context: Context,
    job_id: str,
    guard: EngineGuard,
    heartbeats: contextlib.ExitStack,
    *,
    leader: Attempt | None = None,
) -> Attempt | None:
    """Claim a job and start its heartbeat; return None if it cannot be claimed."""
    claim = _Claim(context, job_id)
    try:
        if leader is not None:
            lease = leader.persist(claim)
        else:
            lease = context.persist(claim, hopeless=context.shutting_down.is_set)
    except errors.Unavailable as error:
        log.warning("claim_given_up", job_id=job_id, because=str(error))
        return None
    if lease is None:
        return None
    log.info("job_claimed", job_id=job_id, attempt=lease.attempt, fence=lease.fence)
    attempt = Attempt(context, lease, held_since=claim.began, on_silence=guard.trip)
    heartbeats.enter_context(attempt.heartbeat)
    return attempt


class _Claim:
    """Claims a job in a transaction that may be repeated because its answer was lost."""

    def __init__(self, context: Context, job_id: str) -> None:
        self._context = context
        self._job_id = job_id
        self._is_repeated = False
        self.began = 0.0
        """`time.monotonic()` at the start of the last transaction."""

    def __call__(self, session: Session) -> leases.Lease | None:
        """Return the lease, or None if the job cannot be claimed."""
        self.began = time.monotonic()
        worker_id = self._context.worker_id
        if self._is_repeated:
            leases.return_unknown_claim(session, job_id=self._job_id, worker_id=worker_id)
        self._is_repeated = True
        return leases.claim(
            session,
            job_id=self._job_id,
            worker_id=worker_id,
            lease_seconds=self._context.settings.lease_seconds,
            running_limit=self._context.settings.quota_jobs_running,
        )


def _find_groupable(context: Context, leader: Attempt) -> list[str]:
    limit = context.settings.study_students
    if limit == 1:
        return []
    return leader.persist(lambda s: job_grouping.find(s, leader.lease, limit=limit))


class _Run:
    """One engine process, and the attempts that it trains."""

    _workdir: Path  # from `run` on
    _log: LogShipping  # from the start of the engine on

    def __init__(
        self,
        context: Context,
        attempts: list[Attempt],
        guard: EngineGuard,
        devices: Sequence[int] = (),
    ) -> None:
        self._context = context
        self._attempts = attempts
        self._guard = guard
        self._devices = devices
        self._is_shared = len(attempts) > 1

    @property
    def _open(self) -> list[Attempt]:
        """Return the attempts that have not ended."""
        return [attempt for attempt in self._attempts if not attempt.is_over]

    def _for_each_open(self, work: Callable[[Attempt], object]) -> None:
        """Call `work` with each open attempt; one whose lease is lost is given up."""
        for attempt in self._open:
            try:
                work(attempt)
            except errors.StaleFence as error:
                attempt.give_up(str(error))
                if error.__cause__ is None:  # else the database was not reached at all
                    self._count_stale_write()

    def _count_stale_write(self) -> None:
        try:
            with self._context.sessions.begin() as session:
                counters.add(session, Counter.STALE_WRITES)
        except sqlalchemy.exc.SQLAlchemyError as error:
            log.warning("stale_write_not_counted", error=str(error))

    def run(self) -> None:
        """Make a working folder, and run all attempts to their end in it."""
        leader = self._attempts[0].lease
        try:
            name = f"{leader.job_id}-{leader.attempt}"
            with staging.scratch(self._context.settings.scratch_dir, name) as self._workdir:
                self._work()
        except child_files.OddFile as error:
            name = Path(error.filename).name
            self._fail("odd_output", f"The engine left no regular file as {name}.")
        except OSError as error:
            # A full disk, no free process: another machine may not have this problem.
            self._hand_back_unfit(machine_health.of_error(error))
        except Exception as error:  # otherwise the lease would expire, and nobody know why
            log.exception("supervisor_failed")
            message = f"The worker that supervised the engine failed: {_name(error)}"
            lines = traceback.format_exception(error)
            self._fail("supervisor_failed", message, "".join(lines).splitlines()[-_TRACE_LINES:])

    def _work(self) -> None:
        """Stage, supervise, and end the attempts in the database."""
        launcher = self._context.launcher
        launcher.warm_up()  # while the inputs are staged
        self._for_each_open(lambda attempt: attempt.trace.enter("stage"))
        try:
            self._stage()
        except errors.StorageDown as error:
            self._end_unwanted()
            self._fail("staging_failed", f"An input could not be staged: {error}")
            return
        except SourceRefused as error:
            self._end_unwanted()
            self._fail(error.code, f"An input could not be staged: {error}", is_final=True)
            return
        except (errors.RegistryError, _BuiltinFailed) as error:
            fault = machine_health.check(self._context.settings)
            if fault is not None:
                self._hand_back_unfit(fault)
            self._fail("staging_failed", f"An input could not be staged: {error}")
            return
        self._context.device_pool.promise(0)
        self._end_unwanted()
        while self._open and not launcher.wait_ready(_TICK_SECONDS):
            self._end_unwanted()
        if not self._open:
            return
        arguments = [str(self._write_config()), "--workdir", str(self._workdir)]
        device = self._context.settings.worker_device
        self._for_each_open(lambda attempt: attempt.trace.enter("prepare"))
        with (
            EngineProcess(
                "workers.distill",
                arguments,
                workdir=self._workdir,
                launcher=launcher,
                device=device,
                shares_cache=True,
                talks=any(attempt.inputs.recipe["devices"] > 1 for attempt in self._open),
                cards=self._context.device_pool.cards_of(self._devices),
            ) as engine,
            self._guard.watching(engine),
        ):
            self._log = LogShipping(engine.log_path)
            stop_requested = self._supervise(engine)
            tail = engine.log_tail()
            code = engine.wait() if self._open else None  # without open attempts, it is killed
        self._for_each_open(_give_up_if_lost)
        fault = None if stop_requested else self._find_fault()
        if fault is not None:
            self._hand_back_unfit(fault, tail)
        crash = _LOST_SERVER if engine.lost_server else _exit_message(code)
        self._for_each_open(lambda attempt: self._end(attempt, code, crash, stop_requested, tail))

    # -- before the engine starts --------------------------------------------------------------

    def _stage(self) -> None:
        """Put shared inputs into the working folder, and each job's own into its folder."""
        self._for_each_open(lambda attempt: attempt.load_inputs(self._folder_of(attempt)))
        for attempt in self._open[:1]:
            for path, blob in attempt.inputs.shared.items():
                self._place(blob, self._workdir / path)
            if attempt.inputs.builtin is not None:
                self._place_builtin(attempt.inputs.builtin, without=attempt.inputs.withheld)
            if attempt.inputs.source is not None:
                self._place_source(attempt.inputs.source, without=attempt.inputs.withheld)
        for attempt in self._open:
            for path, blob in attempt.inputs.own.items():
                self._place(blob, attempt.folder / path)
            for path, blob in attempt.inputs.checkpoints.items():
                self._restore(blob, attempt.folder / path, job_id=attempt.lease.job_id)

    def _folder_of(self, attempt: Attempt) -> Path:
        if not self._is_shared:
            return self._workdir
        return job_grouping.folder(self._workdir, attempt.lease.job_id)

    def _fetch(self, work: Callable[[], None]) -> None:
        """Fetch an input, also from a store that cannot be used for a while."""

        def tell(error: errors.StorageDown) -> None:
            self._for_each_open(lambda attempt: attempt.tell_waiting(error))

        patience.while_store_is_down(work, on_wait=tell, must_stop=self._nobody_goes_on)

    def _restore(self, blob: tables.BlobRow, path: Path, *, job_id: str) -> None:
        # Not through the cache: a checkpoint is read once, by this attempt.
        try:
            self._fetch(lambda: staging.fetch(self._context.storage, blob, path))
        except (errors.NotFound, errors.DigestMismatch) as error:
            # An older checkpoint, or the beginning, costs time; failing here costs the job.
            log.warning("checkpoint_not_restored", job_id=job_id, error=str(error))

    def _place(self, blob: tables.BlobRow, path: Path) -> None:
        settings = self._context.settings
        self._fetch(
            lambda: staging.place(
                self._context.storage,
                blob,
                path,
                cache=settings.cache_dir,
                keep_free=settings.worker_min_free_bytes,
            )
        )

    def _place_builtin(self, name: str, *, without: Collection[str]) -> None:
        folder = self._workdir / "dataset"
        cache = self._context.settings.cache_dir
        failure = builtin_dataset(
            name,
            folder,
            cache=cache,
            launcher=self._context.launcher,
            without=without,
            must_stop=self._nobody_goes_on,
        )
        if failure is not None:
            raise _BuiltinFailed(failure)

    def _place_source(self, source: SourceInputs, *, without: Collection[str]) -> None:
        self._fetch(
            lambda: source_files.provide(
                self._context,
                source,
                self._workdir,
                must_stop=self._nobody_goes_on,
                without=without,
            )
        )

    def _end_unwanted(self) -> None:
        """End attempts that were stopped or lost while their inputs were staged."""
        self._for_each_open(_give_up_if_lost)
        leaving = self._context.shutting_down.is_set()
        self._for_each_open(
            lambda a: self._stop(a, []) if leaving or a.heartbeat.stop_wanted else None
        )
        for attempt in self._open:
            attempt.group_size = len(self._open)

    def _write_config(self) -> Path:
        """Write the engine's configuration: one job's, or those of a whole group."""
        recipes = {attempt.lease.job_id: attempt.inputs.recipe for attempt in self._open}
        config = job_grouping.group_of(recipes) if self._is_shared else self._open[0].inputs.recipe
        path = self._workdir / "recipe.json"
        path.write_text(json.dumps(config))
        return path

    # -- while the engine runs -----------------------------------------------------------------

    def _supervise(self, engine: EngineProcess) -> bool:
        """Relay reports until the engine or all attempts have ended.

        Return whether the engine was told to stop.
        """
        stop_requested = False
        while not engine.has_ended:
            self._for_each_open(_give_up_if_lost)
            if not self._open:
                break
            if not stop_requested and self._must_stop():
                engine.request_stop(grace_seconds=self._context.settings.kill_grace_seconds)
                stop_requested = True
            engine.enforce_stop()
            report = engine.next_report(_TICK_SECONDS)
            if report is not None:
                self._relay(report, engine)
            self._for_each_open(Attempt.flush)
            self._for_each_open(self._log.ship)
            self._for_each_open(Attempt.exchange)
            self._for_each_open(lambda attempt: _store_again(attempt, engine))
        return stop_requested

    def _must_stop(self) -> bool:
        """Return whether one job is no longer wanted, or this worker shuts down."""
        wanted = any(attempt.heartbeat.stop_wanted for attempt in self._open)
        return wanted or self._context.shutting_down.is_set()

    def _nobody_goes_on(self) -> bool:
        """Return whether no job needs its inputs any more: each is stopped, or the worker is."""
        beats = [attempt.heartbeat for attempt in self._open]
        stopped = all(beat.stop_wanted or beat.lost for beat in beats)
        return stopped or self._context.shutting_down.is_set()

    def _relay(self, report: Report, engine: EngineProcess) -> None:
        """Relay a report to the job that it names, or else to all."""
        key = report.get("member")

        def relay(attempt: Attempt) -> None:
            if key is not None and key != attempt.lease.job_id:
                return
            attempt.relay(report)
            if key is not None and report["type"] in ("result", "failure"):
                self._end_early(attempt, engine.log_tail())

        self._for_each_open(relay)

    def _end_early(self, attempt: Attempt, tail: list[str]) -> None:
        """Finish one job of a shared engine after its result or failure."""
        attempt.flush(force=True)
        self._log.ship(attempt, force=True)
        failure = attempt.failure
        if failure is None:
            attempt.complete(tail, can_wait=False)  # the others need this thread
        elif failure["code"] == _PERHAPS_BY_ANOTHER and attempt.group_size > 1:
            self._hand_back(attempt, failure["message"], tail)
        else:
            retryable = bool(failure.get("retryable", False))
            attempt.fail(failure["code"], failure["message"], retryable, tail)

    # -- after the engine has ended ------------------------------------------------------------

    def _end(
        self, attempt: Attempt, code: int | None, crash: str, stop_requested: bool, tail: list[str]
    ) -> None:
        """End an attempt by how its engine has ended; `crash` says so where the engine did not."""
        attempt.flush(force=True)
        self._log.ship(attempt, force=True)
        failure = attempt.failure
        if attempt.result is not None and (self._is_shared or code == 0):
            attempt.complete(tail)
        elif self._guard.is_tripped:  # for the sake of another job, whose lease had run out
            attempt.hand_back(tail, because=Reason.DATABASE_UNREACHABLE, message=_GROUP_SILENT)
        elif failure is not None and self._is_shared:
            self._hand_back(attempt, failure["message"], tail)
        elif failure is not None:
            retryable = bool(failure.get("retryable", False))
            attempt.fail(failure["code"], failure["message"], retryable, tail)
        elif stop_requested:
            self._stop(attempt, tail)
        elif self._is_shared:
            self._hand_back(attempt, crash, tail)
        else:
            attempt.fail("engine_crashed", crash, True, tail)

    def _find_fault(self) -> MachineFault | None:
        """Return what is wrong with the machine, if that may have ended the engine."""
        if any(attempt.result is not None for attempt in self._open):
            return None  # it has done its work
        failures = [attempt.failure for attempt in self._open]
        for failure in failures:
            if failure is not None and failure["code"] == _WORKER_FAILED:
                code = (failure.get("details") or {}).get("fault", machine_health.DISK_FAILED)
                return MachineFault(code, failure["message"])
        if any(failure is None or failure["code"] in _PERHAPS_THE_MACHINE for failure in failures):
            return machine_health.check(self._context.settings)
        return None

    def _hand_back_unfit(self, fault: MachineFault, tail: Sequence[str] = ()) -> None:
        """Hand all jobs back because of this machine, which takes no others until it is better."""
        self._context.health.suspend(fault)
        message = f"The worker could not go on: {fault.message}"
        self._for_each_open(lambda attempt: attempt.hand_back_unfit(message, list(tail)))

    def _stop(self, attempt: Attempt, tail: list[str]) -> None:
        if self._is_shared and not self._context.shutting_down.is_set():
            reason, message = Reason.COMPANION_STOPPED, _GROUP_STOPPED
        else:
            reason, message = Reason.WORKER_SHUTDOWN, leases.SHUT_DOWN
        attempt.stop(tail, because=reason, message=message)

    def _fail(
        self, code: str, message: str, tail: Sequence[str] = (), *, is_final: bool = False
    ) -> None:
        """End all attempts for a reason that is not about one of them.

        One that is final would meet another attempt as well.
        """
        lines = list(tail)
        if self._is_shared:
            self._for_each_open(lambda attempt: self._hand_back(attempt, message, lines))
        else:
            self._for_each_open(lambda attempt: attempt.fail(code, message, not is_final, lines))

    def _hand_back(self, attempt: Attempt, message: str, tail: list[str]) -> None:
        """Queue a job again to run alone: which of several caused the failure is unknown."""
        log.warning("shared_attempt_failed", job_id=attempt.lease.job_id, message=message)
        reason = Reason.SHARED_ENGINE_FAILED
        attempt.hand_back(tail, because=reason, message=f"{message} {_ALONE}")


class _BuiltinFailed(Exception):
    """A built-in data set could not be written; the message is the child's."""


def _give_up_if_lost(attempt: Attempt) -> None:
    if attempt.heartbeat.lost:
        attempt.give_up("the lease has run out, or was taken away")


def _store_again(attempt: Attempt, engine: EngineProcess) -> None:
    if attempt.waits_for_storage:
        attempt.complete(engine.log_tail(), can_wait=False)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_NAME_CHARACTERS].replace("\x00", "\ufffd")


def _exit_message(code: int | None) -> str:
    if code == engine_process.CHECKPOINTED:
        return "The engine was stopped (SIGTERM), but not by its worker."
    if code is not None and code < 0:
        hint = " (on Linux most often for lack of memory)" if code == -9 else ""
        return f"The engine was ended by signal {-code}{hint}."
    return f"The engine ended with exit code {code} without reporting a result."
