"""Richardson-Lucy deconvolution, as an operation on the whole volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import AXIS_NAMES, Boundary, Triple
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.fields import Field
    from conv3d_cli.engine.machine_code import MachineCode
    from conv3d_cli.engine.richardson_lucy import Rules

# What the total variation may weigh: from 1/6 on, what an update is divided by can reach 0.
MOST_VARIATION = 1 / 6
# A trial of rounded iterations adds noise of rounding / TRIAL of the largest number to each; real
# errors stay below SPREADS times what becomes of it.
TRIAL, SPREADS, SEED = 64, 4, 0


class RichardsonLucy(Operation):
    """The object that a kernel has blurred, by iterations x <- x · H'(y / (H x + b)) / H'1.

    Its weights are the kernel (kd, kh, kw), as it is correlated with the volume, and perhaps a
    filter `backward` in place of H'; both have the sum 1. Its arguments are a boundary with its
    value, see `Boundary`, and those of `engine.richardson_lucy.Rules`.
    """

    attributes = (
        "boundary",
        "value",
        "iterations",
        "stop",
        "background",
        "tv",
        "accelerate",
        "from_data",
    )
    weights = ("kernel", "backward")
    needs_whole = True
    iterates = True

    def resolve(self) -> Shape:
        self.boundary = Boundary(
            str(self.argument("boundary", "symmetric")), self.number("value", 0.0)
        )
        self.iterations = self.rounds = self.whole_numbers("iterations", 10)[0]
        self.stop, self.background = self.number("stop", 0.0), self.number("background", 0.0)
        self.tv = self.number("tv", 0.0)
        self.accelerates = bool(self.argument("accelerate", False))
        self.from_data = bool(self.argument("from_data", False))
        self.kernel = self.weight("kernel", (None, None, None))
        self.backward = (
            self.weight("backward", self.kernel.shape) if "backward" in self.node.weights else None
        )
        self._require_bricks()
        self.counted: list[int] = []  # iterations of each channel
        self._last: tuple[Array, Reals] | None = None
        self._spread: tuple[Array, float] | None = None
        return self.inputs[0]

    def _require_bricks(self) -> None:
        """Refuse a kernel that no transform has room for. Raises: ShapeError."""
        from conv3d_cli.engine.deconvolution import choose_bricks

        taps = _triple(self.kernel)
        if choose_bricks(self.inputs[0].size, taps, 8) is None:
            raise ShapeError(
                f"{self.where} has a kernel of {'x'.join(map(str, taps))} voxels, more than its "
                f"transforms have room for: cut it with {setting('crop_kernel')}"
            )

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return 0, self.inputs[0][axis]

    # ----------------------------------------------------------------------------------------------
    # The definition

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].voxels
        if self._last is None or not np.array_equal(self._last[0], voxels):
            self._last = voxels.copy(), self._estimates(voxels)
        d, h, w = box.slices
        return self._last[1][d, h, w]

    def _estimates(self, voxels: Reals, rounding: float = 0.0) -> Reals:
        """All outputs, (D, H, W, C); each iteration rounded, if asked for."""
        channels = [self._estimate(voxels[..., c], rounding) for c in range(voxels.shape[3])]
        return np.stack(channels, axis=3)

    def _estimate(self, y: Reals, rounding: float) -> Reals:
        from conv3d_cli.engine.richardson_lucy import SMOOTH

        blur = _Definition(y.shape, self.kernel, self.boundary)
        back = blur if self.backward is None else _Definition(y.shape, self.backward, self.boundary)
        ones = np.ones(y.shape)
        norm = ones if self.backward is not None else blur.adjoint(ones)
        least = 4 * float(np.finfo(np.float64).eps) * y.max()
        constant = max(y.mean() - self.background, least) or 1.0
        x = np.maximum(y, least) if self.from_data else np.full(y.shape, constant)
        point, gain = x, None
        noise = np.random.default_rng(SEED)
        for number in range(self.iterations):
            ratios = y / np.maximum(blur(point) + self.background, least)
            change = back(ratios) if self.backward is not None else blur.adjoint(ratios)
            change = change / norm
            if self.tv:
                slopes = [np.diff(point, axis=a, append=point.take([-1], a)) for a in range(3)]
                length = np.sqrt(sum(s * s for s in slopes) + (SMOOTH * y.mean()) ** 2)
                bend = sum(np.diff(s / length, axis=a, prepend=0) for a, s in enumerate(slopes))
                change = change / (1 - self.tv * bend)
            new = point * change
            if rounding:
                new += rounding * new.max() * noise.uniform(-1, 1, new.shape)
            new = np.maximum(new, 0)
            changed, size = np.abs(new - point).sum(), np.abs(point).sum()
            if self.accelerates:
                last, gain = gain, new - point
                rate = 0.0
                if last is not None and np.square(last).sum():
                    rate = min(max((gain * last).sum() / np.square(last).sum(), 0.0), 1.0)
                point = np.maximum(new + rate * (new - x), 0) if number else new
            else:
                point = new
            x = new
            if self.stop and changed <= self.stop * size:
                break
        return np.asarray(x)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        # transforms round by a part of their largest number, and each iteration does so twice; how
        # far an error of the data carries depends on all of them
        value = self.define(windows, box)
        assert self._last is not None
        largest = float(np.abs(self._last[1]).max(initial=0))
        own = 2 * self.iterations * rounding * largest
        if self.tv:
            own += SPREADS * self._spread_of(windows[0].voxels, rounding)
        if errors[0].voxels.any():
            own += 2.0**self.iterations * float(errors[0].voxels.max())
        return np.full(value.shape, own) + rounding * np.abs(value)

    def _spread_of(self, voxels: Array, rounding: float) -> float:
        """How far rounded iterations come to lie from the definition.

        Where slopes are near SMOOTH, the total variation multiplies an error by about
        12 tv / SMOOTH in each iteration, until the slopes are steep; only a trial tells what
        remains of it.
        """
        if self._spread is None or not np.array_equal(self._spread[0], voxels):
            assert self._last is not None
            off = self._estimates(voxels, rounding / TRIAL) - self._last[1]
            self._spread = voxels.copy(), float(np.abs(off).max(initial=0))
        return self._spread[1]

    # ----------------------------------------------------------------------------------------------
    # The computation

    def rules(self) -> Rules:
        """How to iterate."""
        from conv3d_cli.engine.richardson_lucy import Rules

        return Rules(
            self.iterations,
            self.stop,
            self.background,
            self.tv,
            self.accelerates,
            self.from_data,
        )

    def held_bytes(self, real: np.dtype[Any], threads: int, on_disk: bool) -> int:
        from conv3d_cli.engine.deconvolution import blur_bytes
        from conv3d_cli.engine.richardson_lucy import fields_needed

        size, taps = self.inputs[0].size, _triple(self.kernel)
        held = blur_bytes(size, taps, real, threads, self.backward is not None, on_disk)
        if on_disk:
            return held
        fields = fields_needed(self.rules(), size, taps, real) + self.inputs[0].channels
        return held + fields * int(np.prod(size)) * real.itemsize

    def iterate(
        self,
        read: Callable[[int, int], Array],
        new: Callable[[], Field],
        real: np.dtype[Any],
        team: Team,
        told: Callable[[int, int, Field, Field], None],
    ) -> list[Field]:
        from conv3d_cli.engine.deconvolution import Blur
        from conv3d_cli.engine.richardson_lucy import richardson_lucy

        data = [new() for _ in range(self.inputs[0].channels)]
        means, largest = self._fill(read, data, team)
        size = self.inputs[0].size
        blur = Blur(size, self.kernel, self.boundary, real, team, self.backward)
        for channel, field in enumerate(data):

            def done(
                number: int, estimate: Field, channel: int = channel, data: Field = field
            ) -> None:
                told(channel, number, estimate, data)

            estimate, count = richardson_lucy(
                blur, field, new, self.rules(), means[channel], largest[channel], done
            )
            self.counted.append(count)
            for number in range(count + 1, self.iterations + 1):  # it has come to rest
                done(number, estimate)
            field.close()
            data[channel] = estimate
        return data

    def _fill(
        self, read: Callable[[int, int], Array], data: list[Field], team: Team
    ) -> tuple[list[float], list[float]]:
        """Read the volume into a field for each channel. Returns their means and largest voxels.

        Raises: ShapeError for NaN, infinities and negative voxels, and if the background is above
            all of them.
        """
        depth, height, width, channels = self.inputs[0]
        sums, largest = np.zeros(channels), np.zeros(channels)
        for start in range(0, depth, READ_PLANES):
            planes = read(start, min(start + READ_PLANES, depth))
            told: list[Any] = [None] * len(planes)

            def look(_: int, d: int, planes: Array = planes, told: list[Any] = told) -> None:
                told[d] = (
                    planes[d].min(axis=(0, 1)),
                    planes[d].max(axis=(0, 1)),
                    planes[d].sum(axis=(0, 1), dtype=np.float64),
                )

            team.run(len(planes), look)
            for d, (least, most, total) in enumerate(told):
                if not (np.isfinite(least).all() and np.isfinite(most).all()):
                    raise ShapeError(
                        f"plane {start + d} has NaN or infinite voxels, which would spread over "
                        f"the volume; pass {setting('nan', 'zero')}, or repair them"
                    )
                if least.min() < 0:
                    raise ShapeError(
                        f"Richardson-Lucy counts light, and plane {start + d} has a voxel of "
                        f"{float(least.min()):.6g}; set negative voxels to 0 before: conv3d apply "
                        "INPUT -k identity --activation relu -o POSITIVE"
                    )
                sums += total
                largest = np.maximum(largest, most)
            for channel, field in enumerate(data):
                field.write(start, planes[..., channel])
        brightest = float(largest.max())
        if 0 < brightest < self.background:
            raise ShapeError(
                f"{setting('background', f'{self.background:g}')} is above every voxel, of which "
                f"the largest is {brightest:.6g}: nothing would be left; pass the camera's offset, "
                "which is below most voxels"
            )
        return (sums / (depth * height * width)).tolist(), largest.tolist()

    def lost_note(self) -> str:
        if not self.stop or not self.counted:
            return ""
        most = max(self.counted)
        if most == self.iterations:
            return (
                f"{count_of(most, 'iteration')} did not bring the change below "
                f"{setting('stop', f'{self.stop:g}')}"
            )
        return f"stopped after {count_of(most, 'iteration')}"

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.deconvolution import blur_codes

        return blur_codes(real)


READ_PLANES = 8


def _triple(kernel: Array) -> Triple:
    d, h, w = kernel.shape
    return d, h, w


class _Definition:
    """H and H' by NumPy's transforms in float64, with voxels beyond the border written out."""

    def __init__(self, size: Sequence[int], kernel: Reals, boundary: Boundary) -> None:
        self.size, self.taps, self.value = tuple(size), kernel.shape, boundary.value
        self.before = [(taps - 1) // 2 for taps in self.taps]
        self.padded = [n + taps - 1 for n, taps in zip(self.size, self.taps, strict=True)]
        self.sources = [
            np.array([boundary.source_index(p - low, n) for p in range(padded)])
            for n, low, padded in zip(self.size, self.before, self.padded, strict=True)
        ]
        self.spectrum = np.fft.rfftn(kernel, self.padded, axes=(0, 1, 2))

    def __call__(self, x: Reals) -> Reals:
        """H x."""
        for axis, sources in enumerate(self.sources):
            x = x.take(np.maximum(sources, 0), axis)
            x[(slice(None),) * axis + (sources < 0,)] = self.value
        found = _inverse(np.fft.rfftn(x) * self.spectrum.conj(), self.padded)
        d, h, w = self.size
        return np.asarray(found[:d, :h, :w])

    def adjoint(self, y: Reals) -> Reals:
        """H' y."""
        transformed = np.fft.rfftn(y, self.padded, axes=(0, 1, 2))
        found = _inverse(transformed * self.spectrum, self.padded)
        for axis, (sources, n) in enumerate(zip(self.sources, self.size, strict=True)):
            moved = np.moveaxis(found, axis, 0)
            folded = np.zeros((n, *moved.shape[1:]))
            np.add.at(folded, sources[sources >= 0], moved[sources >= 0])
            found = np.moveaxis(folded, 0, axis)
        return np.asarray(found)


def _inverse(spectrum: Array, size: Sequence[int]) -> Reals:
    return np.asarray(np.fft.irfftn(spectrum, size, axes=(0, 1, 2)))


def check_psf(psf: Reals, size: Triple, called: str) -> Reals:
    """A point spread function of the sum 1.

    psf : (kd, kh, kw)      the image of a point
    size : (D, H, W)        of the volume
    Raises: ShapeError for one that is larger than the volume, or has not a positive sum.
    """
    for axis, (taps, length) in enumerate(zip(psf.shape, size, strict=True)):
        if taps > length:
            raise ShapeError(
                f"{called} spans {taps} voxels along {AXIS_NAMES[axis]}, and the volume has "
                f"{length}: cut it with {setting('crop_kernel')}, or give a smaller one"
            )
    total = float(psf.sum())
    if not total > 0:
        raise SpecError(
            f"{called} has the sum {total:.6g}, and a point spread function needs a positive one: "
            "it is the image of a point, without background"
        )
    if psf.min() < 0:
        raise SpecError(
            f"{called} has negative weights, the least {psf.min():.6g}, and a point spread "
            f"function has none: set them to 0, or subtract less background"
        )
    return psf / total
