"""Keys that tell of one channel by its number: gradients of a diffusion scan, layers of segments.

Source: NA-MIC's NRRD for diffusion weighted images, and 3D Slicer's segmentations (*.seg.nrrd).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# keys in label maps of 3D Slicer: of each segment, and of all
SEGMENT = re.compile(r"Segment(\d+)_")
SEGMENTATION = re.compile(r"Segment(\d+|ation)_")
# which voxels a segment takes, and where the first one lies in the image that was segmented
PLACE = re.compile(r"Segment\d+_Extent|Segmentation_ReferenceImageExtentOffset")
_OF_CHANNEL = re.compile(r"(DWMRI_(?:gradient|B-matrix|NEX)_)(\d+)")


def keys_of_channels(keys: Mapping[str, str], places: Sequence[int]) -> dict[str, str]:
    """The keys of an output of chosen channels, numbered as it numbers them.

    places : ints       of its channels in the file
    Segments in other layers are left out.

    >>> keys_of_channels({"DWMRI_gradient_0000": "0 0 0", "DWMRI_gradient_0001": "1 0 0"}, [1])
    {'DWMRI_gradient_0000': '1 0 0'}
    >>> keys_of_channels({"Segment0_ID": "a", "Segment1_ID": "b", "Segment1_Layer": "1"}, [2, 1])
    {'Segment0_ID': 'b', 'Segment0_Layer': '1'}
    """
    found: dict[str, str] = {}
    segments: dict[int, int] = {}  # number in the file -> in the output
    for key, text in keys.items():
        if of_channel := _OF_CHANNEL.fullmatch(key):
            start, number = of_channel[1], int(of_channel[2])
            found |= {f"{start}{n:04d}": text for n, place in enumerate(places) if place == number}
        elif of_segment := SEGMENT.match(key):
            number = int(of_segment[1])
            layer = keys.get(f"Segment{number}_Layer", "0").strip()
            if layer not in map(str, places):
                continue
            name = key[of_segment.end() :]
            own = segments.setdefault(number, len(segments))
            found[f"Segment{own}_{name}"] = (
                str(list(places).index(int(layer))) if name == "Layer" else text
            )
        else:
            found[key] = text
    return found
