"""`Scheduler`: the address of a Dask scheduler, and the certificates for its `tls://`.

Dask trusts whoever shows a certificate of one authority: the scheduler, its workers and its
clients check one another. Every run imports this module, so it imports Dask, sockets and TLS late.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.system.inputs import check_input

if TYPE_CHECKING:
    from conv3d_cli.settings.options import Settings

CONNECT_SECONDS = 10
# field of `Scheduler` -> parameter of Dask's `Security`
TLS_FILES = {
    "tls_ca_file": "tls_ca_file",
    "tls_cert": "tls_client_cert",
    "tls_key": "tls_client_key",
}
CURE = "pip install 'conv3d[cluster]'"


def import_distributed() -> Any:
    """The `distributed` library. Raises: SpecError with the cure if it is missing."""
    try:
        import distributed
    except ImportError as error:
        raise SpecError(f"--scheduler needs Dask: {CURE}") from error
    return distributed


@dataclass(frozen=True)
class Scheduler:
    """A scheduler to run on; its text is its address.

    address : str               "tcp://host:port", "tls://host:port", or "local:N" for N worker
                                processes of this machine
    tls_ca_file : str or None   PEM file of the authority that all certificates are of
    tls_cert : str or None      PEM file of this user's certificate, which may hold the key, too
    tls_key : str or None       PEM file of its key, if it is not in that file
    What is None comes from Dask's configuration.
    Raises: SpecError if files are given for an address without TLS, or a key without certificate.

    >>> str(Scheduler("tls://head:8786", "ca.pem", "me.pem"))
    'tls://head:8786'
    """

    address: str
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        if self._files and not self.is_tls:
            raise SpecError(
                f"{_flag(next(iter(self._files)))} is for schedulers at tls://HOST:PORT, received "
                f"--scheduler {self.address}; start `dask scheduler` with its --tls options"
            )
        if self.tls_key is not None and self.tls_cert is None:
            raise SpecError(
                "--scheduler-tls-key is the key of a certificate: "
                "pass --scheduler-tls-cert FILE, too"
            )

    def __str__(self) -> str:
        return self.address

    @property
    def is_tls(self) -> bool:
        """True for an address of a scheduler that speaks TLS."""
        return self.address.startswith("tls://")

    @property
    def _files(self) -> dict[str, str]:
        files = {name: getattr(self, name) for name in TLS_FILES}
        return {name: path for name, path in files.items() if path is not None}

    def security(self) -> Any:
        """Dask's object for the certificates; None without TLS.

        Raises: SpecError if a certificate, or Dask, is missing; FormatError if a file cannot be
            read.
        """
        if not self.is_tls:
            return None
        Security = import_distributed().Security

        given = {TLS_FILES[name]: path for name, path in self._files.items()}
        security = Security(require_encryption=True, **given)
        used = security.get_tls_config_for_role("client")
        for name in ("ca_file", "cert"):
            if not used.get(name):
                raise SpecError(
                    f"the scheduler at {self.address} checks certificates: "
                    f"pass {_flag(f'tls_{name}')} FILE"
                )
        self._check_files(used)
        return security

    def _check_files(self, used: dict[str, Any]) -> None:
        """Load certificates as Dask will, which would ask the terminal for a passphrase."""
        import ssl

        for name in ("ca_file", "cert", "key"):
            path = used.get(name)
            # Dask's configuration may hold the text of a certificate instead of a file's name
            if path and "\n" not in path:
                check_input(path)
        if any("\n" in (used.get(name) or "") for name in ("ca_file", "cert", "key")):
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(used["ca_file"])
        except (ssl.SSLError, OSError) as error:
            raise FormatError(
                f"cannot read {used['ca_file']}: it holds no certificate in PEM form"
            ) from error
        try:
            context.load_cert_chain(used["cert"], used.get("key"), password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            key = used.get("key") or used["cert"]
            raise FormatError(
                f"cannot use {used['cert']}: it holds no certificate in PEM form, or {key} is not "
                "its key, or has a passphrase; write a pair without one"
            ) from error

    def why_refused(self, security: Any) -> str:
        """Why TLS fails with a scheduler that Dask could not reach, in words; "" if it does not.

        Dask says only that time ran out.
        """
        import socket
        import ssl

        host, _, port = self.address.removeprefix("tls://").rpartition(":")
        try:
            context = security.get_connection_args("client")["ssl_context"]
            with (
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as plain,
                context.wrap_socket(plain) as connection,
            ):
                connection.settimeout(1.0)
                connection.recv(1)  # a refusal of this side's certificate comes with the answer
        except ssl.SSLCertVerificationError:
            return f"its certificate is not of the authority in {_shown(security.tls_ca_file)}"
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower()
            if "alert" in reason:
                return f"it refuses the certificate in {_shown(security.tls_client_cert)}"
            return "it does not speak TLS; pass tcp://, or start it with its --tls options"
        except (OSError, ValueError):
            pass
        return ""


def scheduler_of(given: Settings) -> Scheduler | None:
    """The scheduler that options name; None without one. Raises: SpecError; see `Scheduler`."""
    files = {name: getattr(given, f"scheduler_{name}") for name in TLS_FILES}
    if given.scheduler is not None:
        return Scheduler(given.scheduler, **files)
    if named := next((name for name, path in files.items() if path is not None), ""):
        raise SpecError(f"{_flag(named)} is for a scheduler: pass --scheduler tls://HOST:PORT, too")
    return None


def _flag(name: str) -> str:
    return f"--scheduler-{name.replace('_', '-')}"


def _shown(file: str) -> str:
    return "Dask's configuration" if "\n" in file else os.fspath(file)
