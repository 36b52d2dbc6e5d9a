"""Journals: what is read of them after a process was killed, and what cannot be read or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from drive_seg.errors import DriveSegError
from drive_seg.journal import Journal, read_journals


def test_journal_with_a_line_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "progress_0.jsonl")
    journal.add({"case_id": "a"})
    journal.add({"case_id": "b"})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-5])
    journal.add({"case_id": "c"})
    assert read_journals(tmp_path, "progress_*.jsonl") == [{"case_id": "a"}, {"case_id": "c"}]
    (tmp_path / "progress_1.jsonl").write_bytes(b"\xff\x00garbage\n7\n[]")
    assert len(read_journals(tmp_path, "progress_*.jsonl")) == 2


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "progress_7.jsonl").mkdir()
    with pytest.raises(DriveSegError, match=r"progress_7\.jsonl: cannot be read \(Is a directory\)$"):
        read_journals(tmp_path, "progress_*.jsonl")


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match=r"progress_0\.jsonl: cannot be written"):
        Journal(tmp_path / "absent" / "progress_0.jsonl").add({})
