"""Webhooks go to https and public addresses alone, however an address is written."""

import pytest

from models_registry import errors
from models_registry.webhooks import addresses
from models_registry.webhooks.addresses import Rules

PUBLIC = "93.184.216.34"
STRICT = Rules()


def leads_to(*found: str) -> addresses.Resolve:
    return lambda _host, _port: found


def refusal(url: str, rules: Rules = STRICT, *found: str) -> str:
    """Return the code with which a URL is refused."""
    with pytest.raises(errors.Refused) as caught:
        addresses.check_url(url, rules, resolve=leads_to(*found) if found else None)
    (fault,) = caught.value.faults
    assert (fault.pointer, fault.code) == ("/url", caught.value.code)
    return fault.code


class TestForm:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.com/hook",
            "https://",
            "https:///hook",
            "https://example.com:0/",
            "https://example.com:99999/",
            "https://[::1/",
            "https://example.com/#part",
            "https://example.com/a b",
            "https://example.com/\n",
            "https://exämple.com/",
            "https://example.com/" + "a" * 2000,
        ],
    )
    def test_of_what_is_no_address_is_refused(self, url: str) -> None:
        assert refusal(url, STRICT, PUBLIC) == "bad_url"

    def test_without_encryption_is_refused_unless_allowed(self) -> None:
        assert refusal("http://example.com/", STRICT, PUBLIC) == "url_not_https"
        assert refusal("ftp://example.com/", Rules(allow_http=True), PUBLIC) == "url_not_https"
        addresses.check_url("http://example.com/", Rules(allow_http=True), resolve=leads_to(PUBLIC))

    def test_with_a_password_is_refused(self) -> None:
        assert refusal("https://me:secret@example.com/", STRICT, PUBLIC) == "url_with_password"


class TestHosts:
    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::"),
            *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00:ec2::254", "fc00::1"),
            *("169.254.169.254", "fe80::1", "fe80::1%eth0", "fec0::1", "168.63.129.16"),
            *("224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "2001:db8::1"),
            # IPv4 addresses within IPv6 ones.
            *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
            *("2002:7f00:1::", "2002:0a00:1::"),
        ],
    )
    def test_that_are_not_public_are_refused_unless_allowed(self, address: str) -> None:
        assert refusal("https://inside.example/", STRICT, address) == "url_not_public"
        allowed = Rules(allow_private=True)
        addresses.check_url("https://inside.example/", allowed, resolve=leads_to(address))

    @pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1::1", "::ffff:8.8.8.8"])
    def test_that_are_public_are_taken(self, address: str) -> None:
        addresses.check_url("https://example.com/", STRICT, resolve=leads_to(address))

    def test_are_refused_for_one_address_of_several(self) -> None:
        assert refusal("https://both.example/", STRICT, PUBLIC, "10.0.0.1") == "url_not_public"

    @pytest.mark.parametrize(
        "host", ["localhost", "127.0.0.1", "[::1]", "2130706433", "0x7f.1", "0177.0.0.1"]
    )
    def test_are_known_by_where_they_lead_not_by_how_they_are_written(self, host: str) -> None:
        # The system's resolver, which takes every way to write an address.
        assert refusal(f"https://{host}/hook") == "url_not_public"

    def test_that_lead_nowhere_are_refused(self) -> None:
        with pytest.raises(errors.Refused) as caught:
            addresses.resolved("nowhere.example", 443, STRICT, resolve=leads_to())
        assert caught.value.code == "url_unresolvable"

    def test_with_impossible_names_lead_nowhere(self) -> None:
        assert refusal(f"https://{'a' * 70}.example/") == "url_unresolvable"
