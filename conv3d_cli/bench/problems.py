"""Random problems, of all kinds that people convolve: to fit the planner, and to test it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.bench.cases import gaussian_line
from conv3d_cli.model.spec import ConvProblem, ConvSpec, Triple

Random = np.random.Generator
# Work of a problem, in flops of the direct sum, and its bytes: enough to be measured, and little
# enough that hundreds are measured in minutes.
LEAST_FLOPS, MOST_FLOPS, MOST_BYTES = 2e6, 6e9, 1 << 28


@dataclass(frozen=True)
class Drawn:
    """A random problem.

    kind : str              what draws it, see `KINDS`
    size : (D, H, W)        voxels
    weights : str           "dense", "gaussian", "box" or "sparse"
    seed : int              of the weights and voxels
    """

    kind: str
    size: Triple
    kernel_size: Triple
    channels: int = 1
    filters: int = 1
    strides: Triple = (1, 1, 1)
    dilation_rate: Triple = (1, 1, 1)
    groups: int = 1
    weights: str = "dense"
    seed: int = 0

    @property
    def problem(self) -> ConvProblem:
        """The resolved convolution; boundaries as images and networks have them."""
        boundary = "nearest" if self.kind in ("filter", "smoothing") else "zeros"
        spec = ConvSpec(
            self.strides,
            "same",
            self.dilation_rate,
            self.groups,
            boundary=boundary,
            allow_strided_dilation=True,
        )
        kernel = (*self.kernel_size, self.channels // self.groups, self.filters)
        return spec.resolve((1, *self.size, self.channels), kernel)

    def volume(self) -> NDArray[np.float32]:
        """The voxels, (D, H, W, C)."""
        return self._random(0).standard_normal((*self.size, self.channels), dtype=np.float32)

    def array_of_weights(self) -> NDArray[np.float32]:
        """The weights, (kd, kh, kw, C / groups, filters)."""
        shape = (*self.kernel_size, self.channels // self.groups, self.filters)
        if self.weights in ("gaussian", "box"):
            lines = [
                np.ones(k) if self.weights == "box" else gaussian_line(k, max(k / 8, 0.4))
                for k in self.kernel_size
            ]
            d, h, w = (line / line.sum() for line in lines)
            product = (d[:, None, None] * h[:, None] * w)[..., None, None]
            return np.broadcast_to(product, shape).astype(np.float32)
        random = self._random(1)
        weights = random.standard_normal(shape, dtype=np.float32)
        if self.weights == "sparse":
            weights *= random.random(self.kernel_size)[..., None, None] < 0.15
            weights[tuple(k // 2 for k in self.kernel_size)] = 1
        return weights

    def _random(self, stream: int) -> Random:
        return np.random.default_rng((self.seed, stream))

    def __str__(self) -> str:
        """In one line, as a table shows it.

        >>> print(Drawn("layer", (32, 32, 32), (5, 5, 5), 64, 64))
        64->64 5x5x5 on 32x32x32
        """
        text = f"{self.channels}->{self.filters} {_by(self.kernel_size)} on {_by(self.size)}"
        if self.strides != (1, 1, 1):
            text += f", stride {_by(self.strides)}"
        if self.dilation_rate != (1, 1, 1):
            text += f", dilation {_by(self.dilation_rate)}"
        if self.groups > 1:
            text += f", {self.groups} groups"
        return text if self.weights == "dense" else f"{text}, {self.weights}"


def _by(numbers: Triple) -> str:
    return "x".join(map(str, numbers))


def draw_problems(count: int, seed: int) -> Iterator[Drawn]:
    """Draw problems of all kinds in turn; the same ones for the same seed.

    >>> [str(problem) for problem in draw_problems(2, seed=7)] == [
    ...     str(problem) for problem in draw_problems(2, seed=7)
    ... ]
    True
    """
    random = np.random.default_rng(seed)
    names = list(KINDS)
    for number in range(count):
        kind = names[number % len(names)]
        while True:
            found = KINDS[kind](random)
            problem = found.problem
            moved = 4 * (math.prod(problem.in_shape) + math.prod(problem.out_shape))
            if LEAST_FLOPS < problem.flops < MOST_FLOPS and moved < MOST_BYTES:
                yield found
                break


def _choice(random: Random, values: list[Any]) -> Any:
    return values[random.integers(len(values))]


def _size(random: Random, least: int, most: int) -> Triple:
    """Voxels along each axis: about equal, or one axis short or long; round numbers or odd ones."""
    middle = math.exp(random.uniform(math.log(least), math.log(most)))
    sizes = [max(2, round(middle * math.exp(random.normal(0, 0.35)))) for _ in range(3)]
    if random.random() < 0.4:
        sizes = [_choice(random, [8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256])] * 3
    if random.random() < 0.15:
        sizes[0] = max(1, sizes[0] // 6)  # a thin stack
    return sizes[0], sizes[1], sizes[2]


def _kernel(random: Random, most: int) -> Triple:
    """A cube, or flat, or of three sizes of its own."""
    sizes = [n for n in (1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 7, 9, 11, 13, 15, 19, 25, 31) if n <= most]
    form = random.random()
    if form < 0.5:
        size = _choice(random, sizes)
        return size, size, size
    if form < 0.7:
        size = _choice(random, sizes)
        flat = [size, size, size]
        flat[random.integers(3)] = 1
        return flat[0], flat[1], flat[2]
    return _choice(random, sizes), _choice(random, sizes), _choice(random, sizes)


def _filter(random: Random) -> Drawn:
    """An image filter of one channel."""
    weights = _choice(random, ["dense", "dense", "sparse"])
    return Drawn(
        "filter",
        _size(random, 24, 256),
        _kernel(random, 31),
        weights=weights,
        seed=int(random.integers(1 << 30)),
    )


def _smoothing(random: Random) -> Drawn:
    """An image filter that is a product of lines."""
    weights = _choice(random, ["gaussian", "gaussian", "box"])
    return replace(_filter(random), kind="smoothing", weights=weights)


def _network(random: Random) -> Drawn:
    """A network's inner layer, as most are: small cubes or flat kernels, full vectors."""
    channels = _choice(random, [8, 16, 24, 32, 48, 64, 96, 128, 256, 320])
    filters = channels if random.random() < 0.6 else _choice(random, [16, 32, 64, 128, 256])
    kernel = _choice(random, [(3, 3, 3)] * 4 + [(1, 3, 3), (5, 5, 5), (1, 1, 1), (2, 2, 2)])
    strides, dilation = _steps(random)
    return Drawn("network", _size(random, 6, 96), kernel, channels, filters, strides, dilation)


