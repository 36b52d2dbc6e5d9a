"""From logits to vessel probabilities, and from these to vessel masks.

Each step is a function on arrays, followed by a thin dictionary transform around it. Arrays are channel first,
(C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from drive_seg.arrays import check_one_image, like, without_metadata, zeros_and_ones
from drive_seg.errors import ArgumentError, DriveSegError

__all__ = ["VesselMaskd", "VesselProbabilitiesd", "vessel_mask", "vessel_probabilities"]


def vessel_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of the vessel classes; that of the background is left out, being 1 minus their sum.

    Args:
        logits: (num_classes, H, W), float, background first.

    Returns:
        (num_classes - 1, H, W), float, 0 to 1: softmax without its first channel.

    Raises:
        ArgumentError: if there is no vessel class, or more than one image.
    """
    check_one_image(logits, "logits")
    if len(logits) < 2:
        raise ArgumentError(f"num_classes: expected 2 or more, background and vessel, got {len(logits)} logits a pixel")
    if len(logits) == 2:
        return torch.sigmoid(logits[1:] - logits[:1])  # the same as softmax, in a third of the time
    return logits.softmax(dim=0)[1:]


class VesselProbabilitiesd(MapTransform):
    """``vessel_probabilities`` for a case.

    MONAI's ``Activationsd`` keeps the background, which doubles the work of every later step.

    Args:
        keys: logits, (num_classes, H, W), background first; replaced by probabilities, (num_classes - 1, H, W).
        allow_missing_keys: accept cases without logits.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its logits replaced by probabilities.

        Raises:
            DriveSegError: if a probability is NaN, which a threshold would turn into background.
        """
        case = dict(data)
        for key in self.key_iterator(case):
            probabilities = vessel_probabilities(without_metadata(case[key]))
            if math.isnan(probabilities.sum().item()):
                file = getattr(case[key], "meta", {}).get("filename_or_obj")
                raise DriveSegError(
                    f"{'' if file is None else f'{file}: '}the network gave pixels that are not a number, expected "
                    "probabilities; in half precision, try --precision float32, in training a lower --learning_rate"
                )
            case[key] = like(probabilities, case[key])
        return case


def vessel_mask(probabilities: torch.Tensor, threshold: float, fov: torch.Tensor | None = None) -> torch.Tensor:
    """Class values from probability maps.

    A pixel is vessel where the summed probability of the vessel classes reaches the threshold; it then gets the
    likeliest of these classes. With two classes and a threshold of 0.5, that is the likelier class.

    Args:
        probabilities: probability maps of the vessel classes, (num_classes - 1, H, W), float, 0 to 1.
        threshold: 0 to 1.
        fov: (1, H, W), non-zero inside; there are no vessels outside. None: the whole image counts.

    Returns:
        (1, H, W), uint8, class values.

    Raises:
        ArgumentError: if there is more than one image.
    """
    check_one_image(probabilities, "probabilities")
    one_class = len(probabilities) == 1
    total = probabilities if one_class else probabilities.sum(dim=0, keepdim=True)
    vessel = (total >= threshold).view(torch.uint8)
    if fov is not None:
        vessel = vessel * zeros_and_ones(fov)
    if one_class:
        return vessel
    return (vessel * (probabilities.argmax(dim=0, keepdim=True) + 1)).to(torch.uint8)


class VesselMaskd(MapTransform):
    """``vessel_mask`` for a case; the probability maps move to another key.

    Args:
        keys: probability maps of the vessel classes, (num_classes - 1, H, W); replaced by masks, (1, H, W), uint8.
        threshold: as in ``vessel_mask``.
        probability_keys: keys to move the probability maps to, one for each of ``keys``.
        fov_key: FOV mask, outside which there are no vessels and probabilities are 0; None: the whole image counts.
        allow_missing_keys: accept cases without probability maps.

    Raises:
        DriveSegError: if the threshold is not from 0 to 1, or the numbers of keys differ.
    """

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float,
        probability_keys: KeysCollection = "probability",
        fov_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise DriveSegError(f"threshold: expected a probability from 0 to 1, got {threshold!r}")
        self.threshold = threshold
        self.probability_keys = ensure_tuple(probability_keys)
        if len(self.probability_keys) != len(self.keys):
            raise ArgumentError(
                f"probability_keys: expected {len(self.keys)}, one for each of keys, got {len(self.probability_keys)}"
            )
        self.fov_key = fov_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its probabilities replaced by masks and moved to ``probability_keys``.

        Raises:
            DriveSegError: if the FOV mask has another size than the probability maps.
        """
        case = dict(data)
        for key, probability_key in self.key_iterator(case, self.probability_keys):
            probabilities = case[key]
            # Engines move the image to a GPU but not the masks.
            fov = None if self.fov_key is None else without_metadata(case[self.fov_key]).to(probabilities.device)
            if fov is not None and fov.shape[-2:] != probabilities.shape[-2:]:
                raise DriveSegError(
                    f"{key}: expected the size of {self.fov_key}, {tuple(fov.shape[-2:])}, got "
                    f"{tuple(probabilities.shape[-2:])}; a change of size can only be undone while MONAI tracks "
                    "metadata (monai.data.set_track_meta)"
                )
            case[key] = like(vessel_mask(without_metadata(probabilities), self.threshold, fov), probabilities)
            case[probability_key] = probabilities if fov is None else probabilities * zeros_and_ones(fov)
        return case
