"""Converts pixels of any bit depth to 8 bits."""

from __future__ import annotations

import numpy as np

SENSOR_BITS = (8, 10, 12, 14, 16)
"""Bits per channel that cameras deliver."""


def to_8_bit(values: np.ndarray, full_scale: float | None = None) -> np.ndarray:
    """Scale pixels to 0 to 255.

    If a file declares the value of white (DICOM's bits stored, PPM's maximum), that is full scale. The 16 bits of a
    PNG, TIFF or NIfTI declare nothing and often hold a camera's 12 bits unscaled. Full scale is then the fewest of 8,
    10, 12, 14 and 16 bits that hold the brightest value. The brightest value itself is not used, because one hot pixel
    or reflection would set the exposure, and two photographs from one camera would differ in it. A true 16-bit
    photograph is read too bright only if it stays below a quarter of the scale.

    Args:
        values: any shape, at least one pixel, integers or floats, not negative.
        full_scale: the value of white; None if not declared; it is then 1 for floats that do not exceed 1.

    Returns:
        uint8, of the shape of ``values``; integers are rounded down, so that all levels are equally wide.

    Raises:
        ValueError: if a value is negative or not finite, or beyond 16 bits where white is not declared, or if white is
            below 1 or beyond 16 bits.
    """
    if values.dtype == np.uint8 and full_scale in (None, 255):
        return values
    lowest, brightest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(brightest)) or lowest < 0:
        raise ValueError(f"expected pixels of 0 and more, got {lowest:g} to {brightest:g}")
    if full_scale is not None and not 1 <= full_scale < 2**16:
        raise ValueError(f"expected 8 or 16 bits a channel, got {full_scale:g} as the value of white")
    is_float = values.dtype.kind == "f"
    if full_scale is None:
        scales = [1.0] * is_float + [2.0**bits - 1 for bits in SENSOR_BITS]
        full_scale = next((scale for scale in scales if brightest <= scale), None)
        if full_scale is None:
            raise ValueError(f"expected 8 or 16 bits a channel, got pixels of up to {brightest:g}")
    if is_float:
        return np.rint(np.minimum(values / full_scale, 1) * 255).astype(np.uint8)
    return np.minimum(values.astype(np.uint32) * np.uint32(255) // np.uint32(full_scale), 255).astype(np.uint8)
