"""Peers: other libraries that convolve volumes, each called in the way that is fastest for it.

A `Peer` is one way to call one library. Its `ready` converts a case's volume to the library's own
layout once, and returns the function to time. The result is compared with ours first, so that only
equal computations are timed. No library is required: those that are not installed are left out.
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
    """A case that is prepared for one peer.

    run : callable          convolves once
    array : callable        converts the result of `run` to an array (D, H, W, filters)
    tolerance : float       largest difference from ours, as a fraction of sum|w| * max|x|
    edge : int              voxels at each face to leave out of the comparison, if the library has
                            another boundary mode
    """

    run: Callable[[], Any]
    array: Callable[[Any], Array]
    tolerance: float = 2e-5
    edge: int = 0


class Peer(NamedTuple):
    """One way to call one library.

    name : str              for the table
    package : str           the package to import, whose version is recorded
    takes : callable        (case) -> bool: whether it can compute the case
    seconds : callable      (case, threads) -> rough duration, so that slow peers can be left out
    ready : callable        (case, volume, weights) -> Call
    fills : bool            it fills a preallocated output; else it allocates one in every call
    """

    name: str
    package: str
    takes: Callable[[Case], bool]
    seconds: Callable[[Case, int], float]
    ready: Callable[[Case, Array, Array], Call]
    fills: bool = False


def _at(gigaflops: float, parallel: bool = True) -> Callable[[Case, int], float]:
    """The duration of the direct sum at this rate, in GFLOP/s per thread."""
    return lambda case, threads: (
        case.problem.flops / (1e9 * gigaflops * (threads if parallel else 1))
    )


def _voxels_at(millions: float) -> Callable[[Case, int], float]:
    """The duration at this rate, in millions of voxels per second, whatever the kernel."""
    return lambda case, threads: math.prod(case.size) / (1e6 * millions)


def _is_dense(case: Case) -> bool:
    return case.shape == "dense"


def _is_float32(case: Case) -> bool:
    return case.shape == "dense" and case.dtype == "float32"


def _is_gaussian(case: Case) -> bool:
    return case.shape == "gaussian"


def _is_box(case: Case) -> bool:
    return case.shape == "box"


def _is_dense_filter(case: Case) -> bool:
    return case.is_filter and case.shape == "dense"


def _is_plain_filter(case: Case) -> bool:
    return case.is_filter and case.shape in ("dense", "box")


def _with_channel(array: Array) -> Array:
    return array[..., None]


def _flipped(weights: Array) -> Array:
    """The weights of a filter (kd, kh, kw), for libraries that flip them."""
    return weights[::-1, ::-1, ::-1, 0, 0].copy()


# --------------------------------------------------------------------------------------------------
# PyTorch, which calls oneDNN


def _torch(memory: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import torch
        from torch.nn.functional import conv3d

        layout = torch.channels_last_3d if memory == "last" else torch.contiguous_format
        # copy, because PyTorch does not change the strides of a volume with one channel
        x = torch.from_numpy(np.ascontiguousarray(volume.transpose(3, 0, 1, 2)[None]))
        w = torch.from_numpy(np.ascontiguousarray(weights.transpose(4, 3, 0, 1, 2)))
        x, w = x.contiguous(memory_format=layout), w.contiguous(memory_format=layout)
        settings: dict[str, Any] = {
            "stride": case.strides,
            "padding": case.padding,
            "dilation": case.dilation_rate,
            "groups": case.groups,
        }
        if memory == "blocked":
            layer = torch.nn.Conv3d(
                case.channels, case.filters, case.kernel_size, bias=False, **settings
            )
            layer.weight = torch.nn.Parameter(w, requires_grad=False)
            with warnings.catch_warnings():
                # the layer is written in TorchScript, which is deprecated
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
    # a vector holds channels, so most of its lanes idle where there are few
    few = min(case.channels, case.filters) // case.groups < 8 and case.channels * case.filters < 256
    return _at(3 if few else 60)(case, threads)


# --------------------------------------------------------------------------------------------------
# ONNX Runtime


def _onnxruntime(case: Case, volume: Array, weights: Array) -> Call:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    layer = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=[case.strides] * 3,
        dilations=[case.dilation_rate] * 3,
        group=case.groups,
        pads=[*case.padding, *case.padding],
    )
    taps = np.ascontiguousarray(weights.transpose(4, 3, 0, 1, 2))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(
        [layer], "layer", ends[:1], ends[1:], [numpy_helper.from_array(taps, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads[0]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"x": np.ascontiguousarray(volume.transpose(3, 0, 1, 2)[None])}
    return Call(lambda: session.run(None, inputs)[0], lambda y: y[0].transpose(1, 2, 3, 0))


# --------------------------------------------------------------------------------------------------
# bioimage-cpp, which continues fastfilters


def _bioimage_gaussian(case: Case, volume: Array, weights: Array) -> Call:
    from bioimage_cpp import filters

    x = volume[..., 0].copy()
    # it mirrors at the boundary
    return Call(
        lambda: filters.gaussian_smoothing(x, case.sigma, window_size=4.0),
        _with_channel,
        edge=_reach(case),
    )


# --------------------------------------------------------------------------------------------------
# SciPy

_ndimage_seconds = _at(2.5, parallel=False)


def _correlate(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x, w = np.empty(case.size, np.float32), volume[..., 0], weights[..., 0, 0]
    return Call(lambda: ndimage.correlate(x, w, output=out, mode="constant"), _with_channel)


def _convolve(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x, w = np.empty(case.size, np.float32), volume[..., 0], _flipped(weights)
    return Call(lambda: ndimage.convolve(x, w, output=out, mode="constant"), _with_channel)


def _gaussian(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x = np.empty(case.size, np.float32), volume[..., 0]
    return Call(
        lambda: ndimage.gaussian_filter(x, case.sigma, output=out, mode="nearest", truncate=4.0),
        _with_channel,
    )


def _uniform(case: Case, volume: Array, weights: Array) -> Call:
    from scipy import ndimage

    out, x = np.empty(case.size, np.float32), volume[..., 0]
    return Call(
        lambda: ndimage.uniform_filter(x, case.kernel_size, output=out, mode="constant"),
        _with_channel,
    )


def _fourier(name: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        from scipy import fft, signal

        function = getattr(signal, name)
        x, w, threads = volume[..., 0], _flipped(weights), _threads[0]

        def run() -> Array:
            with fft.set_workers(threads):
                result: Array = function(x.astype(np.float32, copy=False), w, mode="same")
            return result

        return Call(run, _with_channel)

    return ready


# --------------------------------------------------------------------------------------------------
# SimpleITK


def _itk(name: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import SimpleITK as sitk

        x = sitk.GetImageFromArray(volume[..., 0].astype(np.float32))
        w = sitk.GetImageFromArray(_flipped(weights))
        method = getattr(sitk, f"{name}ImageFilter")()
        method.SetBoundaryCondition(method.ZERO_PAD)
        return Call(lambda: method.Execute(x, w), _from_itk)

    return ready


def _itk_gaussian(case: Case, volume: Array, weights: Array) -> Call:
    import SimpleITK as sitk

    x = sitk.GetImageFromArray(volume[..., 0].astype(np.float32))
    # its kernel is of Bessel functions, not a sampled Gaussian, truncated at an error of 0.1 %
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
    """Voxels from a face within which the boundary mode matters."""
    return case.kernel_size[0] // 2 + 1


# --------------------------------------------------------------------------------------------------
# DIPlib


def _dip(method: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import diplib as dip

        dip.SetTensorConversionThreshold(0)  # else it takes a last axis of 3 for colours
        x, w = dip.Image(volume[..., 0].astype(np.float32)), dip.Image(_flipped(weights))
        options = {"method": method, "boundaryCondition": ["add zeros"]}
        return _dip_call(lambda out: dip.Convolution(x, w, out=out, **options))

    return ready


def _dip_uniform(case: Case, volume: Array, weights: Array) -> Call:
    import diplib as dip

    x = dip.Image(volume[..., 0].copy())
    kernel = dip.Kernel(list(case.kernel_size[::-1]), "rectangular")
    return _dip_call(
        lambda out: dip.Uniform(x, out=out, kernel=kernel, boundaryCondition=["add zeros"])
    )


def _dip_gauss(method: str) -> Callable[[Case, Array, Array], Call]:
    def ready(case: Case, volume: Array, weights: Array) -> Call:
        import diplib as dip

        x, sigmas = dip.Image(volume[..., 0].copy()), [case.sigma] * 3
        options = {"method": method, "boundaryCondition": ["zero order"], "truncation": 4.0}
        tolerance, edge = (2e-5, 0) if method == "FIR" else (2e-2, _reach(case))
        return _dip_call(
            lambda out: dip.Gauss(x, out=out, sigmas=sigmas, **options), tolerance, edge
        )

    return ready


def _dip_call(function: Callable[[Any], None], tolerance: float = 2e-5, edge: int = 0) -> Call:
    """A call that reuses one output image, which saves DIPlib the allocation."""
    import diplib as dip

    out = dip.Image()

    def run() -> Any:
        function(out)
        return out

    return Call(run, lambda image: np.asarray(image)[..., None], tolerance, edge)


# --------------------------------------------------------------------------------------------------

PEERS: tuple[Peer, ...] = (
    Peer("torch", "torch", _is_dense, _torch_seconds, _torch("first")),
    Peer("torch channels_last", "torch", _is_dense, _torch_seconds, _torch("last")),
    Peer("torch blocked", "torch", _is_float32, _torch_seconds, _torch("blocked")),
    Peer("onnxruntime", "onnxruntime", _is_float32, _torch_seconds, _onnxruntime),
    Peer("bioimage-cpp", "bioimage_cpp", _is_gaussian, _voxels_at(20), _bioimage_gaussian),
    Peer("ndimage.correlate", "scipy", _is_dense_filter, _ndimage_seconds, _correlate, fills=True),
    Peer("ndimage.convolve", "scipy", _is_dense_filter, _ndimage_seconds, _convolve, fills=True),
    Peer("ndimage.gaussian_filter", "scipy", _is_gaussian, _voxels_at(20), _gaussian, fills=True),
    Peer("ndimage.uniform_filter", "scipy", _is_box, _voxels_at(20), _uniform, fills=True),
    Peer("signal.oaconvolve", "scipy", _is_plain_filter, _voxels_at(10), _fourier("oaconvolve")),
    Peer("signal.fftconvolve", "scipy", _is_plain_filter, _voxels_at(20), _fourier("fftconvolve")),
    Peer("ITK Convolution", "SimpleITK", _is_dense_filter, _at(0.5), _itk("Convolution")),
    Peer(
        "ITK FFTConvolution", "SimpleITK", _is_plain_filter, _voxels_at(5), _itk("FFTConvolution")
    ),
    Peer("ITK DiscreteGaussian", "SimpleITK", _is_gaussian, _voxels_at(10), _itk_gaussian),
    Peer("ITK RecursiveGaussian", "SimpleITK", _is_gaussian, _voxels_at(20), _itk_recursive),
    Peer("DIPlib Convolution", "diplib", _is_plain_filter, _voxels_at(5), _dip("best"), fills=True),
    Peer("DIPlib direct", "diplib", _is_dense_filter, _at(1), _dip("direct"), fills=True),
    Peer("DIPlib Uniform", "diplib", _is_box, _voxels_at(20), _dip_uniform, fills=True),
    Peer("DIPlib Gauss FIR", "diplib", _is_gaussian, _voxels_at(20), _dip_gauss("FIR"), fills=True),
    Peer(
        "DIPlib Gauss best", "diplib", _is_gaussian, _voxels_at(20), _dip_gauss("best"), fills=True
    ),
)

_threads = [1]


def installed() -> dict[str, str]:
    """The installed packages of the peers and their versions, found without importing them."""
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
    """Set the number of threads of every peer.

    packages : dict     of `installed`
    """
    _threads[0] = threads  # scipy.fft takes it in each call; scipy.ndimage always has one thread
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
