"""Probabilities and vessel masks."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from drive_seg.errors import ArgumentError, DriveSegError
from drive_seg.masks import VesselMaskd, VesselProbabilitiesd, vessel_mask, vessel_probabilities


class TestVesselProbabilities:
    @pytest.mark.parametrize("classes", [2, 3])
    def test_softmax_without_the_background(self, classes: int) -> None:
        logits = 20 * torch.randn(classes, 9, 8, generator=torch.Generator().manual_seed(0))
        logits[:, 0, 0] = torch.tensor([500.0, -500.0, 0.0])[:classes]
        probabilities = vessel_probabilities(logits)
        assert probabilities.shape == (classes - 1, 9, 8)
        torch.testing.assert_close(probabilities, logits.softmax(dim=0)[1:], rtol=1e-5, atol=1e-7)

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match=r"^num_classes: expected 2 or more, .* got 1 logits a pixel$"):
            vessel_probabilities(torch.zeros(1, 4, 5))

    def test_a_batch_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match=r"^logits: expected \(C, H, W\), got \(2, 2, 4, 5\)$"):
            vessel_probabilities(torch.zeros(2, 2, 4, 5))

    def test_missing(self) -> None:
        assert VesselProbabilitiesd("pred", allow_missing_keys=True)({}) == {}
        with pytest.raises(KeyError):
            VesselProbabilitiesd("pred")({})

    def test_wrapper_keeps_what_is_known_of_the_photograph(self) -> None:
        logits = MetaTensor(
            torch.randn(2, 4, 5), meta={"filename_or_obj": "eye.tif"}, applied_operations=[{"class": "A"}]
        )
        case = {"pred": logits}
        out = VesselProbabilitiesd("pred")(case)["pred"]
        assert torch.equal(out.as_tensor(), vessel_probabilities(logits.as_tensor()))
        assert out.meta["filename_or_obj"] == "eye.tif" and out.applied_operations == [{"class": "A"}]
        assert case["pred"] is logits

    @pytest.mark.parametrize("classes", [2, 3])
    @pytest.mark.parametrize("meta", [{"filename_or_obj": "eye.tif"}, {}], ids=["file", "array"])
    def test_what_is_not_a_number_is_refused(self, classes: int, meta: dict[str, str]) -> None:
        logits = torch.zeros(classes, 4, 5)
        logits[-1, 1, 2] = torch.nan
        with pytest.raises(DriveSegError) as raised:
            VesselProbabilitiesd("pred")({"pred": MetaTensor(logits, meta=meta)})
        where = "eye.tif: " if "filename_or_obj" in meta else ""
        assert str(raised.value).startswith(f"{where}the network gave pixels that are not a number, expected prob")


class TestVesselMask:
    @pytest.mark.parametrize(("threshold", "expected"), [
        (0.5, [0, 1, 1, 1]),
        (0.51, [0, 0, 1, 1]),
        (0.75, [0, 0, 1, 1]),
        (0.0, [1, 1, 1, 1]),
        (1.0, [0, 0, 0, 1]),
    ])  # fmt: skip
    def test_a_pixel_on_the_threshold_is_vessel(self, threshold: float, expected: list[int]) -> None:
        vessel = torch.tensor([[[0.25, 0.5, 0.75, 1.0]]])
        mask = vessel_mask(vessel, threshold)
        assert mask.dtype is torch.uint8 and mask.shape == (1, 1, 4)
        assert mask.flatten().tolist() == expected

    def test_with_two_classes_and_a_half_it_is_the_likelier_one(self) -> None:
        logits = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(vessel_mask(vessel_probabilities(logits), 0.5)[0].long(), logits.argmax(0))

    def test_several_classes(self) -> None:
        probabilities = torch.tensor([
            [0.3, 0.35, 0.1, 0.0],
            [0.1, 0.25, 0.5, 1.0],
        ]).reshape(2, 1, 4)  # fmt: skip
        # Together 0.4, 0.6, 0.6, 1; the first class is likelier in the first two pixels.
        assert vessel_mask(probabilities, 0.5).flatten().tolist() == [0, 1, 2, 2]
        assert vessel_mask(probabilities, 0.375).flatten().tolist() == [1, 1, 2, 2]
        assert vessel_mask(probabilities, 0.75).flatten().tolist() == [0, 0, 0, 2]

    def test_nothing_outside_the_field_of_view(self) -> None:
        probabilities = torch.ones(1, 1, 3)
        fov = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
        assert vessel_mask(probabilities, 0.5, fov).flatten().tolist() == [0, 1, 1]
        assert vessel_mask(probabilities, 0.0, fov).flatten().tolist() == [0, 1, 1]

    def test_a_batch_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match=r"^probabilities: expected \(C, H, W\), got \(2, 1, 4, 5\)$"):
            vessel_mask(torch.zeros(2, 1, 4, 5), 0.5)

    def test_missing(self) -> None:
        case = {"b": torch.ones(1, 1, 1)}
        out = VesselMaskd(["a", "b"], 0.5, probability_keys=["pa", "pb"], allow_missing_keys=True)(case)
        assert out.keys() == {"b", "pb"} and out["pb"] is case["b"]
        with pytest.raises(KeyError):
            VesselMaskd(["a", "b"], 0.5, probability_keys=["pa", "pb"])(case)

    def test_wrapper(self) -> None:
        vessel = torch.tensor([[[0.2, 0.9, 0.9]]])
        pred = MetaTensor(vessel)
        case = {"pred": pred, "fov": torch.tensor([[[1, 1, 0]]])}
        assert VesselMaskd("pred", 0.5)(case)["pred"].tolist() == [[[0, 1, 1]]]
        assert VesselMaskd("pred", threshold=0.95)(case)["pred"].tolist() == [[[0, 0, 0]]]
        out = VesselMaskd("pred", 0.5, fov_key="fov", probability_keys="map")(case)
        assert out["pred"].tolist() == [[[0, 1, 0]]]
        assert torch.equal(out["map"], torch.tensor([[[0.2, 0.9, 0.0]]])), "no vessel is likely there either"
        assert torch.equal(VesselMaskd("pred", 0.5, probability_keys="map")(case)["map"], vessel)
        assert case.keys() == {"pred", "fov"} and case["pred"] is pred

    def test_the_mask_knows_its_photograph(self) -> None:
        """After which MONAI's ``SaveImaged`` calls its files."""
        out = VesselMaskd("pred", 0.5)({"pred": MetaTensor(torch.ones(1, 2, 2), meta={"filename_or_obj": "eye.tif"})})
        assert out["pred"].meta["filename_or_obj"] == out["probability"].meta["filename_or_obj"] == "eye.tif"

    def test_the_field_of_view_need_not_be_where_the_probabilities_are(self) -> None:
        """As after a network on a GPU, to which engines move the image alone."""
        case = {"pred": torch.zeros(1, 2, 3, device="meta"), "fov": torch.ones(1, 2, 3, dtype=torch.uint8)}
        out = VesselMaskd("pred", 0.5, fov_key="fov")(case)
        assert out["pred"].device.type == out["probability"].device.type == "meta"
        assert out["fov"].device.type == "cpu"

    def test_a_field_of_view_of_another_size_is_refused(self) -> None:
        """As where MONAI tracks no metadata, without which ``Invertd`` does nothing."""
        case = {"pred": torch.zeros(1, 2, 3), "fov": torch.ones(1, 4, 6, dtype=torch.uint8)}
        with pytest.raises(
            DriveSegError, match=r"^pred: expected the size of fov, \(4, 6\), got \(2, 3\); .* MONAI tracks metadata"
        ):
            VesselMaskd("pred", 0.5, fov_key="fov")(case)

    def test_several_keys(self) -> None:
        maps = [torch.full((1, 1, 1), value) for value in (0.2, 0.8)]
        out = VesselMaskd(["a", "b"], 0.5, probability_keys=["pa", "pb"])({"a": maps[0], "b": maps[1]})
        assert (out["a"].item(), out["b"].item()) == (0, 1)
        assert out["pa"] is maps[0] and out["pb"] is maps[1]
        with pytest.raises(ValueError, match=r"^probability_keys: expected 2, one for each of keys, got 1$"):
            VesselMaskd(["a", "b"], 0.5, probability_keys="p")

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, 127])
    def test_threshold_is_a_probability(self, threshold: float) -> None:
        with pytest.raises(DriveSegError, match=f"^threshold: expected a probability from 0 to 1, got {threshold}$"):
            VesselMaskd("pred", threshold)

    def test_threshold_is_a_number(self) -> None:
        with pytest.raises(DriveSegError, match=r"^threshold: expected a probability from 0 to 1, got '0,4'$"):
            VesselMaskd("pred", "0,4")  # type: ignore[arg-type]
