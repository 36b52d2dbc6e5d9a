"""The page for looking through a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drive_seg.gallery import write_gallery


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
