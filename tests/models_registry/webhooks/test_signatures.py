"""Deliveries are signed as Standard Webhooks says."""

import base64
from datetime import UTC, datetime

from models_registry.webhooks import signatures

# The specification's own example, which its libraries test themselves with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = "msg_p5jXN8AQM9LWM0D4loKWxJek"
SECONDS = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


class TestSign:
    def test_gives_the_specifications_signature(self) -> None:
        made = signatures.sign(SECRET, message_id=MESSAGE, timestamp=SECONDS, body=BODY)
        assert made == SIGNATURE

    def test_depends_on_every_part(self) -> None:
        given = {"message_id": MESSAGE, "timestamp": SECONDS, "body": BODY}
        for change in ({"message_id": "msg_2"}, {"timestamp": SECONDS + 1}, {"body": b"{}"}):
            assert signatures.sign(SECRET, **{**given, **change}) != SIGNATURE  # type: ignore[arg-type]  # of mixed types


class TestHeaders:
    def test_have_a_signature_of_each_secret_in_force(self) -> None:
        at = datetime.fromtimestamp(SECONDS, UTC)
        other = signatures.new_secret()
        made = signatures.headers([other, SECRET], message_id=MESSAGE, at=at, body=BODY)
        assert (made["webhook-id"], made["webhook-timestamp"]) == (MESSAGE, str(SECONDS))
        first, second = made["webhook-signature"].split(" ")
        assert second == SIGNATURE
        assert first == signatures.sign(other, message_id=MESSAGE, timestamp=SECONDS, body=BODY)


def test_a_secret_has_as_many_random_bytes_as_the_specification_asks_for() -> None:
    secret = signatures.new_secret()
    assert secret != signatures.new_secret()
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
