"""Write outputs as a BIDS derivative dataset: names with the input's entities, and metadata files.

Source: the BIDS specification 1.10, "BIDS Derivatives" (names, `desc`, `Sources`, inherited
fields), "Derived dataset and pipeline description" (`dataset_description.json`), "BIDS URI" and
"The Inheritance Principle".
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

from conv3d_cli.errors import OutputExistsError, SpecError
from conv3d_cli.pipeline.prepare import PreparedJob
from conv3d_cli.provenance.command import Rename, relative_to
from conv3d_cli.provenance.inputs import InputFile
from conv3d_cli.provenance.record import KEY, description, read_json, sidecar_text
from conv3d_cli.settings.config import is_kernel_file
from conv3d_cli.settings.options import Settings
from conv3d_cli.system.atomic import AtomicFile, suffix_of

BIDS_VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
# volume formats that both BIDS and conv3d support
EXTENSIONS = (".nii.gz", ".nii", ".ome.tif", ".ome.zarr", ".tif")
# datatypes whose derivatives have the field SkullStripped
IMAGING = ("anat", "dwi", "fmap", "func", "perf", "pet")
LABEL = re.compile(r"[0-9a-zA-Z]+")
NAME = re.compile(r"(sub-[0-9a-zA-Z+]+)((?:_[a-zA-Z]+-[0-9a-zA-Z+]+)*)_([a-zA-Z0-9]+)")
FORM = "sub-LABEL[/ses-LABEL]/DATATYPE/sub-LABEL[_ses-LABEL][_KEY-VALUE...]_SUFFIX.nii.gz"

# Fields of an input's sidecar that an output does not inherit: they describe only that file, or
# refer to others from it.
OWN_FIELDS = ("Description", "Sources", "RawSources", "GeneratedBy", "IntendedFor", KEY)
# Fields that are valid only while the slices, the grid, or the scale of the values do not change.
SLICE_FIELDS = ("SliceTiming", "SliceThickness", "SpacingBetweenSlices", "SliceEncodingDirection")
GRID_FIELDS = ("Resolution", "PixelSize", "PixelSizeUnits")
VALUE_FIELDS = ("Units",)
# By a volume's suffix: suffix and extension of the files that it needs. They contain the diffusion
# gradients, or the type of each ASL volume.
COMPANIONS = {"dwi": (("dwi", ".bval"), ("dwi", ".bvec")), "asl": (("aslcontext", ".tsv"),)}


# --------------------------------------------------------------------------------------------------
# Names


@dataclass(frozen=True)
class BidsFile:
    """A file of a BIDS dataset, as parts of its name.

    root : str          the dataset's folder
    entities : tuple    (key, value) pairs in the order of the name
    datatype : str      the innermost folder: "anat", "func", ...
    suffix : str        the last part of the name: "bold", "T1w", ...
    extension : str     one of EXTENSIONS
    """

    root: str
    entities: tuple[tuple[str, str], ...]
    datatype: str
    suffix: str
    extension: str

    @property
    def name(self) -> str:
        """The file name: entities, suffix and extension.

        >>> BidsFile("ds", (("sub", "01"), ("run", "2")), "anat", "T1w", ".nii.gz").name
        'sub-01_run-2_T1w.nii.gz'
        """
        pairs = [f"{key}-{value}" for key, value in self.entities]
        return "_".join([*pairs, self.suffix]) + self.extension

    @property
    def folders(self) -> list[str]:
        """The folders from the dataset's folder to the file: subject, session, datatype."""
        entities = dict(self.entities)
        session = [f"ses-{entities['ses']}"] if "ses" in entities else []
        return [f"sub-{entities['sub']}", *session, self.datatype]

    @property
    def path(self) -> str:
        """The path of the file, which begins with `root`."""
        return os.path.join(self.root, *self.folders, self.name)

    def described(self, label: str, replaces: bool) -> BidsFile:
        """The file with `desc-LABEL` as its last entity.

        replaces : bool     the label replaces that of an existing desc; else it is appended to it

        >>> file = read_name("ds/sub-1/func/sub-1_task-rest_desc-preproc_bold.nii.gz")
        >>> file.described("sm6mm", replaces=False).name
        'sub-1_task-rest_desc-preprocSm6mm_bold.nii.gz'
        """
        before = dict(self.entities).get("desc")
        if before is not None and not replaces:
            label = before + label[0].upper() + label[1:]
        others = tuple(pair for pair in self.entities if pair[0] != "desc")
        return replace(self, entities=(*others, ("desc", label)))


