"""Two evaluations side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import shipped_bootstrap
from running import succeeds
from scipy.stats import wilcoxon

from drive_seg.bootstrap import Bootstrap
from drive_seg.compare import compare, read_summary
from drive_seg.errors import DriveSegError

FIRST = {"01": 0.70, "02": 0.75, "03": 0.80, "04": 0.72, "05": 0.69, "06": 0.81}
GAIN = [0.02, 0.01, 0.03, -0.005, 0.015, 0.025]
SECOND = {case: dice + gain for (case, dice), gain in zip(FIRST.items(), GAIN, strict=True)}


def summary(dice: dict[str, float | None], width: int = 565, **protocol: Any) -> dict[str, Any]:
    return {
        "protocol": {"reference": "1st_manual", "threshold": 0.5, **protocol},
        "settings": {"flips": False},
        "scoring": vars(shipped_bootstrap()),
        "rows": [],
        "cases": [
            {"case_id": case, "width": width, "height": 584, "scores": {"prediction": {"fov": {"dice": value}}}}
            for case, value in dice.items()
        ],
    }


def test_differences_by_hand() -> None:
    compared = compare(summary(FIRST), summary(SECOND, threshold=0.4))
    figure = compared["figures"]["dice"]
    gain = np.array(GAIN)
    assert figure["cases"] == 6
    assert figure["difference"] == pytest.approx(gain.mean())
    assert figure["second"] - figure["first"] == pytest.approx(gain.mean())
    assert figure["sd"] == pytest.approx(gain.std(ddof=1))
    assert figure["ci"][0] < gain.mean() < figure["ci"][1]
    # The one loss has the lowest rank, so W = 1; of the 2^6 equally likely signs 2 · 2 give a W as extreme: p = 4 / 64.
    assert figure["p"] == pytest.approx(4 / 64)
    assert figure["p"] == pytest.approx(wilcoxon(gain).pvalue)
    assert [row["case_id"] for row in compared["cases"]] == sorted(FIRST)
    assert compared["cases"][3]["dice"] == pytest.approx(-0.005)
    assert compared["unlike"] == {"threshold": (0.5, 0.4)}
    other = summary(SECOND)
    other["scoring"] = {**other["scoring"], "class_names": ["artery", "vein"]}
    assert compare(summary(FIRST), other)["unlike"] == {"class_names": ("", "artery, vein")}


def test_persons_are_compared_not_eyes() -> None:
    """Three persons, one of them with one eye: the smallest p of three signs is 2 / 2^3, however many eyes."""
    eyes = ["01L", "01R", "02L", "02R", "03L"]
    first = dict.fromkeys(eyes, 0.7)
    second = {eye: 0.7 + gain for eye, gain in zip(eyes, (0.01, 0.03, 0.02, 0.04, 0.05), strict=True)}
    compared = compare(summary(first), summary(second))
    figure = compared["figures"]["dice"]
    assert compared["persons"] == 3 and figure["cases"] == 5
    assert figure["difference"] == pytest.approx(0.03) and figure["p"] == pytest.approx(2 / 8)
    gains = np.array([0.01, 0.03, 0.02, 0.04, 0.05])
    assert figure["ci"] == pytest.approx(shipped_bootstrap().interval(gains, ["1", "1", "2", "2", "3"]))


def test_the_same_twice_has_no_p_value() -> None:
    figure = compare(summary(FIRST), summary(FIRST))["figures"]["dice"]
    assert figure["difference"] == 0 and figure["ci"] == [0, 0] and math.isnan(figure["p"])


def test_undefined_and_missing_cases_are_left_out() -> None:
    second: dict[str, float | None] = {**SECOND, "02": None, "07": 0.5}
    del second["03"]
    compared = compare(summary(FIRST), summary(second))
    assert compared["figures"]["dice"]["cases"] == 4
    assert compared["only"] == [["03"], ["07"]]
    assert math.isnan(next(row["dice"] for row in compared["cases"] if row["case_id"] == "02"))


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DriveSegError, match="a case in common"):
        compare(summary(FIRST), summary({"99": 0.5}))
    with pytest.raises(DriveSegError, match="1st_manual and 2nd_manual"):
        compare(summary(FIRST), summary(SECOND, reference="2nd_manual"))
    with pytest.raises(DriveSegError, match="region whole"):
        compare(summary(FIRST), summary(SECOND), region="whole")
    with pytest.raises(DriveSegError, match="region: expected fov or whole, got 'disc'"):
        compare(summary(FIRST), summary(SECOND), region="disc")


def test_photographs_of_other_sizes_are_others() -> None:
    with pytest.raises(DriveSegError, match=r"case 01: expected the same photograph .* got 565×584 and 700×584 pixels"):
        compare(summary(FIRST), summary(SECOND, width=700))


def test_other_files_are_compared_and_told() -> None:
    """One study compares formats of one photograph."""
    first, second = summary(FIRST), summary(SECOND)
    for number, case in enumerate(first["cases"]):
        case["photograph_sha256"] = f"{number:016x}"
    assert not compare(first, second)["unlike"] and not compare(first, first)["unlike"]
    second["cases"][2]["photograph_sha256"] = "f" * 16
    assert compare(first, second)["unlike"] == {"photographs": ("6 files", "1 of these differ")}


def test_what_only_one_of_two_evaluations_states_is_no_difference() -> None:
    """A summary of another version may state more or less."""
    first, second = summary(FIRST), summary(SECOND, threshold=0.4)
    first["settings"]["base_channels"] = 4
    second["settings"]["network"] = "UNet, base_channels 4"
    assert compare(first, second)["unlike"] == {"threshold": (0.5, 0.4)}


def test_the_p_value_of_equal_differences_is_exact() -> None:
    """Of the 2^4 signs only the two with all alike are as extreme."""
    gains = {"01": 1.0, "02": 1.0, "03": 1.0, "04": 2.0}
    figure = compare(summary(dict.fromkeys(gains, 0.0)), summary(dict(gains)))["figures"]["dice"]
    assert figure["p"] == pytest.approx(2 / 16)


def test_what_makes_two_evaluations_unlike_is_told() -> None:
    changes: dict[str, dict[str, Any]] = {
        "fov_source": {"fov_source": {"published mask": 3}},
        "scored": {"scored": ["fold 1/5"]},
        "warnings": {"warnings": ["the threshold was chosen on 2 of the scored cases"]},
    }
    for name, protocol in changes.items():
        assert compare(summary(FIRST), summary(SECOND, **protocol))["unlike"].keys() == {name}
    both = [{"fov_source": {"published mask": 3}}, {"fov_source": {"estimated": 3}}]
    compared = compare(summary(FIRST, **both[0]), summary(SECOND, **both[1]))
    assert compared["unlike"] == {"fov_source": ("3 published mask", "3 estimated")}


def test_the_interval_is_that_of_the_evaluation() -> None:
    narrow = {**summary(FIRST), "scoring": {"samples": 500, "seed": 3, "level": 0.5}}
    compared = compare(narrow, summary(SECOND))
    assert compared["level"] == 0.5
    assert compared["figures"]["dice"]["ci"] == pytest.approx(Bootstrap(500, 3, 0.5).interval(np.array(GAIN)))
    assert compare(summary(FIRST), summary(SECOND))["level"] == 0.95


def test_what_is_no_summary(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match=r"summary\.json"):
        read_summary(tmp_path)
    for content in ("[]", "case_id,dice"):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(DriveSegError, match="other content"):
            read_summary(tmp_path)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, dice in (("a", FIRST), ("b", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(dice)))
    table = tmp_path / "differences.csv"
    succeeds(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "summary.json"), "--output", str(table)])
    printed = capsys.readouterr().out
    assert "dice" in printed and "+0.0158" in printed and "0.0625" in printed
    assert table.read_text().splitlines()[0] == "case_id,dice"
    assert len(table.read_text().splitlines()) == 7

    succeeds(["compare", str(tmp_path / "a"), str(tmp_path / "a")])
    printed = capsys.readouterr().out
    assert "–" in printed and "nan" not in printed, "no case differs"

    for name, dice in (("a", {"1L": 0.5, "1R": 0.6, "2L": 0.7}), ("b", {"1L": 0.6, "1R": 0.7, "2L": None})):
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(dice)))
    succeeds(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    printed = capsys.readouterr().out
    assert "over 3 cases of 2 persons" in printed and "dice (in 2 of 3)" in printed
