"""StudySpec: what a caller asks for with a study. Immutable once submitted."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from models_registry.errors import Fault
from models_registry.jobs.spec import Request, named, right_parts
from models_registry.studies import search_variants, variants
from models_registry.studies.search_spec import SearchSpec
from models_registry.studies.variants import VariantSource

MAX_SEEDS = 100
MAX_SEED = 2**31 - 1


class StudySpec(Request):
    """One request for many jobs that differ in method, hyper-parameters and seed.

    A value inside `methods` and `training` may be given as `{"grid": [...]}`: then there is one
    variant for each combination of the grids' values, and one job for each variant and seed.
    With `search`, values may be given as spaces instead, from which each trial has its own:
    `{"space": {"type": "float", "low": 1, "high": 10, "log": true}}`, also `"int"`, or
    `{"space": {"type": "categorical", "choices": [...]}}`; of several methods each trial has one.
    """

    methods: list[Annotated[dict[str, Any], AfterValidator(named)]] = Field(
        min_length=1,
        max_length=100,
        description='Methods as in a job; any value may be a grid: `{"grid": [1, 2, 4]}`.',
    )
    training: dict[str, Any] = Field(
        {}, description="As in a job, without `seed`; any value may be a grid."
    )
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(
        min_length=1,
        max_length=MAX_SEEDS,
        description="One job of every variant for each; a spread needs two, a test more. In a "
        "search, every trial is trained with each, and its mean counts.",
        json_schema_extra={"uniqueItems": True},
    )
    baseline: bool = Field(
        True,
        description="Also train the same student on the labels alone (`ce`), by jobs of its own: "
        "what the others are compared with, seed by seed. Data-free methods are compared with the "
        "same student on images of noise (`noise`).",
    )

    search: SearchSpec | None = Field(
        None, description="Search the spaces of `methods` and `training`; null has none."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds must differ; twice: {', '.join(map(str, twice))}")
        return seeds

    @property
    def source(self) -> VariantSource:
        """Return what the variants are made of."""
        return VariantSource(
            dict(enumerate(self.methods)), self.training, len(self.seeds), self.baseline
        )

    @classmethod
    def other_faults(
        cls, value: dict[str, Any], faulty: Iterable[tuple[int | str, ...]]
    ) -> Iterable[Fault]:
        """Return what grids, the catalog and the rules find beside the places at fault."""
        places = list(faulty)
        fields = {place[0] for place in places if place[0] != "methods"}
        wrong_methods = {place[1:2] for place in places if place[0] == "methods"}
        methods = [] if () in wrong_methods else value.get("methods", [])
        source = VariantSource(
            {place: one for place, one in enumerate(methods) if (place,) not in wrong_methods},
            None if "training" in fields else value.get("training", {}),
            1 if "seeds" in fields else len(value.get("seeds", [0])),
            "baseline" not in fields and value.get("baseline", True) is True,
        )
        shared = right_parts(value, fields)
        if value.get("search") is None:
            return variants.faults(source, shared)
        search = None if "search" in fields else SearchSpec.model_validate(value["search"])
        return search_variants.faults(source, shared, search)

    def faults(self) -> list[Fault]:
        """Return all that is wrong, whatever references lead to."""
        if self.search is None:
            return variants.faults(self.source, self.parts)
        return search_variants.faults(self.source, self.parts, self.search)
