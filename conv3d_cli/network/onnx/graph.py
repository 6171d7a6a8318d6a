"""Walk through an ONNX graph: constants are folded, other nodes become nodes of a network.

A graph is read for inputs of known shape, since files compute sizes from sizes. It is read for two
shapes at first, an even one and an odd one; what differs between them depends on the size. When a
network meets a volume, it is read for the volume's shape, and must be the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, ShapeError, SpecError
from conv3d_cli.kernels.weights.onnx import read_onnx_model
from conv3d_cli.kernels.weights.onnx_constants import (
    STANDARD,
    NotConstantError,
    constant,
    dequantized,
    read_tensor,
)
from conv3d_cli.network.graph import Names, Network, Node
from conv3d_cli.network.onnx.flow import MOST_CHANNELS, Array, AxesError, Flow, Made, OnnxNode
from conv3d_cli.network.onnx.folding import FOLDS, Attributes, fold, unrepeated
from conv3d_cli.network.onnx.functions import subgraphs, without_functions
from conv3d_cli.network.onnx.operators import OPERATORS, PARTS
from conv3d_cli.network.onnx.windows import WINDOWS
from conv3d_cli.network.operations.base import Shape
from conv3d_cli.network.operations.catalogue import make_operation
from conv3d_cli.system.room import require_room

OLDEST_OPSET, KNOWN_OPSET = 9, 26
TRANSLATORS = {**WINDOWS, **OPERATORS}
# axes of an input by its rank: channels first, as runtimes have them; or last, if a node needs them
LAYOUTS = (
    {2: "nc", 3: "ncw", 4: "nchw", 5: "ncdhw"},
    {2: "nc", 3: "nwc", 4: "nhwc", 5: "ndhwc"},
)
# sizes (D, H, W) that are tried for axes whose length is open: even ones, which can be divided by 2
# to 8 several times, and odd ones, at which a network that resizes to another tensor's size differs
# from one by factors. Networks without padding take others, some voxels more.
EVEN, ODD, LARGER = (13440, 26880, 40320), (13443, 26885, 40327), (26880, 53760, 80640)
MORE = 32
BATCH = 2
_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
_QUANTIZED = (
    "QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
)  # fmt: skip
_WEIGHTED = ("Conv", "ConvTranspose")  # their second input tells the channels of the first
_SAME_CHANNELS = (
    "Identity", "Cast", "Pad", "Dropout", "Relu", "Clip", "MaxPool", "AveragePool", "Mul", "Add",
    "Sub", "Div", "LeakyRelu", "Resize", "Upsample",
)  # fmt: skip


def read_onnx_network(path: str) -> Network:
    """Read an ONNX graph.

    Raises: FormatError for a damaged or foreign file; SpecError, ShapeError for a graph that is not
        understood, by node.
    """
    return _Graph(path).network()


class AtShape:
    """Reads a graph anew for a volume of a shape. It is sent to other processes by its path.

    layouts : int           number of its `LAYOUTS`
    like : frozenset        nodes that take their sizes from another tensor's
    graph : _Graph or None  None: it is read from the path when it is needed
    """

    def __init__(
        self, path: str, layouts: int, like: frozenset[str], graph: _Graph | None = None
    ) -> None:
        self._path, self._layouts, self._like, self._graph = path, layouts, like, graph

    def __reduce__(self) -> tuple[Any, ...]:
        return AtShape, (self._path, self._layouts, self._like)

    def __call__(self, shape: Shape) -> Network:
        """The network for an input of a shape. Raises: SpecError, ShapeError."""
        if self._graph is None:
            self._graph = _Graph(self._path)
        graph, sizes = self._graph, dict(zip("dhwc", shape, strict=True))
        return graph.read(LAYOUTS[self._layouts], sizes, self._like).network(
            {graph.source.name: None}
        )


@dataclass
class _Input:
    """An input of the graph.

    lengths : list      of its axes; None where the file leaves them open
    """

    name: str
    lengths: list[int | None]
    dtype: int


class _Graph:
    """The graph of a file, with its constants folded."""

    def __init__(self, path: str) -> None:
        self.path = path
        model = read_onnx_model(path)
        self.opset = self._opset(model)
        self.notes: list[str] = []
        if self.opset > KNOWN_OPSET:
            self.notes.append(
                f"the file is of ONNX opset {self.opset}; operators are read as of {KNOWN_OPSET}"
            )
        if self.opset < OLDEST_OPSET:
            raise SpecError(
                f"the file is of ONNX opset {self.opset}, read are {OLDEST_OPSET} and later; "
                "convert it with onnx.version_converter"
            )
        self.constants: dict[str, Array] = {}
        self.files: dict[str, None] = {}  # external data that were read
        self._size = 0
        self._branch_tensors: dict[int, tuple[Any, Array]] = {}  # by identity, which they keep
        graph = model.graph
        if len(graph.sparse_initializer):
            raise SpecError("the file has sparse weights, which are not read; store them dense")
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [
            _Input(value.name, *_declared(value))
            for value in graph.input
            if value.name not in self._tensors
        ]
        self.outputs = [value.name for value in graph.output]
        if not self.outputs:
            raise FormatError(f"cannot read {path}: its graph has no output")
        self.nodes = self._fold_constants(without_functions(model, self.opset, path))

    def _opset(self, model: Any) -> int:
        found = {int(one.version) for one in model.opset_import if one.domain in STANDARD}
        if len(found) != 1:
            raise FormatError(f"cannot read {self.path}: it does not tell its ONNX opset")
        return found.pop()

    # ----------------------------------------------------------------------------------------------

    def _fold_constants(self, nodes: Sequence[Any]) -> list[Any]:
        """Compute the nodes that follow from stored tensors alone; returns the others."""
        rest = []
        for number, node in enumerate(nodes):
            if node.op_type == "Constant" and node.domain in STANDARD and len(node.output) == 1:
                self._keep(node.output[0], self.constant(node, _title(node, number)))
                continue
            known = node.input and all(not name or self.knows(name) for name in node.input)
            folds = node.op_type in (*FOLDS, "DequantizeLinear", "ConstantOfShape")
            if known and folds and (node.domain in STANDARD or node.op_type == "DequantizeLinear"):
                values = [self.value(name) if name else None for name in node.input]
                result = self.folded(node, values, _title(node, number))
                if result is not None:
                    self._keep(node.output[0], result)
                    continue
            rest.append((number, node))
        return rest

    def constant(self, node: Any, where: str) -> Array:
        """The value of a Constant. Raises: SpecError."""
        try:
            value = constant(Attributes(node).found, self.path)
        except NotConstantError as error:
            raise SpecError(f"{where}: its numbers {error}") from None
        if value is None:
            raise SpecError(f"{where} is neither a number nor a tensor of numbers")
        return value

    def folded(self, node: Any, values: list[Array | None], where: str) -> Array | None:
        """The result of a node of known inputs; None if it is not folded."""
        attributes = Attributes(node)
        if node.op_type == "DequantizeLinear":
            return self._dequantized(node, values, where)
        if node.op_type == "ConstantOfShape":
            fill = np.zeros(1, np.float32)
            if "value" in attributes:
                fill = self.decoded(attributes.found["value"].t, where)
            if fill.size != 1 or values[0] is None:
                raise FormatError(f"{where} has no single value")
            expanded: list[Array | None] = [fill.reshape(()), values[0].reshape(-1)]
            return fold("Expand", attributes, expanded, self.opset, where)
        return fold(node.op_type, attributes, values, self.opset, where)

    def _dequantized(self, node: Any, values: list[Array | None], where: str) -> Array | None:
        stored, scale, zero = [*values, None, None][:3]
        if any(self._tensors[i].data_type == 16 for i in node.input[1:2] if i in self._tensors):
            raise SpecError(f"{where} dequantizes to bfloat16, which is not computed")
        try:
            return dequantized(stored, scale, zero, Attributes(node).found, where)
        except NotConstantError as error:
            raise SpecError(f"{where}: weights {error}") from None

    def decoded(self, tensor: Any, where: str) -> Array:
        """The numbers of a stored tensor, whose file is recorded. Raises: SpecError."""
        try:
            values = read_tensor(tensor, self.path)
        except NotConstantError as error:
            raise SpecError(f"{where}: its numbers {error}") from None
        for entry in tensor.external_data:
            if entry.key == "location":
                self.files[str(Path(self.path).parent / entry.value)] = None
        return values

    def branch_tensor(self, tensor: Any, where: str) -> Array:
        """The numbers of a tensor that a branch stores, which all readings share."""
        known = self._branch_tensors.get(id(tensor))
        if known is None:
            known = tensor, self.decoded(tensor, where)
            self._size += known[1].nbytes
            require_room(self._size, "its weights", self.path)
            self._branch_tensors[id(tensor)] = known
        return known[1]

    def knows(self, name: str) -> bool:
        """Whether a tensor is a constant."""
        return name in self.constants or name in self._tensors

    def value(self, name: str) -> Array:
        """A constant. Raises: FormatError, ShapeError, SpecError for one that cannot be read."""
        if name not in self.constants:
            tensor = self._tensors[name]
            self._keep(name, self.decoded(tensor, f"tensor '{name}'"))
            tensor.ClearField("raw_data")  # it would be held twice
        return self.constants[name]

    def _keep(self, name: str, value: Array) -> None:
        self._size += unrepeated(value).nbytes
        require_room(self._size, "its weights", self.path)
        self.constants[name] = value

    # ----------------------------------------------------------------------------------------------

    @cached_property
    def source(self) -> _Input:
        """The input that is the volume. Raises: SpecError if there are several, or none."""
        used = set(self.outputs)
        for _, node in self.nodes:
            used |= names_taken(node)
        found = [one for one in self.inputs if one.name in used]
        if not found:
            raise SpecError("the graph has no input that its outputs follow from")
        if len(found) > 1:
            names = ", ".join(one.name for one in found)
            raise SpecError(
                f"the graph has {len(found)} inputs, {names}; a job has one volume, so export a "
                "model with one input, and join volumes as its channels"
            )
        if len(found[0].lengths) not in LAYOUTS[0]:
            raise SpecError(
                f"the graph's input '{found[0].name}' has {len(found[0].lengths)} axes; read are "
                "batch, channels and one to three spatial axes"
            )
        if found[0].dtype not in _FLOATS:
            raise SpecError(
                f"the graph's input '{found[0].name}' is of ONNX data type {found[0].dtype}; read "
                "are floats; export the model before it is quantized"
            )
        return found[0]

    def _channels(self, layouts: int) -> int | None:
        """Channels of the input, as the file tells or as its first convolution needs."""
        declared = self.source.lengths[LAYOUTS[layouts][len(self.source.lengths)].index("c")]
        if declared is not None:
            return declared
        names = {self.source.name}
        for _, node in self.nodes:
            first = node.input[0] if node.input else ""
            if first not in names:
                continue
            if node.op_type in _WEIGHTED and len(node.input) > 1 and self.knows(node.input[1]):
                weights = self.value(node.input[1])
                groups = max(1, Attributes(node).integer("group", 1))
                if weights.ndim > 1:
                    both = weights.shape[1] * groups, weights.shape[0]
                    return int(both[node.op_type == "ConvTranspose"])
            if node.op_type in _SAME_CHANNELS or (layouts and node.op_type == "Transpose"):
                names |= set(node.output)
        return None

    def network(self) -> Network:
        """The network for volumes of any shape that it takes."""
        try:
            return self._general(0, LAYOUTS[0])
        except AxesError as error:
            try:
                return self._general(1, LAYOUTS[1])
            except (SpecError, ShapeError):  # of axes that the file does not have
                raise SpecError(str(error)) from None

    def _general(self, number: int, layouts: Mapping[int, str]) -> Network:
        layout = layouts[len(self.source.lengths)]
        channels = self._channels(number)
        if (channels or 1) > MOST_CHANNELS:
            raise SpecError(
                f"the graph's input '{self.source.name}' has {channels:,} channels; they are at "
                f"most {MOST_CHANNELS:,}"
            )
        declared = dict(zip(layout, self.source.lengths, strict=True))

        def sizes(tried: tuple[int, int, int]) -> dict[str, int]:
            chosen = {**dict(zip("dhw", tried, strict=True)), "c": channels or 1}
            return {key: declared.get(key) or value for key, value in chosen.items()}

        def read(tried: tuple[int, int, int], more: int, like: frozenset[str]) -> _Reading:
            a, b, c = tried
            return self.read(layouts, sizes((a + more, b + more, c + more)), like)

        more = self._first_fit(lambda more: read(EVEN, more, frozenset()))

        def others(like: frozenset[str]) -> tuple[_Reading, list[str]]:
            """A reading, and the nodes that have other arguments for other sizes."""
            one = read(EVEN, more, like)
            try:
                differing = _differing(one.nodes, read(ODD, more, like).nodes)
            except ShapeError:  # it takes no odd sizes
                differing = _differing(one.nodes, read(LARGER, more, like).nodes)
            return one, differing

        like: frozenset[str] = frozenset()
        one, differing = others(like)
        if differing:
            like = frozenset(differing)
            one, differing = others(like)
        if differing:  # perhaps other odd sizes only, which `Network.at` refuses
            larger = read(LARGER, more, like)
            for name in _differing(one.nodes, larger.nodes):
                raise SpecError(
                    f"{one.by_name[name].title} has other arguments for other sizes of the volume: "
                    f"{one.by_name[name].difference(larger.by_name.get(name))}; export the model "
                    "for volumes of one size"
                )
        known = {self.source.name: channels}
        network = one.network(known).for_sizes(AtShape(self.path, number, like, self))
        return network.with_notes((*self.notes, *network.notes, *self._told_notes(layout)))

    def _first_fit(self, read: Callable[[int], _Reading]) -> int:
        """How many voxels more than `EVEN` a network takes. Raises: ShapeError if it takes none."""
        first: ShapeError | None = None
        for more in range(MORE):
            try:
                read(more)
            except ShapeError as error:
                first = first or error
            else:
                return more
        assert first is not None
        raise first

    def _told_notes(self, layout: str) -> list[str]:
        notes = []
        if missing := [letter for letter in "dhw" if letter not in layout]:
            kind, parts = ("2-D", "plane") if len(missing) == 1 else ("1-D", "row")
            if len(missing) < 3:
                notes.append(f"the network is {kind}: it is applied to each {parts} by itself")
        if self.source.dtype in (10, 16):
            notes.append(
                f"the file computes in {_FLOATS[self.source.dtype]}; conv3d computes in float32"
            )
        unused = [one.name for one in self.inputs if one.name != self.source.name]
        if unused:
            notes.append(f"inputs that no node takes are left out: {', '.join(unused[:8])}")
        return notes

    def read(
        self, layouts: Mapping[int, str], sizes: Mapping[str, int], like: frozenset[str]
    ) -> _Reading:
        """Read all nodes for an input of known sizes.

        sizes : dict        letter of an axis -> its length
        like : frozenset    nodes that take their sizes from another tensor's
        """
        layout = layouts[len(self.source.lengths)]
        lengths = {"n": self.source.lengths[0] or BATCH, **sizes}
        shape = tuple(lengths[letter] for letter in layout)
        reading = _Reading(self, like)
        reading.tensors[self.source.name] = Flow(self.source.name, layout, shape)
        for number, node in self.nodes:
            reading.take(number, node)
        return reading


def _declared(value: Any) -> tuple[list[int | None], int]:
    """Lengths of an input's axes, and the number of its data type."""
    tensor = value.type.tensor_type
    lengths = [
        int(axis.dim_value) if axis.HasField("dim_value") and axis.dim_value > 0 else None
        for axis in tensor.shape.dim
    ]
    return lengths, int(tensor.elem_type)


