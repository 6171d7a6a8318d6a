"""A run repeated from its sidecar: whether its inputs are the same, and whether its result is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conv3d_cli.analysis.compare import Comparison, compare_volumes
from conv3d_cli.errors import ChangedInputError, Conv3DError, FormatError
from conv3d_cli.formats import written_files
from conv3d_cli.formats.zarr.names import is_node
from conv3d_cli.pipeline.outputs import VOLUME, Output
from conv3d_cli.provenance.record import Record
from conv3d_cli.system.digests import file_digest


def placed(folder: str, name: str) -> str:
    """A name that starts in a folder, from here, as short as it is true.

    >>> placed("no/link", "../a.nii")
    'no/a.nii'
    """
    path = os.path.join(folder, name)
    short = os.path.normpath(path)
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def check_inputs(record: Record, folder: str, sidecar: str, force: bool = False) -> list[str]:
    """Compare the inputs of a record with what is there now; what has changed, in words, under `force`.

    folder : str        the sidecar's, which the record's names start from
    Raises: FormatError if one is missing, or is no file of this machine; ChangedInputError.
    """
    changed = []
    for entry in record.inputs:
        path = placed(folder, entry.path)
        if "://" in entry.path or not os.path.exists(path):
            raise FormatError(
                f"cannot read {path}: no such file; {sidecar} names it as its {entry.role}"
            )
        if os.path.isdir(path) and not is_node(
            path
        ):  # a record may name any folder, and the root takes long
            raise FormatError(
                f"cannot read {path}: it is a folder and no Zarr store; {sidecar} names it as its {entry.role}"
            )
        found = file_digest(path)
        if found != entry.digest:
            changed.append(
                f"the {entry.role} {path} has changed: {sidecar} was made of {entry.digest}, it is {found}"
            )
    if changed and not force:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ChangedInputError(f"{changed[0]}{more}; --force runs all the same")
    return changed


def other_versions(record: Record, now: Mapping[str, str]) -> list[str]:
    """What the record was made with that is different now, in words.

    >>> from conv3d_cli.provenance.record import Record
    >>> other_versions(Record("", (), (), [], {"numpy": "2.3.0", "CPU": "avx2"}), {"numpy": "2.4.0", "CPU": "avx2"})
    ['it was made with numpy 2.3.0, and this is 2.4.0']
    """
    names = [*record.versions, *(name for name in now if name not in record.versions)]
    return [
        f"it was made with {name} {record.versions.get(name, '(none)')}, and this is {now.get(name, '(none)')}"
        for name in names
        if record.versions.get(name) != now.get(name)
    ]


def other_weights(record: Record, layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Layers whose weights are not those of the record, in words: their file, or what draws or samples them, is another."""
    notes = []
    for number, (then, now) in enumerate(zip(record.layers, layers, strict=False), 1):
        for key, what in (("KernelDigest", "kernel"), ("BiasDigest", "bias")):
            if then.get(key) != now.get(key):
                notes.append(
                    f"the {what} of layer {number} ({now.get('Kernel')}) has other weights than were recorded"
                )
    return notes


@dataclass(frozen=True)
class Verdict:
    """What came of a rerun.

    status : str        "same" (every byte), "equal" (every voxel, the grid and the dtype), "different"
    words : str         a line for people
    comparison : Comparison or None     of the voxels, where the recorded output is there to compare with
    stale : bool        whether the recorded output itself is no longer what was recorded
    """

    status: str
    words: str
    comparison: Comparison | None = None
    stale: bool = False

    @property
    def good(self) -> bool:
        return self.status != "different" and not self.stale


def judge(record: Record, original: str, produced: str, beside: Sequence[Output] = ()) -> Verdict:
    """Compare the result of a rerun with the record, and where it differs with the output that was recorded.

    original : str      the output that was recorded; it may be gone
    produced : str      that of the rerun
    beside : outputs    that the rerun has written beside it
    """
    verdict = _judge_volume(record, original, produced)
    for output in beside if verdict.status == "same" else ():
        if _digests(output.path) != _recorded(record, output.role):
            return Verdict(
                "different",
                f"the volume comes again, and its {output.role} is not what was recorded",
            )
    return verdict


def _recorded(record: Record, role: str) -> list[str]:
    """Digests of all files of an output, sorted, as they were recorded."""
    return sorted(entry.digest for entry in record.outputs if entry.role == role)


def _judge_volume(record: Record, original: str, produced: str) -> Verdict:
    recorded = _recorded(record, VOLUME)
    there = _digests(original)
    stale = there is not None and there != recorded
    if _digests(produced) == recorded:
        if stale:
            return Verdict(
                "same",
                f"{original} is no longer what was recorded, which running again gives",
                stale=True,
            )
        gone = " (which is not there any more)" if there is None else ""
        return Verdict("same", f"the same: every byte of {original}{gone} comes again")
    if there is None or stale:
        state = "is not there any more" if there is None else "has changed, too"
        words = f"the result is not what was recorded; by how much cannot be said, since {original} {state}"
        return Verdict("different", words, stale=stale)
    comparison = compare_volumes(original, produced)
    if not comparison.differences and not comparison.unequal:
        words = f"equal: every voxel, the grid and the dtype of {original} come again; bytes around them differ"
        return Verdict("equal", words, comparison)
    differences = "; ".join(comparison.differences)
    return Verdict("different", f"the result is not what was recorded: {differences}", comparison)


def _digests(path: str) -> list[str] | None:
    """Digests of all files of a volume, sorted; None if it is not there."""
    try:
        return sorted(file_digest(file) for file in written_files(path))
    except Conv3DError:
        return None
