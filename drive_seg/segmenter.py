"""Segment photographs with the parts of the bundle's inference config."""

from __future__ import annotations

import logging
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged
from torch import nn

from drive_seg.arrays import to_numpy, without_metadata
from drive_seg.checkpoints import load_weights
from drive_seg.configs import read_configs
from drive_seg.data import Case
from drive_seg.devices import check_device, number_type, usable_cores
from drive_seg.distributed import get_rank, get_world_size
from drive_seg.errors import DriveSegError, first_cause, unwrapped, user_error
from drive_seg.learnt_cases import another_scale
from drive_seg.networks import UNet
from drive_seg.openvino_network import OpenVINONetwork, choose_engine, openvino_network

__all__ = ["Segmentation", "Segmenter"]

_logger = logging.getLogger(__name__)

_LOST_DEVICE: Any = getattr(torch, "AcceleratorError", ())
"""After such an error, which no photograph causes, a GPU fails at everything. Lack of memory is not one of them."""

WORKERS = 4
"""Most photographs that an engine works on at once, if it can: each needs memory of its own."""

WORKERS_BESIDE_GPU = 8
"""Most threads that read and write while a GPU computes, which is many times as fast as one of them."""


@dataclass(frozen=True)
class Segmentation:
    """The result for a photograph, at its own size.

    Attributes:
        probability: of vessel, all vessel classes together, (H, W), float32, 0 to 1; 0 outside the field of view.
        mask: class values, (H, W), uint8; 0 is background and everything outside the field of view.
        fov: field of view, (H, W), bool.
        class_probabilities: of each vessel class, (num_classes - 1, H, W), float32, 0 to 1; they sum to
            ``probability``.
        measures: the row of ``vessels.csv``, see ``drive_seg.measures.MeasureVesselsd``; None unless ``measure`` is
            true.
    """

    probability: np.ndarray
    mask: np.ndarray
    fov: np.ndarray
    class_probabilities: np.ndarray
    measures: dict[str, Any] | None = None


