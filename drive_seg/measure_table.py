"""``vessels.csv``: the measures of many photographs, a row each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from drive_seg.files import write_csv

__all__ = ["MeasureTable", "rounded"]


def rounded(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Measures as tables have them: six digits after the point, and None where there is nothing to measure."""
    return {
        name: value if not isinstance(value, float) else round(value, 6) if math.isfinite(value) else None
        for name, value in measures.items()
    }


class MeasureTable:
    """Writes the measures of all photographs that an evaluator segmented as one CSV file, in the order of their paths.

    Args:
        path: such as ``vessels.csv``.
        measures_key: of a row, in what the postprocessing puts out, see ``drive_seg.measures.MeasureVesselsd``. Before
            it come ``photograph``, the file, and ``case_id``, empty where a case has none.
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
        """A run begins."""
        self.rows = []

    def collect(self, engine: Engine) -> None:
        """Keep the rows of a batch."""
        for case, found in zip(engine.state.batch, engine.state.output, strict=True):
            file = case["photograph"].meta.get("filename_or_obj", "")
            measures = rounded(found[self.measures_key])
            self.rows.append({"photograph": file, "case_id": case.get("case_id", ""), **measures})

    def write(self, engine: Engine) -> None:
        """Write the file."""
        if self.rows:
            write_csv(self.path, sorted(self.rows, key=lambda row: str(row["photograph"])))