def names_taken(node: Any) -> set[str]:
    """The names of all tensors that a node takes, and nodes in its graphs."""
    names: set[str] = set()
    pending = [node]
    while pending:
        one = pending.pop()
        names |= set(one.input)
        for graph in subgraphs(one):
            names |= {value.name for value in graph.output}
            pending += graph.node
    return names


def _title(node: Any, number: int) -> str:
    return f"node '{_name(node, number)}' ({node.op_type})"


def _name(node: Any, number: int) -> str:
    """A node's name, or that of its output."""
    return str(node.name or next(iter(node.output), "") or f"{node.op_type}_{number}")


def _by_name(nodes: Sequence[Node]) -> dict[str, Node]:
    return {node.name: node for node in nodes}


def _differing(first: Sequence[Node], second: Sequence[Node]) -> list[str]:
    """Names of nodes that are not the same in two readings, in order."""
    other = _by_name(second)
    return [node.name for node in first if node.difference(other.get(node.name))]


# --------------------------------------------------------------------------------------------------
# One reading


@dataclass
class _Reading:
    """The nodes of a network, read for one shape of its input."""

    graph: _Graph
    like: frozenset[str]
    tensors: dict[str, Flow | Array] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    flows: dict[str, tuple[Flow, ...]] = field(default_factory=dict)  # inputs of nodes, by name
    missing: dict[str, str] = field(
        default_factory=dict
    )  # outputs that are not computed -> of what
    by_name: dict[str, Node] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    size: int = 0  # bytes of constants
    names: Names = field(init=False)

    def __post_init__(self) -> None:
        self.names = Names(one.name for one in self.graph.inputs)

    def take(self, number: int, node: Any) -> None:
        """Read the next node of the graph."""
        where = _title(node, number)
        if node.domain not in STANDARD:
            optimized = node.domain == "com.microsoft"
            raise SpecError(
                f"{where} is an operator of the domain {node.domain}; "
                + (
                    "give the model as it was before ONNX Runtime optimized it; "
                    if optimized
                    else ""
                )
                + f"understood are ONNX's own operators {_understood()}"
            )
        inputs = [self.tensor(name, where) if name else None for name in node.input]
        if subgraphs(node):
            self._choose(node, inputs, where)
            return
        if node.op_type == "Constant":  # of a branch; the others are folded
            self._store(node, [self.graph.constant(node, where)], where)
            return
        if node.op_type in ("Shape", "Size") and inputs and isinstance(inputs[0], Flow):
            self._store(node, [self._sizes(node, inputs[0])], where)
            return
        values = [value for value in inputs if not isinstance(value, Flow)]
        if inputs and len(values) == len(inputs):
            result = self.graph.folded(node, values, where)
            if result is not None:
                self.size += unrepeated(result).nbytes
                require_room(self.size, "what it computes of sizes", self.graph.path)
                self._store(node, [result], where)
                return
        translator = TRANSLATORS.get(node.op_type)
        if translator is None:
            cure = "give the model as it was before it was quantized; "
            cure = cure if node.op_type in _QUANTIZED else ""
            raise SpecError(f"{where} is not understood; {cure}understood are {_understood()}")
        made = translator(_Taken(self, node, _name(node, number), inputs))
        self._store(node, made if isinstance(made, list) else [made], where)

    def tensor(self, name: str, where: str) -> Flow | Array:
        """A tensor by name. Raises: FormatError."""
        if name in self.tensors:
            return self.tensors[name]
        if self.graph.knows(name):
            return self.graph.value(name)
        if name in self.missing:
            raise SpecError(
                f"{where} takes '{name[:80]}', an output of {self.missing[name]} that is "
                "not computed; of that node, only the first output is"
            )
        raise FormatError(
            f"cannot read {self.graph.path}: {where} takes '{name[:80]}', which no node before it "
            "gives"
        )

    def _choose(self, node: Any, inputs: Sequence[Flow | Array | None], where: str) -> None:
        """Read the branch of an If whose condition is known. Raises: SpecError for others."""
        condition = inputs[0] if inputs else None
        branches = {a.name: a.g for a in node.attribute if a.HasField("g")}
        if (
            node.op_type != "If"
            or not isinstance(condition, np.ndarray)
            or condition.size != 1
            or set(branches) != {"then_branch", "else_branch"}
        ):
            raise SpecError(
                f"{where} holds graphs of its own, which are read only of an If whose condition "
                "does not depend on voxels; export the model without it"
            )
        branch = branches["then_branch" if condition.reshape(-1)[0] else "else_branch"]
        own = {
            tensor.name: self.graph.branch_tensor(tensor, where) for tensor in branch.initializer
        }
        outer = {name: self.tensors.get(name) for name in own}
        outer |= {name: self.tensors.get(name) for one in branch.node for name in one.output}
        self.tensors |= own
        for number, inner in enumerate(branch.node):
            self.take(number, inner)
        made = [self.tensor(value.name, where) for value in branch.output]
        for name, value in outer.items():  # what a branch names is its own
            self.tensors.pop(name, None)
            if value is not None:
                self.tensors[name] = value
        self._store(node, made, where)

    def _sizes(self, node: Any, flow: Flow) -> Array:
        if flow.groups:
            raise SpecError(f"node '{node.name}' ({node.op_type}) takes the sizes of groups")
        if node.op_type == "Size":
            return np.array(np.prod(flow.shape), np.int64)
        attributes, rank = Attributes(node), len(flow.shape)
        start, stop = attributes.integer("start", 0), attributes.integer("end", rank)
        return np.array(flow.shape[start:stop], np.int64)

    def _store(self, node: Any, made: Sequence[Flow | Array], where: str) -> None:
        for name, value in zip(node.output, made, strict=False):
            self.tensors[name] = value
        for name in node.output[len(made) :]:
            self.missing[name] = where

    def network(self, inputs: Mapping[str, int | None]) -> Network:
        """The network of the nodes that the outputs need."""
        outputs = {}
        for name in self.graph.outputs:
            flow = self.tensor(name, f"output '{name}'")
            if not isinstance(flow, Flow):
                raise SpecError(f"output '{name}' does not depend on the volume")
            self._check_output(name, flow)
            outputs[name] = flow.source
        nodes = list(self.nodes)
        for name, source in list(outputs.items()):
            if source in inputs:  # a graph that returns its input
                outputs[name] = self.names.take(f"{source}/output")
                nodes.append(Node(outputs[name], "Identity", (source,)))
        wanted: set[str] = set(outputs.values())
        for node in reversed(nodes):
            if node.name in wanted:
                wanted |= set(node.inputs)
        for node in nodes:
            if node.name in wanted and node.operation in PARTS:
                raise SpecError(f"{node.title} is taken only as a part of {PARTS[node.operation]}")
        first = self.tensors[self.graph.source.name]
        assert isinstance(first, Flow)
        last = "channels_first" if first.layout[1:2] == "c" else "channels_last"
        return Network(
            [node for node in nodes if node.name in wanted],
            inputs=inputs,
            outputs=outputs,
            data_format=last,
            files=(self.graph.path, *self.graph.files),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _check_output(self, name: str, flow: Flow) -> None:
        """Refuse an output whose axes are in another order than those of a volume."""
        spatial = [letter for letter in flow.layout if letter in "dhw"]
        if flow.groups or spatial != sorted(spatial):
            raise SpecError(
                f"output '{name}' has its axes in the order {'-'.join(flow.layout.upper())}; "
                "volumes have theirs in the order D-H-W"
            )


def _understood() -> str:
    parts = {*PARTS, "Where"}  # which are understood in a few places only
    return ", ".join(sorted({*TRANSLATORS, "Constant", "DequantizeLinear"} - parts))


class _Taken(OnnxNode):
    """A node for the function that translates it."""

    def __init__(
        self, reading: _Reading, node: Any, name: str, inputs: list[Flow | Array | None]
    ) -> None:
        self.reading = reading
        self.name, self.operator = name, node.op_type
        self.attributes = Attributes(node)
        self.opset = reading.graph.opset
        self.inputs = inputs
        self.outputs_wanted = len(node.output)

    def add(
        self,
        operation: str,
        inputs: Sequence[Flow],
        attributes: Mapping[str, Any] | None = None,
        weights: Mapping[str, Array] | None = None,
        shape: Shape | None = None,
    ) -> Flow:
        name = self.reading.names.free(self.name)
        sources = tuple(flow.source for flow in inputs)
        node = Node(name, operation, sources, attributes or {}, weights or {})
        if shape is None:
            shape = make_operation(node, [flow.volume for flow in inputs]).shape
        self.reading.names.take(self.name)
        self.reading.nodes.append(node)
        self.reading.by_name[name] = node
        self.reading.flows[name] = tuple(inputs)
        return inputs[0].with_volume(name, shape)

    def note(self, text: str) -> None:
        self.reading.notes.append(text)

    def made(self, flow: Flow) -> Made | None:
        node = self.reading.by_name.get(flow.source)
        return None if node is None else Made(node, self.reading.flows[node.name])

    def of_size(self, sizes: Sequence[int]) -> Flow | None:
        if self.reading.names.free(self.name) not in self.reading.like:
            return None
        for tensor in self.reading.tensors.values():
            if (
                isinstance(tensor, Flow)
                and not tensor.groups
                and tensor.volume.size == tuple(sizes)
            ):
                return tensor
        return None