def entities_of(path: str) -> dict[str, str]:
    """The entities in the name of a file, in whatever folder; empty if it is not a BIDS name.

    >>> entities_of("masks/sub-01_task-rest_desc-brain_mask.nii.gz")
    {'sub': '01', 'task': 'rest', 'desc': 'brain'}
    >>> entities_of("brain_mask.nii"), entities_of("sub-1_run-1_run-2_bold.nii")
    ({}, {})
    """
    name = os.path.basename(path.rstrip("/"))
    match = NAME.fullmatch(name[: len(name) - len(suffix_of(name))])
    if match is None:
        return {}
    pairs = [pair.split("-", 1) for pair in (match[1] + match[2]).split("_")]
    entities = dict(pairs)
    return entities if len(entities) == len(pairs) else {}


def read_name(path: str) -> BidsFile:
    """Parse the path of a file. Raises: SpecError if it is not a BIDS name in its BIDS folder.

    >>> file = read_name("ds/sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz")
    >>> file.root, file.suffix, file.entities[2]
    ('ds', 'bold', ('task', 'rest'))
    """
    folder, name = os.path.split(path.rstrip("/"))
    extension = suffix_of(name)
    match = NAME.fullmatch(name[: len(name) - len(extension)])
    if match is None:
        raise SpecError(f"--bids needs inputs with BIDS names, received {path}; the form is {FORM}")
    if extension not in EXTENSIONS:
        wrong = f"with the extension {extension}" if extension else "without an extension"
        raise SpecError(
            f"--bids: BIDS has no volumes {wrong}, received {path}; it has {', '.join(EXTENSIONS)}"
        )
    pairs = [pair.partition("-") for pair in (match[1] + match[2]).split("_")]
    entities = tuple((key, value) for key, _, value in pairs)
    if len(dict(entities)) < len(entities):
        raise SpecError(f"--bids: a BIDS name has each entity once, and {path} has one twice")
    file = BidsFile("", entities, os.path.basename(os.path.abspath(folder)), match[3], extension)
    parts = [part for part in os.path.abspath(folder).split(os.sep) if part]
    if parts[-len(file.folders) :] != file.folders:
        raise SpecError(
            f"--bids needs inputs in their BIDS folders, and {path} is not in "
            f"{'/'.join(file.folders)}; the form is {FORM}"
        )
    root = folder
    for _ in file.folders:
        root = (
            os.path.dirname(root)
            if os.path.basename(root) not in ("", ".", "..")
            else os.path.join(root, "..")
        )
    return replace(file, root=root or ".")


def kernel_label(given: Settings) -> str:
    """A `desc` label for the options of a command: the kernel, in letters and digits.

    >>> kernels = ("gaussian:fwhm=6mm", "gaussian:fwhm=8,6,6mm", "box:size=3", "log:sigma=1.5mm")
    >>> [kernel_label(Settings(kernel=text)) for text in kernels]
    ['sm6mm', 'sm8x6x6mm', 'boxSize3', 'logSigma1p5mm']
    >>> files = Settings(kernel="k/my_psf.tif"), Settings(config="c/edge.toml")
    >>> lengths = Settings(fwhm="6mm"), Settings(to_fwhm="8mm")
    >>> [kernel_label(given) for given in (*files, *lengths)]
    ['mypsf', 'edge', 'sm6mm', 'toFwhm8mm']
    """
    if given.to_fwhm is not None:
        return _letters(f"toFwhm{given.to_fwhm}")
    kernel = given.named_kernel if isinstance(given.named_kernel, str) else None
    if kernel is None or is_kernel_file(kernel):
        file, _, layer = (kernel or given.config or "").partition("::")
        name = os.path.basename(file)
        return _letters(name[: len(name) - len(suffix_of(name))] + layer.title()) or "conv"
    name, *pairs = (part.strip() for part in kernel.split(":"))
    words = [name]
    for pair in pairs:
        key, _, value = (part.strip() for part in pair.partition("="))
        if words == ["gaussian"] and key == "fwhm":
            words = [f"sm{value}"]
        else:
            words += [key.title(), value[:1].upper() + value[1:]]
    return _letters("".join(words))


