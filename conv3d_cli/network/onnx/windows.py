"""ONNX's operators on windows and sizes: convolution, pooling, resizing, padding, slicing.

Source: ONNX, docs/Operators.md and onnx/defs/nn/defs.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from conv3d_cli.model.spec import output_size
from conv3d_cli.network.onnx.flow import Array, Flow, OnnxNode, kernel_of
from conv3d_cli.network.onnx.folding import slice_bounds
from conv3d_cli.network.operations.base import Shape
from conv3d_cli.network.operations.convolution import transposed_sizes
from conv3d_cli.network.operations.resize import COORDINATES, ROUNDING

Padding = str | list[list[int]]
LARGEST = 2**31  # of an argument


def _numbers(op: OnnxNode, name: str, count: int, default: int, least: int = 1) -> list[int]:
    """An attribute of one whole number for each spatial axis."""
    values = op.attributes.integers(name)
    values = [default] * count if values is None else values
    if len(values) != count or not all(least <= n < LARGEST for n in values):
        op.refuse(f"has {name}={values[:8]} for {count} spatial axes")
    return values


def _pairs(op: OnnxNode, letters: str) -> list[list[int]]:
    """`pads` as (before, after) along D, H, W."""
    count = len(letters)
    pads = _numbers(op, "pads", 2 * count, 0, least=0)
    pairs = [[pads[n], pads[n + count]] for n in range(count)]
    return op.on_axes(pairs, letters, [0, 0])


def _padding(op: OnnxNode, letters: str) -> Padding:
    """Padding in the words of the network's operations."""
    auto = op.attributes.text("auto_pad", "NOTSET")
    words: dict[str, str] = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}
    if auto in words:
        return words[auto]
    if auto not in ("NOTSET", ""):
        op.refuse(f"has auto_pad={auto}; known are NOTSET, {', '.join(words)}")
    return _pairs(op, letters)


def _along(padding: Padding, axis: int) -> Any:
    return padding if isinstance(padding, str) else tuple(padding[axis])


def _weights(op: OnnxNode, letters: str) -> Array:
    values = op.constant(1, "weights")
    if values.ndim != 2 + len(letters) or values.dtype.kind != "f" or not values.size:
        op.refuse(
            f"has weights of shape {values.shape} and type {values.dtype}, and its input has "
            f"{len(letters)} spatial axes"
        )
    told = op.attributes.integers("kernel_shape")
    if told is not None and tuple(told) != values.shape[2:]:
        op.refuse(f"has kernel_shape={told[:8]}, but weights of {values.shape[2:]}")
    return values


def _bias(op: OnnxNode, filters: int) -> dict[str, Array]:
    return {"bias": op.vector(2, "bias", filters)} if op.given(2) else {}


def conv(op: OnnxNode) -> Flow:
    """A convolution of one, two or three spatial axes."""
    source = op.flow()
    letters = op.spatial(source)
    kernel = kernel_of(_weights(op, letters), letters)
    count = len(letters)
    groups = op.attributes.integer("group", 1)
    strides = op.on_axes(_numbers(op, "strides", count, 1), letters, 1)
    dilation = op.on_axes(_numbers(op, "dilations", count, 1), letters, 1)
    padding = _padding(op, letters)
    if groups < 1 or kernel.shape[3] * groups != source.volume.channels or kernel.shape[4] % groups:
        op.refuse(
            f"has weights for {kernel.shape[3]} channels in {groups} groups and "
            f"{kernel.shape[4]} filters, and takes {source.volume.channels} channels"
        )
    sizes = [
        output_size(length, k, stride, rate, _along(padding, axis))
        for axis, (length, k, stride, rate) in enumerate(
            zip(source.volume.size, kernel.shape, strides, dilation, strict=False)
        )
    ]
    return op.add(
        "Conv3D",
        [source],
        {"strides": strides, "padding": padding, "dilation_rate": dilation, "groups": groups},
        {"kernel": kernel, **_bias(op, kernel.shape[4])},
        _shape(op, sizes, kernel.shape[4]),
    )


def _shape(op: OnnxNode, sizes: Sequence[int], channels: int) -> Shape:
    if min(sizes) < 1:
        op.refuse(f"leaves no voxel of a volume: its output has the sizes {tuple(sizes)}")
    return Shape(sizes[0], sizes[1], sizes[2], channels)


