"""Waiting for servers: how long, how often, and for how many bytes at most.

A server that sends nothing is given up after the time-out of `waiting`, and what may pass by itself
(a connection that ends early, an overloaded server) is tried again. aiohttp and fsspec are imported
late.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from conv3d_cli.errors import SpecError, setting

TIMEOUT = 60.0  # seconds
TRIES = 3
PAUSE = 0.3  # seconds before the second try; each further one waits twice as long
_timeout: ContextVar[float] = ContextVar("timeout", default=TIMEOUT)
_most: ContextVar[int | None] = ContextVar("most", default=None)


def check_timeout(seconds: float | None) -> None:
    """Raise SpecError for a time-out that is not positive."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise SpecError(
            f"{setting('timeout')} is a positive number of seconds, received {seconds:g}"
        )


@contextmanager
def waiting(seconds: float | None) -> Iterator[None]:
    """In the body, let files open that give up a server which sends nothing for this time.

    seconds : float or None     None leaves it as it is

    >>> with waiting(5):
    ...     timeout()
    5
    """
    check_timeout(seconds)
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
    scheme, seconds = url.partition("://")[0].lower(), _timeout.get()
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


def check_size(what: str, size: int, most: int) -> None:
    """Raise TooLargeError if something has more bytes than it can have."""
    if size > most:
        raise TooLargeError(f"{what} has {size:,} bytes, where at most {most:,} are possible")


class SilentServerError(Exception):
    """A server sent nothing in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the server sent nothing for {seconds:g} s, {TRIES} times; try again, or pass "
            f"{setting('timeout', f'{4 * seconds:g}')}"
        )


async def patiently(
    ask: Callable[[], Awaitable[Any]], most: int, seconds: float, again: Callable[[], None]
) -> Any:
    """The answer of a server, which is asked up to `TRIES` times.

    ask : callable      asks
    most : int          bytes that the answer may have, if it comes by HTTP
    seconds : float     for which the server may send nothing, for the message
    again : callable    is called before it is asked again
    Raises: SilentServerError, TooLargeError; what `ask` raises.
    """
    import asyncio

    _most.set(most)  # of this task alone
    for number in range(TRIES):
        try:
            return await ask()
        except Exception as error:
            if number == TRIES - 1 or not _may_pass(error):
                if isinstance(error, TimeoutError):
                    raise SilentServerError(seconds) from error
                raise
        again()
        await asyncio.sleep(PAUSE * 2**number)
    raise AssertionError("unreachable")


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
