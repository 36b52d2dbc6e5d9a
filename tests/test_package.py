"""The packed bundle goes the way of MONAI's model zoo: downloaded, unpacked, run from anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from jsonschema import validate
from monai.apps.utils import HashCheckError
from monai.bundle import download, download_large_files, load
from PIL import Image
from running import SCHEMA, refused, succeeds

from drive_seg.files import sha256
from drive_seg.networks import UNet
from drive_seg.package import NAME, package_bundle
from drive_seg.phantom import make_phantom
from drive_seg.pictures import save_png


def make_weights(path: Path) -> Path:
    torch.manual_seed(5)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(UNet(base_channels=16).state_dict(), path)
    return path


def pack(weights: Path, output: Path, *overrides: str) -> Path:
    succeeds(["package", "--checkpoint", str(weights), "--output-dir", str(output), *overrides])
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    return pack(make_weights(folder / "model.pt"), folder / "release")


@pytest.fixture(scope="module")
def own(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the bundle's own weights."""
    return pack(bundle / "models" / "model.pt", tmp_path_factory.mktemp("own") / "release")


@pytest.fixture
def served(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the folder of the zip file, on the loopback interface."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(packed.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_folder_with_everything(packed: Path, bundle: Path) -> None:
    version = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    assert packed.name == f"{NAME}_v{version}.zip"
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert all(name.split("/")[0] == NAME for name in names)
        for name in ("LICENSE", "configs/evaluate.json", "configs/fold.json"):
            assert archive.read(f"{NAME}/{name}") == (bundle / name).read_bytes()
        assert {Path(name).name for name in names if "/models/" in name} == {"model.pt", "model.ts"}
        listing = yaml.safe_load(archive.read(f"{NAME}/large_files.yml"))["large_files"]
        for entry in listing:
            content = archive.read(f"{NAME}/{entry['path']}")
            assert entry["hash_type"] == "sha256" and entry["hash_val"] == hashlib.sha256(content).hexdigest()
    assert [entry["path"] for entry in listing] == ["models/model.pt", "models/model.ts"]


def test_the_same_weights_give_the_same_bytes(own: Path, bundle: Path, tmp_path: Path) -> None:
    # Another place, other times and permissions, and files of an editor and of a training beside those of the bundle.
    root = tmp_path / "elsewhere"
    shutil.copytree(bundle, root, copy_function=shutil.copyfile)
    (root / "LICENSE").chmod(0o600)
    (root / "configs" / ".train.json.swp").write_text("hidden")
    (root / "models" / "last.pt").write_bytes(b"state")
    succeeds(["package", "--bundle-root", str(root), "--output-dir", str(tmp_path / "release")])
    assert sha256(tmp_path / "release" / own.name) == sha256(own)


def test_the_bundles_own_weights_come_with_their_card_and_figures(own: Path, bundle: Path) -> None:
    with zipfile.ZipFile(own) as archive:
        packed = {name.removeprefix(f"{NAME}/"): archive.read(name) for name in archive.namelist()}
    assert json.loads(packed["configs/metadata.json"])["weights_sha256"] == sha256(bundle / "models" / "model.pt")
    for folder in ("docs", "configs"):
        assert {f"{folder}/{file.name}" for file in (bundle / folder).iterdir()} <= packed.keys()
    for name in (
        "docs/README.md",
        "docs/data_license.txt",
        "configs/metadata.json",
        "models/model.pt",
        "models/model.json",
    ):
        assert packed[name] == (bundle / name).read_bytes()


def test_other_weights_come_without_the_figures_of_the_bundles_own(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        names = [name for name in archive.namelist() if "/docs/" in name]
        card = archive.read(f"{NAME}/docs/README.md").decode()
        metadata = json.loads(archive.read(f"{NAME}/configs/metadata.json"))
    assert names == [f"{NAME}/docs/README.md"], "no model card, curves or licence of the data"
    assert sha256(packed.parent.parent / "model.pt") in card and "CHASE_DB1" not in card
    assert "eval_metrics" not in metadata and "CHASE_DB1" not in json.dumps(metadata)
    validate(instance=metadata, schema=json.loads(SCHEMA.read_text()))


def test_weights_that_a_training_has_put_into_the_bundle_are_others(bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    weights = make_weights(root / "models" / "model.pt")
    learnt = {"fov_diameter": 640, "training_sha256": ["0123456789abcdef"], "validation_sha256": []}
    (root / "models" / "model.json").write_text(json.dumps(learnt))
    with zipfile.ZipFile(package_bundle(root, tmp_path / "release")) as archive:
        names = [name for name in archive.namelist() if "/docs/" in name or "/models/" in name]
        metadata = json.loads(archive.read(f"{NAME}/configs/metadata.json"))
        known = json.loads(archive.read(f"{NAME}/models/model.json"))
    assert names == [f"{NAME}/docs/README.md", *(f"{NAME}/models/model.{ending}" for ending in ("json", "pt", "ts"))]
    assert known == {"fov_diameter": 640}, "and no photograph"
    assert metadata["weights_sha256"] == sha256(weights)


def test_own_weights_from_elsewhere_bring_their_own_list(own: Path, bundle: Path, tmp_path: Path) -> None:
    """A training has put others into the bundle since."""
    root = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    make_weights(root / "models" / "model.pt")
    (root / "models" / "model.json").write_text(json.dumps({"training_sha256": ["0123456789abcdef"]}))
    path = package_bundle(root, tmp_path / "release", bundle / "models" / "model.pt")
    assert sha256(path) == sha256(own)


def test_own_weights_used_otherwise_keep_their_card(bundle: Path, tmp_path: Path) -> None:
    """And every config has what was said, nested keys, too."""
    overrides = ["--threshold", "0.4", "--network_def#adaptation", "0.0"]
    path = pack(bundle / "models" / "model.pt", tmp_path / "release", *overrides)
    with zipfile.ZipFile(path) as archive:
        packed = {name.removeprefix(f"{NAME}/"): archive.read(name) for name in archive.namelist()}
    for name in ("docs/README.md", "docs/data_license.txt"):
        assert packed[name] == (bundle / name).read_bytes()
    inference, metadata = (json.loads(packed[f"configs/{name}.json"]) for name in ("inference", "metadata"))
    assert inference["threshold"] == 0.4 and inference["network_def"]["adaptation"] == 0.0
    assert json.loads(packed["configs/train.json"])["threshold"] == 0.4
    assert "eval_metrics" not in metadata, "which are of another threshold"
    assert metadata["changelog"] == json.loads((bundle / "configs" / "metadata.json").read_bytes())["changelog"]


def test_values_of_a_training_stand_in_its_config(tmp_path: Path) -> None:
    """So that whoever has the bundle can score its weights."""
    weights = tmp_path / "model.pt"
    torch.save(UNet(base_channels=4, depth=3, num_classes=3).state_dict(), weights)
    network = ["--base_channels", "4", "--depth", "3", "--num_classes", "3"]
    path = pack(weights, tmp_path / "release", *network, "--annotation", "av", "--class_names", "['artery','vein']")
    with zipfile.ZipFile(path) as archive:
        train, inference, metadata = (
            json.loads(archive.read(f"{NAME}/configs/{name}.json")) for name in ("train", "inference", "metadata")
        )
    assert (train["annotation"], train["num_classes"], train["class_names"]) == ("av", 3, ["artery", "vein"])
    assert "annotation" not in inference and inference["num_classes"] == 3
    formats = metadata["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "artery", "2": "vein"}
    assert formats["post_processed_outputs"]["probability"]["channel_def"] == {"0": "artery", "1": "vein"}
    validate(instance=metadata, schema=json.loads(SCHEMA.read_text()))


def test_values_that_the_bundle_would_refuse(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["package", "--output-dir", str(tmp_path)]
    said = refused([*command, "--threshold", "9"], capsys)
    assert "threshold: expected a probability from 0 to 1, got 9" in said
    assert "pictures: expected some of vessels" in refused([*command, "--pictures", "['masks']"], capsys)
    assert "class_names: expected 1 different names" in refused([*command, "--class_names", "['a','b']"], capsys)
    several = [*command, "--num_classes", "3", "--class_colours", "{'1':'red'}"]
    assert "class_colours: 1: expected a colour" in refused(several, capsys)
    assert "anotation: the config has no such key, did you mean annotation?" in refused(
        [*command, "--anotation", "av"], capsys
    )
    assert not list(tmp_path.iterdir())


def test_another_package_of_the_same_name_is_not_replaced(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = packed.parent.parent / "model.pt"
    released = tmp_path / packed.name
    shutil.copyfile(packed, released)
    assert sha256(pack(weights, tmp_path)) == sha256(packed), "the same bytes are no harm"
    said = refused(["package", "--output-dir", str(tmp_path), "--checkpoint", str(weights), "--flips", "8"], capsys)
    assert f"{released}: is there already with other content" in said
    assert sha256(released) == sha256(packed)


def test_weights_of_another_network(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    torch.save(UNet(base_channels=4, depth=3, num_classes=3).state_dict(), weights)
    path = pack(weights, tmp_path / "release", "--base_channels", "4", "--depth", "3", "--num_classes", "3")
    shutil.unpack_archive(path, tmp_path)
    network = load(NAME, bundle_dir=tmp_path)
    assert network.state_dict()["output.conv.weight"].shape[:2] == (3, 4)
    metadata = json.loads((tmp_path / NAME / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert metadata["label_classes"] == "0 background, 1 class 1, 2 class 2"
    validate(instance=metadata, schema=json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("source", ["url", "github"])
def test_monai_downloads_it(
    packed: Path, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "url":
        download(NAME, bundle_dir=tmp_path, url=f"{served}/{packed.name}", progress=False)
    else:  # which builds the file's name from name and version
        monkeypatch.setattr(
            "monai.bundle.scripts._get_git_release_url", lambda owner, repo, tag_name, filename: f"{served}/{filename}"
        )
        version = packed.stem.rpartition("_v")[2]
        download(NAME, version, tmp_path, source="github", repo="owner/repository/tag", progress=False)
    root = tmp_path / NAME
    assert (root / "configs" / "inference.json").is_file()

    download_large_files(str(root))  # finds them there, and their hashes right
    weights = torch.load(packed.parent.parent / "model.pt", weights_only=True)
    network = load(NAME, bundle_dir=tmp_path, workflow_type="inference")  # which adapts, as does model.ts
    assert isinstance(network, UNet)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in weights.items())
    scripted, metadata, _ = load(NAME, bundle_dir=tmp_path, load_ts_module=True)
    image = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        torch.testing.assert_close(scripted.eval()(image), network.eval()(image))
    assert metadata["name"] == "Retinal vessel segmentation"
    assert "eval_metrics" not in metadata and "CHASE_DB1" not in json.dumps(metadata), "in model.ts"

    (root / "models" / "model.pt").write_bytes(b"damaged")
    with pytest.raises(HashCheckError, match="hash check"):
        download_large_files(str(root))


def test_the_unpacked_bundle_runs_from_anywhere(packed: Path, served: str, tmp_path: Path) -> None:
    download(NAME, bundle_dir=tmp_path, url=f"{served}/{packed.name}", progress=False)
    photographs, elsewhere, output = (tmp_path / name for name in ("photographs", "elsewhere", "masks"))
    for folder in (photographs, elsewhere):
        folder.mkdir()
    save_png(make_phantom(0, 150, 141).image, photographs / "eye.png")
    root = tmp_path / NAME
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(root)]
        + ["--config_file", str(root / "configs" / "inference.json"), "--fov_diameter", "128"]
        + ["--dataset_dir", str(photographs), "--output_dir", str(output)],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    with Image.open(output / "eye_vessels.png") as mask:
        assert mask.size == (141, 150)
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert not list(elsewhere.iterdir())


def test_what_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["package", "--output-dir", str(tmp_path / "release")]
    state = tmp_path / "last.pt"
    torch.save({"network": UNet(base_channels=16).state_dict(), "progress": {}}, state)
    assert "is the state of a training" in refused([*command, "--checkpoint", str(state)], capsys)
    other = tmp_path / "other.pt"
    torch.save(UNet(base_channels=4).state_dict(), other)
    assert "do not fit the network" in refused([*command, "--checkpoint", str(other)], capsys)
    root = tmp_path / "empty"
    shutil.copytree(bundle / "configs", root / "configs")
    assert "models/model.pt: there is no such checkpoint" in refused([*command, "--bundle-root", str(root)], capsys)
    make_weights(root / "models" / "model.pt")
    assert "LICENSE: there is no such file" in refused([*command, "--bundle-root", str(root)], capsys)
    assert not (tmp_path / "release").exists()
