"""Segment photographs one after another with the parts of the bundle's inference config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from monai.inferers import Inferer
from torch import nn

from drive_seg.checkpoints import load_weights
from drive_seg.configs import check_overrides
from drive_seg.data import Case
from drive_seg.errors import DriveSegError, user_error

__all__ = ["Segmenter"]


class Segmenter:
    """What turns a case with an ``image`` path into a vessel mask and its files.

    Args:
        network: with its weights.
        preprocessing, inferer, postprocessing: as in ``inference.json``.
        device: where the network is.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Callable[[Any], Any],
        inferer: Inferer,
        postprocessing: Callable[[Any], Any],
        device: torch.device,
    ) -> None:
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.device = device

    @classmethod
    def from_config(cls, files: Sequence[str], overrides: Mapping[str, Any]) -> Segmenter:
        """Build from config files and load the weights that they name.

        Raises:
            DriveSegError: if an override is of no key of theirs, or the weights are missing or do not fit.
        """
        check_overrides(files, overrides)
        parser = ConfigParser()
        parser.read_config(list(files))
        parser.update(dict(overrides))
        network = load_weights(parser.get_parsed_content("network"), parser.get_parsed_content("checkpoint"))
        return cls(
            network,
            *(parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing", "device")),
        )

    @torch.inference_mode()
    def __call__(self, case: Case) -> dict[str, Any]:
        """Segment one case.

        Args:
            case: ``image`` (path of a photograph), and if there is one ``fov`` (path of its FOV mask) and ``case_id``.

        Returns:
            The case with ``pred`` (1, H, W), uint8, class values; ``probability`` (num_classes, H, W), float32; and
            whatever the postprocessing adds, all at the photograph's own size.

        Raises:
            DriveSegError: if the photograph cannot be read or nothing in it is a field of view.
        """
        prepared = self.preprocessing(dict(case))
        batch = list_data_collate([prepared])
        batch["pred"] = self.inferer(batch["image"].to(self.device), self.network)
        return self.postprocessing(decollate_batch(batch)[0])

    def each(self, cases: Sequence[Case]) -> Iterator[tuple[Case, dict[str, Any] | DriveSegError]]:
        """Segment all, and go on after one that fails: each case with its result or with its error."""
        for case in cases:
            result: dict[str, Any] | DriveSegError
            try:
                result = self(case)
            except Exception as error:
                mendable = user_error(error)
                if mendable is None:
                    raise
                result = mendable
            yield case, result
