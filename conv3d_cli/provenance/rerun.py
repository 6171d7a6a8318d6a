"""Compare a repeated run with its sidecar: have the inputs changed, and has the result?"""

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
    """The path of a name that is relative to a folder, with ".." resolved unless a link is there.

    >>> placed("no/link", "../a.nii")
    'no/a.nii'
    """
    path = os.path.join(folder, name)
    short = os.path.normpath(path)
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def check_inputs(record: Record, folder: str, sidecar: str, force: bool = False) -> list[str]:
    """Compare the inputs of a record with the files that exist now.

    folder : str        of the sidecar, from which the paths in the record start
    sidecar : str       for messages
    force : bool        return a sentence for each changed input; else they are an error

    Raises: FormatError if an input is missing or not a local file; ChangedInputError.
    """
    changed = []
    for entry in record.inputs:
        path = placed(folder, entry.path)
        if "://" in entry.path or not os.path.exists(path):
            raise FormatError(
                f"cannot read {path}: no such file; {sidecar} names it as its {entry.role}"
            )
        # a damaged record may name any folder, and the digest of a whole disk takes long
        if os.path.isdir(path) and not is_node(path):
            raise FormatError(
                f"cannot read {path}: it is a folder, but not a Zarr store; "
                f"{sidecar} names it as its {entry.role}"
            )
        found = file_digest(path)
        if found != entry.digest:
            changed.append(
                f"the {entry.role} {path} has changed: {sidecar} records {entry.digest}, "
                f"and it is {found} now"
            )
    if changed and not force:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ChangedInputError(f"{changed[0]}{more}; pass --force to run anyway")
    return changed


def other_versions(record: Record, now: Mapping[str, str]) -> list[str]:
    """The versions that differ from those of the record, one sentence each.

    now : mapping       version by library, of `versions_of`

    >>> from conv3d_cli.provenance.record import Record
    >>> record = Record("", (), (), [], versions={"numpy": "2.3.0", "CPU": "avx2"})
    >>> other_versions(record, {"numpy": "2.4.0", "CPU": "avx2"})
    ['it was made with numpy 2.3.0, and this is 2.4.0']
    """
    then = record.versions
    names = [*then, *(name for name in now if name not in then)]
    return [
        f"it was made with {name} {then.get(name, '(none)')}, and this is {now.get(name, '(none)')}"
        for name in names
        if then.get(name) != now.get(name)
    ]


def other_weights(record: Record, layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kernels and biases whose weights differ from the record, one sentence each.

    layers : sequence of dict       of `layer_record`, for the repeated run
    """
    notes = []
    for number, (then, now) in enumerate(zip(record.layers, layers, strict=False), 1):
        for key, what in (("KernelDigest", "kernel"), ("BiasDigest", "bias")):
            if then.get(key) != now.get(key):
                notes.append(
                    f"the {what} of layer {number} ({now.get('Kernel')}) differs from the recorded "
                    "one in its weights"
                )
    return notes


@dataclass(frozen=True)
class Verdict:
    """The result of a rerun.

    status : str            "same": every byte; "equal": every voxel, the grid and the dtype;
                            "different"
    words : str             the result as a sentence for the user
    comparison : Comparison or None     with the recorded output, if that still exists unchanged and
                            the bytes differ
    stale : bool            the recorded output has changed since it was recorded
    """

    status: str
    words: str
    comparison: Comparison | None = None
    stale: bool = False

    @property
    def good(self) -> bool:
        """True if the rerun reproduced the record, and the recorded output is unchanged.

        >>> Verdict("equal", "").good, Verdict("same", "", stale=True).good
        (True, False)
        """
        return self.status != "different" and not self.stale


def judge(record: Record, original: str, produced: str, beside: Sequence[Output] = ()) -> Verdict:
    """Compare a rerun's outputs with the record and, if bytes differ, with the recorded output.

    original : str              the recorded output; it may no longer exist
    produced : str              the output of the rerun
    beside : sequence of Output the other outputs of the rerun
    """
    verdict = _judge_volume(record, original, produced)
    for output in beside if verdict.status == "same" else ():
        if _digests(output.path) != _recorded(record, output.role):
            words = f"the volume was reproduced, but its {output.role} differs from the record"
            return Verdict("different", words)
    return verdict


def _recorded(record: Record, role: str) -> list[str]:
    """The recorded digests of all files of an output, sorted."""
    return sorted(entry.digest for entry in record.outputs if entry.role == role)


def _judge_volume(record: Record, original: str, produced: str) -> Verdict:
    recorded = _recorded(record, VOLUME)
    present = _digests(original)
    stale = present is not None and present != recorded
    if _digests(produced) == recorded:
        if stale:
            words = (
                f"{original} has changed since it was recorded; the rerun gives the recorded bytes"
            )
            return Verdict("same", words, stale=True)
        gone = " (which no longer exists)" if present is None else ""
        return Verdict("same", f"the same: every byte of {original}{gone} was reproduced")
    if present is None or stale:
        state = "no longer exists" if present is None else "has changed, too"
        words = (
            "the result differs from the record; by how much is unknown, "
            f"because {original} {state}"
        )
        return Verdict("different", words, stale=stale)
    comparison = compare_volumes(original, produced)
    if not comparison.differences and not comparison.unequal:
        words = (
            f"equal: every voxel, the grid and the dtype of {original} were reproduced; "
            "other bytes of the file differ"
        )
        return Verdict("equal", words, comparison)
    differences = "; ".join(comparison.differences)
    return Verdict("different", f"the result differs from the record: {differences}", comparison)


def _digests(path: str) -> list[str] | None:
    """The digests of all files of a volume, sorted; None if it does not exist."""
    try:
        return sorted(file_digest(file) for file in written_files(path))
    except Conv3DError:
        return None
