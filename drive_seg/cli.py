"""The ``drive-seg`` command: turns flags into overrides of the bundle's configs, where the recipe is.

torch and MONAI are imported inside the commands, so that ``drive-seg --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from drive_seg import __version__
from drive_seg.arguments import expanded, with_flags
from drive_seg.configs import bundle_root as shipped_bundle
from drive_seg.configs import overlays, parse_overrides, path_value, split_overrides
from drive_seg.errors import CommonError, first_cause, user_error

app = typer.Typer(
    help="Segment the vessels in colour fundus photographs.",
    epilog="train, evaluate, predict, export and package take any key of the bundle's configs as --KEY VALUE, "
    "spelt as for python -m monai.bundle: --max_epochs 100 --optimizer#momentum 0.95",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # the only mode that joins a paragraph's lines
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130
"""Typer's exit code after Ctrl-C."""

_SPEAKING = 3.0
"""Seconds in which the first process prints an error of all; then torchrun may see that another one has ended."""

_OVERRIDABLE = {"allow_extra_args": True, "ignore_unknown_options": True}


def _further(config: str, *examples: str) -> str:
    """The help below a command's options: what else it takes."""
    return f"Any key of bundle/configs/{config}.json is an option, too, and explained there: {', '.join(examples)}."


BundleRoot = Annotated[
    Path | None,
    typer.Option(
        "--bundle-root", "--bundle_root", help="Bundle to take the configs from.", show_default="the one shipped"
    ),
]
DatasetDirs = Annotated[
    list[Path],
    typer.Option(
        "--dataset-dir",
        "--dataset_dir",
        help="Folder in the DRIVE layout, training|test/{images,1st_manual,mask}, with or without dataset.json. "
        "May be given several times, to train on all.",
    ),
]
ScoredDir = Annotated[
    list[Path],  # so that a second one is refused rather than replacing the first
    typer.Option(
        "--dataset-dir",
        "--dataset_dir",
        help="Folder in the DRIVE layout, training|test/{images,1st_manual,mask}, with or without dataset.json. "
        "One only: datasets are scored one at a time.",
    ),
]
OutputDir = Annotated[Path, typer.Option("--output-dir", "--output_dir", help="Folder to write into.")]
Configs = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        help="Config to lay over the command's own: one of the bundle, such as artery_vein, or a JSON file. May be "
        "given several times; --KEY VALUE comes after it.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights to use, a model.pt.", show_default="models/model.pt of the bundle")
]