def conv_transpose(op: OnnxNode) -> Flow:
    """A transposed convolution; `output_shape` becomes the padding that gives it."""
    source = op.flow()
    letters = op.spatial(source)
    values = _weights(op, letters)
    count = len(letters)
    groups = op.attributes.integer("group", 1)
    kernel = kernel_of(values, letters)  # (kd, kh, kw, filters/groups, in_channels)
    filters = kernel.shape[3] * max(1, groups)
    if groups < 1 or kernel.shape[4] != source.volume.channels or kernel.shape[4] % groups:
        op.refuse(
            f"has weights for {kernel.shape[4]} channels in {groups} groups, and takes "
            f"{source.volume.channels} channels"
        )
    strides = op.on_axes(_numbers(op, "strides", count, 1), letters, 1)
    dilation = op.on_axes(_numbers(op, "dilations", count, 1), letters, 1)
    more = op.on_axes(_numbers(op, "output_padding", count, 0, least=0), letters, 0)
    extents = [(k - 1) * rate + 1 for k, rate in zip(kernel.shape[:3], dilation, strict=True)]
    auto = op.attributes.text("auto_pad", "NOTSET")
    told = op.attributes.integers("output_shape")
    lengths = source.volume.size
    if told is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        if told is None:
            wanted = [length * stride for length, stride in zip(lengths, strides, strict=True)]
        else:
            wanted = op.on_axes(told[-count:], letters, 1)
            wanted = [
                n if x in letters else m for n, m, x in zip(wanted, lengths, "dhw", strict=True)
            ]
        totals = [
            stride * (length - 1) + added + extent - end
            for stride, length, added, extent, end in zip(
                strides, lengths, more, extents, wanted, strict=True
            )
        ]
        # outputs that no input reaches are the bias alone
        more = [added + max(0, -total) for added, total in zip(more, totals, strict=True)]
        totals = [max(0, total) for total in totals]
        upper = auto == "SAME_UPPER"
        padding: Padding = [
            [half, total - half] if upper else [total - half, half]
            for total in totals
            for half in [total // 2]
        ]
    else:
        padding = _padding(op, letters)
        padding = [[0, 0]] * 3 if padding == "valid" else padding
    sizes = [
        transposed_sizes(length, extent, stride, _along(padding, axis), added)[1]
        for axis, (length, extent, stride, added) in enumerate(
            zip(lengths, extents, strides, more, strict=True)
        )
    ]
    return op.add(
        "Conv3DTranspose",
        [source],
        {
            "strides": strides,
            "padding": padding,
            "output_padding": more,
            "dilation_rate": dilation,
            "groups": groups,
        },
        {"kernel": kernel, **_bias(op, filters)},
        _shape(op, sizes, filters),
    )


def pool(op: OnnxNode) -> Flow:
    """MaxPool and AveragePool. A last window that is not whole (ceil_mode) is padding after."""
    source = op.flow()
    letters = op.spatial(source)
    count = len(letters)
    told = op.attributes.integers("kernel_shape")
    if told is None:
        op.refuse("lacks its kernel_shape")
    size = op.on_axes(_numbers(op, "kernel_shape", count, 1), letters, 1)
    strides = op.on_axes(_numbers(op, "strides", count, 1), letters, 1)
    rates = op.on_axes(_numbers(op, "dilations", count, 1), letters, 1)
    extents = [(k - 1) * rate + 1 for k, rate in zip(size, rates, strict=True)]
    padding = _padding(op, letters)
    if op.operator == "MaxPool":
        operation, counts = "MaxPooling3D", False
    else:
        operation = "AveragePooling3D"
        counts = bool(op.attributes.integer("count_include_pad", 0))
    if not isinstance(padding, str):
        for pair, k in zip(padding, size, strict=True):
            if max(pair) >= k:
                op.refuse(f"pads {max(pair)} voxels, which a window of {k} must exceed")
    # under VALID and SAME the number of windows is told without it
    if op.attributes.integer("ceil_mode", 0) and not isinstance(padding, str):
        for pair, reach, stride in zip(padding, extents, strides, strict=True):
            if stride > 1 and pair[1] + stride > reach:
                op.refuse(
                    f"has ceil_mode with windows of {reach} every {stride} voxels and {pair[1]} "
                    "after the volume, of which the last may lie outside"
                )
        if counts and any(map(any, padding)):  # these count, and the voxels beyond them do not
            source = op.add("ZeroPadding3D", [source], {"padding": padding})
            padding = [[0, 0]] * 3
        counts = False
        padding = [
            [before, after + stride - 1]
            for (before, after), stride in zip(padding, strides, strict=True)
        ]
    attributes: dict[str, Any] = {"pool_size": size, "strides": strides, "padding": padding}
    if counts:
        attributes["count_include_pad"] = True
    if max(rates) > 1:
        attributes["dilation_rate"] = rates
    return op.add(operation, [source], attributes)


def global_pool(op: OnnxNode) -> Flow:
    """GlobalAveragePool and GlobalMaxPool."""
    source = op.flow()
    op.spatial(source)
    op.require_volume(source, "takes all voxels of a plane")
    name = "GlobalAveragePooling3D" if op.operator == "GlobalAveragePool" else "GlobalMaxPooling3D"
    return op.add(name, [source])


# --------------------------------------------------------------------------------------------------
# Other sizes


def resize(op: OnnxNode) -> Flow:
    """Resize, and Upsample of opset 9, to other sizes along D, H, W."""
    source = op.flow()
    rank = len(source.layout)
    attributes = op.attributes
    mode = attributes.text("mode", "nearest")
    if mode not in ("nearest", "linear"):
        op.refuse(f"has mode={mode}; known are nearest and linear")
    old = op.operator == "Upsample" or op.opset < 11
    default = "asymmetric" if old else "half_pixel"
    coordinates = attributes.text("coordinate_transformation_mode", default)
    if coordinates not in COORDINATES:
        op.refuse(
            f"has coordinate_transformation_mode={coordinates}; known are {', '.join(COORDINATES)}"
        )
    rounding = "floor" if old else attributes.text("nearest_mode", "round_prefer_floor")
    if rounding not in ROUNDING:
        op.refuse(f"has nearest_mode={rounding}; known are {', '.join(ROUNDING)}")
    if coordinates == "tf_half_pixel_for_nn" and (mode, rounding) != ("nearest", "floor"):
        op.refuse(f"has {coordinates}, which is taken with mode=nearest and nearest_mode=floor")
    if attributes.integer("antialias", 0):
        op.refuse("has antialias=1, which is not computed")
    axes = op.axes(rank) or list(range(rank))
    scales, sizes = (1, None) if old else (2, 3)
    if sizes is not None and op.given(sizes) and op.constant(sizes, "sizes").size:
        if attributes.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            op.refuse("keeps the aspect ratio, which is not computed; export it with stretch")
        wanted = _on_all(op, axes, op.integers(sizes, "sizes"), source.shape)
        return _to_sizes(op, source, wanted, mode, coordinates, rounding)
    given_factors = op.constant(scales, "scales").reshape(-1).tolist()
    factors = _on_all(op, axes, given_factors, [1.0] * rank)
    _only_spatial(op, source, [by == 1 for by in factors])
    by = dict(zip(source.layout, map(float, factors), strict=True))
    given = [by.get(letter, 1.0) for letter in "dhw"]
    return _by_factors(op, source, given, mode, coordinates, rounding)


def _on_all(
    op: OnnxNode, axes: list[int], values: Sequence[Any], default: Sequence[Any]
) -> list[Any]:
    """Values of some axes, with defaults for the others."""
    if len(values) != len(axes):
        op.refuse(f"has {len(values)} numbers for {len(axes)} axes")
    found = list(default)
    for axis, value in zip(axes, values, strict=True):
        found[axis] = value
    return found


def _only_spatial(op: OnnxNode, source: Flow, stays: list[bool]) -> None:
    for letter, same in zip(source.layout, stays, strict=True):
        if not same and letter not in "dhw":
            op.refuse("resizes the batch or the channels; it is taken along depth, height, width")


def _to_sizes(
    op: OnnxNode, source: Flow, wanted: list[int], mode: str, coordinates: str, rounding: str
) -> Flow:
    _only_spatial(op, source, [n == m for n, m in zip(wanted, source.shape, strict=True)])
    by_letter = dict(zip(source.layout, wanted, strict=True))
    sizes = [by_letter.get(letter, source.length(letter)) for letter in "dhw"]
    if min(sizes) < 1 or max(sizes) >= LARGEST:
        op.refuse(f"has the sizes {tuple(sizes)}")
    lengths = source.volume.size
    pairs = list(zip(lengths, sizes, strict=True))
    if (like := op.of_size(sizes)) is not None:
        return _resized(op, [source, like], {}, mode, coordinates, rounding)
    if all(new % old == 0 or old % new == 0 for old, new in pairs):
        scales = [new / old for old, new in pairs]
        return _by_factors(op, source, scales, mode, coordinates, rounding)
    return _resized(op, [source], {"sizes": sizes}, mode, coordinates, rounding)


def _by_factors(
    op: OnnxNode, source: Flow, scales: list[float], mode: str, coordinates: str, rounding: str
) -> Flow:
    if not all(0 < by < LARGEST for by in scales):
        op.refuse(f"has the scales {tuple(scales)}")
    if scales == [1.0] * 3:
        return source
    whole = all(by == int(by) for by in scales)
    repeats = (coordinates, rounding) == ("asymmetric", "floor") or (
        coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
        and rounding.startswith("round_prefer")
    )
    if mode == "nearest" and whole and repeats and max(scales) < 64:
        return op.add("UpSampling3D", [source], {"size": [int(by) for by in scales]})
    return _resized(op, [source], {"scales": scales}, mode, coordinates, rounding)


def _resized(
    op: OnnxNode,
    inputs: list[Flow],
    sizes: dict[str, Any],
    mode: str,
    coordinates: str,
    rounding: str,
) -> Flow:
    attributes = {**sizes, "mode": mode, "coordinates": coordinates}
    if mode == "nearest":
        attributes["rounding"] = rounding
    return op.add("Resize", inputs, attributes)


def pad(op: OnnxNode) -> Flow:
    """Pad by a number, by mirrored voxels or those of the border; negative pads crop."""
    source = op.flow()
    rank = len(source.layout)
    mode = op.attributes.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        op.refuse(f"has mode={mode}; known are constant, reflect and edge")
    if op.opset < 11:
        pads, value = op.attributes.integers("pads"), op.attributes.number("value", 0.0)
        pads = [] if pads is None else pads
    else:
        pads = op.integers(1, "pads")
        value = 0.0
        if op.given(2) and (fill := op.constant(2, "value")).size:
            value = float(fill.reshape(-1)[0])
    axes = op.axes(rank, 3)
    axes = list(range(rank)) if axes is None else axes
    if len(pads) != 2 * len(axes):
        op.refuse(f"has {len(pads)} pads for {len(axes)} axes")
    if max(map(abs, pads), default=0) >= LARGEST:
        op.refuse(f"has pads={pads[:8]}")
    by_letter = {}
    for number, axis in enumerate(axes):
        pair = [pads[number], pads[number + len(axes)]]
        letter = source.layout[axis]
        if any(pair) and letter not in "dhw":
            op.refuse("pads the batch or the channels; it is taken along depth, height, width")
        by_letter[letter] = pair
    pairs = [by_letter.get(letter, [0, 0]) for letter in "dhw"]
    added = [[max(n, 0) for n in pair] for pair in pairs]
    taken = [[max(-n, 0) for n in pair] for pair in pairs]
    if mode != "constant" and any(map(any, added)) and any(map(any, taken)):
        op.refuse(f"has mode={mode} with negative pads; it is taken with the one or the other")
    flow = source
    if any(map(any, taken)):
        flow = op.add("Cropping3D", [flow], {"cropping": taken})
    if any(map(any, added)) and mode == "constant":
        if not np.isfinite(value):
            op.refuse(f"pads with {value}; it is taken with a finite number")
        flow = op.add(
            "ZeroPadding3D", [flow], {"padding": added, **({"value": value} if value else {})}
        )
    elif any(map(any, added)):
        flow = op.add("BorderPadding3D", [flow], {"padding": added, "mode": mode})
    return flow


def slice_(op: OnnxNode) -> Flow:
    """A Slice that crops a volume, or takes channels."""
    source = op.flow()
    values = [op.constant(n, "bounds") if op.given(n) else None for n in range(1, len(op.inputs))]
    try:
        bounds = slice_bounds(op.attributes, [None, *values], len(source.layout))
    except (ValueError, TypeError, IndexError) as error:
        op.refuse(f"has bounds that it does not take: {error}")
    flow = source
    cropping = {}
    for axis, (start, stop, step) in bounds.items():
        length, letter = source.shape[axis], source.layout[axis]
        if step < 0 and stop < -length:
            taken = range(length)[start::step]
        else:
            taken = range(length)[start:stop:step]
        if taken == range(length):
            continue
        if letter == "c":
            flow = op.add("TakeChannels", [flow], {"channels": list(taken)})
        elif letter in "dhw" and step == 1 and len(taken):
            cropping[letter] = [taken.start, length - taken.stop]
        else:
            op.refuse(
                f"takes {len(taken)} of {length} along the axis {letter.upper()} by steps of "
                f"{step}; it is taken along depth, height and width by steps of 1, and along the "
                "channels"
            )
    if cropping:
        pairs = [cropping.get(letter, [0, 0]) for letter in "dhw"]
        flow = op.add("Cropping3D", [flow], {"cropping": pairs})
    return flow


WINDOWS: dict[str, Callable[[OnnxNode], Flow | list[Flow]]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": pool,
    "AveragePool": pool,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "Resize": resize,
    "Upsample": resize,
    "Pad": pad,
    "Slice": slice_,
}