def _letters(text: str) -> str:
    """A text without characters that a label cannot have: 1.5 becomes 1p5, and a comma x."""
    return re.sub(r"[^0-9a-zA-Z]", "", re.sub(r"(?<=\d)\.(?=\d)", "p", re.sub(r",\s*", "x", text)))


def plan_names(
    inputs: Sequence[str], out_dir: str, labels: Sequence[str], replaces: bool
) -> list[BidsFile]:
    """Choose the output file of each input in a derivative dataset.

    labels : sequence of str    the `desc` label of each input
    replaces : bool             see `BidsFile.described`

    Raises: SpecError for inputs without BIDS names, and for two inputs with the same output;
    OutputExistsError if an output is an input.
    """
    if wrong := next((label for label in labels if not LABEL.fullmatch(label)), None):
        raise SpecError(f"a BIDS label has only letters and digits, received --desc {wrong!r}")
    if "://" in out_dir:
        raise SpecError(
            f"--bids writes a dataset into a local folder, and {out_dir} is a URL: name a folder"
        )
    found: list[BidsFile] = []
    writers: dict[str, str] = {}
    sources = {os.path.realpath(name): name for name in inputs}
    for name, label in zip(inputs, labels, strict=True):
        output = replace(read_name(name), root=out_dir).described(label, replaces)
        real = os.path.realpath(output.path)
        if real in writers:
            raise SpecError(
                f"two inputs would write {output.path}: {writers[real]} and {name}; "
                "use different folders (--out-dir) or run them separately"
            )
        if real in sources:
            raise OutputExistsError(
                f"the output of {name} would replace the input {sources[real]}; "
                "pass another --desc or --out-dir"
            )
        writers[real] = name
        found.append(output)
    return found


# --------------------------------------------------------------------------------------------------
# Datasets


@dataclass(frozen=True)
class SourceDataset:
    """A dataset that contains inputs.

    root : str          its folder
    link : str          its name in BIDS URIs; "" for the dataset that the outputs go into
    description : dict  its dataset_description.json; empty if it has none
    """

    root: str
    link: str
    description: Mapping[str, Any]

    @property
    def raw(self) -> bool:
        """True for raw data, False for derivatives.

        >>> [SourceDataset("ds", "", {"DatasetType": kind}).raw for kind in ("raw", "derivative")]
        [True, False]
        """
        return bool(self.description.get("DatasetType", "raw") == "raw")


@dataclass(frozen=True)
class Derivatives:
    """The dataset of the outputs, and the datasets of the inputs.

    root : str          its folder
    sources : mapping   SourceDataset by the real path of its folder
    """

    root: str
    sources: Mapping[str, SourceDataset]

    @cached_property
    def rename(self) -> Rename:
        """Converts a path to one relative to the dataset's folder."""
        return relative_to(self.root)

    def uri(self, path: str) -> str:
        """The name of a file in `Sources`: a BIDS URI if it is in a known dataset.

        Other files get their path from the dataset's folder. BIDS deprecates that, and has no other
        way to name a file outside a dataset.
        """
        folder = os.path.dirname(os.path.abspath(path))
        while (above := os.path.dirname(folder)) != folder:
            source = self.sources.get(os.path.realpath(folder))
            if source is not None:
                return f"bids:{source.link}:{relative_to(folder)(path)}"
            folder = above
        return self.rename(path)

    def description(self) -> dict[str, Any]:
        """The contents of dataset_description.json: the existing fields, and those it lacks.

        Raises: OutputExistsError if the folder is another program's dataset, or raw data.
        """
        path = os.path.join(self.root, DESCRIPTION)
        found = read_json(path) if os.path.exists(path) else {}
        makers = [maker for maker in found.get("GeneratedBy") or [] if isinstance(maker, dict)]
        names = [maker.get("Name") for maker in makers]
        if found and (found.get("DatasetType") != "derivative" or "conv3d" not in names):
            origin = ", ".join(map(str, names)) or "raw data, or an unnamed program"
            raise OutputExistsError(
                f"{path} belongs to another dataset ({origin}): name an --out-dir for conv3d's own"
            )
        others = [source for source in self.sources.values() if source.link]
        own = {"Name": "conv3d", "Version": version("conv3d")}
        links = {source.link: self.rename(source.root) for source in others}
        origins = [
            {"DOI": doi}
            if isinstance(doi := source.description.get("DatasetDOI"), str)
            else {"URL": links[source.link]}
            for source in others
        ]
        known = list(found.get("SourceDatasets") or [])
        return {
            "Name": "Convolved volumes",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            **found,
            "GeneratedBy": [*makers, *([own] if own not in makers else [])],
            "SourceDatasets": [*known, *(origin for origin in origins if origin not in known)],
            "DatasetLinks": {**(found.get("DatasetLinks") or {}), **links},
        }

    def write(self) -> None:
        """Write dataset_description.json, unless it is up to date.

        Raises: as `description`; WriteError.
        """
        path = os.path.join(self.root, DESCRIPTION)
        values = self.description()
        if os.path.exists(path) and read_json(path) == values:
            return
        with AtomicFile(path, overwrite=True) as output:
            output.file.write(sidecar_text(values))
            output.commit()


