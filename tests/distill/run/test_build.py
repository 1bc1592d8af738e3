"""What is tried of a student before it is trained."""

import os
from pathlib import Path

import pytest

from tests.distill import folders
from workers.distill import errors
from workers.distill.config.job import JobConfig
from workers.distill.networks import catalog
from workers.distill.run import build, prepare, supervised
from workers.distill.run.context import JobContext, JobRequest
from workers.distill.runtime import events, signals


def context_of(recipe: Path) -> JobContext:
    config = JobConfig.model_validate_json(recipe.read_bytes())
    shared = supervised.LOOP.prepare(config, recipe.parent, signals.Stop(), strong=False)
    with Path(os.devnull).open("w") as nowhere:
        request = JobRequest(config, recipe.parent, events.Reporter(nowhere.fileno()))
        return prepare.job_context(shared, request)


class TestSizes:
    def test_that_a_student_cannot_take_are_refused_before_it_is_trained(
        self, tmp_path: Path
    ) -> None:
        training = {"evaluate_sizes": [8, 12]}
        context = context_of(folders.prepare(tmp_path, method={"name": "ce"}, training=training))
        build.check_sizes(context, build.start_network(context))
        # As a network of a library, of which no rule knows.
        fixed = catalog.build("retort/mlp", classes=3, channels=1, height=8, width=8, arguments={})
        with pytest.raises(errors.IncompatibleNetworks, match="asks for images of 12x12") as raised:
            build.check_sizes(context, fixed)
        assert raised.value.details["field"] == "training/evaluate_sizes"

    @pytest.mark.parametrize(
        ("network", "sizes", "said"),
        [
            ("retort/mlp", [16], "takes images of the size alone that it was built for"),
            ("retort/imagenet_resnet18", [16], "needs images of at least 32x32"),
            ("retort/resnet8", [16, 16], "lists a size twice"),
        ],
    )
    def test_that_a_rule_knows_of_are_refused(
        self, tmp_path: Path, network: str, sizes: list[int], said: str
    ) -> None:
        student = folders.network(
            network=network, input={**folders.INPUT, "height": 32, "width": 32}
        )
        recipe = folders.prepare(
            tmp_path,
            teacher=None,
            method={"name": "ce"},
            student=student,
            training={"evaluate_sizes": sizes},
        )
        code, lines = folders.run_here(recipe)
        (failure,) = folders.of_type(lines, "failure")
        assert (code, failure["details"]["field"]) == (1, "training/evaluate_sizes")
        assert said in failure["message"]
