"""Whether this machine's disk has room for the inputs of a job, asked before the job is claimed."""

from workers import inputs, machine_health, source_files, staging
from workers.context import Context


def make_room(context: Context, job_id: str) -> str | None:
    """Drop from the cache what the job does not need, if it needs the room, and promise it that.

    Return a sentence where that is not enough, else None.
    """
    settings = context.settings
    with context.readers() as session:
        sizes = inputs.sizes(session, job_id)
        source = inputs.source_of(session, job_id)
    if source is not None:
        sizes |= {file.sha256: file.size_bytes for file in source.files}
    needed = sum(
        size for sha256, size in sizes.items() if not (settings.cache_dir / sha256).exists()
    )
    if source is not None and not source_files.are_cached(settings, source):
        needed += source_files.room_of(source)
    promised = context.device_pool.promised_bytes()
    wanted = needed + promised + settings.worker_min_free_bytes
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    free = machine_health.free_bytes(settings.scratch_dir)
    if free < wanted:
        staging.free(settings.cache_dir, size_bytes=wanted - free, keep=sizes.keys())
        free = machine_health.free_bytes(settings.scratch_dir)
    if free >= wanted:
        context.device_pool.promise(needed)
        return None
    beside = f", those of jobs beside it {machine_health.gibibytes(promised)}" if promised else ""
    return (
        f"Worker {context.worker_id} has {machine_health.gibibytes(free)} of disk free; the job's "
        f"inputs need {machine_health.gibibytes(needed)}{beside}, and "
        f"{machine_health.gibibytes(settings.worker_min_free_bytes)} stay free "
        "(RETORT_WORKER_MIN_FREE_BYTES). It waits for a worker that has more."
    )
