"""Base of the arguments of our own networks: strict, with bounded channels."""

from typing import Annotated

import pydantic

Channels = Annotated[int, pydantic.Field(ge=1, le=4096)]
ThreeStages = Annotated[
    list[Channels],
    pydantic.Field(
        min_length=4, max_length=4, description="Channels of the stem and of the three stages."
    ),
]


class Arguments(pydantic.BaseModel):
    """Keyword arguments of a network; none but those named are accepted."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)
