"""Outputs as a BIDS derivative dataset: names that keep the input's entities, and what stands beside them.

Followed is the BIDS specification 1.10: "BIDS Derivatives" (names, `desc`, `Sources`, fields that are passed on), "Derived
dataset and pipeline description" (`dataset_description.json`), "BIDS URI" and "The Inheritance Principle".
"""

from __future__ import annotations

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
from conv3d_cli.provenance.record import KEY, kernel_text, read_json, sidecar_text
from conv3d_cli.settings.config import is_kernel_file
from conv3d_cli.settings.options import Settings
from conv3d_cli.system.atomic import AtomicFile, suffix_of

BIDS_VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
EXTENSIONS = (".nii.gz", ".nii", ".ome.tif", ".ome.zarr", ".tif")  # of BIDS and of conv3d
# datatypes whose derivatives tell whether the skull was stripped
IMAGING = (
    "anat",
    "dwi",
    "fmap",
    "func",
    "perf",
    "pet",
)
LABEL = re.compile(r"[0-9a-zA-Z]+")
NAME = re.compile(r"(sub-[0-9a-zA-Z+]+)((?:_[a-zA-Z]+-[0-9a-zA-Z+]+)*)_([a-zA-Z0-9]+)")
FORM = "sub-LABEL[/ses-LABEL]/DATATYPE/sub-LABEL[_ses-LABEL][_KEY-VALUE...]_SUFFIX.nii.gz"

# Fields of an input's sidecar that are of that file alone, or point to others from it
OWN_FIELDS = ("Description", "Sources", "RawSources", "GeneratedBy", "IntendedFor", KEY)
# ... that hold while the slices are the same ones, and while voxels are as large
SLICE_FIELDS = ("SliceTiming", "SliceThickness", "SpacingBetweenSlices", "SliceEncodingDirection")
GRID_FIELDS = ("Resolution", "PixelSize", "PixelSizeUnits")
VALUE_FIELDS = ("Units",)  # ... and while values keep their scale
# Suffix and extension of the files that a volume of a suffix needs: gradients of diffusion, what each volume of ASL is
COMPANIONS = {"dwi": (("dwi", ".bval"), ("dwi", ".bvec")), "asl": (("aslcontext", ".tsv"),)}


# ---------------------------------------------------------------------------------------------------------------------
# Names


@dataclass(frozen=True)
class BidsFile:
    """A file of a BIDS dataset by its name.

    root : str          the dataset's folder
    entities : tuple    (key, value) in the order of the name
    datatype : str      the folder that it lies in: "anat", "func", ...
    """

    root: str
    entities: tuple[tuple[str, str], ...]
    datatype: str
    suffix: str
    extension: str

    @property
    def name(self) -> str:
        return (
            "_".join([*(f"{key}-{value}" for key, value in self.entities), self.suffix])
            + self.extension
        )

    @property
    def folders(self) -> list[str]:
        """Between the dataset's folder and the file."""
        found = dict(self.entities)
        session = [f"ses-{found['ses']}"] if "ses" in found else []
        return [f"sub-{found['sub']}", *session, self.datatype]

    @property
    def inner(self) -> str:
        """Where it lies in the dataset, with "/"."""
        return "/".join([*self.folders, self.name])

    @property
    def path(self) -> str:
        return os.path.join(self.root, *self.folders, self.name)

    def described(self, label: str, replaces: bool) -> BidsFile:
        """The file with `desc-LABEL` at the end; a desc that is there already is replaced, or continued.

        >>> file = read_name("ds/sub-1/func/sub-1_task-rest_desc-preproc_bold.nii.gz")
        >>> file.described("sm6mm", replaces=False).name
        'sub-1_task-rest_desc-preprocSm6mm_bold.nii.gz'
        """
        before = dict(self.entities).get("desc")
        if before is not None and not replaces:
            label = before + label[0].upper() + label[1:]
        others = tuple(pair for pair in self.entities if pair[0] != "desc")
        return replace(self, entities=(*others, ("desc", label)))


