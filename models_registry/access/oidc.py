"""Bearer tokens of one OpenID Connect issuer, which the operator trusts, beside API keys.

A token says who calls; two claims say for which project, and in which role. Its signature is
checked with the issuer's public keys, which are fetched when they are first needed, once an hour,
and when a token names a key that is not among them: so the issuer may change its keys at any time.
(OpenID Connect Discovery 1.0; RFC 7517; RFC 7519; RFC 8725 for what is refused.)
"""

import functools
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from joserfc import jwk, jwt
from joserfc.errors import ExpiredTokenError, JoseError

from models_registry import errors
from models_registry.access import keys
from models_registry.access.callers import Caller, Role
from models_registry.artifacts import input_checks
from models_registry.persistence import database
from models_registry.settings import Settings

log = structlog.get_logger()

# Of public keys only: with a shared secret, whoever checks a token could make one.
ALGORITHMS = ("RS256", "PS256", "ES256")
REFRESH_SECONDS = 3600.0
# Tokens that name invented keys must not make us ask the issuer for each of them.
RETRY_SECONDS = 10.0
# For how long keys are used while the issuer cannot be reached.
STALE_SECONDS = 24 * 3600.0
_TIMEOUT_SECONDS = 5.0
_DISCOVERY = "/.well-known/openid-configuration"
_SHOWN = 200
_LONGEST_SECONDS = 366 * 24 * 3600.0  # that a stream may last with one token


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """Which tokens are accepted, and what their claims mean."""

    issuer: str
    audience: str
    project_claim: str
    projects: Mapping[str, str]
    role_claim: str
    roles: Mapping[str, Role]
    skew_seconds: int


def is_token(text: str) -> bool:
    """Return whether this is meant as a token and not as a key."""
    return text.count(".") == 2


def from_settings(settings: Settings) -> "TokenVerifier | None":
    """Return what verifies tokens, or None where no issuer is set.

    Raises: ValueError for an issuer whose answers could be forged on the way.
    """
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    if not _is_safe(settings.oidc_issuer):
        raise ValueError(
            f"RETORT_OIDC_ISSUER is {settings.oidc_issuer!r}: it must begin with https://, or with "
            "http:// for an issuer on this machine"
        )
    rules = TokenRules(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        project_claim=settings.oidc_project_claim,
        projects=settings.oidc_projects,
        role_claim=settings.oidc_role_claim,
        roles={value: Role(role) for value, role in settings.oidc_roles.items()},
        skew_seconds=settings.oidc_skew_seconds,
    )
    return TokenVerifier(rules)


class TokenVerifier:
    """Turns tokens into callers; threads may share it."""

    def __init__(self, rules: TokenRules) -> None:
        self._rules = rules
        self._keys = IssuerKeys(rules.issuer)
        # Any: claims are JSON.
        self._claims = jwt.JWTClaimsRegistry(
            leeway=rules.skew_seconds,
            iss={"essential": True, "value": rules.issuer},
            aud={"essential": True, "value": rules.audience},
            sub={"essential": True},
            exp={"essential": True},
        )

    def caller(self, readers: database.Sessions, text: str) -> Caller:
        """Return who presents a token.

        Raises: Unauthenticated for a token that is not valid; Forbidden for one that names no
        project or no role here; Unavailable while the issuer's keys cannot be had.
        """
        claims = self._verified(text)
        project = self._project(claims)
        role = self._role(claims)
        with readers() as session:
            row = keys.find_project(session, name=project)
        if row is None:
            raise errors.Forbidden(
                f"the token's project is {project[:_SHOWN]!r}, and there is none of this name: let "
                "the operator create it",
                code="unknown_project",
            )
        subject = input_checks.printable(claims["sub"][:_SHOWN])
        # Some issuers write a time that no calendar has.
        ends_at = min(claims["exp"] + self._rules.skew_seconds, time.time() + _LONGEST_SECONDS)
        ends = datetime.fromtimestamp(ends_at, UTC)
        credential = keys.token_credential(subject, ends)
        return Caller(row.id, credential, role, name=subject, credential_id=credential)

    def _verified(self, text: str) -> dict[str, Any]:
        """Return the claims of a token whose signature, issuer, audience and times are right."""
        try:
            token = jwt.decode(text, self._keys.key_for, algorithms=ALGORITHMS)
            self._claims.validate(token.claims)
        except ExpiredTokenError as error:
            raise errors.Unauthenticated(
                "the token has expired: get a new one", code="token_expired"
            ) from error
        except (JoseError, ValueError) as error:
            raise errors.Unauthenticated(
                f"the token is not acceptable: {str(error)[:_SHOWN]}", code="token_invalid"
            ) from error
        return token.claims

    def _project(self, claims: Mapping[str, Any]) -> str:
        name, known = self._rules.project_claim, self._rules.projects
        values = _values(claims, name)
        projects = {known[value] for value in values if value in known} if known else set(values)
        if len(projects) == 1:
            return projects.pop()
        if projects:
            raise errors.Forbidden(
                f"the token's claim {name} stands for several projects "
                f"({', '.join(sorted(projects))[:_SHOWN]}): get a token for one of them",
                code="several_projects",
            )
        raise errors.Forbidden(
            f"the token's claim {name} is {_shown(values)}, which stands for no project",
            code="no_project",
        )

    def _role(self, claims: Mapping[str, Any]) -> Role:
        name, known = (
            self._rules.role_claim,
            self._rules.roles or {role.value: role for role in Role},
        )
        values = _values(claims, name)
        roles = [known[value] for value in values if value in known]
        if not roles:
            raise errors.Forbidden(
                f"the token's claim {name} is {_shown(values)}, which stands for no role",
                code="no_role",
            )
        return max(roles, key=list(Role).index)