class Segmenter:
    """Turns photographs into vessel masks.

    Args:
        network: with its weights.
        preprocessing, inferer, postprocessing: as in ``inference.json``.
        device: device of the network.
        checkpoint: file of its weights, for the record.
        engine: engine that runs the network, ``torch`` or ``openvino``, for the record.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Compose,
        inferer: Inferer,
        postprocessing: Compose,
        device: torch.device,
        checkpoint: str = "",
        engine: str = "torch",
    ) -> None:
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.device = device
        self.checkpoint = checkpoint
        self.engine = engine

    @property
    def precision(self) -> str:
        """The number type that the network computes in: ``float32``, ``bfloat16`` or ``float16``."""
        if isinstance(self.network, OpenVINONetwork):
            return self.network.precision
        return number_type(self.device, getattr(self.inferer, "precision", "float32"))

    @classmethod
    @unwrapped()
    def from_config(cls, files: Sequence[str], overrides: Mapping[str, Any], many: bool = False) -> Segmenter:
        """Build from config files and load the weights that they name.

        Args:
            files: configs, the base first.
            overrides: config keys and their values.
            many: for ``each``, with several photographs at once if the engine can, rather than for one now and then.

        Raises:
            DriveSegError: if an override names a key they do not have, or the weights are missing or do not fit.
        """
        parser = read_configs(files, overrides)
        check_device(parser.get_parsed_content("device"))
        checkpoint = str(parser.get_parsed_content("checkpoint"))
        network = load_weights(parser.get_parsed_content("network"), checkpoint)
        names = ("preprocessing", "inferer", "postprocessing", "device")
        parts = {name: parser.get_parsed_content(name) for name in names}
        parts["device"] = torch.device(parts["device"])
        asked = parser.get_parsed_content("fov_diameter") if "fov_diameter" in parser else None
        scale = another_scale([checkpoint], asked)
        if scale is not None and get_rank() == 0:
            _logger.warning("%s: %s", checkpoint, scale)
        engine = choose_engine(parser.get_parsed_content("engine"), parts["device"], network)
        if engine == "openvino" and isinstance(network, UNet):
            streams = min(WORKERS, _threads()) if many else None
            network = openvino_network(network, parser.get_parsed_content("precision"), streams=streams)
        return cls(network, **parts, checkpoint=checkpoint, engine=engine)

    def __call__(
        self, photograph: str | os.PathLike | np.ndarray, fov: str | os.PathLike | np.ndarray | None = None
    ) -> Segmentation:
        """Segment one photograph.

        Args:
            photograph: a file, or an array (H, W, 3), uint8, RGB, rows first.
            fov: its FOV mask, a file or an array (H, W) that is non-zero inside; None: it is estimated.

        Returns:
            Probabilities and masks at the photograph's own size, and its measures if ``measure`` is true.

        Raises:
            DriveSegError: if the photograph cannot be read or has no field of view.
        """
        case: dict[str, Any] = {"image": _channel_first(photograph, "image", 3)}
        if fov is not None:
            case["fov"] = _channel_first(fov, "fov", 1)
            if isinstance(photograph, np.ndarray) != isinstance(fov, np.ndarray):
                raise DriveSegError("fov: expected a file with a photograph from a file, an array with an array")
        result = self.segment_case(case)
        of_classes = result["probability"].float().clamp(0, 1)
        probability = to_numpy(of_classes.sum(dim=0).clamp(0, 1))
        mask, inside = to_numpy(result["pred"])[0], to_numpy(result["fov"])[0] > 0
        return Segmentation(probability, mask, inside, to_numpy(of_classes), result.get("measures"))

    def segment_case(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Segment one case of a datalist, and write its files if the postprocessing does.

        Args:
            case: ``image`` (path of a photograph) and optionally ``fov`` (path of its FOV mask) and ``case_id``.

        Returns:
            The case with ``pred`` (1, H, W), uint8, class values; ``probability`` of the vessel classes,
            (num_classes - 1, H, W), float32; and whatever the postprocessing adds, all at the photograph's own size.

        Raises:
            DriveSegError: if the photograph cannot be read or has no field of view.
        """
        with unwrapped():
            return self._finish(self._predict(self._prepare(case)))

    def each(
        self,
        cases: Iterable[Case],
        keep: Callable[[dict[str, Any]], Any] | None = None,
        catch: type[Exception] = DriveSegError,
    ) -> Iterator[tuple[Case, Any]]:
        """Segment all cases, continuing after failures.

        While the network works on one photograph, the next ones are read and the last ones written. Only a few wait on
        either side, so memory does not grow with the number of photographs. If OpenVINO was prepared for many, it works
        on several at once, and one thread handles each photograph from start to end.

        Args:
            cases: as for ``segment_case``.
            keep: returns what is needed of a result; the rest is dropped at once rather than when it is yielded.
            catch: errors that take the place of a photograph's result; others end the run.

        Yields:
            Each case, in order, with its result, what ``keep`` returned for it, or its error.
        """
        # Beside the network on a CPU, more would only wait for the cores that it uses.
        threads = 2
        if self.device.type != "cpu":
            threads = max(threads, min(WORKERS_BESIDE_GPU, _threads()))
        ahead = threads // 2 + 1  # enough to keep these busy, on either side of the network

        def finish(predicted: dict[str, Any]) -> Any:
            result = self._finish(predicted)
            return result if keep is None else keep(result)

        if isinstance(self.network, OpenVINONetwork) and self.network.streams is not None:
            # One more than streams, so that no stream waits while a photograph is read or written.
            yield from self._each_in_streams(cases, finish, self.network.streams + 1, ahead, catch)
            return
        rest = iter(cases)
        with _pool(threads) as pool:
            prepared = deque((case, pool.submit(self._prepare, case)) for case in islice(rest, ahead))
            finishing: deque[tuple[Case, Future]] = deque()
            while prepared or finishing:
                if prepared:
                    case, coming = prepared.popleft()
                    for following in islice(rest, 1):
                        prepared.append((following, pool.submit(self._prepare, following)))
                    finishing.append((case, self._submit_finish(pool, finish, coming)))
                if len(finishing) > ahead or not prepared:
                    case, done = finishing.popleft()
                    yield case, _outcome(done, catch)

    def _each_in_streams(
        self,
        cases: Iterable[Case],
        finish: Callable[[dict[str, Any]], Any],
        workers: int,
        ahead: int,
        catch: type[Exception],
    ) -> Iterator[tuple[Case, Any]]:
        rest = iter(cases)

        def whole(case: Case) -> Any:
            return finish(self._predict(self._prepare(case)))

        with _pool(workers) as pool:
            running = deque((case, pool.submit(whole, case)) for case in islice(rest, workers + ahead))
            while running:
                case, done = running.popleft()
                result = _outcome(done, catch)
                del done
                running.extend((following, pool.submit(whole, following)) for following in islice(rest, 1))
                yield case, result

    def _submit_finish(
        self, pool: ThreadPoolExecutor, finish: Callable[[dict[str, Any]], Any], coming: Future
    ) -> Future:
        try:
            predicted = self._predict(coming.result())
        except Exception as error:
            return _failed(error)
        return pool.submit(finish, predicted)

    @torch.inference_mode()
    def _prepare(self, case: Mapping[str, Any]) -> dict[str, Any]:
        in_memory = isinstance(case["image"], torch.Tensor)
        transforms = self.preprocessing.transforms
        # Arrays need not be loaded.
        start = sum(isinstance(transform, LoadImaged) for transform in transforms) if in_memory else 0
        return self.preprocessing(dict(case), start=start)

    @torch.inference_mode()
    def _predict(self, case: dict[str, Any]) -> dict[str, Any]:
        # A batch of this one alone, because MONAI's collation would copy the photograph and its masks.
        logits = self.inferer(case["image"][None].to(self.device), self.network)[0]
        # Two threads that use Apple's GPU at once can end the process (pytorch/pytorch#197805), so the others get their
        # data in CPU memory.
        return {**case, "pred": logits.cpu() if self.device.type == "mps" else logits}

    @torch.inference_mode()
    def _finish(self, case: dict[str, Any]) -> dict[str, Any]:
        return self.postprocessing(case)


