"""What is taken for a trace context, and what happens where nothing is exported."""

import sys

import pytest

from models_registry import tracing
from models_registry.settings import Settings
from tests import otlp

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


class TestValid:
    @pytest.mark.parametrize("text", [GIVEN, f"cc-{TRACE}-{SPAN}-01-what-comes-later"])
    def test_takes_this_version_and_later_ones(self, text: str) -> None:
        assert tracing.valid(text) == GIVEN

    @pytest.mark.parametrize(
        "text",
        [
            *(None, "", "00", GIVEN.upper(), f" {GIVEN}", f"{GIVEN}\n", f"{GIVEN} "),
            *(f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"),
        ],
    )
    def test_ignores_all_else(self, text: str | None) -> None:
        assert tracing.valid(text) is None


class TestStart:
    def test_without_an_endpoint_hands_the_callers_context_on(self) -> None:
        tracer = tracing.start(Settings(otlp_endpoint=None), service="retort-api")
        span = tracer.begin("anything", parent=GIVEN)
        span.end()
        assert span.traceparent == GIVEN
        assert not tracer.exports

    def test_without_the_extra_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
        with pytest.raises(ValueError, match=r"RETORT_OTLP_ENDPOINT is http://c.*\[otel\]"):
            tracing.start(Settings(otlp_endpoint="http://c:4318"), service="retort-api")
        tracing.check(Settings(otlp_endpoint=None))

    def test_keeps_the_callers_choice_not_to_be_sampled(self) -> None:
        with otlp.collector() as collector:
            tracer = tracing.start(Settings(otlp_endpoint=collector.url), service="retort-api")
            for flags in ("00", "01"):
                span = tracer.begin(flags, parent=f"00-{TRACE}-{SPAN}-{flags}")
                assert span.traceparent is not None
                assert span.traceparent.endswith(f"-{flags}")
                span.end()
            tracer.close()
        assert [span.name for span in collector.spans] == ["01"]


class TestServing:
    def test_is_current_in_its_block_alone(self) -> None:
        with tracing.serving(GIVEN):
            assert tracing.current() == GIVEN
        assert tracing.current() is None
