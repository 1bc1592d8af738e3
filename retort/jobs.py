"""Jobs: submit, control, follow, wait, and download the student."""

import contextlib
import json
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pydantic

from retort import digests, downloads, errors, server_events, transport, types

# The server sends a comment every 15 s; three missing ones mean that the connection is dead.
STREAM_SILENCE_SECONDS = 45.0
LONGEST_RECONNECT_SECONDS = 15.0


class Jobs(transport.Resource):
    """The jobs of the key's project."""

    def submit(
        self, spec: Mapping[str, object], *, idempotency_key: str | None = None
    ) -> types.Job:
        """Submit a spec; the same key submits it once, however often this is called."""
        return self._http.create(types.Job, "/v1/jobs", spec, key=idempotency_key)

    def validate(self, spec: Mapping[str, object]) -> types.Json:
        """Validate a spec as on submission and return it with defaults filled in."""
        return dict(self._http.request("POST", "/v1/jobs/validate", body=spec).json())

    def get(self, job_id: str) -> types.Job:
        """Return a job as it is now."""
        return self._http.fetch(types.Job, "GET", f"/v1/jobs/{job_id}")

    def list(
        self,
        *,
        state: str | None = None,
        study: str | None = None,
        labels: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[types.Job]:
        """Walk through jobs, newest first."""
        wanted = {f"label.{key}": value for key, value in (labels or {}).items()}
        query = {"state": state, "study": study, **wanted}
        return self._http.pages(types.Job, "/v1/jobs", query=query, size=page_size)

    def cancel(self, job_id: str) -> types.Job:
        """Cancel a job."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> types.Job:
        """Pause a job, so that it can be resumed."""
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> types.Job:
        """Resume a paused job from its last checkpoint."""
        return self._act(job_id, "resume")

    def retry(self, job_id: str) -> types.Job:
        """Submit a failed or cancelled job again, as a new job."""
        return self._act(job_id, "retry", {"idempotency-key": transport.fresh_key()})

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended; a registered student stays."""
        self._http.request("DELETE", f"/v1/jobs/{job_id}")

    def events(
        self, job_id: str, *, after: int = 0, wait_seconds: float | None = None
    ) -> types.Page[types.Event]:
        """Return the events after a sequence number, waiting for one if there is none yet."""
        query = {"after": after, "wait_seconds": wait_seconds}
        return self._http.fetch(
            types.Page[types.Event], "GET", f"/v1/jobs/{job_id}/events", query=query
        )

    def attempts(self, job_id: str) -> Sequence[types.Attempt]:
        """Return the attempts at a job, oldest first."""
        path = f"/v1/jobs/{job_id}/attempts"
        return self._http.fetch(types.Page[types.Attempt], "GET", path).data

    def logs(
        self, job_id: str, *, attempt: int | None = None, lines: int | None = None
    ) -> Sequence[types.AttemptLog]:
        """Return the last lines of each attempt's engine so far, oldest attempt first."""
        path = f"/v1/jobs/{job_id}/logs"
        query = {"attempt": attempt, "lines": lines}
        return self._http.fetch(types.Page[types.AttemptLog], "GET", path, query=query).data

    def follow_logs(
        self, job_id: str, *, position: str | None = None, patience_seconds: float = 120.0
    ) -> Iterator[types.LogSlice]:
        """Yield the lines that the engine writes until the job ends; reconnect when disconnected.

        `position` of an `AttemptLog` begins behind its lines; else all that are kept come first.
        Gives up when no line and no connection came for `patience_seconds`.
        """
        failures = 0
        lost_at: float | None = None
        while True:
            try:
                for sent in self._connected(job_id, "logs/stream", position):
                    lost_at = None
                    if sent.data:
                        position, failures = sent.id or position, 0
                        yield types.LogSlice.model_validate_json(sent.data)
                if self.get(job_id).is_final:
                    # What came between the last lines seen and the end of the stream.
                    for sent in self._connected(job_id, "logs/stream", position):
                        if sent.data:
                            yield types.LogSlice.model_validate_json(sent.data)
                    return
            except (errors.RetortError, httpx.TransportError) as error:
                problem = _worth_another_try(self._http.url, error)
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > patience_seconds:
                    raise problem from error
            self._http.sleep(transport.backoff_seconds(failures, 0.5, LONGEST_RECONNECT_SECONDS))
            failures += 1

    def checkpoints(self, job_id: str) -> Iterator[types.Checkpoint]:
        """Walk through the checkpoints from which a job can resume, newest first."""
        return self._http.pages(types.Checkpoint, f"/v1/jobs/{job_id}/checkpoints")

    def metrics(
        self, job_id: str, *, keys: tuple[str, ...] = (), max_points: int | None = None
    ) -> Sequence[types.MetricSeries]:
        """Return the measured values of a job by key."""
        query = {"keys": ",".join(keys) or None, "max_points": max_points}
        answer = self._http.fetch(
            types.Page[types.MetricSeries], "GET", f"/v1/jobs/{job_id}/metrics", query=query
        )
        return answer.data

    def stream(
        self, job_id: str, *, after: int = 0, patience_seconds: float = 120.0
    ) -> Iterator[types.Event]:
        """Yield each event once, in order, until the job ends; reconnect when disconnected.

        Gives up when no event and no connection came for `patience_seconds`.
        """
        failures, retry_seconds = 0, 0.0
        lost_at: float | None = None
        while True:
            try:
                for sent in self._connected(job_id, "stream", str(after) if after else None):
                    if sent.retry_seconds is not None:
                        retry_seconds = sent.retry_seconds
                    event, lost_at = _event(sent), None
                    if event is not None and event.sequence > after:
                        after, failures = event.sequence, 0
                        yield event
                if self.get(job_id).is_final:
                    # What happened between the last event seen and the end of the stream.
                    yield from self.events_after(job_id, after)
                    return
            except (errors.RetortError, httpx.TransportError) as error:
                problem = _worth_another_try(self._http.url, error)
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > patience_seconds:
                    raise problem from error
                if isinstance(problem, errors.ProblemError):
                    retry_seconds = max(retry_seconds, problem.retry_after_seconds or 0.0)
            pause = transport.backoff_seconds(failures, 0.5, LONGEST_RECONNECT_SECONDS)
            self._http.sleep(min(max(retry_seconds, pause), LONGEST_RECONNECT_SECONDS))
            failures += 1

    def wait(
        self, job_id: str, *, timeout: float | None = None, poll_seconds: float = 1.0
    ) -> types.Job:
        """Return the job when it has ended, in whatever state. Raises: errors.TimedOut."""
        return self._http.poll(
            lambda: self.get(job_id),
            lambda job: job.is_final,
            name=job_id,
            timeout=timeout,
            poll_seconds=poll_seconds,
        )

    def download_student(
        self,
        job_id: str,
        destination: Path,
        *,
        progress: downloads.Progress | None = None,
    ) -> Path:
        """Save the student of a job that succeeded, checked against its digest."""
        job = self.get(job_id)
        digest = job.result.digest if job.result else None
        return downloads.save(
            self._http,
            f"/v1/jobs/{job_id}/student",
            destination,
            sha256=digests.hexadecimal(digest),
            progress=progress,
        )

    def report(self, job_id: str) -> Sequence[types.ReportFile]:
        """Return the report files of a job that succeeded; none if its spec has `report: false`."""
        return self._http.fetch(types.Report, "GET", f"/v1/jobs/{job_id}/report").data

    def download_report_file(self, job_id: str, file: types.ReportFile, destination: Path) -> Path:
        """Save one file of a report, checked against its digest."""
        path = f"/v1/jobs/{job_id}/report/{urllib.parse.quote(file.path)}"
        return downloads.save(self._http, path, destination, sha256=file.sha256)

    def download_report(self, job_id: str, destination: Path) -> Path:
        """Save a whole report as one zip archive."""
        path = f"/v1/jobs/{job_id}/report.zip"
        return downloads.save(self._http, path, destination, sha256=None)

    def _act(self, job_id: str, verb: str, headers: Mapping[str, str] | None = None) -> types.Job:
        return self._http.fetch(
            types.Job, "POST", f"/v1/jobs/{job_id}/{verb}", body={}, headers=headers
        )

    def _connected(
        self, job_id: str, stream: str, after: str | None
    ) -> Iterator[server_events.ServerEvent]:
        headers = {"accept": "text/event-stream", "cache-control": "no-cache"}
        if after:
            headers["last-event-id"] = after
        with self._http.open(
            f"/v1/jobs/{job_id}/{stream}", headers, read_timeout=STREAM_SILENCE_SECONDS
        ) as response:
            yield server_events.ServerEvent()  # empty: the connection is established
            yield from server_events.parse(server_events.lines(response.iter_bytes()))

    def events_after(self, job_id: str, after: int = 0) -> Iterator[types.Event]:
        """Walk through the events after a sequence number that there are now."""
        has_more = True
        while has_more:
            page = self.events(job_id, after=after)
            yield from page.data
            has_more = page.has_more and bool(page.data)
            after = page.data[-1].sequence if page.data else after


def _event(sent: server_events.ServerEvent) -> types.Event | None:
    """Read the record an SSE event carries; None for one that carries no record."""
    with contextlib.suppress(ValueError, pydantic.ValidationError):
        record = json.loads(sent.data) if sent.data else None
        if isinstance(record, dict):
            return types.Event.model_validate(record)
    return None


def _worth_another_try(url: str, error: Exception) -> errors.RetortError:
    """Return the error as a RetortError, or raise it if another try cannot help."""
    if isinstance(error, httpx.TransportError):
        return transport.failed(url, error)
    if isinstance(error, errors.ConnectionFailed):
        return error
    if isinstance(error, errors.ProblemError) and error.retryable:
        return error
    raise error