def read_name(path: str) -> BidsFile:
    """What the name of a file says. Raises: SpecError if it is none of a BIDS dataset.

    >>> file = read_name("ds/sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz")
    >>> file.root, file.suffix, file.entities[2]
    ('ds', 'bold', ('task', 'rest'))
    """
    folder, name = os.path.split(path.rstrip("/"))
    extension = suffix_of(name)
    match = NAME.fullmatch(name[: len(name) - len(extension)])
    if match is None:
        raise SpecError(f"--bids keeps the entities of BIDS names, and {path} is none: {FORM}")
    if extension not in EXTENSIONS:
        raise SpecError(
            f"--bids: BIDS has no volumes {extension or 'without a suffix'} ({path}): {' '.join(EXTENSIONS)}"
        )
    pairs = [pair.partition("-") for pair in (match[1] + match[2]).split("_")]
    entities = tuple((key, value) for key, _, value in pairs)
    if len(dict(entities)) < len(entities):
        raise SpecError(f"--bids: {path} names an entity twice")
    found = BidsFile("", entities, os.path.basename(os.path.abspath(folder)), match[3], extension)
    parts = [part for part in os.path.abspath(folder).split(os.sep) if part]
    if parts[-len(found.folders) :] != found.folders:
        raise SpecError(
            f"--bids keeps folders, and {path} does not lie in {'/'.join(found.folders)}: {FORM}"
        )
    root = folder
    for _ in found.folders:
        root = (
            os.path.dirname(root)
            if os.path.basename(root) not in ("", ".", "..")
            else os.path.join(root, "..")
        )
    return replace(found, root=root or ".")


def kernel_label(given: Settings) -> str:
    """A label for `desc` out of the options: what was done, in letters and digits.

    >>> kernels = ("gaussian:fwhm=6mm", "gaussian:fwhm=8,6,6mm", "box:size=3", "log:sigma=1.5mm", "k/my_psf.tif")
    >>> [kernel_label(Settings(kernel=text)) for text in kernels]
    ['sm6mm', 'sm8x6x6mm', 'boxSize3', 'logSigma1p5mm', 'mypsf']
    >>> kernel_label(Settings(to_fwhm="8mm")), kernel_label(Settings(config="c/edge.toml"))
    ('toFwhm8mm', 'edge')
    """
    if given.to_fwhm is not None:
        return _letters(f"toFwhm{given.to_fwhm}")
    kernel = given.kernel if isinstance(given.kernel, str) else None
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
    return re.sub(r"[^0-9a-zA-Z]", "", re.sub(r"(?<=\d)\.(?=\d)", "p", re.sub(r",\s*", "x", text)))


def plan_names(
    inputs: Sequence[str], out_dir: str, labels: Sequence[str], replaces: bool
) -> list[BidsFile]:
    """The output of each input in a derivative dataset.

    labels, replaces : of each; see `BidsFile.described`
    Raises: SpecError for names that are none of BIDS, or two inputs of one output; OutputExistsError where it is an input.
    """
    if wrong := next((label for label in labels if not LABEL.fullmatch(label)), None):
        raise SpecError(
            f"a label of BIDS is of letters and digits alone, received --desc {wrong!r}"
        )
    if "://" in out_dir:
        raise SpecError(
            f"--bids writes a dataset into a folder here, and {out_dir} is a URL: name a folder"
        )
    found: list[BidsFile] = []
    writers: dict[str, str] = {}
    sources = {os.path.realpath(name): name for name in inputs}
    for name, label in zip(inputs, labels, strict=True):
        output = replace(read_name(name), root=out_dir).described(label, replaces)
        real = os.path.realpath(output.path)
        if real in writers:
            raise SpecError(
                f"two inputs would write {output.path}: {writers[real]} and {name}; use different folders (--out-dir) or run "
                "them apart"
            )
        if real in sources:
            raise OutputExistsError(
                f"the output of {name} would replace the input {sources[real]}; pass another --desc or --out-dir"
            )
        writers[real] = name
        found.append(output)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Datasets


