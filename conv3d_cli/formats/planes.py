"""Voxels that a library hands out plane by plane: one reader for the formats of that kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader


class PlaneReader(VolumeReader):
    """A reader of planes in any order.

    fetch : callable        (n, depth, channel) -> (H, W) voxels of a plane; if `together`, all
                            channels of it, (H, W, C), and the channel is 0
    held : int              bytes that fetching a plane takes
    together : bool         a plane comes with all its channels
    close_files : callable  called once by `close`
    stored_as : dict        see `storage`
    """

    def __init__(
        self,
        path: str,
        header: VolumeHeader,
        fetch: Callable[[int, int, int], Array],
        held: int,
        together: bool = False,
        close_files: Callable[[], object] = lambda: None,
        stored_as: dict[str, str] | None = None,
    ) -> None:
        self.path, self.header = path, header
        self._fetch, self._bytes, self._close = fetch, held, close_files
        self.channels_together = together and header.shape[4] > 1
        self._together, self._storage = together, stored_as or {}

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        _, _, height, width, _ = self.header.shape
        size = (depth.stop - depth.start, height, width, channels.stop - channels.start)
        found = np.empty(size, self.header.dtype)
        for place, plane in enumerate(range(depth.start, depth.stop)):
            if self._together:
                found[place] = self._fetch(n, plane, 0)[..., channels]
                continue
            for column, channel in enumerate(range(channels.start, channels.stop)):
                found[place, ..., column] = self._fetch(n, plane, channel)
        return found

    def buffer_bytes(self, planes: int, channels: int) -> int:
        return self._bytes

    def storage(self) -> dict[str, str]:
        return self._storage

    def close(self) -> None:
        close, self._close = self._close, lambda: None
        close()