# numbers of channels and filters
_COUNTS = [2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 30, 32, 40, 48, 64, 80, 96, 100]
_COUNTS += [128, 160, 256, 320]


def _steps(random: Random) -> tuple[Triple, Triple]:
    """Strides and dilation: mostly 1."""
    form = random.random()
    if form < 0.15:
        return _choice(random, [(2, 2, 2), (2, 2, 2), (1, 2, 2), (3, 3, 3)]), (1, 1, 1)
    if form < 0.28:
        return (1, 1, 1), _choice(random, [(2, 2, 2), (2, 2, 2), (4, 4, 4), (1, 2, 2), (3, 3, 3)])
    return (1, 1, 1), (1, 1, 1)


def _layer(random: Random) -> Drawn:
    channels = _choice(random, _COUNTS)
    filters = channels if random.random() < 0.5 else _choice(random, _COUNTS)
    strides, dilation = _steps(random)
    size, kernel = _size(random, 8, 96), _kernel(random, 7)
    return Drawn("layer", size, kernel, channels, filters, strides, dilation)


def _first(random: Random) -> Drawn:
    """A network's first layer: few channels."""
    strides, dilation = _steps(random)
    channels, filters = int(random.integers(1, 5)), _choice(random, _COUNTS)
    size, kernel = _size(random, 24, 160), _kernel(random, 7)
    return Drawn("first", size, kernel, channels, filters, strides, dilation)


def _last(random: Random) -> Drawn:
    """A network's last layer: few filters."""
    strides, dilation = _steps(random)
    channels, filters = _choice(random, _COUNTS), int(random.integers(1, 6))
    size, kernel = _size(random, 16, 128), _kernel(random, 5)
    return Drawn("last", size, kernel, channels, filters, strides, dilation)


def _groups(random: Random) -> Drawn:
    """Grouped convolutions, down to one channel a group; half of them as networks have them."""
    if random.random() < 0.5:
        groups = _choice(random, [2, 2, 3, 4, 4, 8, 16, 32])
        channels = groups * _choice(random, [1, 4, 8, 8, 12, 16, 24, 32])
        filters = channels if random.random() < 0.7 else groups * _choice(random, [4, 8, 16, 32])
        kernel = _choice(random, [(3, 3, 3)] * 5 + [(1, 3, 3), (5, 5, 5), (7, 7, 7)])
        strides, dilation = _steps(random)
        size = _size(random, 8, 72)
        return Drawn("groups", size, kernel, channels, filters, strides, dilation, groups)
    groups = _choice(random, [2, 2, 3, 4, 4, 8, 8, 16, 24, 32, 48, 64])
    strides, dilation = _steps(random)
    channels = groups * _choice(random, [1, 1, 2, 4, 8])
    filters = channels if random.random() < 0.7 else groups * _choice(random, [1, 2, 3, 4])
    size, kernel = _size(random, 12, 96), _kernel(random, 11)
    return Drawn("groups", size, kernel, channels, filters, strides, dilation, groups)


KINDS: dict[str, Callable[[Random], Drawn]] = {
    "filter": _filter,
    "smoothing": _smoothing,
    "network": _network,
    "layer": _layer,
    "first": _first,
    "last": _last,
    "groups": _groups,
}
