"""The types of events that webhooks are told of. Data only."""

from models_registry.jobs.lifecycle import State

ENDPOINT_DISABLED = "webhook_endpoint.disabled"
EVENT_TYPES = (
    *(f"job.{state}" for state in State),
    "job.warning",
    "job.checkpoint",
    "job.waiting",
    "job.declined",
    "job.attempt_uncounted",
    ENDPOINT_DISABLED,
)
