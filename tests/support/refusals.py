"""What a refused command line looks like."""

from __future__ import annotations

from pathlib import Path

USAGE, DATA, CONFIG, CHECKPOINT, EXTENSION = 2, 3, 4, 5, 6


def check_refusal(stderr: str, *words: object) -> None:
    errors = [line for line in stderr.splitlines() if line.startswith("nsr: error: ")]
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    for word in words:
        assert str(word) in errors[0], (word, errors[0])


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
