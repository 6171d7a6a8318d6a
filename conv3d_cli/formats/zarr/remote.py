"""Waiting for servers: how long, how often, and for how many bytes at most.

A server that sends nothing is given up after the time-out of `waiting`, and what may pass by itself
(a connection that ends early, an overloaded server) is tried again. aiohttp and fsspec are imported
late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 60.0  # seconds
TRIES = 3
PAUSE = 0.3  # seconds before the second try; each further one waits twice as long
_timeout: ContextVar[float] = ContextVar("timeout", default=TIMEOUT)
_most: ContextVar[int | None] = ContextVar("most", default=None)


@contextmanager
def waiting(seconds: float | None) -> Iterator[None]:
    """In the body, give up servers that send nothing for this time; None leaves it as it is."""
    token = _timeout.set(_timeout.get() if seconds is None else seconds)
    try:
        yield
    finally:
        _timeout.reset(token)


def timeout() -> float:
    """Seconds without a byte after which a server is given up."""
    return _timeout.get()


def storage_options(url: str) -> dict[str, Any]:
    """Arguments of fsspec's file system of a URL, on top of those in the user's configuration.

    Other file systems than those of the web, S3 and Google have time-outs of their own.
    """
    scheme, seconds = urlsplit(url).scheme, _timeout.get()
    ours: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        limit = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        ours = {"client_kwargs": {"timeout": limit, "response_class": _bounded_response()}}
    elif scheme in ("s3", "s3a"):
        ours = {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds}}
    elif scheme in ("gs", "gcs"):
        return {"requests_timeout": seconds}
    if not ours:
        return {}
    from fsspec.config import conf

    theirs = conf.get(scheme, {})
    return {name: {**theirs.get(name, {}), **values} for name, values in ours.items()}


@lru_cache(maxsize=1)
def _bounded_response() -> Any:
    from aiohttp import ClientResponse

    class BoundedResponse(ClientResponse):
        """An answer that is read no further than `at_most` of the task that reads it."""

        async def read(self) -> bytes:
            most = _most.get()
            if most is None or self._body is not None:
                return await super().read()
            parts, size = [], 0
            async for part in self.content.iter_any():
                size += len(part)
                if size > most:
                    self.close()
                    raise TooLargeError(f"it has more than the {most:,} bytes that are possible")
                parts.append(part)
            self._body = b"".join(parts)
            return self._body

    return BoundedResponse


class TooLargeError(ValueError):
    """A file or an answer is larger than what it stands for can be."""


async def patiently(ask: Callable[[], Awaitable[Any]], most: int, again: Callable[[], None]) -> Any:
    """The answer of a server, which is asked up to `TRIES` times.

    ask : callable      asks
    most : int          bytes that the answer may have, if it comes by HTTP
    again : callable    is called before it is asked again
    Raises: TimeoutError with the cure if it sends nothing; what `ask` raises.
    """
    _most.set(most)  # of this task alone
    for number in range(1, TRIES):
        try:
            return await ask()
        except Exception as error:
            if not _may_pass(error):
                raise
        again()
        await asyncio.sleep(PAUSE * 2 ** (number - 1))
    return await ask()


def _may_pass(error: Exception) -> bool:
    """True if a server may answer another time."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    try:
        from aiohttp import (
            ClientConnectionError,
            ClientConnectorError,
            ClientPayloadError,
            ClientResponseError,
        )
    except ImportError:
        return False
    if isinstance(error, ClientResponseError):
        return error.status >= 500 or error.status == 429
    ended = isinstance(error, ClientConnectionError | ClientPayloadError)
    return ended and not isinstance(error, ClientConnectorError)
