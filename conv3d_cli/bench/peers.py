"""Other libraries that convolve volumes, each called the way that is fastest for it.

A `Peer` is one way to call one library. `ready` puts a case's volume into the library's own layout, once, and gives a function to
time. Its result is compared with ours before anything is timed, so nobody is timed at something else. None of the libraries
is needed: those that are missing are left out.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.bench.cases import Case

Array = NDArray[Any]


class Call(NamedTuple):
    """A case made ready for one peer.

    run : callable          convolves once
    array : callable        what `run` returns as (D, H, W, filters)
    tolerance : float       of the largest difference from ours, as a part of sum|w| * max|x|
    edge : int              voxels at the faces that are not compared, where the library has a boundary of its own
    """

    run: Callable[[], Any]
    array: Callable[[Any], Array]
    tolerance: float = 2e-5
    edge: int = 0


class Peer(NamedTuple):
    """One way to call one library.

    name : str              in the table
    package : str           what to import, and whose version is told
    takes : callable        (case) -> bool: whether it computes such a case
    seconds : callable      (case, threads) -> a rough time, so that what would take minutes is left out
    ready : callable        (case, volume, weights) -> Call
    fills : bool            it fills an output that is at hand; else it allocates one at each call
    """

    name: str
    package: str
    takes: Callable[[Case], bool]
    seconds: Callable[[Case, int], float]
    ready: Callable[[Case, Array, Array], Call]
    fills: bool = False


def _at(gigaflops: float, parallel: bool = True) -> Callable[[Case, int], float]:
    """Time of the direct sum at this speed of a thread."""
    return lambda case, threads: (
        case.problem.flops / (1e9 * gigaflops * (threads if parallel else 1))
    )


def _voxels_at(millions: float) -> Callable[[Case, int], float]:
    """Time where it depends on the voxels alone."""
    return lambda case, threads: math.prod(case.size) / (1e6 * millions)


def _is_dense(case: Case) -> bool:
    return case.shape == "dense"


def _is_gaussian(case: Case) -> bool:
    return case.shape == "gaussian"


def _is_dense_filter(case: Case) -> bool:
    return case.is_filter and case.shape == "dense"


def _is_plain_filter(case: Case) -> bool:
    return case.is_filter and case.shape in ("dense", "box")


def _with_channel(array: Array) -> Array:
    return array[..., None]


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch: oneDNN behind it


def _torch(memory: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import torch
        from torch.nn.functional import conv3d

        layout = torch.channels_last_3d if memory == "last" else torch.contiguous_format
        # a copy, since a volume of one channel would keep the strides of its other layout
        x = torch.from_numpy(np.ascontiguousarray(volume.transpose(3, 0, 1, 2)[None]))
        w = torch.from_numpy(np.ascontiguousarray(weights.transpose(4, 3, 0, 1, 2)))
        x, w = x.contiguous(memory_format=layout), w.contiguous(memory_format=layout)
        settings: dict[str, Any] = {
            "stride": case.strides, "padding": case.padding, "dilation": case.dilation_rate, "groups": case.groups,
        }  # fmt: skip
        if memory == "blocked":
            layer = torch.nn.Conv3d(
                case.channels, case.filters, case.kernel_size, bias=False, **settings
            )
            layer.weight = torch.nn.Parameter(w, requires_grad=False)
            with warnings.catch_warnings():
                # of TorchScript, in which the layer is written
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.utils.mkldnn import MkldnnConv3d

                packed = MkldnnConv3d(layer, torch.float32)
            blocked = x.to_mkldnn()
            return Call(lambda: packed(blocked), lambda y: _from_torch(y.to_dense()))

        def run() -> Any:
            with torch.inference_mode():
                return conv3d(x.to(torch.float32), w, **settings)

        return Call(run, _from_torch)

    return ready


def _from_torch(result: Any) -> Array:
    array: Array = result[0].permute(1, 2, 3, 0).detach().numpy()
    return array


def _torch_seconds(case: Case, threads: int) -> float:
    # one channel fills one lane of a vector; below ten channels most lanes idle
    few = min(case.channels, case.filters) // case.groups < 8 and case.channels * case.filters < 256
    return _at(3 if few else 60)(case, threads)


# ---------------------------------------------------------------------------------------------------------------------
# SciPy


def _correlate(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x, w = np.empty(case.size, np.float32), volume[..., 0], weights[..., 0, 0]
    return Call(lambda: ndimage.correlate(x, w, output=out, mode="constant"), _with_channel)


def _convolve(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x, w = (
        np.empty(case.size, np.float32),
        volume[..., 0],
        weights[::-1, ::-1, ::-1, 0, 0].copy(),
    )
    return Call(lambda: ndimage.convolve(x, w, output=out, mode="constant"), _with_channel)


def _gaussian_filter(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x = np.empty(case.size, np.float32), volume[..., 0]
    return Call(
        lambda: ndimage.gaussian_filter(x, case.sigma, output=out, mode="nearest", truncate=4.0),
        _with_channel,
    )


def _uniform_filter(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x = np.empty(case.size, np.float32), volume[..., 0]
    return Call(
        lambda: ndimage.uniform_filter(x, case.kernel_size, output=out, mode="constant"),
        _with_channel,
    )


def _by_fourier(name: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        from scipy import fft, signal

        function, flipped = getattr(signal, name), weights[::-1, ::-1, ::-1, 0, 0].copy()
        x, threads = volume[..., 0], _threads[0]

        def run() -> Array:
            with fft.set_workers(threads):
                result: Array = function(x.astype(np.float32, copy=False), flipped, mode="same")
            return result

        return Call(run, _with_channel)

    return ready


# ---------------------------------------------------------------------------------------------------------------------
# SimpleITK


def _itk_convolution(name: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import SimpleITK as sitk

        x = sitk.GetImageFromArray(volume[..., 0].astype(np.float32))
        w = sitk.GetImageFromArray(weights[::-1, ::-1, ::-1, 0, 0].copy())
        method = getattr(sitk, name)()
        method.SetBoundaryCondition(method.ZERO_PAD)
        return Call(lambda: method.Execute(x, w), _from_itk)

    return ready


def _itk_gaussian(case: Case, volume: Array, weights: Array) -> Call:
    import SimpleITK as sitk

    x = sitk.GetImageFromArray(volume[..., 0].astype(np.float32))
    # a Bessel function instead of samples of a Gaussian, cut where its sum is within 0.1 %
    return Call(
        lambda: sitk.DiscreteGaussian(x, case.sigma**2, case.kernel_size[0] + 2, 1e-3, False),
        _from_itk,
        6e-2,
        _reach(case),
    )


def _itk_recursive(case: Case, volume: Array, weights: Array) -> Call:
    import SimpleITK as sitk

    x = sitk.GetImageFromArray(volume[..., 0].astype(np.float32))
    return Call(
        lambda: sitk.SmoothingRecursiveGaussian(x, case.sigma), _from_itk, 2e-2, _reach(case)
    )


def _from_itk(image: Any) -> Array:
    import SimpleITK as sitk

    array: Array = sitk.GetArrayViewFromImage(image)
    return array[..., None]


def _reach(case: Case) -> int:
    return case.kernel_size[0] // 2 + 1


# ---------------------------------------------------------------------------------------------------------------------
# DIPlib


def _dip_convolution(method: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import diplib as dip

        dip.SetTensorConversionThreshold(0)  # else a last axis of 3 is taken for colours
        x, w = (
            dip.Image(volume[..., 0].astype(np.float32)),
            dip.Image(weights[::-1, ::-1, ::-1, 0, 0].copy()),
        )
        return _dip_call(
            lambda out: dip.Convolution(
                x, w, out=out, method=method, boundaryCondition=["add zeros"]
            )
        )

    return ready


def _dip_uniform(case: Case, volume: Array, weights: Array) -> Call:
    import diplib as dip

    x, kernel = (
        dip.Image(volume[..., 0].copy()),
        dip.Kernel(list(case.kernel_size[::-1]), "rectangular"),
    )
    return _dip_call(
        lambda out: dip.Uniform(x, out=out, kernel=kernel, boundaryCondition=["add zeros"])
    )


def _dip_gaussian(method: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import diplib as dip

        x, sigmas = dip.Image(volume[..., 0].copy()), [case.sigma] * 3
        exact = method == "FIR"
        return _dip_call(
            lambda out: dip.Gauss(x, out=out, sigmas=sigmas, method=method, boundaryCondition=["zero order"], truncation=4.0),
            2e-5 if exact else 2e-2, 0 if exact else _reach(case),
        )  # fmt: skip

    return ready


def _dip_call(function: Callable[[Any], None], tolerance: float = 2e-5, edge: int = 0) -> Call:
    """Its results go into an image that is kept, which saves it the allocation."""
    import diplib as dip

    out = dip.Image()

    def run() -> Any:
        function(out)
        return out

    return Call(run, lambda image: np.asarray(image)[..., None], tolerance, edge)


# ---------------------------------------------------------------------------------------------------------------------

PEERS: tuple[Peer, ...] = (
    Peer("torch", "torch", _is_dense, _torch_seconds, _torch("first")),
    Peer("torch channels_last", "torch", _is_dense, _torch_seconds, _torch("last")),
    Peer("torch blocked", "torch", lambda case: _is_dense(case) and case.dtype == "float32", _torch_seconds, _torch("blocked")),
    Peer("ndimage.correlate", "scipy", _is_dense_filter, _at(2.5, parallel=False), _correlate, fills=True),
    Peer("ndimage.convolve", "scipy", _is_dense_filter, _at(2.5, parallel=False), _convolve, fills=True),
    Peer("ndimage.gaussian_filter", "scipy", _is_gaussian, _voxels_at(20), _gaussian_filter, fills=True),
    Peer("ndimage.uniform_filter", "scipy", lambda case: case.shape == "box", _voxels_at(20), _uniform_filter, fills=True),
    Peer("signal.oaconvolve", "scipy", _is_plain_filter, _voxels_at(10), _by_fourier("oaconvolve")),
    Peer("signal.fftconvolve", "scipy", _is_plain_filter, _voxels_at(20), _by_fourier("fftconvolve")),
    Peer("ITK Convolution", "SimpleITK", _is_dense_filter, _at(0.5), _itk_convolution("ConvolutionImageFilter")),
    Peer("ITK FFTConvolution", "SimpleITK", _is_plain_filter, _voxels_at(5), _itk_convolution("FFTConvolutionImageFilter")),
    Peer("ITK DiscreteGaussian", "SimpleITK", _is_gaussian, _voxels_at(10), _itk_gaussian),
    Peer("ITK RecursiveGaussian", "SimpleITK", _is_gaussian, _voxels_at(20), _itk_recursive),
    Peer("DIPlib Convolution", "diplib", _is_plain_filter, _voxels_at(5), _dip_convolution("best"), fills=True),
    Peer("DIPlib direct", "diplib", _is_dense_filter, _at(1), _dip_convolution("direct"), fills=True),
    Peer("DIPlib Uniform", "diplib", lambda case: case.shape == "box", _voxels_at(20), _dip_uniform, fills=True),
    Peer("DIPlib Gauss FIR", "diplib", _is_gaussian, _voxels_at(20), _dip_gaussian("FIR"), fills=True),
    Peer("DIPlib Gauss best", "diplib", _is_gaussian, _voxels_at(20), _dip_gaussian("best"), fills=True),
)  # fmt: skip

_threads = [1]


def installed() -> dict[str, str]:
    """The peers' packages that are installed, with their versions; none is imported."""
    found = {}
    for package in dict.fromkeys(peer.package for peer in PEERS):
        if importlib.util.find_spec(package) is not None:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "unknown"
    return found


@contextlib.contextmanager
def threads_for_all(threads: int, packages: dict[str, str]) -> Iterator[None]:
    """Give every peer the same number of threads."""
    _threads[0] = threads  # scipy.fft is told at each call; scipy.ndimage has one thread, always
    if "torch" in packages:
        import torch

        torch.set_num_threads(threads)
    if "SimpleITK" in packages:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    if "diplib" in packages:
        import diplib as dip

        dip.SetNumberOfThreads(threads)
    yield
