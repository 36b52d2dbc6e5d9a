"""Tables that the command line prints."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from drive_seg.scores import of_fewer

__all__ = ["print_comparison", "print_scores"]


def print_scores(summary: Mapping[str, Any]) -> None:
    """Means and standard deviations inside the field of view, of a ``summary.json``, and its warnings."""
    headings = {"prediction": "prediction", "second_observer": "second observer"}
    rows = {row["comparison"]: row for row in summary["rows"] if row["region"] == "fov"}
    shown = {heading: rows[key] for key, heading in headings.items() if key in rows}
    protocol = summary["protocol"]
    threshold = f"threshold {protocol['threshold']:g}, {protocol['threshold_source']}"
    scored = f"{protocol['cases']} cases ({', '.join(protocol['scored'])})"
    table = Table(title=f"Inside the field of view, mean ± sd over {scored}", caption=threshold)
    table.add_column("")
    for heading in shown:
        table.add_column(heading, justify="right")
    for name in next(iter(shown.values()), {"per_image": ()})["per_image"]:
        table.add_row(_with_unit(name), *(_spread(row["per_image"].get(name), row["cases"]) for row in shown.values()))
    Console().print(table)
    for warning in protocol["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def print_comparison(compared: Mapping[str, Any]) -> None:
    """What ``drive_seg.compare`` gives: figures of both, their differences, and what else is not alike."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"Second minus first, over {_counted(compared)}")
    for heading in ("", "first", "second", "change", f"{100 * compared['level']:g} % interval", "p"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for name, row in compared["figures"].items():
        interval = " to ".join(f"{end:+.4f}" for end in row["ci"])
        means = [f"{row[key]:.4f}" for key in ("first", "second")]
        few = of_fewer(row["cases"], len(compared["cases"]))
        table.add_row(f"{_with_unit(name)}{few}", *means, f"{row['difference']:+.4f}", interval, _p_value(row["p"]))
    table.caption = "p: Wilcoxon signed-rank test over persons, of each figure by itself"
    smallest = 2 * 0.5 ** compared["persons"]
    if smallest > 1 - compared["level"]:
        table.caption += (
            f". Of {compared['persons']} persons it cannot be below {smallest:g}, whatever the difference, and the "
            "interval is too narrow"
        )
    # In a file or a pipe there is no width to fit into, and figures must not be cut off.
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    for which, cases in zip(("first", "second"), compared["only"], strict=True):
        if cases:
            typer.echo(f"only in the {which}, left out: {', '.join(cases)}")
    for key, (one, other) in compared["unlike"].items():
        typer.echo(f"{key}: {one} | {other}")


def _with_unit(name: str) -> str:
    return f"{name} / px" if name in ("hd95", "asd") else name


def _counted(compared: Mapping[str, Any]) -> str:
    cases, persons = len(compared["cases"]), compared["persons"]
    return f"{cases} cases" + (f" of {persons} persons" if persons < cases else "")


def _p_value(p: float) -> str:
    if math.isnan(p):  # where no case differs there is none
        return "–"
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _spread(spread: Mapping[str, Any] | None, cases: int) -> str:
    if spread is None:
        return ""
    if spread["mean"] is None:
        return "undefined"
    sd = "" if spread["sd"] is None else f" ± {spread['sd']:.4f}"
    return f"{spread['mean']:.4f}{sd}{of_fewer(spread['defined'], cases)}"