@app.callback(invoke_without_command=True)
def _start(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_further(
        "train", "--max_epochs 100", "--base_channels 64", "--batch_size 4", "--learning_rate 0.02",
        "--pretrained model.pt", "--new_output_layer true", "--precision float32", "--device cpu", "--seed 1",
    ),
)  # fmt: skip
def train(
    context: typer.Context,
    dataset_dir: DatasetDirs,
    output_dir: OutputDir = Path("drive-seg-training"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt in the output folder.")] = False,
    fold: Annotated[
        str | None, typer.Option(help="k/n: hold out the k-th of n parts of the training cases, for cross-validation.")
    ] = None,
    config: Configs = None,
    bundle_root: BundleRoot = None,
) -> None:
    """Train the U-Net and save the weights with the best validation Dice as OUTPUT_DIR/model.pt.

    Example: drive-seg train --dataset-dir data/CHASE_DB1 --output-dir runs/chase --max_epochs 100
    """
    overrides = {
        "dataset_dir": _one_or_all(dataset_dir),
        "output_dir": path_value(output_dir),
        "ckpt_dir": path_value(output_dir),
        **({"resume": True} if resume else {}),
        **({} if fold is None else {"fold": fold}),
        **parse_overrides(context.args),
    }
    from drive_seg.workflows import run_workflow

    _begin()
    root = bundle_root or shipped_bundle()
    names = ["train", *overlays(root, config or (), "train"), *([] if fold is None else ["fold"])]
    parser = run_workflow(root, names, "training", overrides).parser
    if not _speaks():
        return
    weights, history = (Path(parser.get_parsed_content(key)) for key in ("ckpt_dir", "output_dir"))
    typer.echo(f"best weights: {weights / 'model.pt'}\nhistory: {history / 'history.csv'}")


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_further(
        "evaluate.json and bundle/configs/train", "--flips true (the photograph and three mirror images)",
        "--adaptation 0.5 (as predict runs it)", "--fold 1/5",
        "--section validation", "--second_annotation 2nd_manual", "--device cpu",
    ),
)  # fmt: skip
def evaluate(
    context: typer.Context,
    dataset_dir: ScoredDir,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Weights to score, a model.pt; given several times, the mean of their probabilities.",
            show_default="models/model.pt of the bundle",
        ),
    ] = None,
    output_dir: OutputDir = Path("drive-seg-evaluation"),
    threshold: Annotated[
        str | None,
        typer.Option(help="Probability from which a pixel is vessel, or auto: chosen on the validation cases."),
    ] = None,
    config: Configs = None,
    bundle_root: BundleRoot = None,
) -> None:
    """Score weights on the test cases and write metrics.csv, summary.json and report.html into OUTPUT_DIR.

    The report needs the extra: pip install 'drive-seg\\[report]'.

    If the test cases have no annotations, as in DRIVE today, the held-out validation cases are scored, with a warning.
    A case that cannot be scored is reported, and the rest are still scored. --fold k/n scores the cases that this fold
    of a cross-validation held out.

    Example: drive-seg evaluate --dataset-dir data/CHASE_DB1 --checkpoint runs/chase/model.pt
    """
    overrides = {
        "dataset_dir": _one_or_all(dataset_dir),
        "output_dir": path_value(output_dir),
        **({"checkpoint": [path_value(path) for path in checkpoint]} if checkpoint else {}),
        **parse_overrides(context.args),
    }
    from drive_seg.tables import print_scores
    from drive_seg.workflows import evaluate_weights

    _begin()
    root = bundle_root or shipped_bundle()
    laid_over = overlays(root, config or (), "train", "evaluate")
    scores = evaluate_weights(root, overrides, threshold, laid_over)
    if scores.results and _speaks():
        print_scores(scores.summary)
        report = output_dir / "report.html"
        typer.echo(f"all figures: {output_dir / 'metrics.csv'}" + (f"\nreport: {report}" if report.is_file() else ""))
    scores.raise_if_incomplete()


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation, or its summary.json.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Second evaluation.", show_default=False)],
    region: Annotated[str, typer.Option(help="fov: inside the field of view; whole: the whole image.")] = "fov",
    output: Annotated[Path | None, typer.Option(help="CSV file for every case's differences.")] = None,
) -> None:
    """Compare two evaluations of the same cases, case by case, SECOND minus FIRST.

    Prints the mean difference with its interval and the p value of a Wilcoxon signed-rank test.

    Example: drive-seg compare scores/plain scores/flips --output differences.csv
    """
    from drive_seg.compare import compare as compare_summaries
    from drive_seg.compare import read_summary
    from drive_seg.files import write_csv
    from drive_seg.tables import print_comparison

    compared = compare_summaries(read_summary(first), read_summary(second), region=region)
    print_comparison(compared)
    if output is not None:
        write_csv(output, compared["cases"])
        typer.echo(f"every case: {output}")


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_further(
        "inference", "--flips true (the photograph and three mirror images)", "--threshold 0.4",
        "--adaptation 0 (a camera of the training data)",
        "--fov_diameter 640", "--camera_angle 45 (degrees across; lengths also in millimetres)",
        "--measure false", "--pictures \"['vessels']\"",
        "--save_nifti true", "--save_dicom_seg true", "--engine torch", "--device cpu",
    ),
)  # fmt: skip
def predict(
    paths: Annotated[list[str], typer.Argument(help="Photographs, or folders of photographs.", show_default=False)],
    output_dir: OutputDir = Path("drive-seg-predictions"),
    fov_dir: Annotated[
        Path | None,
        typer.Option(
            "--fov-dir",
            "--fov_dir",
            help="Folder of field-of-view masks, such as 21_mask.png for 21.jpg.",
            show_default="the field of view is found",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    bundle_root: BundleRoot = None,
) -> None:
    """Segment photographs: a mask, a probability map and an overlay of each, at its own size, and gallery.html.

    The gallery needs the extra: pip install 'drive-seg\\[report]'.

    OUTPUT_DIR/vessels.csv lists each one's measures (density, length, calibre, branching, tortuosity) and quality.
    A photograph that cannot be segmented is reported and listed in OUTPUT_DIR/failed.csv; the rest are still segmented.

    Example: drive-seg predict clinic/ eye.jpg --checkpoint runs/chase/model.pt --output-dir masks
    """
    files, further = split_overrides(paths)
    overrides = {**_checkpoint(checkpoint), **further}
    from drive_seg.predict import segment_photographs

    _begin()
    failed = segment_photographs(bundle_root or shipped_bundle(), files, output_dir, overrides, fov_dir=fov_dir)
    if not _speaks():
        return
    typer.echo(f"results: {output_dir}")
    if failed:
        typer.echo(f"{len(failed)} could not be segmented: {output_dir / 'failed.csv'}", err=True)
        raise typer.Exit(1)


@app.command()
def demo(output_dir: OutputDir = Path("drive-seg-demo"), bundle_root: BundleRoot = None) -> None:
    """See everything work in a few minutes, without any data of your own.

    Draws phantom photographs, trains on them briefly, scores the result, and segments a real photograph.
    """
    from drive_seg.demo import run_demo

    _begin()
    run_demo(bundle_root or shipped_bundle(), output_dir, typer.echo)


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_further("inference", "--base_channels 64", "--depth 3", "--num_classes 3", "--adaptation 0"),
)
def export(
    context: typer.Context,
    checkpoint: Checkpoint = None,
    output_dir: OutputDir = Path("drive-seg-export"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="torchscript, pt2 or onnx; may be given several times.",
            show_default="all that are installed",
        ),
    ] = None,
    bundle_root: BundleRoot = None,
) -> None:
    """Write weights for other runtimes: TorchScript (model.ts), torch.export (model.pt2) and ONNX (model.onnx).

    Each file takes normalised images of any height and width from 16 pixels (80 for pt2 and onnx), and is compared with
    the network.

    Example: drive-seg export --checkpoint runs/chase/model.pt --output-dir exported
    """
    overrides = {**_checkpoint(checkpoint), **parse_overrides(context.args)}
    from drive_seg.export import TOLERANCE, export_network

    _begin()
    for exported in export_network(bundle_root or shipped_bundle(), output_dir, overrides, formats or ()):
        typer.echo(f"{exported.path}: largest difference of a logit {exported.difference:.2g} (accepted {TOLERANCE:g})")


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_further(
        "inference.json and bundle/configs/train", "--base_channels 64", "--depth 3", "--num_classes 3",
        "--threshold 0.4", "--annotation av",
    ),
)  # fmt: skip
def package(
    context: typer.Context,
    checkpoint: Checkpoint = None,
    output_dir: OutputDir = Path("drive-seg-package"),
    bundle_root: BundleRoot = None,
) -> None:
    """Pack the bundle with its weights into a zip file that python -m monai.bundle download takes.

    If you pack your own weights, docs/ and the figures, which describe the shipped weights, are left out;
    docs/README.md is then a short text for you to complete.

    Example: drive-seg package --checkpoint runs/chase/model.pt --output-dir release
    """
    from drive_seg.files import sha256
    from drive_seg.package import package_bundle

    _begin()
    path = package_bundle(bundle_root or shipped_bundle(), output_dir, checkpoint, parse_overrides(context.args))
    typer.echo(f"bundle: {path}\nsha256: {sha256(path)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error that the user can fix is printed to stderr as one sentence, with exit code 1."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started this; progress bars would fail
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115 - open as long as the process
        if hasattr(getattr(sys, stream), "reconfigure"):  # a log file's encoding may lack the letters of a path
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    if arguments is None:
        arguments = expanded(sys.argv[1:]) if os.name == "nt" else sys.argv[1:]
    arguments = with_flags(arguments)
    debug = "--debug" in arguments
    try:
        app(args=[argument for argument in arguments if argument != "--debug"])
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            typer.echo("drive-seg: stopped", err=True)
        raise
    except Exception as error:
        mendable, cause = user_error(error), first_cause(error)
        if not debug and mendable is None and isinstance(cause, PermissionError) and cause.filename is not None:
            sys.exit(f"drive-seg: {cause.filename}: cannot be read or written ({cause.strerror})")
        if debug or mendable is None:
            raise
        if isinstance(mendable, CommonError) and not _speaks():
            time.sleep(_SPEAKING)
            sys.exit(1)
        sys.exit(f"drive-seg: {mendable}")


def _begin() -> None:
    """Log for people, and warn of processes that know nothing of each other."""
    from drive_seg.distributed import warn_of_launcher
    from drive_seg.workflows import quiet

    quiet()
    warn_of_launcher()


def _speaks() -> bool:
    """Whether this process prints: only torchrun's first one does."""
    from drive_seg.distributed import get_rank

    return get_rank() == 0


def _checkpoint(path: Path | None) -> dict[str, str]:
    return {} if path is None else {"checkpoint": path_value(path)}


def _one_or_all(folders: list[Path]) -> str | list[str]:
    return path_value(folders[0]) if len(folders) == 1 else [path_value(folder) for folder in folders]


if __name__ == "__main__":
    main()
