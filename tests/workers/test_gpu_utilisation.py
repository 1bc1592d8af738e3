"""What NVIDIA's program says, and what is made of one that is missing or says something else."""

from pathlib import Path

import pytest

from workers import gpu_utilisation


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("echo 40; echo 60", 0.5),
        ("echo '[N/A]'", None),
        ("exit 9", None),
        ("true", None),
    ],
)
def test_is_the_mean_of_the_cards(
    says: str, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert gpu_utilisation.read() == expected


def test_without_the_program_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_utilisation.read() is None
