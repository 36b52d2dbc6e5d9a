"""The report, as a browser sees it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import shipped_bootstrap, shipped_scoring
from ignite.engine import Engine
from matplotlib.figure import Figure
from PIL import Image

from drive_seg.charts import precision_recall_chart, roc_chart
from drive_seg.evaluation import CaseScores
from drive_seg.pictures import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, WRONG_CLASS
from drive_seg.report import Report, write_report
from drive_seg.scores import CaseResult, Scoring, score_case

SIZE = (90, 110)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=3000 --enable-logging=stderr"
)
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  const view = document.querySelector(".view");
  view.dispatchEvent(new WheelEvent("wheel", { deltaY: -1, clientX: 5, clientY: 5, cancelable: true }));
  document.querySelectorAll("#cases th button")[1].click();
  document.body.insertAdjacentHTML("beforeend", `<pre id="probe">${JSON.stringify({
    images: images.length,
    broken: images.filter(image => !image.complete || !image.naturalWidth).length,
    rows: document.querySelectorAll("#cases tbody tr").length,
    sorted: [...document.querySelectorAll("#cases tbody tr")].map(row => row.cells[0].textContent),
    zoomed: view.querySelector("img").style.transform,
    outside: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
  })}</pre>`);
});
</script>"""


def evaluated(folder: Path, cases: int = 4, second: bool = True) -> CaseScores:
    """An evaluation of drawn cases, each worse than the one before."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    fov = (rows - 45) ** 2 + (columns - 55) ** 2 < 42**2
    label = (np.abs(rows - columns + 10) < 2) | (np.abs(rows - 45) < 1) | (np.abs(columns - 40) < 3)
    generator = np.random.default_rng(0)
    results = []
    for number in range(cases):
        probability = np.clip(generator.normal(0.2 + 0.6 * label, 0.1 + 0.05 * number), 0, 1)
        observed = np.roll(label, 1, axis=0) if second else None
        results.append(
            score_case(
                f"case{number}", probability >= 0.5, label, fov, probability, observed, scoring=shipped_scoring()
            )
        )
    return finished(folder, results, shipped_scoring())


def finished(folder: Path, results: list[CaseResult], scoring: Scoring) -> CaseScores:
    """An evaluation of these cases, of photographs with nothing but the field of view, and of one that failed."""
    (folder / "model.pt").write_bytes(b"weights")
    protocol = {"dataset_dir": "data/<drawn>", "reference": "1st_manual", "threshold": 0.5, "threshold_source": "fixed"}
    scores = CaseScores(str(folder), scoring, shipped_bootstrap(samples=200), protocol, {"flips": False})
    scores.reset(Engine(lambda *_: None))
    for result in results:
        photograph = folder / f"{result.case_id}.png"
        Image.fromarray(np.where(result.mask("fov")[..., None], (200, 120, 60), 0).astype(np.uint8)).save(photograph)
        result.about = {"section": "test", "fov_source": "estimated", "photograph": str(photograph)}
    scores.results = results
    scores.unscored = {"case<9>": "nine.tif: is not an image"}
    scores.finish(SimpleNamespace(state=SimpleNamespace(metrics={})))  # type: ignore[arg-type]
    return scores


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    scores = evaluated(folder)
    write_report(scores.results, scores.summary, folder / "report.html")
    return folder / "report.html"


def probe(path: Path) -> dict[str, Any]:
    """What Chromium makes of a page; fails on any message to its console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium on PATH")
    probed = path.with_name("probed.html")
    probed.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    done = subprocess.run(
        [browser, *FLAGS.split(), f"--user-data-dir={path.parent / 'profile'}", "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found.group(1))


def test_in_a_browser(page: Path) -> None:
    seen = probe(page)
    assert seen["broken"] == 0
    assert seen["images"] == 4 + 3 * 5, "four charts; a photograph and twice two layers for best, median and worst"
    assert seen["rows"] == 4
    assert seen["sorted"] == ["case3", "case2", "case1", "case0"], "a click sorts by Dice, from low to high"
    assert "scale(1.25)" in seen["zoomed"]
    assert seen["outside"] == 0


def test_content(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for words in ("Best: case0", "Median: case1", "Worst: case3", "second observer", "true positive", "Protocol"):
        assert words in text, words
    assert "data/&lt;drawn&gt;" in text and "<drawn>" not in text, "escaped"
    assert "case&lt;9&gt;: nine.tif: is not an image" in text
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", text), "nothing from outside"


def by_hand() -> CaseResult:
    """Inside, one true positive, two false positives, three false negatives and five true negatives."""
    fov = np.arange(12).reshape(3, 4) < 11
    pred, label = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    pred[0, :3], label[0, 0], label[1, :3] = True, True, True
    return score_case("1", pred, label, fov, pred.astype(float), scoring=shipped_scoring(surfaces=False))


def report_on(folder: Path, result: CaseResult, scoring: Scoring) -> str:
    """The report's HTML."""
    write_report([result], finished(folder, [result], scoring).summary, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def layers(text: str) -> list[np.ndarray]:
    """The masks that lie over a report's photographs, (H, W, 4), RGBA, uint8."""
    found = re.findall(r'<img class="masks" src="data:image/png;base64,(.*?)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA")) for content in found]


def test_the_colours_of_agreement(tmp_path: Path) -> None:
    (colours,) = layers(report_on(tmp_path, by_hand(), shipped_scoring(surfaces=False)))
    assert tuple(colours[0, 0]) == (*TRUE_POSITIVE, 255)
    assert tuple(colours[0, 1]) == tuple(colours[0, 2]) == (*FALSE_POSITIVE, 255)
    assert tuple(colours[1, 0]) == tuple(colours[1, 2]) == (*FALSE_NEGATIVE, 255)
    assert colours[0, 3, 3] == colours[2, 0, 3] == 0, "transparent"


def test_vessels_of_the_wrong_class_have_a_colour_of_their_own(tmp_path: Path) -> None:
    pred, label = np.array([[1, 2, 1, 0, 1]], np.uint8), np.array([[1, 1, 255, 2, 0]], np.uint8)
    scoring = shipped_scoring(surfaces=False, num_classes=3)
    probability = (pred > 0).astype(float)
    result = score_case("1", pred, label, np.ones_like(label), probability, label[:, ::-1], scoring=scoring)
    text = report_on(tmp_path, result, scoring)
    of_pred, of_second = ([tuple(pixel) for pixel in layer[0, :, :3]] for layer in layers(text))
    assert of_pred == [TRUE_POSITIVE, WRONG_CLASS, TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE]
    # The second observer's 0, 2, 255, 1 and 1: an unknown class is not a wrong one.
    assert of_second == [FALSE_NEGATIVE, WRONG_CLASS, TRUE_POSITIVE, WRONG_CLASS, FALSE_POSITIVE]


def test_figures_of_classes_have_titles(tmp_path: Path) -> None:
    classes = np.array([[1, 2, 2, 0]], np.uint8)
    scoring = shipped_scoring(surfaces=False, num_classes=3, class_names=["artery", "small vein"])
    result = score_case("1", classes, classes, np.ones_like(classes), (classes > 0).astype(float), scoring=scoring)
    text = report_on(tmp_path, result, scoring)
    titles = re.findall(r'<th scope="col" title=".*?"><button type="button">(.*?)<', text)
    of_classes = [f"{figure}, {c}" for c in ("artery", "small vein") for figure in ("Dice", "Sensitivity", "Precision")]
    assert titles[0] == "Dice" and titles[-7:] == ["Class accuracy", *of_classes]


def test_where_the_operating_points_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensitivity is 1 / 4, specificity 5 / 7, precision 1 / 3."""
    drawn: dict[str, list[Figure]] = {"roc": [], "pr": []}
    for name, chart in (("roc", roc_chart), ("pr", precision_recall_chart)):
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, found=drawn[name], **__: found.append(figure))
        chart([by_hand()])
    points = {
        name: [line.get_xydata()[0] for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
        for name, (figure,) in drawn.items()
    }
    assert np.array(points["roc"][0]) == pytest.approx([2 / 7, 1 / 4])
    assert np.array(points["pr"][0]) == pytest.approx([1 / 4, 1 / 3])


@pytest.mark.parametrize("cases", [1, 2])
def test_few_cases_without_second_observer(tmp_path: Path, cases: int) -> None:
    scores = evaluated(tmp_path, cases, second=False)
    write_report(scores.results, scores.summary, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Best: case0" in text and ("Worst: case1" in text) == (cases == 2) and "Median:" not in text


def test_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scores = evaluated(tmp_path, cases=1)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    report = Report(scores, str(tmp_path / "report.html"))
    report(SimpleNamespace())  # type: ignore[arg-type]
    assert "drive-seg[report]" in caplog.text and not (tmp_path / "report.html").exists()


def test_nothing_scored_leaves_no_report(tmp_path: Path) -> None:
    scores = evaluated(tmp_path, cases=0)
    assert scores.summary["rows"] == [] and not (tmp_path / "metrics.csv").exists()
    (tmp_path / "report.html").write_text("of an earlier run")
    engine = Engine(lambda engine, batch: None)
    Report(scores, str(tmp_path / "report.html")).attach(engine)
    engine.run([0])
    assert not (tmp_path / "report.html").exists()
