"""A teacher and a small student for the digits, and how both are trained, for benchmarks."""

from typing import Any

# A teacher that is better than the student alone, with room between them; chosen with two seeds,
# and measured with five others in docs/measurements.md.
TEACHER: dict[str, Any] = {"network": "retort/resnet20", "arguments": {}}
TEACHER_TRAINING: dict[str, Any] = {"recipe": "small", "epochs": 30}
STUDENT: dict[str, Any] = {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 8, 16]}}
STUDENT_TRAINING: dict[str, Any] = {"recipe": "small", "epochs": 15}
METHODS: dict[str, dict[str, Any]] = {
    "kd": {"name": "kd", "task_weight": 0.5, "kd_weight": 0.5},
    "dkd": {"name": "dkd", "beta": 2.0, "warmup_epochs": 3},
}
