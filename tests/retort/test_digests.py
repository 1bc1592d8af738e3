import hashlib

import pytest

from retort import digests, errors

HELLO = hashlib.sha256(b"hello").digest()


class TestMeasure:
    def test_reads_size_and_digest(self, tmp_path):
        path = tmp_path / "x"
        content = b"hello" * 200_000
        path.write_bytes(content)
        assert digests.measure(path) == digests.FileDigest(
            len(content), hashlib.sha256(content).hexdigest()
        )

    def test_says_what_is_wrong_with_the_file(self, tmp_path):
        with pytest.raises(errors.LocalFileProblem, match="No such file"):
            digests.measure(tmp_path / "none")
        with pytest.raises(errors.LocalFileProblem, match="Is a directory"):
            digests.measure(tmp_path)


class TestSlice:
    def test_covers_just_the_bytes_asked_for(self, tmp_path):
        path = tmp_path / "x"
        path.write_bytes(b"xxhelloxx")
        assert digests.of_slice(path, 2, 5) == HELLO


class TestHeader:
    def test_is_spelled_as_the_standard_says(self):
        # The example of RFC 9530, appendix B: the digest of {"hello": "world"} and a line feed.
        raw = hashlib.sha256(b'{"hello": "world"}\n').digest()
        expected = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
        assert digests.header(raw) == expected

    def test_is_read_back(self):
        assert digests.from_header(digests.header(HELLO)) == HELLO.hex()

    def test_is_found_among_other_digests(self):
        value = f"sha-512=:AAAA:, {digests.header(HELLO)}"
        assert digests.from_header(value) == HELLO.hex()

    @pytest.mark.parametrize(
        "value", [None, "", "sha-512=:AAAA:", "sha-256=:AAAA:", "sha-256=:?:", "sha-256=AAAA"]
    )
    def test_counts_as_absent_if_it_cannot_be_read(self, value):
        assert digests.from_header(value) is None


class TestHexadecimal:
    def test_drops_the_prefix(self):
        assert digests.hexadecimal("sha256:AB") == "ab"
        assert digests.hexadecimal("ab") == "ab"
        assert digests.hexadecimal(None) is None