def find_datasets(inputs: Sequence[str], out_dir: str) -> Derivatives:
    """Find the datasets of the inputs, and name each for BIDS URIs: "raw", or after its folder.

    Names in the `DatasetLinks` of an existing output dataset stay the same.
    Raises: SpecError if the outputs would go into raw data; FormatError if a description cannot be
    read.
    """
    path = os.path.join(out_dir, DESCRIPTION)
    described = read_json(path).get("DatasetLinks") if os.path.exists(path) else None
    links = (
        {str(name): str(place) for name, place in described.items()}
        if isinstance(described, dict)
        else {}
    )
    taken = {os.path.realpath(os.path.join(out_dir, place)): name for name, place in links.items()}
    found: dict[str, SourceDataset] = {}
    for name in inputs:
        root = read_name(name).root
        real = os.path.realpath(root)
        if real in found:
            continue
        own = os.path.join(root, DESCRIPTION)
        source = SourceDataset(root, "", read_json(own) if os.path.exists(own) else {})
        if real == os.path.realpath(out_dir):
            if source.raw:
                raise SpecError(
                    f"{out_dir} contains the raw data: derivatives go into a dataset of their own, "
                    f"such as --out-dir {os.path.join(out_dir, 'derivatives', 'conv3d')}"
                )
        else:
            wanted = "raw" if source.raw else _letters(os.path.basename(real)) or "source"
            link = taken.get(real) or _unused_name(wanted, taken)
            taken[real] = link
            source = replace(source, link=link)
        found[real] = source
    return Derivatives(out_dir, found)


