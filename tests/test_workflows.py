"""Running the bundle's configs: which errors are a user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drive_seg import workflows
from drive_seg.errors import DriveSegError
from drive_seg.workflows import run_workflow


@pytest.mark.parametrize(("reason", "message"), [
    ("Argument max_epochs should be greater than or equal to the start epoch", "max_epochs: Argument max_epochs"),
    ("gloo/transport/tcp/pair.cc:538] Connection closed by peer", "another process of this run has ended or cannot"),
    ("[Errno 2] No such file or directory: '/runs/max_epochs_3/model.pt'", None),
])  # fmt: skip
def test_a_value_is_told_of_only_where_it_was_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, reason: str, message: str | None
) -> None:
    class Fails:
        def __init__(self, **settings: Any) -> None: ...

        def initialize(self) -> None:
            raise RuntimeError(reason)

    monkeypatch.setattr(workflows, "ConfigWorkflow", Fails)
    with pytest.raises((DriveSegError, RuntimeError)) as raised:
        run_workflow(bundle, ["train"], "training", {})
    assert isinstance(raised.value, DriveSegError) == (message is not None)
    assert str(raised.value).startswith(message or reason)
