"""Networks are found by reference; what is not known or not accepted is named."""

import re
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
import torch

from workers.distill import errors
from workers.distill.config import teachers
from workers.distill.networks import catalog


def build(reference: str, *, side: int = 32, **arguments: Any) -> object:
    return catalog.build(
        reference, classes=10, channels=3, height=side, width=side, arguments=arguments
    )


class TestBuild:
    @pytest.mark.parametrize(
        ("reference", "advice"),
        [
            ("retort/resnet33", "did you mean 'retort/resnet32'?"),
            ("resnet20", "did you mean 'retort/resnet20'?"),
            ("wrn-40-2", "did you mean 'retort/wrn_40_2'?"),
            ("zebra", "names start with 'retort/', 'timm/' or 'torchvision/'"),
            ("torchvision/resnet19", "did you mean 'torchvision/resnet18'?"),
        ],
    )
    def test_unknown_names_come_with_advice(self, reference: str, advice: str) -> None:
        with pytest.raises(errors.UnknownNetwork, match=re.escape(advice)):
            build(reference)

    def test_unknown_arguments_are_named(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="no argument 'width'; it accepts widths"):
            build("retort/resnet8", width=4)

    @pytest.mark.parametrize("widths", [[1, 2, 3], [0, 1, 1, 1], [1, 2, 3, "4"], "wide", [1.5] * 4])
    def test_bad_widths_are_named(self, widths: object) -> None:
        with pytest.raises(errors.UnknownNetwork, match="argument 'widths'") as caught:
            build("retort/resnet8", widths=widths)
        assert caught.value.details["argument"] == "widths"

    def test_sizes_that_no_machine_holds_are_refused_at_once(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="parameters, more than"):
            build("retort/resnet110", widths=[4096] * 4)

    def test_pictures_may_not_be_smaller_than_eight(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="at least 8x8, got 7x7"):
            build("retort/resnet8", side=7)

    def test_networks_for_large_pictures_say_so(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="at least 32x32, got 31x31"):
            build("retort/imagenet_resnet18", side=31)

    def test_sizes_must_be_positive(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="must be positive, and classes not neg"):
            catalog.build(
                "retort/resnet8", classes=-1, channels=3, height=32, width=32, arguments={}
            )

    @pytest.mark.slow
    def test_own_networks_need_neither_foreign_library(self) -> None:
        # timm alone takes seconds to import.
        code = (
            "import sys\n"
            "from workers.distill.networks import catalog\n"
            "size = {'channels': 1, 'height': 8, 'width': 8}\n"
            "catalog.build('retort/resnet8', classes=2, arguments={}, **size)\n"
            "assert not {'timm', 'torchvision'} & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestDescribe:
    def test_every_line_has_a_valid_schema_that_accepts_its_own_defaults(self) -> None:
        for line in catalog.describe():
            schema = line["arguments_schema"]
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["additionalProperties"] is False
            assert "required" not in schema or line["only_teaches"]
            defaults = {
                name: says["default"]
                for name, says in schema["properties"].items()
                if name not in schema.get("required", ())
            }
            jsonschema.validate(
                {**dict.fromkeys(schema.get("required", ()), "x"), **defaults}, schema
            )
            assert all(says["description"].endswith(".") for says in schema["properties"].values())
        assert [line["name"] for line in catalog.describe()] == list(catalog.NETWORKS)


class TestForeign:
    def test_lists_networks_of_both_libraries(self) -> None:
        listed = catalog.foreign()
        assert {"resnet18", "vit_tiny_patch16_224"} <= set(listed["timm"])
        assert {"resnet18", "vit_b_16"} <= set(listed["torchvision"])
        assert {"fcn_resnet50", "deeplabv3_resnet50"} <= set(listed["torchvision"])
        assert {"fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn"} <= set(listed["torchvision"])
        assert "maskrcnn_resnet50_fpn" not in listed["torchvision"]
        assert all(names == sorted(names) for names in listed.values())


class TestTask:
    @pytest.mark.parametrize(
        ("reference", "task"),
        [
            ("retort/resnet8", "classification"),
            ("retort/fcn", "segmentation"),
            ("timm/resnet18", "classification"),
            ("torchvision/resnet18", "classification"),
            ("torchvision/fcn_resnet50", "segmentation"),
            ("torchvision/fcn_resnet51", "classification"),
            ("retort/fcos", "detection"),
            ("torchvision/fcos_resnet50_fpn", "detection"),
            ("nothing", "classification"),
        ],
    )
    def test_is_known_without_building(self, reference: str, task: str) -> None:
        assert catalog.task(reference) == task

    def test_own_networks_are_built_for_what_the_table_says(self) -> None:
        for reference, entry in catalog.NETWORKS.items():
            needed = {"dataset": "d@1"} if reference == teachers.PREDICTIONS else {}
            with torch.device("meta"):
                network = catalog.build(
                    reference, classes=2, channels=3, height=64, width=64, arguments=needed
                )
            assert network.task == entry.task

    def test_of_other_libraries_lists_those_that_are_no_classifiers(self) -> None:
        listed = catalog.foreign_tasks()
        assert listed["torchvision/deeplabv3_resnet50"] == "segmentation"
        assert listed["torchvision/ssd300_vgg16"] == "detection"
        assert set(listed.values()) == {"segmentation", "detection"}
        assert all(catalog.task(reference) == task for reference, task in listed.items())
