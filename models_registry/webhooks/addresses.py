"""Where a webhook may go: https, and to public addresses, unless the operator allows others.

A name is resolved and checked when an endpoint is created, and again for every connection, which
then goes to the very addresses that were checked: a name that leads elsewhere a moment later
(DNS rebinding) leads nowhere.
"""

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, urlsplit

from models_registry import errors
from models_registry.errors import Fault
from models_registry.settings import Settings

MAX_URL_CHARACTERS = 2000
RESOLVE_SECONDS = 5.0
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]

# What `ipaddress` takes for public, and a cloud's own services listen on.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})  # Azure's
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215


@dataclass(frozen=True)
class Rules:
    """What the operator allows beyond https to public addresses."""

    allow_private: bool = False
    allow_http: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rules of the service's settings."""
        return cls(settings.webhook_allow_private, settings.webhook_allow_http)


def check_url(url: str, rules: Rules, *, resolve: Resolve | None = None) -> None:
    """Refuse a URL that no webhook may go to, by its form and by where its host leads now.

    Raises: errors.Refused, pointing at `/url`.
    """
    parts = check_form(url, rules)
    resolved(parts.hostname or "", port_of(parts), rules, resolve=resolve)


def check_form(url: str, rules: Rules) -> SplitResult:
    """Return the parts of a URL whose form is right; its host is not looked up.

    Raises: errors.Refused, pointing at `/url`.
    """
    parts = _parsed(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and rules.allow_http):
        way_out = " (the operator can allow http: RETORT_WEBHOOK_ALLOW_HTTP=true)"
        raise _refused(
            "url_not_https",
            f"url must begin with https://, got {parts.scheme[:20]!r}"
            + (way_out if parts.scheme == "http" else ""),
        )
    if parts.username is not None or parts.password is not None:
        raise _refused(
            "url_with_password",
            "url must not hold a user name or password: deliveries are signed, so verify those",
        )
    return parts


def port_of(parts: SplitResult) -> int:
    """Return the port of a URL, by default that of its scheme."""
    return parts.port or {"http": 80, "https": 443}[parts.scheme]


def resolved(host: str, port: int, rules: Rules, *, resolve: Resolve | None = None) -> list[str]:
    """Return the addresses that a host has now, all of which a webhook may go to.

    Raises: errors.Refused for a host that has none, or one that is not allowed.
    """
    found = list(dict.fromkeys((resolve or _resolve)(host, port)))
    if not found:
        raise _refused(
            "url_unresolvable", f"url: the host {host[:200]!r} has no address in the DNS; check it"
        )
    for text in found:
        why = None if rules.allow_private else _why_not_public(text)
        if why is not None:
            raise _refused(
                "url_not_public",
                f"url: the host {host[:200]!r} has the address {text}, which is {why}: use a "
                "public one (the operator can allow others: RETORT_WEBHOOK_ALLOW_PRIVATE=true)",
            )
    return found


def _parsed(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        is_complete = False
    if (
        not is_complete
        or not url.isascii()
        or not url.isprintable()
        or " " in url
        or "#" in url
        or len(url) > MAX_URL_CHARACTERS
    ):
        raise _refused(
            "bad_url",
            f"url must be an address such as https://example.com/hook, in at most "
            f"{MAX_URL_CHARACTERS} ASCII characters and without a fragment, got {url[:100]!r}",
        )
    return parts


def _why_not_public(text: str) -> str | None:
    """Return what is wrong with an address, None for a public one."""
    for address in _all_of(ipaddress.ip_address(text.partition("%")[0])):
        if address in _METADATA:
            return "a cloud's metadata service"
        if address.is_loopback:
            return "this machine's own (loopback)"
        if address.is_link_local:
            return "link-local, as metadata services are"
        if address.is_multicast:
            return "multicast"
        site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
        if site_local or address in _NAT64_LOCAL or not address.is_global:
            return "private or reserved"
    return None


def _all_of(address: Address) -> Iterator[Address]:
    """Yield an address and those that it leads to through IPv6."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    embedded = [one for one in inner if one is not None]
    yield from embedded
    # What is reserved for embedding is judged by what it embeds.
    if address.ipv4_mapped is None and address not in _NAT64:
        yield address


def _resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host; none where there are none, or the DNS is too slow."""
    answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # no such name, or none that can be asked for
            answers.put([])
        else:
            answers.put([str(entry[4][0]) for entry in found])

    # The library's own call has no time limit.
    threading.Thread(target=look_up, name="webhook-dns", daemon=True).start()
    try:
        return answers.get(timeout=RESOLVE_SECONDS)
    except queue.Empty:
        return []


def _refused(code: str, detail: str) -> errors.Refused:
    return errors.Refused(detail, code=code, faults=[Fault("/url", code, detail)])
