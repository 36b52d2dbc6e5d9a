"""Run a network with OpenVINO, several times as fast as PyTorch on CPUs, from the same weights."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.torch_version import TorchVersion

from drive_seg.arrays import like, without_metadata
from drive_seg.devices import usable_cores
from drive_seg.difference import Compute, largest_difference
from drive_seg.distributed import get_world_size
from drive_seg.errors import DriveSegError
from drive_seg.networks import EXPORTED_SINCE, DecoderStage, UNet

__all__ = ["OpenVINONetwork", "choose_engine", "difference_in_probability", "openvino_network"]

ENGINES = ("auto", "torch", "openvino")
PRECISIONS = {"auto": None, "float32": "f32", "bfloat16": "bf16", "float16": "f16"}

PADDING = "decoder_padding_"
"""Name of the nodes of the decoder's padding, followed by a number."""

OPENVINO_SINCE = "2025.4"
"""OpenVINO's version since which it converts the network; older ones fail at its padding."""

CONVERSION = 6
"""Version of the conversion; a cached network from another version is not used."""

BOUNDED_CACHE = {"CPU_RUNTIME_CACHE_CAPACITY": 100}
"""OpenVINO caches what it prepares for an image size, by default for 5,000 operations per stream, which takes gigabytes
if all photographs differ in size. This limit allows 25 sizes without any loss of time, more at some loss."""

TOLERANCE = 0.05
"""Largest difference in probability from PyTorch's float32 that half precision may cause."""


def choose_engine(engine: str, device: torch.device, network: nn.Module) -> str:
    """``torch`` or ``openvino``, as requested; ``auto`` takes OpenVINO on a CPU if it can be used.

    Raises:
        DriveSegError: if the engine is unknown, not installed, too old, or not for this device or network.
    """
    if engine not in ENGINES:
        raise DriveSegError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "torch":
        return engine
    obstacle = _obstacle(device, network)
    if obstacle is None:
        return "openvino"
    if engine == "auto":
        return "torch"
    raise DriveSegError(f"engine: openvino {obstacle}")


def _obstacle(device: torch.device, network: nn.Module) -> str | None:
    """What keeps OpenVINO from running this network, to be read after its name; None: nothing."""
    if any(importlib.util.find_spec(package) is None for package in ("openvino", "platformdirs")):
        return "is not installed, expected pip install 'drive-seg[openvino]'"
    if torch.__version__ < EXPORTED_SINCE:
        return f"needs PyTorch {EXPORTED_SINCE} or newer, found {torch.__version__}; use --engine torch"
    if TorchVersion(installed := importlib.metadata.version("openvino")) < OPENVINO_SINCE:
        return f"is needed in version {OPENVINO_SINCE} or newer, found {installed}; use --engine torch"
    if device.type != "cpu":
        return f"runs on CPUs here; use --engine torch on {device.type}"
    if not (isinstance(network, UNet) and network.spatial_dims == 2 and network.padded):
        return f"is for the padded 2D UNet, expected torch for {type(network).__name__}"
    return None


class OpenVINONetwork(nn.Module):
    """A network converted by ``openvino_network``, called like the original.

    Two graphs are compiled, each on first use: one for any size, and one without the decoder's padding for sides that
    are multiples of ``2**depth``, because padding takes a tenth of the time even where it adds nothing.

    Args:
        network: the PyTorch network, for images too small for the converted one.
        model: the converted network.
        properties: OpenVINO's properties for compiling it.
        streams: number of threads that may call it at once; None: one, which has all cores.
    """

    memory_format = torch.contiguous_format
    """Memory format of its input, for ``PrecisionInferer``."""

    def __init__(self, network: UNet, model: Any, properties: dict[str, Any], streams: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.model = model
        self.properties = properties
        self.streams = streams
        self.made_with: tuple[Any, ...] = ()
        self._compiled: dict[bool, Any] = {}
        self._compiling = threading.Lock()
        self._of_thread = threading.local()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, H, W), float32, on the CPU → logits (B, num_classes, H, W), float32.

        A ``MetaTensor`` gives a ``MetaTensor`` with the same metadata, as in PyTorch.
        """
        if min(x.shape[2:]) < self.network.smallest_exported_size:
            return self.network(x)
        padded = any(side % 2**self.network.depth for side in x.shape[2:])
        requests = vars(self._of_thread)
        name = f"padded_{padded}"
        if name not in requests:
            requests[name] = self.compiled(padded).create_infer_request()
        return like(_infer(requests[name], x), x)

    @property
    def precision(self) -> str:
        """The number type that it computes in: ``float32``, ``bfloat16`` or ``float16``."""
        used = self.compiled(padded=False).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return next((name for name, hint in PRECISIONS.items() if hint == used), used)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, also in other processes, are converted anew, because compiled graphs cannot be passed on."""
        return openvino_network, (self.network, *self.made_with)

    def compiled(self, padded: bool) -> Any:
        """The graph with or without the decoder's padding, checked against PyTorch.

        Raises:
            DriveSegError: if the probabilities differ from PyTorch's.
        """
        with self._compiling:
            if padded not in self._compiled:
                self._compiled[padded] = self._compile(padded)
            return self._compiled[padded]

    def _compile(self, padded: bool) -> Any:
        import openvino

        model = self.model if padded else self.model.clone()
        for pad in [] if padded else [node for node in model.get_ops() if node.get_friendly_name().startswith(PADDING)]:
            pad.output(0).replace(pad.input_value(0))
        core = openvino.Core()
        try:
            compiled = core.compile_model(model, "CPU", {**self.properties, **BOUNDED_CACHE})
        except RuntimeError:  # a version that does not know the bound
            compiled = core.compile_model(model, "CPU", self.properties)
        request = compiled.create_infer_request()
        difference = difference_in_probability(self.network, lambda x: _infer(request, x), (padded,))
        if not difference <= TOLERANCE:
            raise DriveSegError(
                f"engine: openvino's probabilities differ from torch's by up to {difference:.3f}, expected at most "
                f"{TOLERANCE}; --engine torch goes without it"
            )
        return compiled


