"""Retinal vessel segmentation in colour fundus photographs.

>>> import drive_seg
>>> segment = drive_seg.load()  # doctest: +SKIP
>>> segment("eye.jpg").mask  # doctest: +SKIP

Map of the modules:

- Files to arrays: ``readers`` (any format), ``rasters`` (Pillow's), ``bit_depth``, ``nifti``, ``dicom``, ``sizes``.
- Cases: ``data`` (datalists), ``names`` (which files belong together), ``persons``, ``splits`` (what is scored, folds),
  ``classes`` (names and colours of vessel classes), ``photographs`` (without annotation), ``datasets`` (cache and
  order), ``learnt_cases`` (cases behind the weights).
- Preprocessing: ``fov`` and ``rim`` (find the field of view), ``transforms``, ``scale_to_fov``, ``augmentation``,
  ``arrays``.
- The network: ``networks``, ``adaptation``, ``ensemble``, ``inference``, ``openvino_network``, ``export``,
  ``difference`` (from a converted one), ``package``.
- Training: ``losses``, ``engines`` (the step), ``averaging``, ``handlers``, ``history``, ``checkpoints``,
  ``training_state`` (to resume), ``settings`` (is it still the same training?), ``distributed``.
- Evaluation: ``metrics`` (arrays in, figures out), ``scores``, ``evaluation``, ``tolerant``, ``second_observer``,
  ``thresholds``, ``bootstrap``, ``compare``, ``report``, ``charts``, ``tables``.
- Segmenting photographs: ``segmenter``, ``predict`` (folders), ``masks``, ``pictures``, ``dicom_seg``, ``gallery``,
  ``pages``, ``output_folder``, ``journal``, ``result_tables``, ``memory``.
- Measurements: ``measures``, ``centrelines``, ``calibre``, ``measure_table``, ``quality``.
- Datasets: ``prepare`` and ``archives`` (public ones), ``phantom``, ``phantom_vessels``, ``phantom_photograph``.
- Entry points: ``cli`` and ``arguments``, ``workflows``, ``configs``, ``demo``. Used everywhere: ``devices`` (mixed
  precision, too), ``errors``, ``files``, ``versions``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drive_seg.segmenter import Segmenter

__all__ = ["load"]
__version__ = "0.1.0"


def load(checkpoint: str | os.PathLike | None = None, **settings: Any) -> Segmenter:
    """Load a network that segments photographs.

    Args:
        checkpoint: weights, a ``model.pt``; None: the shipped ones.
        settings: keys of ``bundle/configs/inference.json`` and their values, such as ``flips=True``.

    Returns:
        An object to call with a photograph, a path or an array, see ``drive_seg.segmenter.Segmenter``.

    Raises:
        DriveSegError: if the weights are missing or do not fit, or a key does not exist or rejects its value.
    """
    from drive_seg.configs import bundle_root, config_files, path_value  # torch and MONAI are slow to import
    from drive_seg.errors import ArgumentError
    from drive_seg.segmenter import Segmenter

    # NumPy's numbers and arrays are as good as Python's numbers and lists.
    settings = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in settings.items()}
    root = bundle_root()
    values = {"bundle_root": str(root), "save": False, "measure": False, **settings}
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise ArgumentError(
            f"checkpoint: expected one file, got {checkpoint!r}; several together are what ensemble.json is for"
        )
    if checkpoint is not None:
        values["checkpoint"] = path_value(checkpoint)
    return Segmenter.from_config(config_files(root, "inference"), values)