def _unused_name(name: str, taken: Mapping[str, str]) -> str:
    """The name, or the name with the first number from 2 that makes it unused.

    >>> _unused_name("raw", {"/a": "raw", "/b": "raw2"})
    'raw3'
    """
    numbered = (f"{name}{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken.values())


# --------------------------------------------------------------------------------------------------
# Fields


def inherited(file: BidsFile, suffix: str, extension: str) -> list[str]:
    """The files of this suffix and extension that apply to a file by the inheritance principle.

    They are in its folder or above it and have no entities that it lacks; the nearest comes last.
    """
    found = []
    folder = file.root
    for inner in ["", *file.folders]:
        folder = os.path.join(folder, inner) if inner else folder
        for name in sorted(os.listdir(folder), key=len) if os.path.isdir(folder) else []:
            *pairs, last = name.removesuffix(extension).split("_")
            if (
                name.endswith(extension)
                and last == suffix
                and {tuple(pair.split("-")) for pair in pairs} <= {*file.entities}
            ):
                found.append(os.path.join(folder, name))
    return found


def inherited_fields(file: BidsFile) -> dict[str, Any]:
    """The fields of all sidecars that apply to a file; nearer ones take precedence.

    Raises: FormatError if one cannot be read.
    """
    fields: dict[str, Any] = {}
    for path in inherited(file, file.suffix, ".json"):
        fields.update(read_json(path))
    return fields


def copies(source: BidsFile, output: BidsFile) -> list[tuple[str, str]]:
    """The files that a volume of this suffix needs to be valid: (path, path of the copy).

    A spatial convolution does not change their contents. The copy has the entities of raw data,
    since BIDS allows no others for these files; it applies to outputs with more entities.
    """
    entities = tuple(pair for pair in output.entities if pair[0] != "desc")
    found = []
    for suffix, extension in COMPANIONS.get(source.suffix, ()):
        if companions := inherited(source, suffix, extension):
            copy = replace(output, entities=entities, suffix=suffix, extension=extension)
            found.append((companions[-1], copy.path))
    return found


def valid_fields(fields: Mapping[str, Any], prepared: PreparedJob) -> dict[str, Any]:
    """The fields of an input that are still valid for the output."""
    before, after = prepared.reader.header, prepared.header
    moved = any(
        after.transform.step[axis] != 1 or after.transform.offset[axis] != 0 for axis in range(3)
    )
    regridded = moved or before.shape[1:4] != after.shape[1:4]
    scaled = len(prepared.convolutions) < len(prepared.stages) or any(
        abs(stage.kernel.sum - 1) > 1e-3 or stage.kernel.is_layer or stage.convolution.activations
        for stage in prepared.convolutions
    )
    dropped = {*OWN_FIELDS, *(GRID_FIELDS if regridded else ()), *(VALUE_FIELDS if scaled else ())}
    if _slices_changed(fields.get("SliceEncodingDirection"), prepared):
        dropped |= {*SLICE_FIELDS}
    return {key: value for key, value in fields.items() if key not in dropped}


def _slices_changed(direction: Any, prepared: PreparedJob) -> bool:
    """True if the output has other slices than the input.

    direction : str or None     SliceEncodingDirection: "i", "j", "k", "i-", "j-" or "k-"
    """
    axis = {"i": 2, "j": 1, "k": 0}.get(str(direction or "k")[:1], 0)  # of D, H, W
    before, after = prepared.reader.header, prepared.header
    transform = after.transform
    return (
        before.shape[1 + axis] != after.shape[1 + axis]
        or transform.step[axis] != 1
        or transform.offset[axis] != 0
    )


@dataclass(frozen=True)
class BidsFields:
    """Makes the BIDS fields of an output's sidecar; see `run.Recording`.

    source : BidsFile           the input
    datasets : Derivatives      of the command
    """

    source: BidsFile
    datasets: Derivatives

    def __call__(
        self, prepared: PreparedJob, inputs: Sequence[InputFile], rename: Rename
    ) -> dict[str, Any]:
        fields = valid_fields(inherited_fields(self.source), prepared)
        own = self.datasets.sources[os.path.realpath(self.source.root)]
        for key, value in fields.items():
            # bids:: refers to the dataset of the sidecar, which is another one for the output
            if isinstance(value, str) and value.startswith("bids::"):
                fields[key] = f"bids:{own.link}:{value.removeprefix('bids::')}"
        if self.source.datatype in IMAGING and "SkullStripped" not in fields and own.raw:
            fields["SkullStripped"] = False
        sources = [file.path for file in inputs if file.role in ("volume", "mask")]
        return {
            "Description": description(prepared, rename),
            "Sources": [self.datasets.uri(path) for path in sources],
            **fields,
        }


# --------------------------------------------------------------------------------------------------
# The outputs of a command


@dataclass(frozen=True)
class Dataset:
    """The outputs of a command as a derivative dataset.

    datasets : Derivatives      of the outputs and the inputs
    targets : list              the output path of each input
    fields : mapping            by output path: makes the BIDS fields of its sidecar
    copies : mapping            by output path: files to copy, (path, path of the copy)
    """

    datasets: Derivatives
    targets: list[str]
    fields: Mapping[str, BidsFields]
    copies: Mapping[str, list[tuple[str, str]]]

    def write(self) -> None:
        """Write or extend dataset_description.json; see `Derivatives.write`."""
        self.datasets.write()


def plan_dataset(inputs: Sequence[str], out_dir: str, given: Sequence[Settings]) -> Dataset:
    """Plan the names and metadata of a command's outputs, before any work.

    given : sequence of Settings    the options for each input; without `desc`, `kernel_label`
                                    makes the label

    Raises: as `plan_names`, `find_datasets` and `Derivatives.description`.
    """
    labels = [kernel_label(options) if options.desc is None else options.desc for options in given]
    replaces = any(options.desc is not None for options in given)
    outputs = plan_names(inputs, out_dir, labels, replaces)
    datasets = find_datasets(inputs, out_dir)
    datasets.description()
    sources = {output.path: read_name(name) for name, output in zip(inputs, outputs, strict=True)}
    return Dataset(
        datasets,
        [output.path for output in outputs],
        {path: BidsFields(source, datasets) for path, source in sources.items()},
        {output.path: copies(sources[output.path], output) for output in outputs},
    )
