"""What the command line prints of an evaluation."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from drive_seg import tables
from drive_seg.tables import print_comparison, print_scores


def spread(mean: float | None, sd: float | None, ci: list[float | None], defined: int) -> dict[str, Any]:
    return {"mean": mean, "sd": sd, "ci": ci, "defined": defined}


def summary(with_observer: bool) -> dict[str, Any]:
    figures = {
        "dice": spread(0.81234, 0.0123, [0.80001, 0.83], 3),
        "roc_auc": spread(0.98, None, [0.98, 0.98], 1),
        "hd95": spread(9.87654, 1.0, [8.0, 11.26], 3),
        "asd": spread(None, None, [None, None], 0),
    }
    rows = [{"comparison": "prediction", "region": "fov", "cases": 3, "per_image": figures}]
    rows.append({"comparison": "prediction", "region": "whole", "cases": 3, "per_image": {}})
    if with_observer:
        observer = {"dice": spread(0.79, 0.01, [0.78, 0.8], 3)}
        rows.append({"comparison": "second_observer", "region": "fov", "cases": 3, "per_image": observer})
    protocol = {
        "threshold": 0.5, "threshold_source": "fixed", "cases": 3, "scored": ["test"], "warnings": ["be careful"]
    }  # fmt: skip
    return {"protocol": protocol, "rows": rows, "scoring": {"level": 0.9}}


def printed(monkeypatch: pytest.MonkeyPatch, with_observer: bool) -> list[list[str]]:
    """Cells of the table's rows."""
    out = io.StringIO()
    monkeypatch.setattr(tables, "Console", lambda width: Console(file=out, width=width))
    print_scores(summary(with_observer))
    return [[cell for cell in line.strip().split("  ") if cell] for line in out.getvalue().splitlines()]


def test_means_and_intervals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [[cell.strip() for cell in line] for line in printed(monkeypatch, with_observer=True)]
    assert ["prediction", "90 % interval", "second observer"] in lines
    assert ["dice", "0.8123 ± 0.0123", "0.8000 to 0.8300", "0.7900 ± 0.0100"] in lines
    assert ["roc_auc", "0.9800 (in 1 of 3)", "0.9800 to 0.9800"] in lines, "the observer has none"
    assert ["hd95 / px", "9.9 ± 1.0", "8.0 to 11.3"] in lines
    assert ["asd / px", "undefined"] in lines
    assert capsys.readouterr().err == "warning: be careful\n"


def test_brackets_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no markup, of which the second would be refused for having no beginning."""
    scores, out = summary(with_observer=False), io.StringIO()
    scores["protocol"] |= {"threshold_source": "/data/a[b]/c[/d]/model.pt", "scored": ["test[/x]"]}
    monkeypatch.setattr(tables, "Console", lambda width: Console(file=out, width=width))
    print_scores(scores)
    assert "/data/a[b]/c[/d]/model.pt" in out.getvalue() and "(test[/x])" in out.getvalue()


def test_no_second_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [[cell.strip() for cell in line] for line in printed(monkeypatch, with_observer=False)]
    assert ["prediction", "90 % interval"] in lines
    assert ["dice", "0.8123 ± 0.0123", "0.8000 to 0.8300"] in lines


def test_a_figure_that_is_undefined_in_both_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    nan, out = float("nan"), io.StringIO()
    row = {"cases": 0, "first": nan, "second": nan, "difference": nan, "sd": nan, "ci": [nan, nan], "p": nan}
    compared = {"figures": {"asd": row}, "cases": [{}, {}], "persons": 2, "level": 0.9, "only": [[], []], "unlike": {}}
    monkeypatch.setattr(tables, "Console", lambda width: Console(file=out, width=width))
    print_comparison(compared)
    (line,) = (line.split() for line in out.getvalue().splitlines() if line.strip().startswith("asd"))
    assert line == ["asd", "/", "px", *["undefined"] * 3, "–"]
