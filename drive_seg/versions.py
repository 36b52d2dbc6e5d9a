"""Versions of the software behind results, for a paper's methods section or for reproducing them."""

from __future__ import annotations

import importlib.metadata
import platform

from drive_seg import __version__

__all__ = ["software"]

PACKAGES = (
    *("torch", "monai", "pytorch-ignite", "numpy", "scipy", "scikit-learn", "scikit-image", "openvino"),
    *("pillow", "tifffile", "nibabel", "pydicom", "highdicom"),
)


def software() -> dict[str, str]:
    """Versions of this project, of Python and of the packages it computes with, by name."""
    return {
        "drive-seg": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
