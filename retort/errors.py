"""Errors of the client and the command line.

RetortError
├── NotConfigured       no address or no key is known
├── BadOption           a value given by the caller cannot be used
├── LocalFileProblem    a file here cannot be read, written or understood
├── CannotStart         a service on this machine cannot be started
├── TrainingFailed      a client of a federation cannot train on this machine
├── ConnectionFailed    the server cannot be reached, or stopped answering
│   └── UploadInterrupted   the parts already sent are kept by the server
├── UnexpectedAnswer    something answered, but not a Retort server this client understands
├── ProblemError        the server refused, and said why (RFC 9457)
├── DamagedTransfer     received bytes do not have the digest that was promised
├── PushRefused         another service refused an upload, and said why
├── Rejected            an uploaded model or data set was inspected and rejected
├── JobFailed           a job that something depends on did not succeed
└── TimedOut            waited as long as the caller allowed

`str()` of each is one line that can be shown to a person as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def one_line(text: str) -> str:
    """Return the text on one line, without characters that steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class RetortError(Exception):
    """Any failure this client reports on purpose."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class NotConfigured(RetortError):
    """No server address or no key is known."""


class BadOption(RetortError):
    """A value given by the caller cannot be used."""


class LocalFileProblem(RetortError):
    """A file on this machine cannot be read, written or understood."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class CannotStart(RetortError):
    """A service on this machine cannot be started."""


class TrainingFailed(RetortError):
    """A client of a federation cannot train on this machine; the engine says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message


class ConnectionFailed(RetortError):
    """The server cannot be reached, or stopped answering."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"cannot reach {url}: {reason}")
        self.url = url
        self.reason = reason


class UploadInterrupted(ConnectionFailed):
    """The connection was lost in the middle of an upload that can be resumed."""

    def __init__(self, upload_id: str, cause: ConnectionFailed) -> None:
        super().__init__(cause.url, cause.reason)
        self.upload_id = upload_id

    def __str__(self) -> str:
        return f"{super().__str__()}; the parts sent so far are kept: resume {self.upload_id}"


class UnexpectedAnswer(RetortError):
    """The answer is not one that a Retort server gives."""


@dataclass(frozen=True)
class FieldProblem:
    """One wrong field of a refused request."""

    pointer: str
    detail: str
    code: str = ""


class ProblemError(RetortError):
    """The server refused the request and said why."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str = "",
        *,
        errors: Sequence[FieldProblem] = (),
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        uses: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.uses = tuple(uses)
        """What stands in the way of a deletion: `kind`, `count` and `names` of each."""

    def __str__(self) -> str:
        message = super().__str__()
        parts = [f"{message} ({self.status} {self.code})"]
        for fault in self.errors:
            where = fault.pointer or "/"
            # The message often repeats the first fault, as a sentence: it is not shown twice.
            is_said = fault.detail.casefold() in message.casefold()
            parts.append(f"at {where}" if is_said else f"{where}: {fault.detail}")
        return one_line("; ".join(parts))


class PushRefused(RetortError):
    """A hub or a server of MLflow refused what was pushed to it."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"{address}: {reason}")
        self.address = address
        self.reason = reason


class DamagedTransfer(RetortError):
    """Received bytes do not have the digest that the server promised."""


class Rejected(RetortError):
    """An uploaded model or data set was inspected by a worker and rejected."""

    def __init__(self, reference: str, code: str, message: str) -> None:
        reason = "; ".join(message.splitlines())  # some list what was tried, line by line
        super().__init__(f"{reference} was rejected: {reason} ({code})")
        self.reference = reference
        self.code = code
        self.message = message


class ExportNotMade(Rejected):
    """An export failed, or was refused because it loses too much."""

    def __init__(self, reference: str, state: str, code: str, message: str) -> None:
        super().__init__(reference, code, message)
        self.args = (f"{reference} {state}: {message} ({code})",)
        self.state = state


class JobFailed(RetortError):
    """A job that something depends on did not succeed."""


class TimedOut(RetortError):
    """The thing waited for did not happen in the time allowed."""
