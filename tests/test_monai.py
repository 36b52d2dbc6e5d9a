"""The bundle in the hands of MONAI and of what is built on it: metadata, load, create_workflow, MonaiAlgo, apps."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from ignite.metrics import Average
from jsonschema import ValidationError, validate
from monai.bundle import ConfigWorkflow, create_workflow, load, verify_metadata, verify_net_in_out
from monai.data import CacheDataset, Dataset
from monai.fl.utils.constants import ModelType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.transforms import AsDiscreted, Compose, CopyItemsd
from PIL import Image
from running import SCHEMA, SMALL, table

from drive_seg.checkpoints import save_checkpoint
from drive_seg.configs import check_overrides, config_files, parse_overrides
from drive_seg.learnt_cases import learnt_cases, photograph_id
from drive_seg.networks import UNet


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_metadata_is_verified_by_monai(bundle: Path, tmp_path: Path) -> None:
    """With the schema already where it would be downloaded to, and its hash, MONAI needs no network."""
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    digest = hashlib.md5(SCHEMA.read_bytes(), usedforsecurity=False).hexdigest()
    verify_metadata(str(bundle / "configs" / "metadata.json"), filepath=schema, hash_val=digest, hash_type="md5")


@pytest.mark.parametrize(("key", "value"), [
    ("version", None),
    ("version", "first"),
    ("monai_version", 1.6),
    ("required_packages_version", ["pillow"]),
    ("network_data_format", {"inputs": {"image": {"type": "image"}}, "outputs": {}}),
    ("auhtors", "somebody"),
])  # fmt: skip
def test_the_schema_notices_what_is_wrong(bundle: Path, tmp_path: Path, key: str, value: Any) -> None:
    metadata = read(bundle / "configs" / "metadata.json")
    metadata = {**metadata, key: value} if value is not None else {k: v for k, v in metadata.items() if k != key}
    with pytest.raises(ValidationError):
        validate(instance=metadata, schema=read(SCHEMA))
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    digest = hashlib.md5(SCHEMA.read_bytes(), usedforsecurity=False).hexdigest()
    with pytest.raises(ValueError, match="against schema"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA), hash_val=digest)


def test_metadata_names_the_versions_that_were_tested(bundle: Path) -> None:
    metadata = read(bundle / "configs" / "metadata.json")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if re.match(r"^[\w-]+==", line))
    own = re.search(r'__version__ = "(.+)"', (ROOT / "drive_seg" / "__init__.py").read_text(encoding="utf-8"))
    assert own is not None and metadata["version"] == own[1] and own[1] in metadata["changelog"]
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    for package, version in {**metadata["required_packages_version"], **named}.items():
        assert version == (own[1] if package == "drive-seg" else tested[package]), package


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_network_is_as_metadata_says(bundle: Path, name: str) -> None:
    files = {kind: str(bundle / "configs" / f"{kind}.json") for kind in (name, "metadata")}
    verify_net_in_out("network_def", meta_file=files["metadata"], config_file=files[name], device="cpu", n=2)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out(
            "network_def", meta_file=files["metadata"], config_file=files[name], device="cpu", num_classes=3
        )


@pytest.fixture(scope="module")
def copied(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as ``monai.bundle.load`` expects it below ``bundle_dir``, with weights of the shipped size."""
    folder = tmp_path_factory.mktemp("bundles") / "retinal_vessels"
    shutil.copytree(bundle / "configs", folder / "configs")
    torch.manual_seed(1)
    save_checkpoint(UNet(base_channels=16).state_dict(), folder / "models" / "model.pt")
    return folder


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def has_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    state = network.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name].cpu(), weights[name]) for name in weights)


@pytest.mark.parametrize("workflow_type", ["train", "inference"])
def test_load(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workflow_type: str) -> None:
    monkeypatch.chdir(tmp_path)
    network = load(copied.name, bundle_dir=copied.parent, workflow_type=workflow_type, device="cpu")
    assert isinstance(network, UNet) and has_weights(network, saved_weights(copied))
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 3, 45, 33)).shape == (1, 2, 45, 33)
    assert not list(tmp_path.iterdir()), "loading writes nothing"


@pytest.mark.parametrize("workflow_type", ["train", "inference"])
def test_load_with_another_network(copied: Path, workflow_type: str) -> None:
    """The last layer is another for three classes and stays random; the rest comes from the weights."""
    network = load(
        copied.name,
        bundle_dir=copied.parent,
        workflow_type=workflow_type,
        device="cpu",
        net_override={"num_classes": 3},
    )
    weights, state = saved_weights(copied), network.state_dict()
    assert state["output.conv.weight"].shape[0] == 3
    shared = [name for name in state if not name.startswith("output.conv")]
    assert shared and all(torch.equal(state[name], weights[name]) for name in shared)


def test_load_into_a_network_of_ones_own(copied: Path) -> None:
    network = UNet(base_channels=16)
    assert load(copied.name, model=network, bundle_dir=copied.parent, device="cpu") is network
    assert has_weights(network, saved_weights(copied))


