"""Studies: submit, read, wait, cancel, and compare."""

from collections.abc import Iterator, Mapping

from retort import transport, types


class Studies(transport.Resource):
    """The studies of the key's project."""

    def submit(
        self, spec: Mapping[str, object], *, idempotency_key: str | None = None
    ) -> types.Study:
        """Submit a study; the same key submits it once, however often this is called."""
        return self._http.create(types.Study, "/v1/studies", spec, key=idempotency_key)

    def validate(self, spec: Mapping[str, object]) -> types.StudyPlan:
        """Validate a study as on submission and return the variants it would have."""
        return self._http.fetch(types.StudyPlan, "POST", "/v1/studies/validate", body=spec)

    def get(self, study_id: str) -> types.Study:
        """Return a study as it is now."""
        return self._http.fetch(types.Study, "GET", f"/v1/studies/{study_id}")

    def list(
        self,
        *,
        active: bool | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[types.Study]:
        """Walk through studies, newest first."""
        query = {
            "active": None if active is None else str(active).lower(),
            "name": name,
            **{f"label.{key}": value for key, value in (labels or {}).items()},
        }
        return self._http.pages(types.Study, "/v1/studies", query=query, size=page_size)

    def cancel(self, study_id: str) -> types.Study:
        """Cancel all jobs that have not ended."""
        return self._http.fetch(types.Study, "POST", f"/v1/studies/{study_id}/cancel", body={})

    def delete(self, study_id: str) -> None:
        """Delete a study that has ended with its jobs; registered students stay."""
        self._http.request("DELETE", f"/v1/studies/{study_id}")

    def trials(self, study_id: str, *, page_size: int = 100) -> Iterator[types.Trial]:
        """Walk through the trials of a search, newest first."""
        path = f"/v1/studies/{study_id}/trials"
        return self._http.pages(types.Trial, path, query={}, size=page_size)

    def leaderboard(self, study_id: str) -> types.Leaderboard:
        """Return the variants by the results so far, best first."""
        return self._http.fetch(types.Leaderboard, "GET", f"/v1/studies/{study_id}/leaderboard")

    def leaderboard_csv(self, study_id: str) -> str:
        """Return the leaderboard as CSV."""
        path = f"/v1/studies/{study_id}/leaderboard"
        return self._http.request("GET", path, headers={"accept": "text/csv"}).text

    def wait(
        self, study_id: str, *, timeout: float | None = None, poll_seconds: float = 2.0
    ) -> types.Study:
        """Return the study when all of its jobs have ended. Raises: errors.TimedOut."""
        return self._http.poll(
            lambda: self.get(study_id),
            lambda study: study.is_final,
            name=study_id,
            timeout=timeout,
            poll_seconds=poll_seconds,
        )
