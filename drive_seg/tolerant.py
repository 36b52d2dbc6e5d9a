"""An evaluation that continues after a bad case."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from drive_seg.errors import DriveSegError, user_error

__all__ = ["TolerantDataset", "TolerantEvaluator"]


class TolerantDataset(Dataset):
    """MONAI's ``Dataset``, in which an unreadable case becomes its ``case_id`` and an ``error``, one sentence.

    Args:
        data: cases; one without ``label`` cannot be scored and is an error, too.
        transform: turns files into arrays.
    """

    def _transform(self, index: int) -> Any:
        case = self.data[index]
        if "label" not in case:
            return {"case_id": case["case_id"], "error": f"{case['image']} has no annotation to score against"}
        try:
            return super()._transform(index)
        except Exception as error:
            return {"case_id": case["case_id"], "error": _sentence(error)}


class TolerantEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator``, whose output for a case that failed is ``{"error": sentence}``.

    Args:
        device, args, kwargs: as for MONAI's.
        val_data_loader: cases one at a time.

    Raises:
        DriveSegError: if the loader puts several cases into a batch.
    """

    def __init__(self, device: torch.device | str, val_data_loader: Any, *args: Any, **kwargs: Any) -> None:
        batch_size = getattr(val_data_loader, "batch_size", None)  # a loader with a sampler of batches has None
        if batch_size not in (None, 1):
            raise DriveSegError(
                f"validate#dataloader#batch_size: expected 1, because photographs differ in size, got {batch_size}"
            )
        super().__init__(device, val_data_loader, *args, **kwargs)

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        if "error" not in batchdata:
            try:
                return super()._iteration(engine, batchdata)
            except Exception as error:
                batchdata = {"case_id": batchdata["case_id"], "error": [_sentence(error)]}
        engine.state.batch = batchdata
        engine.state.output = {"error": batchdata["error"][0]}
        return engine.state.output


def _sentence(error: Exception) -> str:
    mendable = user_error(error)
    if mendable is None:
        raise error
    return str(mendable)
