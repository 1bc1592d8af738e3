"""Choose the files that `retort download` and `retort report` write, and where."""

from pathlib import Path, PurePosixPath

from retort import digests, errors, types
from retort.cli import shell, transfer_bar

WEIGHTS = "model.safetensors"
TEACHING = {"graph": "model.onnx", "predictions": "predictions.safetensors"}
"""The file of models that only teach, by their kind."""


def fetch(
    retort: shell.Shell, what: str, output: Path | None, *, everything: bool, force: bool
) -> list[Path]:
    """Download the student of a job, the best one of a study, or a model version.

    Returns the files written.
    """
    if what.startswith("stu_"):
        what = best_job(retort, what)
    if not what.startswith("job_"):
        version = retort.client.models.resolve(what)
        return _version(retort, version, output, everything=everything, force=force)
    job = retort.client.jobs.get(what)
    student = job.result.student if job.result else None
    if everything:
        if student is None:
            raise errors.BadOption(f"--all: {what} has no student in the registry ({job.state})")
        version = retort.client.models.resolve(student)
        return _version(retort, version, output, everything=True, force=force)
    destination = _destination(output, f"{_stem(student) if student else what}.safetensors")
    may_write(destination, job.result.digest if job.result else None, force=force)
    with transfer_bar.shown(retort.err, destination.name) as progress:
        retort.client.jobs.download_student(what, destination, progress=progress)
    return [destination]


def dataset(retort: shell.Shell, what: str, output: Path | None, *, force: bool) -> list[Path]:
    """Download the archive of a version of a data set, and return the file written."""
    version = retort.client.datasets.resolve(what)
    kept = version.archive
    # Without one, the server says why.
    name = _plain_name(kept.filename) if kept else "archive"
    destination = _destination(output, f"{_stem(version.reference)}-{name}")
    may_write(destination, kept.sha256 if kept else None, force=force)
    with transfer_bar.shown(retort.err, destination.name) as progress:
        retort.client.datasets.download(version, destination, progress=progress)
    return [destination]


def report(retort: shell.Shell, job_id: str, output: Path | None, *, force: bool) -> list[Path]:
    """Download the report of a job, or of the best one of a study, and return the files written."""
    if job_id.startswith("stu_"):
        job_id = best_job(retort, job_id)
    if output is not None and output.suffix == ".zip":
        if output.exists() and not force:
            raise errors.LocalFileProblem(
                output, "exists already: give --force or another --output"
            )
        return [retort.client.jobs.download_report(job_id, output)]
    folder = output or Path(f"{job_id}-report")
    wanted = [(file, _inside(folder, file.path)) for file in retort.client.jobs.report(job_id)]
    for file, destination in wanted:
        may_write(destination, file.sha256, force=force)
    for file, destination in wanted:
        retort.client.jobs.download_report_file(job_id, file, destination)
    return [destination for _, destination in wanted]


def best_job(retort: shell.Shell, study_id: str) -> str:
    """Return the best job of the best variant of a study, and say which one it is.

    Raises: errors.BadOption where none was scored.
    """
    shown = retort.client.studies.leaderboard(study_id)
    for row in shown.rows:  # best first
        scored = [
            (score, run)
            for run in row.runs
            if run.student and (score := getattr(run, shown.metric, None)) is not None
        ]
        if scored:
            score, run = max(scored, key=lambda pair: pair[0])
            retort.note(
                f"the best of {study_id} is {row.name} with seed {run.seed}: {run.student} "
                f"({run.job}), {shown.metric} {score:.4g}; retort study leaderboard {study_id}"
            )
            return run.job
    raise errors.BadOption(f"{study_id} has no scored student ({shown.state})")


def _version(
    retort: shell.Shell,
    version: types.ModelVersion,
    output: Path | None,
    *,
    everything: bool,
    force: bool,
) -> list[Path]:
    stem = _stem(version.reference)
    if everything:
        folder = output or Path(stem)
        wanted = [(stored.path, _inside(folder, stored.path)) for stored in version.files]
    else:
        file = TEACHING.get(version.kind or "", WEIGHTS)
        wanted = [(file, _destination(output, f"{stem}{Path(file).suffix}"))]
    known = {stored.path: stored.sha256 for stored in version.files}
    for path, destination in wanted:
        may_write(destination, known.get(path), force=force)
    for path, destination in wanted:
        with transfer_bar.shown(retort.err, destination.name) as progress:
            retort.client.models.download(version, destination, file=path, progress=progress)
    return [destination for _, destination in wanted]


def _plain_name(filename: str) -> str:
    """Return the name of an uploaded file, which may be anybody's, as one that is safe here."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in filename).lstrip(".") or "file"


def _stem(reference: str) -> str:
    return reference.replace("@", "-")


def _destination(output: Path | None, name: str) -> Path:
    if output is None:
        return Path(name)
    return output / name if output.is_dir() else output


def _inside(folder: Path, path: str) -> Path:
    """Return where a file of a version goes; names that lead out of `folder` are refused."""
    steps = PurePosixPath(path).parts
    if not steps or path.startswith("/") or "\\" in path or ".." in steps:
        raise errors.UnexpectedAnswer(f"the server names a file {path!r}, which is not safe here")
    return folder.joinpath(*steps)


def may_write(destination: Path, digest: str | None, *, force: bool) -> None:
    """Raise LocalFileProblem where a file would be replaced by other content without `force`."""
    if force or not destination.exists():
        return
    if destination.is_dir():
        raise errors.LocalFileProblem(destination, "is a folder")
    if digests.measure(destination).sha256 != digests.hexadecimal(digest):
        raise errors.LocalFileProblem(
            destination, "exists already with other content: give --force or another --output"
        )
