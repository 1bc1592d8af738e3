"""Base of the bodies that show a row."""

from typing import Any, Self

from pydantic import BaseModel


class RowRead(BaseModel):
    """A body most of whose fields are columns of a row, under the same names."""

    @classmethod
    def from_row(cls, row: object, **computed: Any) -> Self:  # Any: validated by the fields
        """Return the body: each field is the row's attribute of its name, unless it is computed."""
        # Read past SQLAlchemy, which looks at each attribute for whether it must be loaded.
        loaded = vars(row)
        copied = {
            name: loaded[name] if name in loaded else getattr(row, name)
            for name in cls.model_fields
            if name not in computed
        }
        return cls(**copied, **computed)
