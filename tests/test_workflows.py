"""Running the bundle's configs: which errors are a user's."""

from __future__ import annotations

import pytest

from drive_seg.workflows import _refused_value


@pytest.mark.parametrize(("reason", "message"), [
    ("Argument max_epochs should be greater than or equal to the start epoch", "max_epochs: Argument max_epochs"),
    ("gloo/transport/tcp/pair.cc:538] Connection closed by peer", "another process of this run has ended or cannot"),
    ("[Errno 2] No such file or directory: '/runs/max_epochs_3/model.pt'", None),
])  # fmt: skip
def test_a_value_is_told_of_only_where_it_was_refused(reason: str, message: str | None) -> None:
    refused = _refused_value(RuntimeError(reason))
    assert refused is None if message is None else str(refused).startswith(message)
