"""Filters that undo the blur of a kernel: Wiener's, and the Wiener-Butterworth back projector.

Kernels are correlated, as everywhere, and have the sum 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.model.kernel import Weights
from conv3d_cli.system import elementary

# A Wiener filter is cut where the weights that are left out have this part of all |weights|.
LEFT_OUT = 1e-4
MOST_TAPS = 255  # of a filter, along each axis
BYTES_EACH = 60  # of memory for a weight while a filter is made, at the most
# The back projector: its Wiener part's noise, its gain at the resolution limit, and its steepness.
ALPHA, BETA, ORDER = 0.05, 0.05, 10


def wiener(
    kernel: Weights, noise: float, reserve: Callable[[int], object] = lambda count: None
) -> tuple[Weights, str]:
    """The filter with the spectrum conj(H) / (|H|² + noise), and a note on what it leaves out.

    kernel : (kd, kh, kw)   of the sum 1
    noise : float           power of noise to signal, above 0
    reserve : callable      is told of the bytes of memory that it is about to take, and may refuse
    Returns (d, h, w), of odd sizes.

    Source: N. Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series (1949).

    >>> found, note = wiener(np.ones((1, 1, 1)), 0.25)
    >>> found.tolist(), note
    ([[[0.8]]], '')
    """
    sizes = 1
    most = max(MOST_TAPS, *kernel.shape)
    while True:
        sizes *= 2
        shape = [1 if taps == 1 else min(sizes * taps, most) | 1 for taps in kernel.shape]
        reserve(math.prod(shape) * BYTES_EACH)
        transfer = _transfer(kernel, shape)
        spectrum = transfer.conj() / (np.abs(transfer) ** 2 + noise)
        filtered = np.fft.fftshift(np.fft.irfftn(spectrum, shape, axes=(0, 1, 2)))
        cut = _cut(filtered, LEFT_OUT)
        reaches = any(a == b and a > 1 for a, b in zip(cut.shape, filtered.shape, strict=True))
        if not reaches or min(n for n in shape if n > 1) >= most:
            break
    note = ""
    if reaches:
        note = (
            f"the Wiener filter is cut to {'x'.join(map(str, cut.shape))} weights, and reaches "
            "farther: a lower ratio of signal to noise makes it shorter"
        )
    # a correlation mirrors what a convolution has
    return np.ascontiguousarray(cut[::-1, ::-1, ::-1]), note


def _transfer(kernel: Weights, shape: list[int]) -> NDArray[np.complex128]:
    """The spectrum of the blur, with its centre at 0; the blur is a correlation."""
    padded = np.zeros(shape)
    d, h, w = kernel.shape
    padded[:d, :h, :w] = kernel[::-1, ::-1, ::-1]
    centre = [taps // 2 for taps in kernel.shape]  # of the mirrored kernel
    padded = np.roll(padded, [-c for c in centre], axis=(0, 1, 2))
    return np.fft.rfftn(padded, axes=(0, 1, 2))


def _cut(weights: Weights, left_out: float) -> Weights:
    """The middle of a filter of odd sizes, without ends that have a small part of all |weights|."""
    sizes = np.abs(weights)
    total = elementary.total(sizes)
    for axis in range(3):
        profile = sizes.sum(axis=tuple(a for a in range(3) if a != axis))
        middle = len(profile) // 2
        outside = total - np.cumsum(
            [
                profile[middle],
                *(profile[middle - n] + profile[middle + n] for n in range(1, middle + 1)),
            ]
        )
        reach = int(np.argmax(outside <= left_out / 3 * total))
        weights = np.take(weights, range(middle - reach, middle + reach + 1), axis)
    return weights


def back_projector(kernel: Weights) -> Weights:
    """The Wiener-Butterworth back projector of a blur: (kd, kh, kw), of the sum 1.

    It stands in place of the adjoint in Richardson-Lucy iterations, which then need few. Its
    spectrum is that of a Wiener filter up to the resolution limit, 1 / FWHM of the kernel along
    each axis, and falls to 0 beyond.

    Source: M. Guo et al., Rapid image deconvolution and multiview fusion for optical microscopy,
    Nat. Biotechnol. 38 (2020) 1337-1346.

    >>> blur = np.outer([1, 2, 1], [1, 2, 1])[None] / 16
    >>> found = back_projector(blur)
    >>> found.shape, round(float(found.sum()), 6)
    ((1, 3, 3), 1.0)
    """
    shape = list(kernel.shape)
    transfer = _transfer(kernel, shape)
    filtered = transfer.conj() / (np.abs(transfer) ** 2 + ALPHA)
    squares = np.zeros(transfer.shape)
    gains = []
    peak = np.unravel_index(int(kernel.argmax()), kernel.shape)
    for axis, taps in enumerate(shape):
        if taps == 1:
            continue
        width = _half_maximum(
            kernel[tuple(slice(None) if a == axis else peak[a] for a in range(3))]
        )
        limit = min(1 / width, 0.5)
        frequencies = np.fft.rfftfreq(taps) if axis == 2 else np.fft.fftfreq(taps)
        along = np.abs(frequencies) / limit
        squares += (along**2).reshape([-1 if a == axis else 1 for a in range(3)])
        line = np.abs(filtered[tuple(slice(None) if a == axis else 0 for a in range(3))])
        order = np.argsort(np.abs(frequencies))
        gains.append(np.interp(limit, np.abs(frequencies)[order], line[order]))
    if gains:
        steepness = max((float(np.mean(gains)) / BETA) ** 2 - 1, 0.0)
        filtered = filtered / np.sqrt(1 + steepness * squares**ORDER)
    found = np.fft.irfftn(filtered, shape, axes=(0, 1, 2))
    # its centre from 0 to where a correlation has it, mirrored
    centre = [(taps - 1) // 2 for taps in shape]
    mirrored = np.roll(found[::-1, ::-1, ::-1], 1, axis=(0, 1, 2))
    moved = np.roll(mirrored, centre, axis=(0, 1, 2))
    return np.ascontiguousarray(moved / elementary.total(moved))


def _half_maximum(profile: NDArray[np.float64]) -> float:
    """The full width at half maximum of a profile with one peak, in samples; at least 1."""
    top = int(np.argmax(profile))
    half = profile[top] / 2

    def reach(values: NDArray[np.float64]) -> float:
        below = np.nonzero(values < half)[0]
        if not len(below):
            return len(values) - 0.5
        n = int(below[0])
        return n - 1 + float((values[n - 1] - half) / (values[n - 1] - values[n]))

    return max(reach(profile[top:]) + reach(profile[top::-1]), 1.0)
