import pytest

from retort import errors


class TestProblemError:
    def test_is_one_line_with_every_field(self):
        error = errors.ProblemError(
            422,
            "invalid_spec",
            "Refused",
            "2 fields are not acceptable",
            errors=[
                errors.FieldProblem("/training/epochs", "must be at least 1,\n got 0"),
                errors.FieldProblem("", "the whole is wrong"),
            ],
        )
        assert str(error) == (
            "2 fields are not acceptable (422 invalid_spec); "
            "/training/epochs: must be at least 1, got 0; /: the whole is wrong"
        )

    def test_does_not_say_the_same_twice(self):
        fault = errors.FieldProblem("/network", "no network is called 'x'")
        error = errors.ProblemError(422, "invalid", "Refused", fault.detail, errors=[fault])
        assert str(error) == "no network is called 'x' (422 invalid); at /network"
        sentence = "No network is called 'x' (and 1 more)"
        other = errors.FieldProblem("/name", "it is taken")
        error = errors.ProblemError(422, "invalid", "Refused", sentence, errors=[fault, other])
        assert str(error) == f"{sentence} (422 invalid); at /network; /name: it is taken"

    def test_falls_back_to_its_title(self):
        assert str(errors.ProblemError(404, "not_found", "Not found")) == (
            "Not found (404 not_found)"
        )


class TestOneLine:
    @pytest.mark.parametrize("text", ["a\nb", "a \x1b b", "a\r\n\tb", "\x07a\x9bb"])
    def test_keeps_what_a_terminal_would_obey_out(self, text):
        assert errors.one_line(text) == "a b"

    def test_keeps_letters_of_every_language(self):
        assert errors.one_line("Zürich 東京 ✓") == "Zürich 東京 ✓"


class TestUploadInterrupted:
    def test_says_how_to_go_on(self):
        cause = errors.ConnectionFailed("http://x", "the connection broke off")
        assert str(errors.UploadInterrupted("upl_1", cause)) == (
            "cannot reach http://x: the connection broke off; "
            "the parts sent so far are kept: resume upl_1"
        )
