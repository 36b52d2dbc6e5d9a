"""The bundle in a federated training: MONAI's client as NVFLARE runs it, on two sites."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import small
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from running import SMALL

from drive_seg.learnt_cases import learnt_cases, learnt_scale
from drive_seg.phantom import write_phantom_dataset

ROUNDS = 2
LOCAL_EPOCHS = 12
FEW_EPOCHS = 2
RECIPE = {**SMALL, "base_channels": 8, "val_interval": LOCAL_EPOCHS, "warmup_steps": 5, "device": "cpu"}
server_network = partial(small, base_channels=RECIPE["base_channels"], depth=RECIPE["depth"])


def site(bundle: Path, folder: Path, seed: int, send_weight_diff: bool = False) -> MonaiAlgo:
    """A site with phantoms of its own, 5 to train on and 1 to validate on."""
    write_phantom_dataset(folder / "data", training=6, test=1, seed=seed, height=150, width=141)
    values = {**RECIPE, "dataset_dir": str(folder / "data"), "output_dir": str(folder)}
    algo = MonaiAlgo(
        bundle_root=str(bundle),
        local_epochs=LOCAL_EPOCHS,
        send_weight_diff=send_weight_diff,
        train_kwargs={
            **values,
            "ckpt_dir": str(folder / "local"),
            # MONAI sets the trainer's epochs to those of a round; the schedule is to last for all rounds.
            "lr_scheduler#t_total": f"${ROUNDS} * @train#trainer#max_epochs * len(@train#dataloader)",
        },
        config_evaluate_filename="configs/train.json",
        eval_kwargs={**values, "ckpt_dir": str(folder / "global")},
        best_model_filepath=str(folder / "local" / "model.pt"),
    )
    algo.initialize({ExtraItems.CLIENT_NAME: folder.name})
    return algo


def averaged(replies: list[ExchangeObject]) -> dict[str, torch.Tensor]:
    """FedAvg: the mean of the sites' weights, each counted by its number of steps."""
    steps = [reply.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] for reply in replies]
    names = replies[0].weights
    return {
        name: sum(n / sum(steps) * reply.weights[name].double() for n, reply in zip(steps, replies, strict=True)).to(
            names[name].dtype
        )
        for name in names
    }


def dice(algo: MonaiAlgo, weights: Mapping[str, torch.Tensor]) -> float:
    return float(algo.evaluate(ExchangeObject(weights=dict(weights))).metrics["val_dice"])


@pytest.mark.slow
def test_two_sites_learn_together(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sites = [site(bundle, tmp_path / f"site{number}", seed=number) for number in (1, 2)]
    weights: dict[str, torch.Tensor] = server_network(0).state_dict()
    course = [[dice(algo, weights) for algo in sites]]
    for number in range(1, ROUNDS + 1):
        replies = []
        for algo in sites:
            algo.train(ExchangeObject(weights={name: weight.clone() for name, weight in weights.items()}))
            replies.append(algo.get_weights())
            assert algo.trainer.state.epoch == number * LOCAL_EPOCHS
        assert all(reply.weight_type == WeightType.WEIGHTS for reply in replies)
        weights = averaged(replies)
        course.append([dice(algo, weights) for algo in sites])
    print("validation Dice by round, one figure a site:", course)
    for before, after in zip(course[0], course[-1], strict=True):
        assert after > before + 0.2
    for algo, folder in zip(sites, ("site1", "site2"), strict=True):
        best = algo.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL})
        assert best.weights.keys() == weights.keys()
        assert (tmp_path / folder / "global" / "model.pt").is_file(), "the best weights of the federation"
        algo.finalize()
    assert {path.name for path in tmp_path.iterdir()} == {"site1", "site2"}


def test_a_round_starts_from_the_servers_weights(bundle: Path, tmp_path: Path) -> None:
    """Without a step nothing but the batch statistics differs from what the server has sent."""
    folder = tmp_path / "site"
    write_phantom_dataset(folder / "data", training=5, test=1, seed=3, height=130, width=121)
    algo = MonaiAlgo(
        bundle_root=str(bundle),
        local_epochs=1,
        train_kwargs={
            **RECIPE,
            "learning_rate": 0.0,
            "dataset_dir": str(folder / "data"),
            "output_dir": str(folder),
            "ckpt_dir": str(folder),
        },
        config_evaluate_filename=None,
    )
    algo.initialize()
    for seed in (1, 2):
        network = server_network(seed)
        algo.train(ExchangeObject(weights=network.state_dict()))
        reply = algo.get_weights()
        assert reply.weight_type == WeightType.WEIGHT_DIFF
        assert all(not reply.weights[name].any() for name, _ in network.named_parameters())
    algo.finalize()


