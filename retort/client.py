"""The Python client of Retort: one object, with one attribute for each kind of resource.

with retort.connect() as client:
    teacher = client.uploads.send(Path("teacher.pt"), purpose="model")
    version = client.models.register("digits-teacher", teacher, network=..., classes=10, ...)
    job = client.jobs.submit(spec)
    for event in client.jobs.stream(job.id): ...
    client.jobs.download_student(job.id, Path("student.safetensors"))
"""

from typing import Self

from retort import (
    audit,
    config,
    datasets,
    federations,
    jobs,
    keys,
    models,
    offers,
    retention,
    studies,
    transport,
    uploads,
    usage,
    webhooks,
)


class Client:
    """A connection to one server, usable from several threads."""

    def __init__(self, url: str, api_key: str, *, timeout: float = 30.0, attempts: int = 6) -> None:
        self._http = transport.Transport(url, api_key, timeout=timeout, attempts=attempts)
        self.uploads = uploads.Uploads(self._http)
        self.models = models.Models(self._http)
        self.datasets = datasets.Datasets(self._http)
        self.jobs = jobs.Jobs(self._http)
        self.studies = studies.Studies(self._http)
        self.keys = keys.Keys(self._http)
        self.federations = federations.Federations(self._http)
        self.offers = offers.Offers(self._http)
        self.audit = audit.Audit(self._http)
        self.retention = retention.Retention(self._http)
        self.webhooks = webhooks.Webhooks(self._http)
        self.quotas = usage.Quotas(self._http)

    @property
    def url(self) -> str:
        """Return the address of the server."""
        return self._http.url

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def connect(url: str | None = None, api_key: str | None = None, *, timeout: float = 30.0) -> Client:
    """Return a client for the server that the arguments, environment or configuration name."""
    server = config.find(url, api_key)
    return Client(server.url, server.api_key, timeout=timeout)
