"""What both sides of the broker must agree on: queues, key prefix and priorities. Data only."""

from typing import Any

JOB_QUEUES = ("any", "cpu", "cuda")
QUEUES = (*JOB_QUEUES, "inspect", "webhooks", "maintenance")

TRANSPORT_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 3600,  # the same in every process: the smallest one wins
    "socket_keepalive": True,
    "health_check_interval": 25,
    "global_keyprefix": "retort:",
    "priority_steps": list(range(10)),
    "queue_order_strategy": "priority",
}


def redis_priority(priority: int) -> int:
    """Return a job's priority (9 goes first) as Redis counts it (0 goes first)."""
    return 9 - priority
