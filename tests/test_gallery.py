"""The page for looking through a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import small

from drive_seg.errors import DriveSegError
from drive_seg.gallery import write_gallery
from drive_seg.phantom import make_phantom
from drive_seg.pictures import save_png
from drive_seg.predict import segment_photographs


def entry(name: str, quality: str) -> dict[str, Any]:
    saved = {"thumbnail": f"{name}_thumbnail.jpg"}
    measures = {"quality": quality}
    return {"case_id": name, "photograph": f"in/{name}.png", "width_px": 9, "height_px": 8, "measures": measures,
            "saved": saved}  # fmt: skip


def test_photographs_with_a_remark_can_be_shown_alone(tmp_path: Path) -> None:
    page = tmp_path / "gallery.html"
    write_gallery(page, [entry("a", ""), entry("b", "too dark"), entry("c", "")])
    text = page.read_text()
    assert 'id="remarked"> only the 1 with a remark on quality' in text
    assert text.count("<figure>") == 2 and text.count('<figure class="remark">') == 1
    write_gallery(page, [entry("a", "")])
    assert "remarked" not in page.read_text().split("</style>")[1]


def test_nothing_to_show_is_no_page(tmp_path: Path) -> None:
    page = tmp_path / "gallery.html"
    write_gallery(page, [entry("a", "")])
    write_gallery(page, [{**entry("a", ""), "saved": {"vessels": "a_vessels.png"}}])
    assert not page.exists()


def test_the_colours_of_several_classes_are_explained(tmp_path: Path) -> None:
    page = tmp_path / "gallery.html"
    write_gallery(page, [entry("a", "")], {"artery": (255, 40, 120), "<vein>": (0, 135, 255)})
    text = page.read_text()
    assert "background:rgb(255,40,120)" in text and "artery</span>" in text and "&lt;vein&gt;</span>" in text
    write_gallery(page, [entry("a", "")])
    assert "rgb(" not in page.read_text()


def test_a_folder_of_arteries_and_veins(bundle: Path, tmp_path: Path) -> None:
    torch.save(small(num_classes=3).state_dict(), tmp_path / "model.pt")
    save_png(make_phantom(0, 90, 110).image, tmp_path / "in" / "eye.png")
    values: dict[str, Any] = {"base_channels": 2, "depth": 1, "fov_diameter": 64, "engine": "torch", "num_classes": 3}
    values |= {"checkpoint": str(tmp_path / "model.pt"), "pictures": ["class_probabilities", "thumbnail"]}
    out = tmp_path / "out"
    assert not segment_photographs(bundle, tmp_path / "in", out, {**values, "class_names": ["artery", "vein"]})
    assert {"eye_probability_artery.png", "eye_probability_vein.png"} <= {path.name for path in out.iterdir()}
    assert ">vein</span>" in (out / "gallery.html").read_text(encoding="utf-8")
    columns = (out / "vessels.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"calibre_mean_px_artery", "vessel_density_share_vein"} < set(columns)
    with pytest.raises(DriveSegError, match="class_names: expected 2 different names"):
        segment_photographs(bundle, tmp_path / "in", out, {**values, "class_names": ["artery"]})
