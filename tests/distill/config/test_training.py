import json

import jsonschema
import pydantic
import pytest

from tests.distill import folders
from workers.distill.config.job import JobConfig
from workers.distill.config.training import (
    LAMB,
    PRESETS,
    SGD,
    AdamW,
    BinaryCrossEntropy,
    Cosine,
    MixupOrCutMix,
    Step,
    Training,
    expand,
)
from workers.distill.methods.base import Moment
from workers.distill.training.schedules import rate_factor


def a_recipe(**changes: object) -> JobConfig:
    content = {"student": folders.network(), "method": {"name": "ce"}, **changes}
    return JobConfig.model_validate(content)


class TestExpand:
    def test_small_is_the_default(self) -> None:
        full = expand({})
        assert (full.recipe, full.epochs, full.batch_size) == ("small", 30, 64)
        assert full.schedule == Step(milestones=[15, 22, 27], factor=0.1)

    def test_cifar100_is_the_published_one(self) -> None:
        full = expand({"recipe": "cifar100"})
        assert (full.epochs, full.batch_size) == (240, 64)
        assert full.optimizer == SGD(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
        assert full.schedule == Step(milestones=[150, 180, 210], factor=0.1)

    def test_imagenet_is_the_published_one(self) -> None:
        full = expand({"recipe": "imagenet"})
        assert (full.epochs, full.batch_size) == (100, 512)
        assert full.optimizer == SGD(learning_rate=0.2, momentum=0.9, weight_decay=1e-4)
        assert full.schedule == Step(milestones=[30, 60, 90], factor=0.1)

    def test_imagenet_a3_is_the_published_one(self) -> None:
        full = expand({"recipe": "imagenet_a3"})
        assert (full.epochs, full.batch_size) == (100, 2048)
        assert full.optimizer == LAMB(learning_rate=8e-3, weight_decay=0.02)
        assert full.schedule == Cosine(warmup_epochs=5, final_factor=1.25e-4)
        assert full.mixing == MixupOrCutMix(mixup_alpha=0.1, cutmix_alpha=1.0)
        assert full.task_loss == BinaryCrossEntropy(target_threshold=0.2)
        assert (full.crop_ratio, full.evaluate_sizes) == (0.95, [224])

    def test_tiny_imagenet_is_the_published_one(self) -> None:
        full = expand({"recipe": "tiny_imagenet"})
        assert (full.epochs, full.batch_size) == (200, 256)
        assert full.optimizer == SGD(learning_rate=0.2, momentum=0.9, weight_decay=5e-4)
        assert full.schedule == Step(milestones=[60, 120, 160], factor=0.1)

    def test_milestones_follow_epochs_unless_given(self) -> None:
        assert expand({"epochs": 10}).schedule == Step(milestones=[5, 7, 9])
        assert expand({"epochs": 1}).schedule == Step(milestones=[])
        assert expand({"epochs": 2}).schedule == Step(milestones=[1])
        assert expand({"epochs": 3}).schedule == Step(milestones=[1, 2])
        given = expand({"epochs": 10, "schedule": {"milestones": [2]}})
        assert given.schedule == Step(milestones=[2], factor=0.1)

    def test_nested_fields_merge_while_the_name_stays(self) -> None:
        full = expand({"optimizer": {"learning_rate": 0.01}})
        assert full.optimizer == SGD(learning_rate=0.01, weight_decay=5e-4)

    def test_another_name_starts_from_its_own_defaults(self) -> None:
        full = expand({"optimizer": {"name": "adamw"}, "schedule": {"name": "cosine"}})
        assert full.optimizer == AdamW()
        assert full.schedule == Cosine()

    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_a_full_training_expands_to_itself(self, name: str) -> None:
        full = expand({"recipe": name, "epochs": 17})
        assert expand(full.model_dump()) == full

    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_every_recipe_meets_the_published_schema(self, name: str) -> None:
        jsonschema.validate(PRESETS[name], Training.model_json_schema())

    @pytest.mark.parametrize(
        ("partial", "field"),
        [
            ({"epochs": 0}, "epochs"),
            ({"batch_size": 1}, "batch_size"),
            ({"optimizer": {"learning_rate": 0}}, "learning_rate"),
            ({"optimizer": {"name": "lion"}}, "optimizer"),
            ({"seed": -1}, "seed"),
            ({"nonsense": 1}, "nonsense"),
            ({"recipe": "none"}, "recipe"),
            ({"augmentation": "cutout"}, "augmentation"),
            ({"mixing": {"name": "mosaic"}}, "mixing"),
            ({"mixing": {"name": "mixup", "alpha": 0}}, "alpha"),
            ({"label_noise": 1.1}, "label_noise"),
            ({"teacher_cache": {"views": 0}}, "views"),
            ({"ema_decay": 1.0}, "ema_decay"),
            ({"max_steps": 0}, "max_steps"),
            ({"max_seconds": 0}, "max_seconds"),
            ({"patience_epochs": 0}, "patience_epochs"),
            ({"randaugment_operations": 15}, "randaugment_operations"),
        ],
    )
    def test_what_is_out_of_bounds_is_refused_by_name(
        self, partial: dict[str, object], field: str
    ) -> None:
        with pytest.raises(pydantic.ValidationError, match=field):
            expand(partial)


class TestTraining:
    @pytest.mark.parametrize(
        ("partial", "complaint"),
        [
            (
                {"teacher_cache": {"views": 2}, "mixing": {"name": "mixup"}},
                "mixing makes new images",
            ),
            ({"teacher_cache": {"views": 2}, "augmentation": "none"}, "views 2 would be equal"),
            (
                {"teacher_cache": {"views": 2, "per_visit": 4}},
                "per_visit 4 must .* at most views 2",
            ),
            (
                {"teacher_cache": {"views": 9, "per_visit": 3}, "batch_size": 64},
                "per_visit 3 must divide batch_size 64",
            ),
            ({"optimizer": {"name": "dot"}, "precision": "float16"}, "dot .* float16"),
            ({"optimizer": {"name": "dot"}, "compile": "on"}, "choose compile off"),
            (
                {"optimizer": {"name": "dot", "momentum": 0.9, "delta": 0.1}},
                "momentum 0.9 and delta 0.1",
            ),
            (
                {"optimizer": {"name": "dot", "momentum": 0.0, "delta": 0.1}},
                "momentum 0 and delta 0.1",
            ),
            (
                {"patience_epochs": 2, "evaluate_every_epochs": 3},
                "patience_epochs 2 is shorter than evaluate_every_epochs 3",
            ),
            (
                {"epochs": 3, "schedule": {"name": "constant", "warmup_epochs": 4}},
                "warmup_epochs 4 is longer than epochs 3",
            ),
        ],
    )
    def test_refuses_what_does_not_go_together(
        self, partial: dict[str, object], complaint: str
    ) -> None:
        with pytest.raises(pydantic.ValidationError, match=complaint):
            a_recipe(training=partial)

    @pytest.mark.parametrize(
        "partial",
        [
            {"mixing": {"name": "cutmix"}},
            {"teacher_cache": {}},
            {"optimizer": {"name": "dot"}},
            {"optimizer": {"name": "dot", "delta": 0.09}, "schedule": {"warmup_epochs": 1.5}},
            {"max_steps": 10, "max_seconds": 1.5, "patience_epochs": 4, "ema_decay": 0.99},
        ],
    )
    def test_expands_to_itself_and_meets_the_published_schema(
        self, partial: dict[str, object]
    ) -> None:
        full = expand(partial)
        assert expand(full.model_dump()) == full
        jsonschema.validate(full.model_dump(mode="json"), Training.model_json_schema())

    def test_null_takes_back_what_was_chosen(self) -> None:
        assert expand({"mixing": None, "teacher_cache": None}) == expand({})

    def test_counts_steps_up_to_the_first_limit(self) -> None:
        assert expand({"epochs": 3}).steps(7) == 21
        assert expand({"epochs": 3, "max_steps": 10}).steps(7) == 10
        assert expand({"epochs": 3, "max_steps": 100}).steps(7) == 21

    def test_every_field_is_described(self) -> None:
        schema = Training.model_json_schema()
        for part in (schema, *schema["$defs"].values()):
            for name, field in part["properties"].items():
                assert name == "name" or field["description"].endswith("."), name


class TestRecipe:
    def test_survives_json(self) -> None:
        config = a_recipe(training={"epochs": 3}, teacher=folders.network())
        assert JobConfig.model_validate(json.loads(config.model_dump_json())) == config

    def test_two_attempts_share_a_digest(self) -> None:
        first, second = (
            a_recipe(provenance={"job": "job_1", "attempt": attempt}) for attempt in (1, 2)
        )
        assert first.digest() == second.digest()

    def test_another_teacher_or_field_is_another_digest(self) -> None:
        digests = {
            a_recipe().digest(),
            a_recipe(provenance={"teacher_digest": "sha256:1"}).digest(),
            a_recipe(training={"epochs": 3}).digest(),
            a_recipe(method={"name": "ce", "task_weight": 2.0}).digest(),
        }
        assert len(digests) == 4

    @pytest.mark.parametrize("balance", [None, "published"])
    def test_published_weights_are_those_of_versions_without_balance(
        self, balance: str | None
    ) -> None:
        before = a_recipe(method={"name": "at"}).digest()
        assert a_recipe(method={"name": "at", "balance": balance}).digest() == before
        assert a_recipe(method={"name": "at", "balance": "auto"}).digest() != before

    def test_the_engine_takes_the_learning_rate_of_the_papers_too(self) -> None:
        config = a_recipe(method={"name": "mlld"}, training={"recipe": "cifar100"})
        assert config.training.optimizer.learning_rate == 0.025

    def test_a_setting_that_was_not_made_leaves_checkpoints_of_before_valid(self) -> None:
        assert a_recipe(training={"flip": None}).digest() == a_recipe().digest()
        assert a_recipe(training={"flip": False}).digest() != a_recipe().digest()
        assert a_recipe(training={"keep_best_epochs": 1}).digest() == a_recipe().digest()
        assert a_recipe(training={"keep_best_epochs": 2}).digest() != a_recipe().digest()

    def test_a_normalisation_has_one_number_per_channel(self) -> None:
        wrong = {**folders.INPUT, "mean": [0.1, 0.2]}
        with pytest.raises(pydantic.ValidationError, match="one number per channel"):
            a_recipe(student=folders.network(input=wrong))

    def test_a_method_has_a_name(self) -> None:
        with pytest.raises(pydantic.ValidationError, match="a method needs a name"):
            a_recipe(method={"temperature": 4})


class TestPublishedSchedule:
    def test_rates_of_cifar100_drop_after_their_milestones(self) -> None:
        full = expand({"recipe": "cifar100"})
        epochs = [1, 150, 151, 180, 181, 210, 211, 240]
        rates = [
            0.05 * rate_factor(full.schedule, Moment(epoch, epoch, 1), full.epochs)
            for epoch in epochs
        ]
        expected = [0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005, 0.00005, 0.00005]
        assert rates == pytest.approx(expected, rel=1e-12)
