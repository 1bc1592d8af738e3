"""A real issuer of OpenID Connect tokens: a server on this machine that publishes its keys."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from joserfc import jwk, jwt

AUDIENCE = "retort-tests"


class Issuer:
    """Signs tokens, publishes its public keys, and counts how often it was asked for them."""

    def __init__(self) -> None:
        self.keys = [self.new_key()]
        self.asked = 0
        self.is_down = False
        self.name: str | None = None
        issuer = self

        class Published(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Published)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def new_key() -> jwk.ECKey:
        key = jwk.ECKey.generate_key("P-256")
        key.ensure_kid()
        return key

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if self.is_down:
            request.send_error(503)
            return
        body: dict[str, Any] = {"keys": [key.as_dict(private=False) for key in self.keys]}
        if request.path.endswith("openid-configuration"):
            body = {"issuer": self.name or self.url, "jwks_uri": f"{self.url}/keys"}
        else:
            self.asked += 1
        request.send_response(200)
        request.end_headers()
        request.wfile.write(json.dumps(body).encode())

    def token(
        self, *, key: jwk.ECKey | None = None, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        signing = key or self.keys[-1]
        now = int(time.time())
        whole = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "exp": now + 300,
            "retort_project": "laboratory",
            "retort_role": "editor",
            **claims,
        }
        said = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode({"alg": "ES256", "kid": signing.kid, **(header or {})}, said, signing)


@contextlib.contextmanager
def running() -> Iterator[Issuer]:
    """Yield an issuer that answers."""
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield issuer
    finally:
        issuer.server.shutdown()
        thread.join()
        issuer.server.server_close()