@dataclass(frozen=True)
class SourceDataset:
    """A dataset that volumes come from.

    link : str          its name in BIDS URIs; "" for the output's own
    description : dict  its dataset_description.json, empty if it has none
    """

    root: str
    link: str
    description: Mapping[str, Any]

    @property
    def raw(self) -> bool:
        return bool(self.description.get("DatasetType", "raw") == "raw")


@dataclass(frozen=True)
class Derivatives:
    """The dataset that outputs are written into, and those they come from, by the true names of their folders."""

    root: str
    sources: Mapping[str, SourceDataset]

    @cached_property
    def rename(self) -> Rename:
        """What files are called in the dataset's folder."""
        return relative_to(self.root)

    def uri(self, path: str) -> str:
        """A file as `Sources` names it: a BIDS URI in a dataset that is known, else its path from the dataset's folder.

        That is old-fashioned, and there is no other way to name what lies in no dataset.
        """
        folder = os.path.dirname(os.path.abspath(path))
        while (above := os.path.dirname(folder)) != folder:
            source = self.sources.get(os.path.realpath(folder))
            if source is not None:
                return f"bids:{source.link}:{relative_to(folder)(path)}"
            folder = above
        return self.rename(path)

    def description(self) -> dict[str, Any]:
        """The dataset_description.json that is to be there: what there is of conv3d's own, with what it lacks.

        Raises: OutputExistsError where the folder is another program's dataset, or raw data.
        """
        path = os.path.join(self.root, DESCRIPTION)
        found = read_json(path) if os.path.exists(path) else {}
        makers = [maker for maker in found.get("GeneratedBy") or [] if isinstance(maker, dict)]
        if found and (
            found.get("DatasetType") != "derivative"
            or "conv3d" not in [maker.get("Name") for maker in makers]
        ):
            names = (
                ", ".join(str(maker.get("Name")) for maker in makers)
                or "raw data, or of no named program"
            )
            raise OutputExistsError(
                f"{path} is of another dataset ({names}): name an --out-dir for conv3d's own"
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
        """Write dataset_description.json, unless it stands there as it is to be. Raises: as `description`; WriteError."""
        path = os.path.join(self.root, DESCRIPTION)
        values = self.description()
        if os.path.exists(path) and read_json(path) == values:
            return
        with AtomicFile(path, overwrite=True) as output:
            output.file.write(sidecar_text(values))
            output.commit()


def find_datasets(inputs: Sequence[str], out_dir: str) -> Derivatives:
    """The datasets that inputs lie in, each with a name for URIs: "raw", or its folder's.

    Links that the output's description has already keep their names.
    Raises: SpecError for an output among raw data; FormatError if a description cannot be read.
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
                    f"{out_dir} holds the raw data: derivatives go into a dataset of their own, as in --out-dir "
                    f"{os.path.join(out_dir, 'derivatives', 'conv3d')}"
                )
        else:
            link = taken.get(real) or _free(
                "raw" if source.raw else _letters(os.path.basename(real)) or "source", taken
            )
            taken[real] = link
            source = replace(source, link=link)
        found[real] = source
    return Derivatives(out_dir, found)


def _free(name: str, taken: Mapping[str, str]) -> str:
    """A name that no other dataset has."""
    number = 2
    while (free := name if number == 2 else f"{name}{number - 1}") in taken.values():
        number += 1
    return free


# ---------------------------------------------------------------------------------------------------------------------
# Fields


def inherited(file: BidsFile, suffix: str, extension: str) -> list[str]:
    """Files of this suffix and extension that apply to a file: beside it and in the folders above, the nearest last."""
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
    """What sidecars say of a file, the nearer ones winning. Raises: FormatError if one cannot be read."""
    fields: dict[str, Any] = {}
    for path in inherited(file, file.suffix, ".json"):
        fields.update(read_json(path))
    return fields


def copies(source: BidsFile, output: BidsFile) -> list[tuple[str, str]]:
    """Files without which a volume of its kind is not valid, and where they go: what is done in space leaves them true.

    BIDS knows them by raw data's names alone. They apply to an output of more entities, and are what they may be under such a
    name: the same bytes.
    """
    entities = tuple(pair for pair in output.entities if pair[0] != "desc")
    found = []
    for suffix, extension in COMPANIONS.get(source.suffix, ()):
        if beside := inherited(source, suffix, extension):
            copy = replace(output, entities=entities, suffix=suffix, extension=extension)
            found.append((beside[-1], copy.path))
    return found


def kept_fields(fields: Mapping[str, Any], prepared: PreparedJob) -> dict[str, Any]:
    """Those of an input's fields that are still true of the output."""
    before, after = prepared.reader.header, prepared.header
    moved = any(
        after.transform.step[axis] != 1 or after.transform.offset[axis] != 0 for axis in range(3)
    )
    regridded = moved or before.shape[1:4] != after.shape[1:4]
    scaled = any(
        abs(stage.kernel.sum - 1) > 1e-3 or stage.kernel.is_layer or stage.convolution.activations
        for stage in prepared.stages
    )
    dropped = {*OWN_FIELDS, *(GRID_FIELDS if regridded else ()), *(VALUE_FIELDS if scaled else ())}
    if _slices_changed(fields.get("SliceEncodingDirection"), prepared):
        dropped |= {*SLICE_FIELDS}
    return {key: value for key, value in fields.items() if key not in dropped}


def _slices_changed(direction: Any, prepared: PreparedJob) -> bool:
    """Whether the output's slices are others than the input's; direction is BIDS' "i", "j", "k", or one of them and "-"."""
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
    """The fields of BIDS that stand in an output's sidecar: see `run.Recording`."""

    source: BidsFile
    datasets: Derivatives

    def __call__(
        self, prepared: PreparedJob, inputs: Sequence[InputFile], rename: Rename
    ) -> dict[str, Any]:
        kernels = ", then ".join(kernel_text(stage, rename) for stage in prepared.stages)
        fields = inherited_fields(self.source)
        kept = kept_fields(fields, prepared)
        own = self.datasets.sources[os.path.realpath(self.source.root)]
        for key, value in kept.items():
            if isinstance(value, str) and value.startswith(
                "bids::"
            ):  # of its own dataset, which is another now
                kept[key] = f"bids:{own.link}:{value.removeprefix('bids::')}"
        if self.source.datatype in IMAGING and "SkullStripped" not in kept and own.raw:
            kept["SkullStripped"] = False
        return {
            "Description": f"Convolved with {kernels}",
            "Sources": [
                self.datasets.uri(file.path) for file in inputs if file.role in ("volume", "mask")
            ],
            **kept,
        }


# ---------------------------------------------------------------------------------------------------------------------
# The whole


@dataclass(frozen=True)
class Dataset:
    """Outputs of a command as a derivative dataset.

    targets : list      the output of each input
    fields : dict       what gives the keys of each output's sidecar, by the output
    copies : dict       what is copied to stand beside each output, and where: by the output
    """

    datasets: Derivatives
    targets: list[str]
    fields: Mapping[str, BidsFields]
    copies: Mapping[str, list[tuple[str, str]]]

    def write(self) -> None:
        """Write or extend dataset_description.json; see `Derivatives.write`."""
        self.datasets.write()


def plan_dataset(inputs: Sequence[str], out_dir: str, given: Sequence[Settings]) -> Dataset:
    """Names and descriptions of a command's outputs, before any work.

    given : list        what was given for each input; `desc` is the label, else one is made of the kernel
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
