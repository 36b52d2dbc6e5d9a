"""``vessels.csv``: the measures of many photographs, one row each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from drive_seg.files import write_csv

__all__ = ["MeasureTable", "rounded", "table_row"]


def rounded(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Measures as written to tables: rounded to six decimal places, None where they are undefined."""
    return {
        name: value if not isinstance(value, float) else round(value, 6) if math.isfinite(value) else None
        for name, value in measures.items()
    }


def table_row(photograph: str, case_id: str, measures: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``vessels.csv``: the photograph's file, its case id and its rounded measures."""
    return {"photograph": photograph, "case_id": case_id, **rounded(measures)}


class MeasureTable:
    """Writes the measures of all photographs that an evaluator segmented to one CSV file, in order of their paths.

    Args:
        path: such as ``vessels.csv``.
        measures_key: key of the measures in the postprocessing's output, see ``drive_seg.measures.MeasureVesselsd``.
            In the table they follow ``photograph``, the file, and ``case_id``, empty where a case has none. Photographs
            that were not measured have no row.
    """

    def __init__(self, path: str, measures_key: str = "measures") -> None:
        self.path = path
        self.measures_key = measures_key
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Start a new table."""
        self.rows = []

    def collect(self, engine: Engine) -> None:
        """Keep the rows of a batch."""
        for case, found in zip(engine.state.batch, engine.state.output, strict=True):
            if self.measures_key in found:
                file = getattr(case["photograph"], "meta", {}).get("filename_or_obj", "")
                self.rows.append(table_row(file, case.get("case_id", ""), found[self.measures_key]))

    def write(self, engine: Engine) -> None:
        """Write the file, if anything was measured."""
        if self.rows:
            write_csv(self.path, sorted(self.rows, key=lambda row: str(row["photograph"])))
