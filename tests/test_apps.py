"""What MONAI Label and MONAI Deploy read from a bundle, and what they do with it.

Neither is installed here. Their steps are taken one by one, as in these files of theirs:

- MONAI Label, https://github.com/Project-MONAI/MONAILabel: ``monailabel/tasks/infer/bundle.py`` (``BundleConstants``
  and ``BundleInferTask``) and ``monailabel/tasks/train/bundle.py`` (``BundleConstants`` and ``BundleTrainTask``);
- MONAI Deploy, https://github.com/Project-MONAI/monai-deploy-app-sdk:
  ``monai/deploy/operators/monai_bundle_inference_operator.py`` (``BundleConfigNames`` and
  ``MonaiBundleInferenceOperator``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged, MapTransform
from running import SMALL

from drive_seg.checkpoints import save_checkpoint
from drive_seg.networks import UNet


@pytest.fixture
def small_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy with weights whose configs are of a small network, because the apps override no such key."""
    root = tmp_path / "retinal_vessels"
    shutil.copytree(bundle / "configs", root / "configs")
    for name in ("train", "inference"):
        file = root / "configs" / f"{name}.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, **{key: value for key, value in SMALL.items() if key in config}}))
    save_checkpoint(UNet(base_channels=4, depth=3).state_dict(), root / "models" / "model.pt")
    return root


def parser_of(root: Path, name: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / f"{name}.json"))
    parser.read_meta(str(root / "configs" / "metadata.json"))
    parser.config["bundle_root"] = str(root)
    return parser


@pytest.mark.parametrize("key", ["bundle_root", "device", "network_def", "preprocessing", "postprocessing", "inferer"])
def test_keys_of_monai_labels_inference(bundle: Path, key: str) -> None:
    """``BundleConstants`` of ``tasks/infer/bundle.py``: ``key_device`` and those after it."""
    assert parser_of(bundle, "inference").get(key) is not None


@pytest.mark.parametrize("key", [
    "bundle_root", "device", "network", "network_def", "train#trainer#max_epochs", "train#dataset#data",
    "train#handlers", "validate#dataset#data",
])  # fmt: skip
def test_keys_of_monai_labels_training(bundle: Path, key: str) -> None:
    """``BundleConstants`` of ``tasks/train/bundle.py``: ``key_train_dataset_data`` and the others."""
    assert parser_of(bundle, "train").get(key) is not None
    assert (bundle / "configs" / "multi_gpu_train.json").is_file(), "its name for trainings on several GPUs"


def test_metadata_that_the_apps_read(bundle: Path) -> None:
    """The first input and output by name, the labels among the output's channels, the number of dimensions."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    (key_image, image), *_ = metadata["network_data_format"]["inputs"].items()
    (key_pred, pred), *_ = metadata["network_data_format"]["outputs"].items()
    assert (key_image, key_pred) == ("image", "pred")
    labels = {name.lower(): int(number) for number, name in pred["channel_def"].items() if name.lower() != "background"}
    assert labels == {"vessel": 1}
    assert len(image["spatial_shape"]) == 2
    assert image["type"] in ("image", "series", "tuples", "probabilities")
    assert metadata["version"] and metadata["description"]


def test_monai_labels_inference(small_bundle: Path, phantoms: Path) -> None:
    """``BundleInferTask``: the device by name, transforms as lists, weights loaded strictly into ``network_def``."""
    parser = parser_of(small_bundle, "inference")
    parser.config["device"] = "cpu"
    network = parser.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(small_bundle / "models" / "model.pt", weights_only=True), strict=True)
    before, inferer, after = (parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing"))
    assert isinstance(before, Compose) and isinstance(after, Compose) and isinstance(inferer, Inferer)
    assert any(isinstance(transform, LoadImaged) for transform in before.transforms)
    case: Any = {"image": str(sorted((phantoms / "test" / "images").iterdir())[0])}
    for transform in before.transforms:
        case = transform(case)
    batch = list_data_collate([case])
    with torch.inference_mode():
        batch["pred"] = inferer(batch["image"], network.eval())
    result: Any = decollate_batch(batch)[0]
    for transform in after.transforms:
        result = transform(result)
    assert tuple(result["pred"].shape) == (1, 150, 141)


def test_monai_labels_training(small_bundle: Path, phantoms: Path) -> None:
    """``BundleTrainTask.run_single_gpu``: cases of image and label alone, from the bundle's own weights."""
    folder = phantoms / "training"
    images, labels = (sorted((folder / name).iterdir()) for name in ("images", "1st_manual"))
    cases = [{"image": str(image), "label": str(label)} for image, label in zip(images, labels, strict=True)]
    handlers = parser_of(small_bundle, "train").get("train#handlers")
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(small_bundle / "models" / "model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    before = (small_bundle / "models" / "model.pt").read_bytes()
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(small_bundle / "configs" / "metadata.json"),
        config_file=str(small_bundle / "configs" / "train.json"),
        **{
            "bundle_root": str(small_bundle),
            "train#trainer#max_epochs": 1,
            "train#dataset#data": cases[:-1],
            "train#handlers": [loader, *handlers],
            "validate#dataset#data": cases[-1:],
            "device": "cpu",
        },
    )
    state = torch.load(small_bundle / "models" / "last.pt", weights_only=True)
    assert state["progress"]["epoch"] == 1
    assert (small_bundle / "models" / "model.pt").read_bytes() != before


def test_monai_deploys_inference(small_bundle: Path, phantoms: Path) -> None:
    """``MonaiBundleInferenceOperator``: the image comes as an array, so what loads and saves images is left out.

    Both ends must then begin with a transform of dictionaries (``is_map_compose``). The network is called by keyword.
    """
    parser = parser_of(small_bundle, "inference")
    parser["save"] = False  # what writes the results has another name than those that the operator leaves out
    assert parser.get("device") is not None
    device = parser.get_parsed_content("device")
    before, after = (parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing"))
    for compose in (before, after):
        compose.transforms = tuple(
            transform
            for transform in compose.transforms
            if not any(name in type(transform).__name__ for name in ("LoadImage", "SaveImage"))
        )
        assert isinstance(compose.transforms[0], MapTransform)
    loaded = LoadImaged("image", reader="PILReader", image_only=True, ensure_channel_first=True, reverse_indexing=False)
    photograph = loaded({"image": str(sorted((phantoms / "test" / "images").iterdir())[0])})["image"]
    inputs = before({"image": MetaTensor(photograph.as_tensor().to(torch.uint8))})
    image = inputs["image"]
    network = parser.get_parsed_content("network_def").eval().to(device)
    with torch.no_grad():
        pred = parser.get_parsed_content("inferer")(inputs=image[None].to(device), network=network)
    result = after({"pred": pred[0], **inputs})
    assert tuple(result["pred"].shape) == (1, *photograph.shape[1:])
