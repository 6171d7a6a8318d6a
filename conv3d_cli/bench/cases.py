"""The convolutions to measure, and their targets: one list, so that every run has the same table.

A target is a fraction of the machine's limit and a speedup over the fastest peer, for the sizes
given here and two cores with AVX-512. Held-out cases are variations of the others (odd sizes, other
channel counts, anisotropic kernels). They show whether the engine is fast in general, or only on
the cases that it was tuned for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import SpecError
from conv3d_cli.model.spec import ConvProblem, ConvSpec, Triple

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One convolution to measure: volume, kernel and targets.

    name : str              for `--case` and the table
    group : str             "dense", "large", "separable" or "channels"; `--case` takes it, too
    size : (D, H, W)        voxels
    kernel_size : (kd, kh, kw)
    channels, filters : int
    dtype : str             of the volume; weights and output are float32
    shape : str             "dense": random weights; "box"; "gaussian": with standard deviation
                            `sigma`, truncated at 4 sigma
    sigma : float           voxels
    share : float           target: fraction of the machine's limit; 0 for none
    ratio : float           target: speedup over the fastest peer; 0 for none
    held : bool             held out of the table of targets
    """

    name: str
    group: str
    size: Triple
    kernel_size: Triple
    channels: int = 1
    filters: int = 1
    strides: int = 1
    dilation_rate: int = 1
    groups: int = 1
    dtype: str = "float32"
    shape: str = "dense"
    sigma: float = 0.0
    share: float = 0.0
    ratio: float = 0.0
    held: bool = False

    @property
    def is_filter(self) -> bool:
        """True for one channel at unit stride, which image libraries can compute; else a layer."""
        return self.channels == self.filters == 1 and self.strides == self.dilation_rate == 1

    @property
    def boundary(self) -> str:
        """The boundary mode that all peers of this case support."""
        return "nearest" if self.shape == "gaussian" else "zeros"

    @property
    def padding(self) -> Triple:
        """Voxels on either side along (D, H, W), as PyTorch pads to keep the size.

        Keras' `same` is equal to it for odd kernels and strides of 1.
        """
        d, h, w = ((k - 1) * self.dilation_rate // 2 for k in self.kernel_size)
        return d, h, w

    @cached_property
    def problem(self) -> ConvProblem:
        """The resolved convolution."""
        spec = ConvSpec(
            self.strides, self.padding, self.dilation_rate, self.groups, boundary=self.boundary
        )
        kernel_shape = (*self.kernel_size, self.channels // self.groups, self.filters)
        return spec.resolve((1, *self.size, self.channels), kernel_shape)

    @property
    def flops(self) -> int:
        """Floating-point operations, from which the machine's limit is computed.

        Those of the direct sum, or of three passes if the kernel is separable.
        """
        if self.shape == "dense":
            return self.problem.flops
        return 2 * sum(self.kernel_size) * math.prod(self.problem.out_shape)

    @property
    def bytes_moved(self) -> int:
        """Memory traffic in bytes: input and weights read once, the float32 output written once."""
        problem = self.problem
        read = math.prod(problem.in_shape) * np.dtype(self.dtype).itemsize
        weights = problem.taps * problem.filters * 4
        return read + weights + math.prod(problem.out_shape) * 4

    def volume(self) -> Array:
        """The input: (D, H, W, channels) of `dtype`, the same random numbers every time."""
        x = np.random.default_rng(0).standard_normal((*self.size, self.channels), dtype=np.float32)
        return x if self.dtype == "float32" else (1000 + 100 * x).astype(self.dtype)

    def weights(self) -> Array:
        """The weights: (kd, kh, kw, channels / groups, filters), float32."""
        shape = (*self.kernel_size, self.channels // self.groups, self.filters)
        if self.shape == "dense":
            return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        lines = [
            np.ones(k) if self.shape == "box" else gaussian_line(k, self.sigma)
            for k in self.kernel_size
        ]
        d, h, w = (line / line.sum() for line in lines)
        product = d[:, None, None] * h[:, None] * w
        return np.broadcast_to(product[..., None, None], shape).astype(np.float32)


def gaussian_line(size: int, sigma: float) -> NDArray[np.float64]:
    """A Gaussian sampled at voxel centres, with 1 at its peak.

    >>> gaussian_line(3, 1.0).round(3).tolist()
    [0.607, 1.0, 0.607]
    """
    distance = np.arange(size) - size // 2
    return np.exp(-0.5 * (distance / sigma) ** 2)


def _cube(n: int) -> Triple:
    return n, n, n


def _dense(
    name: str, n: int | Triple, k: int | Triple, share: float, ratio: float, **more: Any
) -> Case:
    size, kernel = (_cube(v) if isinstance(v, int) else v for v in (n, k))
    group = "large" if math.prod(kernel) > 1000 else "dense"
    return Case(name, group, size, kernel, share=share, ratio=ratio, **more)


def _gaussian(
    sigma: float, n: int | Triple = 256, share: float = 0.4, ratio: float = 25, **more: Any
) -> Case:
    size = _cube(n) if isinstance(n, int) else n
    kernel = _cube(2 * int(4 * sigma + 0.5) + 1)
    name = more.pop("name", f"gaussian {sigma:g}")
    return Case(
        name,
        "separable",
        size,
        kernel,
        shape="gaussian",
        sigma=sigma,
        share=share,
        ratio=ratio,
        **more,
    )


def _layer(
    name: str,
    n: int | Triple,
    k: int | Triple,
    channels: int,
    filters: int,
    share: float = 0.0,
    ratio: float = 0.0,
    **more: Any,
) -> Case:
    size, kernel = (_cube(v) if isinstance(v, int) else v for v in (n, k))
    return Case(name, "channels", size, kernel, channels, filters, share=share, ratio=ratio, **more)


CASES: tuple[Case, ...] = (
    _dense("3^3", 256, 3, 0.60, 30),
    _dense("5^3", 256, 5, 0.55, 35),
    _dense("7^3", 256, 7, 0.60, 15),
    _dense("9^3", 256, 9, 0.60, 6),
    _dense("15^3", 256, 15, 0, 5),
    _dense("31^3", 256, 31, 0, 3.5),
    _gaussian(1),
    _gaussian(2),
    _gaussian(5),
    Case("box 9^3", "separable", _cube(256), _cube(9), shape="box", ratio=40),
    _dense("uint16 3^3", 256, 3, 0.50, 30, dtype="uint16"),
    _layer("16->16 3^3", 96, 3, 16, 16, 0.75, 1.3),
    _layer("32->32 3^3", 64, 3, 32, 32, 0.85, 1.3),
    _layer("64->64 3^3", 64, 3, 64, 64, 0.90, 1.1),
    _layer("128->128 3^3", 32, 3, 128, 128, 0.90, 1.1),
    _layer("320->320 3^3", 16, 3, 320, 320, 0.85, 1.1),
    _layer("64->64 5^3", 32, 5, 64, 64, ratio=4),
    _layer("32->32 7^3", 32, 7, 32, 32, ratio=4),
    _layer("32->64 stride 2", 64, 3, 32, 64, 0.75, 1.0, strides=2),
    _layer("32->32 dilation 2", 64, 3, 32, 32, 0.75, 1.3, dilation_rate=2),
    _layer("32->32 groups 4", 64, 3, 32, 32, ratio=3, groups=4),
    _layer("depthwise 32", 96, 3, 32, 32, ratio=6, groups=32),
    _layer("1->8 3^3", 128, 3, 1, 8, ratio=15),
    _layer("1->32 3^3", 128, 3, 1, 32, ratio=8),
    _layer("4->8 3^3", 128, 3, 4, 8, ratio=4),
    _layer("3->5 3^3", 128, 3, 3, 5, ratio=3),
    _layer("32->1 3^3", 96, 3, 32, 1, ratio=8),
    _layer("64->64 1^3", 64, 1, 64, 64, ratio=3),
    # Held out: variations of the cases above.
    _dense("3^3 odd", (251, 263, 241), 3, 0.60, 30, held=True),
    _dense("3^3 280", 280, 3, 0.60, 30, held=True),
    _dense("5^3 thin", (64, 512, 512), 5, 0.55, 35, held=True),
    _dense("3x7x7", 256, (3, 7, 7), 0.60, 15, held=True),
    _dense("1x9x9", 256, (1, 9, 9), 0.55, 15, held=True),
    _dense("7^3 odd", (183, 217, 181), 7, 0.60, 15, held=True),
    _dense("11^3", 256, 11, 0, 5, held=True),
    _dense("5x21x21", 200, (5, 21, 21), 0, 5, held=True),
    _dense("15^3 odd", (182, 218, 182), 15, 0, 5, held=True),
    _gaussian(1.7, (182, 218, 182), name="gaussian 1.7 odd", held=True),
    _gaussian(2, (32, 800, 801), name="gaussian 2 thin", held=True),
    Case("box 3x9x9", "separable", (251, 263, 241), (3, 9, 9), shape="box", ratio=40, held=True),
    _dense("uint16 5^3 odd", (251, 263, 241), 5, 0.50, 30, dtype="uint16", held=True),
    _layer("24->40 3^3", (57, 63, 61), 3, 24, 40, 0.75, 1.3, held=True),
    _layer("48->48 3^3", 70, 3, 48, 48, 0.80, 1.1, held=True),
    _layer("96->96 3^3", 40, 3, 96, 96, 0.85, 1.1, held=True),
    _layer("32->32 1x3x3", 64, (1, 3, 3), 32, 32, 0.75, 1.3, held=True),
    _layer("16->16 5^3", 64, 5, 16, 16, ratio=4, held=True),
    _layer("32->32 5^3", 64, 5, 32, 32, 0.85, 4, held=True),
    _layer("128->128 5^3", 32, 5, 128, 128, ratio=4, held=True),
    _layer("16->16 7^3", 64, 7, 16, 16, ratio=4, held=True),
    _layer("64->64 7^3", 32, 7, 64, 64, ratio=4, held=True),
    _layer("128->128 7^3", 32, 7, 128, 128, ratio=4, held=True),
    _layer("33->65 3^3", 64, 3, 33, 65, 0.70, 1.1, held=True),
    _layer("16->32 stride 2", 97, 3, 16, 32, 0.65, 1.0, strides=2, held=True),
    _layer("24->24 groups 3", (65, 70, 75), 3, 24, 24, ratio=3, groups=3, held=True),
    _layer("depthwise 20 5^3", 72, 5, 20, 20, ratio=6, groups=20, held=True),
    _layer("2->3 3^3", 130, 3, 2, 3, ratio=3, held=True),
    _layer("1->16 5^3", 110, 5, 1, 16, ratio=8, held=True),
    _layer("40->3 1^3", 90, 1, 40, 3, ratio=3, held=True),
)


def choose_cases(patterns: Sequence[str], size: int | None = None) -> list[Case]:
    """Select cases by name or group; without patterns, all but the held-out cases.

    patterns : sequence of str  a name with `*` and `?` as wildcards (a held-out case needs its full
                                name), a group, "held" or "all"
    size : int or None          replaces each case's (D, H, W) by a cube, and removes its targets

    Raises: SpecError if a pattern matches no case.

    >>> [case.name for case in choose_cases(["3^3", "gaussian ?"])]
    ['3^3', 'gaussian 1', 'gaussian 2', 'gaussian 5']
    """
    chosen = [case for case in CASES if not case.held] if not patterns else []
    for pattern in patterns:
        found = [case for case in CASES if _matches(case, pattern)]
        if not found:
            names = ", ".join(case.name for case in CASES if not case.held)
            raise SpecError(
                f"no case is called '{pattern}'; available: {names}; "
                "groups: dense, large, separable, channels, held, all"
            )
        chosen += [case for case in found if case not in chosen]
    if size is not None:
        chosen = [replace(case, size=_cube(size), share=0.0, ratio=0.0) for case in chosen]
    return chosen


def _matches(case: Case, pattern: str) -> bool:
    if pattern in ("all", "held"):
        return case.held or pattern == "all"
    if pattern == case.group:
        return not case.held
    return case.name == pattern or (not case.held and fnmatchcase(case.name, pattern))
