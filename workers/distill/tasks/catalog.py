"""Which tasks exist: one explicit table, one line each.

`config.job.Task` lists the same names for readers without torch; a test holds them equal.
"""

from workers.distill.tasks.base import BaseTask
from workers.distill.tasks.classification import Classification
from workers.distill.tasks.detection import Detection
from workers.distill.tasks.embedding import Embedding
from workers.distill.tasks.segmentation import Segmentation

TASKS: dict[str, BaseTask] = {
    "classification": Classification(),
    "segmentation": Segmentation(),
    "detection": Detection(),
    "embedding": Embedding(),
}