def openvino_network(
    network: UNet, precision: str = "auto", cache_dir: str | os.PathLike | None = None, streams: int | None = None
) -> OpenVINONetwork:
    """Convert a network for OpenVINO, or take it from the cache, and check it against PyTorch.

    Args:
        network: with its weights, on the CPU.
        precision: ``auto`` (what the processor is fastest at), ``float32``, ``bfloat16`` or ``float16``.
        cache_dir: folder for converted networks; None: the user's cache folder. If it cannot be written to, the network
            is converted every time, which takes a few seconds.
        streams: number of threads that may call it at once and share the cores, for more images per second but a longer
            time for each; None: each image has all cores.

    Raises:
        DriveSegError: if the probabilities differ from PyTorch's.
    """
    import openvino

    # channels_last weights would make the exported graph depend on the image's size
    network = copy.deepcopy(network).eval().float()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch declares it for 4D only
    core = openvino.Core()
    path = _cache_folder(cache_dir) / _key(network, openvino.__version__) / "network.xml"
    try:
        model = core.read_model(path)
    except RuntimeError:  # it is missing, or not a model that can be read
        model = _convert(network)
        _keep(model, path)
    hint = PRECISIONS[precision]
    properties = {
        **({} if hint is None else {"INFERENCE_PRECISION_HINT": hint}),
        **({"PERFORMANCE_HINT": "LATENCY"} if streams is None else {"NUM_STREAMS": streams}),
        **({} if get_world_size() == 1 else {"INFERENCE_NUM_THREADS": usable_cores()}),
    }
    converted = OpenVINONetwork(network, model, properties, streams)
    converted.made_with = (precision, cache_dir, streams)
    converted.compiled(padded=False)  # the other graph on first use
    return converted


def difference_in_probability(network: UNet, converted: Compute, padded: Sequence[bool] = (False, True)) -> float:
    """``largest_difference`` of the probabilities.

    Args:
        network, converted: called with the same images.
        padded: for each test image, whether its sides are such that the decoder has to pad.
    """
    sides = [[max(16 * n, n * 2**network.depth) + extra * odd for n, extra in ((6, 1), (7, 19))] for odd in padded]
    sizes = [(1, height, width) for height, width in sides]
    return largest_difference(network, converted, sizes, lambda logits: logits.softmax(dim=1))


def _infer(request: Any, x: torch.Tensor) -> torch.Tensor:
    # OpenVINO rearranges the image for its first convolution faster than PyTorch would.
    return torch.from_numpy(request.infer([without_metadata(x).float().contiguous().numpy()], share_inputs=True)[0])


def _convert(network: UNet) -> Any:
    """An OpenVINO model of a network, for any height and width.

    The decoder repeats the last row or column where a size is odd. ``torch.export`` would turn that into indexing, for
    which OpenVINO rearranges whole feature maps, more than doubling the network's time. Padding with a constant becomes
    OpenVINO's own padding, which is then set to repeat.
    """
    import openvino
    from openvino import opset14
    from torch.export import Dim, export  # takes a quarter of a second, and converted networks are cached

    smallest = network.smallest_exported_size
    sides = {axis: Dim(name, min=smallest, max=1 << 16) for axis, name in ((2, "height"), (3, "width"))}
    example = torch.zeros(1, network.in_channels, 3 * smallest, 4 * smallest)
    padding = copy.deepcopy(network)
    for module in padding.modules():
        if isinstance(module, DecoderStage):
            module.padding_mode = "constant"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(export(padding, (example,), dynamic_shapes={"x": sides}))
        pads = [node for node in model.get_ops() if node.get_type_name() == "Pad"]
        if len(pads) != network.depth:  # another version of OpenVINO, say: slow is better than wrong
            model, pads = openvino.convert_model(export(network, (example,), dynamic_shapes={"x": sides})), []
    for number, pad in enumerate(pads):
        x, before, after = (pad.input_value(place) for place in range(3))
        pad.output(0).replace(opset14.pad(x, before, after, "edge", name=f"{PADDING}{number}").output(0))
    return model


def _cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    import platformdirs

    return Path(platformdirs.user_cache_dir("drive-seg", appauthor=False))


def _key(network: UNet, version: str) -> str:
    digest = hashlib.sha256(f"{CONVERSION} {version} {torch.__version__} {network}".encode())
    for name, values in network.state_dict().items():
        digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _keep(model: Any, path: Path) -> None:
    """Write the model's two files together, or neither, in place of what could not be read."""
    import openvino

    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent.parent) as temporary:
            folder = Path(temporary) / "network"
            folder.mkdir()
            openvino.save_model(model, folder / path.name, compress_to_fp16=False)
            with contextlib.suppress(FileNotFoundError):  # a folder that is not empty cannot be replaced
                path.parent.rename(Path(temporary) / "replaced")
            folder.rename(path.parent)
    except (OSError, RuntimeError):
        return  # another process was faster, or there is no space: it is only a cache
