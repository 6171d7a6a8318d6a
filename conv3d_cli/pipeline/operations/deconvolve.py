"""`deconvolve`: undo the blur of a point spread function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.kernels.cross_validation import BYTES_EACH, LEAST, MOST, CrossValidation
from conv3d_cli.kernels.inverse import back_projector, wiener
from conv3d_cli.kernels.lengths import Kind, read_number
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel, Weights
from conv3d_cli.network.operations.deconvolution import MOST_VARIATION, check_psf
from conv3d_cli.pipeline.operations.base import ComposedOperation, Composition
from conv3d_cli.pipeline.sampling import block_size, sampled_blocks
from conv3d_cli.system.room import require_memory

Method = Literal["richardson-lucy", "butterworth", "wiener"]
GCV = "gcv"
LEAST_SNR, MOST_SNR = 1e-3, 1e6
ITERATIONS = {"richardson-lucy": 10, "butterworth": 2}


def read_ratio(text: str, name: str, grid: Grid | None = None) -> float | str:
    """Parse a finite number, or the word gcv. Raises: SpecError.

    >>> read_ratio("30", "snr"), read_ratio("GCV", "snr")
    (30.0, 'gcv')
    """
    if text.lower() == GCV:
        return GCV
    try:
        return read_number(text, name)
    except SpecError:
        raise SpecError(f"{name} is a number or {GCV}, received {name}={text}") from None


Ratio = Annotated[float | str, Kind(read_ratio, f"NUMBER|{GCV}", "30", (GCV,))]


def deconvolve(
    made: Composition,
    /,
    iterations: int | None = None,
    method: Method = "richardson-lucy",
    stop: float | None = None,
    tv: float | None = None,
    background: float | None = None,
    accelerate: Literal["no", "yes"] = "no",
    start: Literal["flat", "data"] = "flat",
    save_every: int | None = None,
    snr: Ratio | None = None,
) -> int:
    """Undo the blur of a point spread function: what the object looked like before.

    conv3d deconvolve cells.tif -k psf.tif --iterations 10 -o sharp.tif
    conv3d deconvolve cells.tif -k gibson-lanni:na=1.4:ri=1.518:wavelength=520nm -o sharp.tif
    conv3d deconvolve cells.tif -k psf.tif --method wiener --snr 30 -o sharp.tif

    The kernel is the image of a point; it is scaled to the sum 1. The boundary is a part of the
    blur, so edges do not ring.

    iterations : count          number of iterations; by default 10, with method butterworth 2
    method : a word             the default, of Richardson and Lucy, iterates; so does butterworth,
                                by a back projector that needs few iterations; wiener is one linear
                                filter
    stop : number               end when an iteration changes less than this fraction of the sum,
                                as 1e-3
    tv : number                 weight of the total variation, which smooths noise, as 0.002
    background : number         offset of the camera, which is no light of the object
    accelerate : yes or no      extrapolate each iteration, so that fewer are needed
    start : flat or data        begin with a constant, or with the volume itself
    save_every : count          write the estimate after every so many iterations, too
    snr : number or gcv         ratio of signal to noise, for method wiener; gcv finds it by
                                generalized cross-validation of the volume
    """
    assert made.kernel is not None, "required by `check_operation`"
    if made.boundary.renormalizes:
        raise SpecError(
            f"{setting('boundary', made.boundary.mode)} is for means, and deconvolve takes none: "
            f"pass {setting('boundary', 'symmetric')}"
        )
    kernel = _correlated(made.kernel, made.shape.size)
    settings = {
        "iterations": iterations,
        "stop": stop,
        "tv": tv,
        "background": background,
        "save_every": save_every,
    }
    if method == "wiener":
        given = [name for name, value in settings.items() if value is not None]
        given += ["accelerate"] * (accelerate == "yes") + ["start"] * (start == "data")
        if given:
            raise SpecError(
                f"{setting(given[0])} is for methods that iterate, and wiener is one filter: "
                "leave it out"
            )
        if snr is None or (not isinstance(snr, str) and not LEAST_SNR <= snr <= MOST_SNR):
            raise SpecError(
                f"method wiener needs the ratio of signal to noise, from {LEAST_SNR:g} to "
                f"{MOST_SNR:g}, as in "
                f"{setting('snr', '30')}, or {setting('snr', GCV)} to find it by the volume"
                + ("" if snr is None else f", received {snr:g}")
            )
        ratio = _cross_validated(made, kernel) if isinstance(snr, str) else snr
        found, note = wiener(kernel, 1 / ratio**2, partial(_reserve, made, ratio))
        if note:
            made.notes.append(note)
        return made.convolve(Kernel(found, name=f"wiener of {made.kernel.name}"))
    if snr is not None:
        raise SpecError(f"{setting('snr')} is for method wiener: leave it out")
    count = ITERATIONS[method] if iterations is None else iterations
    for name, value, least in (("iterations", count, 1), ("save_every", save_every, 1)):
        if value is not None and value < least:
            raise SpecError(f"{setting(name)} must be at least {least}, received {value}")
    if save_every is not None and save_every >= count:
        raise SpecError(
            f"{setting('save_every', save_every)} writes nothing: there are {count} iterations, "
            "and the last one is the output"
        )
    for name, number in (("stop", stop), ("tv", tv), ("background", background)):
        if number is not None and not (number >= 0 and math.isfinite(number)):
            raise SpecError(f"{setting(name)} must not be negative, received {number:g}")
    if stop is not None and stop >= 1:
        raise SpecError(
            f"{setting('stop')} is a part of the sum of all voxels, below 1, as in "
            f"{setting('stop', '1e-3')}, received {stop:g}"
        )
    if tv is not None and tv >= MOST_VARIATION:
        raise SpecError(
            f"{setting('tv')} must be below 1/6, and is mostly 0.001 to 0.01, received {tv:g}"
        )
    weights = {"kernel": kernel}
    if method == "butterworth":
        weights["backward"] = back_projector(kernel)
    return made.step(
        "RichardsonLucy",
        weights=dict(weights),
        boundary=made.boundary.mode,
        value=made.boundary.value,
        iterations=count,
        stop=stop or 0.0,
        tv=tv or 0.0,
        background=background or 0.0,
        accelerate=accelerate == "yes",
        from_data=start == "data",
    )


def _reserve(made: Composition, ratio: float, needed: int) -> None:
    """Note the memory that a Wiener filter takes while it is made. Raises: MemoryLimitError."""
    require_memory(
        needed,
        f"the Wiener filter of {setting('snr', f'{ratio:g}')}",
        f"or a lower {setting('snr')}, which makes it shorter",
    )
    made.making = max(made.making, needed)


def _cross_validated(made: Composition, kernel: Weights) -> float:
    """The ratio of signal to noise that generalized cross-validation finds, of 4 digits.

    Whoever passes it as a number gets the same output.
    Raises: SpecError, ShapeError.
    """
    asked = setting("snr", GCV)
    if made.reopened is None:
        raise SpecError(f"{asked} reads the input twice, and a pipe is read once: name a file")
    if kernel.size == 1:
        raise SpecError(
            f"{asked} needs a blur to tell noise from signal, and a kernel of one voxel does not "
            f"blur: pass a number, as in {setting('snr', '30')}"
        )
    size = block_size(made.shape.size, kernel.shape)
    validation = CrossValidation(kernel, size)
    with made.reopened() as reader:
        for stored in sampled_blocks(reader, size, BYTES_EACH):
            block = stored.astype(np.float64)
            if made.missing.nan == "zero":
                block[~np.isfinite(block)] = 0
            if np.isfinite(block).all():
                validation.add(block)
    if not validation.varies:
        raise ShapeError(
            f"{asked} finds no voxels that vary and have no NaN around them: pass a number, as in "
            f"{setting('snr', '30')}, or repair them"
        )
    noise = validation.noise()
    snr = float(f"{1 / math.sqrt(noise):.4g}")
    edge = {
        LEAST: ", the highest that is tried: there is hardly any noise",
        MOST: ", the lowest that is tried: there is hardly more than noise",
    }.get(noise, "")
    made.found["snr"] = snr
    made.notes.append(
        f"{asked} found {setting('snr', f'{snr:g}')} by generalized cross-validation{edge}"
    )
    return snr


def _correlated(kernel: Kernel, size: tuple[int, int, int]) -> Weights:
    """The weights by which a correlation blurs as the point spread function does: (kd, kh, kw).

    Raises: ShapeError, SpecError.
    """
    if kernel.is_layer or kernel.is_bank:
        raise ShapeError(
            f"deconvolve takes one point spread function, and {kernel.title} has several filters"
        )
    kernel = replace(kernel, weights=check_psf(kernel.weights, size, kernel.title)).flipped()
    weights = kernel.weights
    for axis, place in enumerate(kernel.centre or ()):
        # zeros around it, so that its centre is where a correlation has it
        taps = weights.shape[axis]
        if place == round(place):
            before, after = round(place), taps - 1 - round(place)
            pads = [(0, 0)] * 3
            pads[axis] = (max(after - before, 0), max(before - after, 0))
            weights = np.pad(weights, pads)
    return check_psf(weights, size, kernel.title)


def _saved(values: Mapping[str, Any]) -> Sequence[int]:
    """The iterations that save_every writes; the last one is the output."""
    every = values.get("save_every", 0)
    if every < 1:
        return ()
    method = values.get("method", "richardson-lucy")
    last = values.get("iterations", ITERATIONS.get(method, 0))
    return range(every, last, every)


OPERATION = ComposedOperation(deconvolve, takes_kernel=True, saves=_saved)
