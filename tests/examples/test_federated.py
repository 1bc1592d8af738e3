from pathlib import Path

import pytest
import yaml

from models_registry.jobs import validation
from models_registry.jobs.spec import JobSpec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("federated*.yaml"))


class TestFederatedExamples:
    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
    def test_are_accepted_and_filled_in(self, path: Path) -> None:
        spec = JobSpec.model_validate(yaml.safe_load(path.read_text()))
        document = validation.read(spec.parts)
        assert document.faults == []
        federation = document.method.document["federation"]
        assert federation["rounds"] in (None, document.training.document["epochs"])
        # Fields that the example leaves out are filled in, those of inner objects too.
        assert federation["partition"]["min_size"] == 10
