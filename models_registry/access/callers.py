"""Who calls: the project and role that a key or token stands for, and what they may do."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from models_registry import errors
from models_registry.access import scopes as scope_rules

# Of what identifies a caller with a token (`oidc.py`), which has no row.
TOKEN_PREFIX = "oidc:"


class Role(StrEnum):
    """What a key may do; each role includes those before it."""

    VIEWER = "viewer"
    EDITOR = "editor"
    ADMIN = "admin"


_RANK = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True)
class Caller:
    """The caller of a request: its project, which limits every query, and what it may do there."""

    project_id: str
    key_id: str
    """The id of its API key; for a token, what `oidc.py` makes of it."""
    role: Role
    name: str = ""
    """The key's name, or the subject of the token; for the audit log."""
    scopes: frozenset[str] | None = None
    """Scopes beside the role; None are all."""
    request_id: str | None = None
    credential_id: str = ""
    """What `valid` can judge later: one of the key's secrets, or the token's end."""

    @property
    def is_key(self) -> bool:
        """Return whether the caller presents an API key."""
        return not self.key_id.startswith(TOKEN_PREFIX)

    def require(self, role: Role) -> None:
        """Refuse unless the key has at least `role`.

        Raises: Forbidden.
        """
        if _RANK[self.role] < _RANK[role]:
            raise errors.Forbidden(
                f"this needs a key with role {role.value}, yours is {self.role.value}"
            )

    def require_scope(self, scope: str) -> None:
        """Refuse unless the key has this scope.

        Raises: Forbidden, naming it.
        """
        if not scope_rules.allows(self.scopes, scope):
            raise errors.Forbidden(
                f"this needs the scope {scope}, and {self.key_id} has "
                f"{', '.join(sorted(self.scopes or ()))}: use a key that has it, or let an "
                "administrator make one",
                code="missing_scope",
            )

    def require_no_more(self, wanted: Collection[str] | None, *, what: str) -> None:
        """Refuse to hand out scopes that the caller has not itself; None are all.

        Raises: Forbidden.
        """
        if scope_rules.covers(self.scopes, wanted):
            return
        raise errors.Forbidden(
            f"{what} would have scopes that {self.key_id} has not; it has "
            f"{', '.join(sorted(self.scopes or ()))}: use a key with more scopes, or one without "
            "limits",
            code="scope_not_held",
        )
