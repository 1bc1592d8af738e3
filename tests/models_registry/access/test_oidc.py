"""Tokens of a real issuer: a server on this machine that publishes its keys."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joserfc import jwk, jwt

from models_registry import errors
from models_registry.access import keys, oidc
from models_registry.persistence import database, tables
from models_registry.settings import Settings
from tests import issuers
from tests.databases import SQLITE_ONLY
from tests.issuers import AUDIENCE, Issuer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A running issuer."""
    with issuers.running() as issuer:
        yield issuer


Verify = Callable[..., keys.Caller]


@pytest.fixture
def verify(issuer: Issuer, sessions: database.Sessions, project: tables.ProjectRow) -> Verify:
    """Returns the caller of a token; names of settings may be given."""
    made: dict[str, oidc.TokenVerifier | None] = {}

    def caller(token: str, **changes: Any) -> keys.Caller:
        settings = Settings(oidc_issuer=issuer.url, oidc_audience=AUDIENCE, **changes)
        verifier = made.setdefault(str(changes), oidc.from_settings(settings))
        assert verifier is not None
        return verifier.caller(sessions, token)

    return caller


@SQLITE_ONLY
class TestCaller:
    def test_is_whom_the_claims_name(
        self, issuer: Issuer, verify: Verify, project: tables.ProjectRow
    ) -> None:
        caller = verify(issuer.token())
        assert (caller.project_id, caller.role) == (project.id, keys.Role.EDITOR)
        assert (caller.name, caller.is_key, caller.scopes) == ("ada", False, None)

    def test_lasts_as_long_as_the_token(
        self, issuer: Issuer, verify: Verify, sessions: database.Sessions
    ) -> None:
        lasting = verify(issuer.token()).credential_id
        ended = verify(issuer.token(exp=int(time.time()) + 600)).credential_id
        ended = ended.replace(ended.split(":")[1], str(int(time.time()) - 1))
        with sessions() as session:
            assert keys.valid(session, credential_ids={lasting, ended}) == {lasting}

    def test_may_be_mapped_from_groups(
        self, issuer: Issuer, verify: Verify, project: tables.ProjectRow
    ) -> None:
        token = issuer.token(
            realm={"groups": ["ml-admins", "ml-users", "staff"]}, tenant="t-1", retort_role=None
        )
        mapped = {
            "oidc_role_claim": "realm.groups",
            "oidc_roles": {"ml-users": "viewer", "ml-admins": "admin"},
            "oidc_project_claim": "tenant",
            "oidc_projects": {"t-1": project.name},
        }
        assert verify(token, **mapped).role is keys.Role.ADMIN

    @pytest.mark.parametrize(
        ("claims", "code"),
        [
            ({"exp": 1}, "token_expired"),
            ({"exp": None}, "token_invalid"),
            ({"nbf": 9_999_999_999}, "token_invalid"),
            ({"aud": "another service"}, "token_invalid"),
            ({"aud": None}, "token_invalid"),
            ({"iss": "http://127.0.0.1:1"}, "token_invalid"),
            ({"sub": None}, "token_invalid"),
            ({"retort_project": None}, "no_project"),
            ({"retort_project": ["laboratory", "another"]}, "several_projects"),
            ({"retort_project": "nowhere"}, "unknown_project"),
            ({"retort_role": "emperor"}, "no_role"),
        ],
    )
    def test_is_nobody_where_a_claim_is_wrong(
        self, issuer: Issuer, verify: Verify, claims: dict[str, Any], code: str
    ) -> None:
        with pytest.raises((errors.Unauthenticated, errors.Forbidden)) as refused:
            verify(issuer.token(**claims))
        assert refused.value.code == code

    def test_forgives_a_clock_that_differs_a_little(self, issuer: Issuer, verify: Verify) -> None:
        now = int(time.time())
        assert verify(issuer.token(exp=now - 20, nbf=now + 20)).name == "ada"
        with pytest.raises(errors.Unauthenticated, match="expired"):
            verify(issuer.token(exp=now - 20), oidc_skew_seconds=5)

    def test_is_nobody_without_the_issuers_signature(self, issuer: Issuer, verify: Verify) -> None:
        head, body, signature = issuer.token().split(".")
        stolen_name: dict[str, Any] = {**Issuer.new_key().as_dict(private=True)}
        stolen_name["kid"] = issuer.keys[0].kid
        forged = [
            issuer.token(key=jwk.ECKey.import_key(stolen_name)),
            f"{head}.{body}.",
            f"{head}.{issuer.token(sub='eve').split('.')[1]}.{signature}",
            "a.b.c",
        ]
        # Signed with what everybody knows, as if the issuer shared a secret with us.
        public = json.dumps(issuer.keys[0].as_dict(private=False)).encode()
        shared = jwk.OctKey.import_key(public)
        algorithms = {"alg": "HS256", "kid": issuer.keys[0].kid}
        claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "eve", "exp": int(time.time()) + 60}
        forged.append(jwt.encode(algorithms, claims, shared))
        for token in forged:
            with pytest.raises(errors.Unauthenticated) as refused:
                verify(token)
            assert refused.value.code == "token_invalid", token


@SQLITE_ONLY
class TestIssuerKeys:
    def test_are_fetched_once(self, issuer: Issuer, verify: Verify) -> None:
        for _ in range(3):
            verify(issuer.token())
        assert issuer.asked == 1

    def test_are_fetched_again_when_the_issuer_has_new_ones(
        self, issuer: Issuer, verify: Verify, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
        former = issuer.token()
        verify(former)
        issuer.keys = [Issuer.new_key()]
        assert verify(issuer.token()).name == "ada"
        with pytest.raises(errors.Unauthenticated):
            verify(former)

    def test_are_not_asked_for_by_every_invented_name(self, issuer: Issuer, verify: Verify) -> None:
        verify(issuer.token())
        for _ in range(5):
            with pytest.raises(errors.Unauthenticated):
                verify(issuer.token(key=Issuer.new_key()))
        assert issuer.asked == 1

    def test_outlast_an_outage_of_the_issuer(
        self, issuer: Issuer, verify: Verify, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
        verify(issuer.token())
        issuer.is_down = True
        monkeypatch.setattr(oidc, "REFRESH_SECONDS", 0.0)
        assert verify(issuer.token()).name == "ada"
        monkeypatch.setattr(oidc, "STALE_SECONDS", 0.0)
        with pytest.raises(errors.Unavailable, match="try again later"):
            verify(issuer.token())
        monkeypatch.undo()
        issuer.is_down = False

    def test_are_not_taken_from_another_issuer(self, issuer: Issuer, verify: Verify) -> None:
        issuer.name = "https://somebody.else"
        with pytest.raises(errors.Unavailable):
            verify(issuer.token())


class TestFromSettings:
    def test_refuses_an_address_that_could_be_forged(self) -> None:
        with pytest.raises(ValueError, match="https://"):
            oidc.from_settings(Settings(oidc_issuer="http://sso.example", oidc_audience="x"))

    def test_needs_an_audience(self) -> None:
        with pytest.raises(ValueError, match="RETORT_OIDC_AUDIENCE"):
            Settings(oidc_issuer="https://sso.example")
