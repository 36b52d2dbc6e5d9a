"""Several processes segment a folder together, and one of them has other photographs, ends or vanishes."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from builders import listed, one_thread, predict_command, results
from running import another_in_the_second_process, together

from drive_seg import predict
from drive_seg.errors import CommonError, DriveSegError
from drive_seg.journal import read_journals
from drive_seg.predict import segment_photographs


@pytest.mark.parametrize(
    "differing", ["weights_sha256", "settings", "number of photographs", "SHA-256 of the photographs' paths"]
)
def test_processes_that_would_segment_otherwise(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    differing: str,
) -> None:  # fmt: skip
    """Their results would be mixed, or photographs left out."""
    another_in_the_second_process(differing, monkeypatch)
    with pytest.raises(CommonError, match=f"^{differing}: expected the same in all processes, got .*, another in proc"):
        segment_photographs(bundle, [folder], tmp_path / "out", settings)
    assert results(tmp_path / "out") == {}


def test_photographs_are_compared_by_their_paths(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(predict, "same_for_all", seen.append)
    for number in (0, 1, 0):
        segment_photographs(bundle, [folder / f"{number}.png"], tmp_path / "out", settings)
    one, other, again = seen
    assert one == again and {name for name in one if one[name] != other[name]} == {"SHA-256 of the photographs' paths"}


@pytest.mark.parametrize("vanished", [[], [1]], ids=["another folder", "vanished"])
def test_results_of_another_process_that_are_missing(
    bundle: Path,
    folder: Path,
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vanished: list[int],
) -> None:
    """The first of two processes writes what there is, and says what is missing."""
    out = tmp_path / "out"
    monkeypatch.setattr(predict, "get_world_size", lambda: 2)
    monkeypatch.setattr(predict, "join_process_group", lambda timeout, device: None)
    monkeypatch.setattr(predict, "meet", lambda progress: vanished)
    monkeypatch.setattr(predict, "SEEN_LATE", 0.1)
    message = f"^3 of 6 photographs have no result in {re.escape(str(out))}: expected one folder that all processes see"
    with pytest.raises(DriveSegError, match=message) as raised:
        segment_photographs(bundle, [folder], out, settings)
    assert ("without sign of life: process 1" in str(raised.value)) == bool(vanished)
    with (out / "vessels.csv").open() as file:
        assert [row["case_id"] for row in csv.DictReader(file)] == ["0", "2", "4"]
    with (out / "failed.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    assert (out / "settings.json").is_file()


def test_another_process_ends(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(part: object) -> object:
        raise RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:1234")

    monkeypatch.setattr(predict, "from_first", closed)
    with pytest.raises(
        DriveSegError, match=r"^another process of this run has ended or cannot be reached, see its log"
    ):
        segment_photographs(bundle, [folder], tmp_path / "out", settings)


@pytest.mark.slow
def test_shared_out_over_processes(bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    with one_thread():
        segment_photographs(bundle, [folder], alone, settings)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *predict_command(folder, out, settings)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert "1 could not be segmented" in done.stderr, done.stderr[-3000:]
    assert results(out) == results(alone)
    journals = [read_journals(out, path.name) for path in sorted(out.glob("progress_*.jsonl"))]
    notes = [[entry["case_id"] for entry in entries if "begun" not in entry] for entries in journals]
    assert [len(names) for names in notes] == [3, 3] and not set(notes[0]) & set(notes[1])
    assert (out / "gallery.html").read_text() == (alone / "gallery.html").read_text()
    assert (out / "failed.csv").read_text() == (alone / "failed.csv").read_text()


OF_TWO = """
import os, signal
from drive_seg import distributed, predict
from drive_seg.cli import main
from drive_seg.journal import Journal

distributed.PATIENCE, predict.SEEN_LATE = 3.0, 0.5
add = Journal.add

def killed(journal, entry):
    add(journal, entry)
    if "begun" not in entry:
        os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1":
    Journal.add = killed
main()
"""


@pytest.mark.slow
def test_a_process_that_vanishes_is_not_waited_for(folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    """As when a machine loses its power: nothing tells the first process, but the journal no longer grows."""
    out = tmp_path / "out"
    (folder / "broken.png").unlink()
    command = ["-c", OF_TWO, *predict_command(folder, out, settings)[2:]]
    (code, said), (killed, _) = together(command, command)
    assert (code, killed) == (1, -signal.SIGKILL), said[-3000:]
    assert "of 5 photographs have no result in" in said and "(without sign of life: process 1)" in said
    there = set(listed(out))
    assert {"0.png", "2.png", "4.png"} <= there and len(there) < 5
    assert len(there) + len(listed(out, "failed.csv")) == 5