def test_an_evaluation_is_of_the_servers_weights(bundle: Path, tmp_path: Path) -> None:
    """With MONAI's default for the config, too, whatever lies in the bundle."""
    write_phantom_dataset(tmp_path / "data", training=5, test=1, seed=3, height=130, width=121)
    values = {**RECIPE, "dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    torch.save(server_network().state_dict(), tmp_path / "model.pt")  # of a local round
    algo = MonaiAlgo(bundle_root=str(bundle), train_kwargs=values, eval_kwargs=values)
    algo.initialize()
    scores = []
    for seed in (1, 2):
        network = server_network(seed)
        scores.append(algo.evaluate(ExchangeObject(weights=network.state_dict())).metrics["roc_auc"])
    assert scores[0] != scores[1]
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["checkpoints"] == [], "no file is taken for what was scored"
    algo.finalize()


def test_a_site_that_only_evaluates_keeps_the_best_weights(bundle: Path, tmp_path: Path) -> None:
    """The epoch of each of its evaluations is 1."""
    write_phantom_dataset(tmp_path / "data", training=5, test=1, seed=3, height=130, width=121)
    values = {**RECIPE, "dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path)}
    algo = MonaiAlgo(
        bundle_root=str(bundle),
        train_kwargs={**values, "ckpt_dir": str(tmp_path / "local")},
        config_evaluate_filename="configs/train.json",
        eval_kwargs={**values, "ckpt_dir": str(tmp_path / "global")},
    )
    algo.initialize()
    best = -1.0
    for seed in (1, 2, 1):
        weights = server_network(seed).state_dict()
        score = dice(algo, weights)
        if score > best:
            best, of_best = score, weights
        saved = torch.load(tmp_path / "global" / "model.pt", weights_only=True)
        assert all(torch.equal(saved[name], of_best[name]) for name in of_best)
    algo.finalize()


def test_what_other_sites_have_trained_on_is_not_known(bundle: Path, tmp_path: Path) -> None:
    """A list of this site's photographs alone would say that any others are new to the server's weights."""
    write_phantom_dataset(tmp_path / "data", training=5, test=1, seed=3, height=130, width=121)
    values = {**RECIPE, "val_interval": 1, "dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path)}
    algo = MonaiAlgo(
        bundle_root=str(bundle),
        train_kwargs={**values, "ckpt_dir": str(tmp_path / "local")},
        config_evaluate_filename="configs/train.json",
        eval_kwargs={**values, "ckpt_dir": str(tmp_path / "global")},
    )
    algo.initialize()
    weights = ExchangeObject(weights=server_network().state_dict())
    for number in (1, 2):
        algo.train(weights)
        state = torch.load(tmp_path / "local" / "last.pt", weights_only=True)
        assert (state["learnt_cases"]["photographs"] is None) is (number > 1)
    algo.evaluate(weights)
    best = [tmp_path / "global" / "model.pt"]
    assert learnt_cases(best) is None and learnt_scale(best) == RECIPE["fov_diameter"]
    algo.finalize()


def documented(bundle: Path) -> tuple[dict, dict]:
    """NVFLARE's configs of the server and of a site, as the bundle's documentation has them."""
    server, client = re.findall(r"```json\n(.*?)```", (bundle / "docs" / "federated.md").read_text(), flags=re.DOTALL)
    return json.loads(server), json.loads(client)


def write_job(job: Path, bundle: Path, sites: Mapping[str, Path]) -> None:
    """The documented configs as a job for NVFLARE, with these sites, few epochs and a small dataset."""
    server, client = documented(bundle)
    server["workflows"][0]["args"]["num_rounds"] = ROUNDS
    server["components"][0]["args"]["bundle_root"] = str(bundle)
    apps = {"app_server": ("server", server)}
    for name, folder in sites.items():
        algo = json.loads(json.dumps(client))
        values = {**RECIPE, "val_interval": 1, "dataset_dir": str(folder / "data"), "output_dir": str(folder)}
        arguments = algo["components"][0]["args"]
        arguments.update(bundle_root=str(bundle), local_epochs=FEW_EPOCHS)
        arguments["train_kwargs"] = {
            **values,
            "ckpt_dir": str(folder / "local"),
            "lr_scheduler#t_total": arguments["train_kwargs"]["lr_scheduler#t_total"].replace("10", str(ROUNDS)),
        }
        arguments["eval_kwargs"] = {**values, "ckpt_dir": str(folder / "global")}
        assert arguments["best_model_filepath"] == "/runs/site/local/model.pt", "not the bundle's"
        arguments["best_model_filepath"] = str(folder / "local" / "model.pt")
        apps[f"app_{name}"] = (name, algo)
    for app, (target, config) in apps.items():
        (job / app / "config").mkdir(parents=True)
        kind = "server" if target == "server" else "client"
        (job / app / "config" / f"config_fed_{kind}.json").write_text(json.dumps(config))
    deploy = {app: [target] for app, (target, _) in apps.items()}
    meta = {"name": "vessels", "resource_spec": {}, "min_clients": len(sites), "deploy_map": deploy}
    (job / "meta.json").write_text(json.dumps(meta))


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="monai-nvflare is not to be had for Python 3.12 and newer")
def test_two_sites_learn_together_in_nvflare(bundle: Path, tmp_path: Path) -> None:
    # NVFLARE's server takes the network as the bundle's config has it, so that the config itself is made small.
    bundle = Path(shutil.copytree(bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("models", "eval")))
    train = bundle / "configs" / "train.json"
    config = json.loads(train.read_text())
    train.write_text(json.dumps({**config, **{key: RECIPE[key] for key in ("base_channels", "depth")}}))
    sites = {f"site-{number}": tmp_path / f"site{number}" for number in (1, 2)}
    for number, folder in enumerate(sites.values()):
        write_phantom_dataset(folder / "data", training=6, test=1, seed=number, height=150, width=141)
    write_job(tmp_path / "job", bundle, sites)
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(tmp_path / "job"), "-w", str(tmp_path / "work")]
    done = subprocess.run([*command, "-c", ",".join(sites), "-t", "2"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    saved = tmp_path / "work" / "server" / "simulate_job" / "app_server" / "FL_global_model.pt"
    weights = torch.load(saved, weights_only=True)["model"]
    network = server_network()
    network.load_state_dict({key: torch.as_tensor(value) for key, value in weights.items()})
    steps = int(network.first[1].num_batches_tracked)
    # The server's network counts the steps of a site, in every round; that they learn, the test above shows.
    assert steps == ROUNDS * FEW_EPOCHS * 3, "3 batches of 2 of the 5 cases of a site"
    for folder in sites.values():
        assert (folder / "global" / "model.pt").is_file()