class IssuerKeys:
    """The public keys of an issuer, as it publishes them now."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._fetching = threading.Lock()
        self._keys: jwk.KeySet | None = None
        self._fetched_at = self._tried_at = float("-inf")

    def key_for(self, signed: jwk.GuestProtocol) -> jwk.KeySet:
        """Return the keys among which is that of a token, if the issuer has it.

        Raises: Unavailable while there are none.
        """
        wanted = signed.headers().get("kid")
        age = time.monotonic() - self._fetched_at
        known = self._keys is not None and any(key.kid == wanted for key in self._keys)
        if not known or age >= REFRESH_SECONDS:
            self._refresh()
        if self._keys is None or time.monotonic() - self._fetched_at >= STALE_SECONDS:
            raise errors.Unavailable(
                "the keys of the token's issuer cannot be had just now: try again later, or use an "
                "API key",
                code="issuer_unavailable",
            )
        return self._keys

    def _refresh(self) -> None:
        # Only those wait for another's answer who have no keys at all.
        if not self._fetching.acquire(blocking=self._keys is None):
            return
        try:
            now = time.monotonic()
            if now - self._tried_at < RETRY_SECONDS:
                return
            self._tried_at = now
            self._keys = self._fetch()
            self._fetched_at = now
        except (httpx.HTTPError, JoseError, ValueError, KeyError, TypeError) as error:
            log.warning("issuer_keys_not_fetched", issuer=self._issuer, error=str(error))
        finally:
            self._fetching.release()

    def _fetch(self) -> jwk.KeySet:
        """Return the keys that the issuer publishes now."""
        with httpx.Client(
            timeout=_TIMEOUT_SECONDS, follow_redirects=False, verify=_trusted()
        ) as client:
            said = client.get(self._issuer.rstrip("/") + _DISCOVERY).raise_for_status().json()
            if said["issuer"] != self._issuer:
                raise ValueError(f"it calls itself {said['issuer']!r}, not {self._issuer!r}")
            address = str(said["jwks_uri"])
            if not _is_safe(address):
                raise ValueError(f"its keys are at {address!r}, where they could be forged")
            found = client.get(address).raise_for_status().json()
        # A shared secret among them would be no public key.
        usable = [key for key in found["keys"] if dict(key).get("use", "sig") == "sig"]
        return jwk.KeySet.import_key_set({"keys": usable})


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Return the certificates that are trusted; to read them takes longer than to use them."""
    return httpx.create_ssl_context()


def _is_safe(address: str) -> bool:
    parts = urllib.parse.urlsplit(address)
    is_here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_here)
    )


# Any: claims are JSON.
def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """Return the values of a claim; `a.b` is `b` inside of `a` unless a claim is named so."""
    found: Any = claims.get(name)
    if found is None and "." in name:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    listed = found if isinstance(found, list) else [found]
    # No name has a NUL, and PostgreSQL takes none.
    return [value for value in listed if isinstance(value, str) and "\0" not in value]


def _shown(values: list[str]) -> str:
    return (", ".join(values) or "missing")[:_SHOWN]
