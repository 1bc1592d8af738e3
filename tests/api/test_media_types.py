from api import media_types


class TestOf:
    def test_goes_by_the_ending(self) -> None:
        assert media_types.of("report/accuracy.png") == "image/png"
        assert media_types.of("report/accuracy.svg") == "image/svg+xml"
        assert media_types.of("config.json") == "application/json"

    def test_says_no_more_than_it_knows(self) -> None:
        for path in ("model.safetensors", "noending", ".png"):
            assert media_types.of(path) == "application/octet-stream"