ANOTHER_PROGRAM = """
import sys

import torch
from monai.bundle import create_workflow
from monai.data import decollate_batch, list_data_collate

bundle, photograph, output = sys.argv[1:]
workflow = create_workflow(
    config_file=f"{bundle}/configs/inference.json", workflow_type="inference", bundle_root=bundle, output_dir=output
)
network = workflow.network_def.eval()
network.load_state_dict(torch.load(f"{bundle}/models/model.pt", weights_only=True))
batch = list_data_collate([workflow.preprocessing({"image": photograph})])
with torch.inference_mode():
    batch["pred"] = workflow.inferer(batch["image"], network)
result = workflow.postprocessing(decollate_batch(batch)[0])
print(tuple(result["pred"].shape), result["pred"].dtype, tuple(result["probability"].shape))
"""


def test_parts_of_a_workflow_in_another_program(copied: Path, phantoms: Path, tmp_path: Path) -> None:
    photograph = sorted((phantoms / "test" / "images").iterdir())[0]
    (tmp_path / "program.py").write_text(ANOTHER_PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", str(copied), str(photograph), str(tmp_path / "masks")],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "(1, 150, 141) torch.uint8 (1, 150, 141)"
    assert (tmp_path / "masks" / f"{photograph.stem}_vessels.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"program.py", "masks"}


def workflow_of(bundle: Path, kind: str, dataset: Path, output: Path, **others: Any) -> ConfigWorkflow:
    return create_workflow(
        config_file=str(bundle / "configs" / ("train.json" if kind == "train" else "inference.json")),
        workflow_type=kind, bundle_root=str(bundle), logging_file=False, dataset_dir=str(dataset),
        output_dir=str(output), **others,
    )  # fmt: skip


def test_properties_of_a_training_can_be_set(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    values = {**SMALL, "ckpt_dir": str(tmp_path)}
    workflow = workflow_of(bundle, "train", tmp_path / "nowhere", tmp_path, **values)
    workflow.dataset_dir = str(phantoms)
    workflow.max_epochs = 3
    workflow.val_interval = 3
    workflow.initialize()
    assert workflow.check_properties() == []
    absent = ("train_postprocessing", "train_key_metric")
    assert [name for name in workflow.properties if getattr(workflow, name) is None] == list(absent)
    assert workflow.dataset_dir == str(phantoms) and workflow.max_epochs == 3
    workflow.run()
    assert workflow.trainer.state.epoch == 3
    assert workflow.evaluator.state.epoch == 3, "validated once, after the third epoch"
    schedule = workflow.parser.get_parsed_content("lr_scheduler")
    assert schedule.last_epoch == schedule.lr_lambdas[0].__self__.t_total == 3 * len(workflow.trainer.data_loader)


def test_properties_of_an_inference_can_be_set(copied: Path, phantoms: Path, tmp_path: Path) -> None:
    workflow = workflow_of(copied, "inference", tmp_path / "nowhere", tmp_path)
    workflow.dataset_dir = str(phantoms / "test" / "images")
    workflow.device = "cpu"
    workflow.initialize()
    assert workflow.check_properties() == []
    assert [name for name in workflow.properties if getattr(workflow, name) is None] == ["key_metric"]
    workflow.run()
    assert len(list(tmp_path.glob("*_vessels.png"))) == len(workflow.dataset_data) == 2


def test_patches_are_postprocessed_and_measured_on_request(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    values = {**SMALL, "max_epochs": 1, "ckpt_dir": str(tmp_path)}
    workflow = workflow_of(bundle, "train", phantoms, tmp_path, **values)
    workflow.train_postprocessing = Compose([AsDiscreted("pred", argmax=True), CopyItemsd("pred", names="classes")])
    workflow.train_key_metric = {
        "channels": Average(lambda output: float(sum(len(item["classes"]) for item in output) / len(output)))
    }
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert workflow.trainer.state.metrics == {"channels": 1.0}


def test_cases_can_be_given_as_datasets(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    values = {**SMALL, "max_epochs": 1, "ckpt_dir": str(tmp_path)}
    workflow = workflow_of(bundle, "train", phantoms, tmp_path, **values)
    cases, of_training, of_validation = (
        workflow.train_dataset_data, workflow.train_preprocessing, workflow.val_preprocessing
    )  # fmt: skip
    workflow.train_dataset = CacheDataset(cases[2:], of_training, progress=False)
    workflow.val_preprocessing = of_validation  # the same object, which is undone after the network
    workflow.val_dataset = Dataset(cases[:2], of_validation)
    workflow.initialize()
    workflow.run()
    assert workflow.trainer.state.epoch_length == 2 and workflow.evaluator.state.epoch_length == 2
    learnt = {
        role: set(map(photograph_id, share)) for role, share in (("training", cases[2:]), ("validation", cases[:2]))
    }
    assert learnt_cases([tmp_path / "model.pt"]) == learnt


def test_the_trainers_own_arguments_can_be_set(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    """Schedule, history and last.pt are of what the trainer uses, whichever key has set it."""
    of_trainer = {
        "train#trainer#optimizer": {
            "_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 0.003
        },
        "train#trainer#loss_function": {"_target_": "FocalLoss", "ignore_index": 255, "to_onehot_y": True},
    }  # fmt: skip
    workflow = workflow_of(bundle, "train", phantoms, tmp_path, **SMALL, ckpt_dir=str(tmp_path), **of_trainer)
    workflow.run()
    optimizer = workflow.trainer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert workflow.parser.get_parsed_content("lr_scheduler").optimizer is optimizer
    rates = [float(row["learning_rate"]) for row in table(tmp_path / "history.csv")]
    assert rates[0] == 0.003 > rates[1] > 0
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["settings"]["optimizer"].startswith("AdamW(") and state["settings"]["loss"].startswith("FocalLoss(")
    assert len(state["optimizer"]["state"]) == len(list(workflow.network_def.parameters()))
    resumed = workflow_of(bundle, "train", phantoms, tmp_path, **SMALL, ckpt_dir=str(tmp_path), resume=True)
    with pytest.raises(RuntimeError) as raised:
        resumed.run()
    assert "last.pt: loss: expected FocalLoss(" in str(raised.value.__cause__)


def test_parts_of_an_inference_can_be_replaced(copied: Path, phantoms: Path, tmp_path: Path) -> None:
    workflow = workflow_of(copied, "inference", phantoms / "test" / "images", tmp_path, device="cpu")
    workflow.postprocessing = Compose([AsDiscreted("pred", argmax=True)])
    workflow.key_metric = {"channels": Average(lambda output: float(len(output[0]["pred"])))}
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert workflow.evaluator.state.metrics == {"channels": 1.0}
    assert not list(tmp_path.iterdir()), "nothing was measured or saved"


def test_measures_of_photographs_in_memory(copied: Path, phantoms: Path, tmp_path: Path) -> None:
    photograph = sorted((phantoms / "test" / "images").iterdir())[0]
    workflow = workflow_of(copied, "inference", photograph, tmp_path, device="cpu")
    read = workflow.preprocessing

    def without_metadata(case: dict[str, Any]) -> dict[str, Any]:
        case = read(case)
        return {**case, "photograph": case["photograph"].as_tensor()}

    workflow.preprocessing = read
    workflow.dataset = Dataset([{"image": str(photograph)}], without_metadata)
    workflow.parser["postprocessing#transforms"].pop()  # names its files after the photograph's
    workflow.initialize()
    workflow.run()
    (row,) = table(tmp_path / "vessels.csv")
    assert row["photograph"] == "" and float(row["vessel_density_share"]) >= 0


CARD, FEDERATED = (
    (ROOT / "bundle" / "docs" / name).read_text(encoding="utf-8") for name in ("README.md", "federated.md")
)
SECTION = CARD.split("## Use it from MONAI")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"```(\w+)\n(.*?)```", SECTION + FEDERATED, flags=re.DOTALL)


def test_the_cards_examples(copied: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one runs as it stands, those of federated trainings, too, with bundle and data where it names them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(copied, tmp_path / "bundle")
    shutil.copytree(phantoms, tmp_path / "data" / "mine")
    (tmp_path / "photographs").mkdir()
    with Image.open(sorted((phantoms / "test" / "images").iterdir())[0]) as photograph:
        photograph.save(tmp_path / "photographs" / "eye.jpg")
    names: dict[str, Any] = {}
    for language, example in EXAMPLES:
        if language == "python":
            exec(compile(example, "README.md", "exec"), names)  # the card is ours
    assert has_weights(names["network"], saved_weights(copied))
    assert names["case"]["image"].shape[0] == 3
    assert (tmp_path / "bundle" / "eval" / "eye_vessels.png").is_file()
    algo = names["algo"]
    assert algo.trainer.state.max_epochs == 5
    best = algo.model_filepaths[ModelType.BEST_MODEL]
    assert best == str(tmp_path / "runs" / "site" / "local" / "model.pt"), "not the bundle's"
    schedule = algo.train_workflow.parser.get_parsed_content("lr_scheduler")
    assert schedule.lr_lambdas[0].__self__.t_total == 10 * 5 * len(algo.trainer.data_loader)
    metrics = algo.evaluate(ExchangeObject(weights=names["network"].state_dict())).metrics
    assert 0 <= metrics["val_dice"] <= 1
    algo.finalize()


def test_the_cards_command(bundle: Path) -> None:
    command, _ = (shlex.split(example.replace("\\\n", " ")) for language, example in EXAMPLES if language == "bash")
    assert command[:5] == ["python", "-m", "monai.bundle", "run", "training"]
    values = parse_overrides(command[5:])
    assert values.pop("config_file") == "bundle/configs/train.json"
    check_overrides(config_files(bundle, "train"), values)