def _channel_first(picture: str | os.PathLike | np.ndarray, name: str, channels: int) -> str | MetaTensor:
    if isinstance(picture, (str, os.PathLike)):
        return os.fspath(picture)
    if not isinstance(picture, np.ndarray):
        raise DriveSegError(f"{name}: expected a path or an array, got {type(picture).__name__}")
    expected = "(H, W, 3), uint8" if channels == 3 else "(H, W)"
    if picture.ndim != (3 if channels == 3 else 2) or (channels == 3 and picture.shape[2] != 3):
        raise DriveSegError(f"{name}: expected an array {expected}, got one of shape {picture.shape}")
    if channels == 3 and picture.dtype != np.uint8:
        raise DriveSegError(f"{name}: expected an array {expected}, got {picture.dtype}")
    if channels == 1:
        picture = np.asarray(np.nan_to_num(picture) != 0, dtype=np.uint8)[..., None]
    # In the memory order of a picture from a file: in another one, the last bits of the resized picture differ.
    return MetaTensor(without_metadata(np.array(picture, order="C").transpose(2, 0, 1)))


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch has one thread each: more would wait for the cores that the network uses."""
    # Asked before the others set theirs, or this thread would get their number; set again after them, or every thread
    # that the program makes later would.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "photograph", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _threads() -> int:
    """Number of threads that this process may keep busy; under torchrun, torch believes that there is one."""
    return torch.get_num_threads() if get_world_size() == 1 else usable_cores()


def _failed(error: Exception) -> Future:
    failed: Future = Future()
    _forget_locals(error)
    failed.set_exception(error)
    return failed


def _outcome(done: Future, catch: type[Exception]) -> Any:
    error = done.exception()  # not raised, which would make the error keep this frame, and this frame the error
    if error is None:
        return done.result()
    outcome = user_error(error) or error  # MONAI wraps a transform's errors in its own
    if not isinstance(outcome, catch) or isinstance(first_cause(error), _LOST_DEVICE):
        raise error
    _forget_locals(error)
    return outcome


def _forget_locals(error: BaseException | None) -> None:
    """Clear an error's frames: a stored error would keep them, and they images and features, perhaps on a GPU."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
