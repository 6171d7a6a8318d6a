"""A scheduler that checks certificates, with those of its authority and with others."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT, started, wait_until

from conv3d_cli.cluster.run import connect
from conv3d_cli.cluster.scheduler import Scheduler
from conv3d_cli.errors import SpecError

pytest.importorskip("cryptography", reason="needs cryptography, which makes certificates")
pytest.importorskip("distributed", reason="needs distributed")


def certify(folder: Path, name: str, authority: Any = None, passphrase: bytes = b"") -> Any:
    """Write NAME.pem and NAME.key: a certificate of an authority, or of a new one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    issuer, signer = (subject, key) if authority is None else authority
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(authority is None, None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    lock: Any = serialization.NoEncryption()
    if passphrase:
        lock = serialization.BestAvailableEncryption(passphrase)
    (folder / f"{name}.pem").write_bytes(made.public_bytes(pem))
    form = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, lock))
    return subject, key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    authority = certify(folder, "ca")
    certify(folder, "head", authority)
    certify(folder, "me", authority)
    certify(folder, "locked", authority, b"secret")
    certify(folder, "stranger", certify(folder, "other_ca"))
    both = (folder / "me.pem").read_text() + (folder / "me.key").read_text()
    (folder / "both.pem").write_text(both)
    return folder


@pytest.fixture(scope="module")
def address(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with one worker."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    own = ["--tls-ca-file", keys / "ca.pem", "--tls-cert", keys / "head.pem"]
    own += ["--tls-key", keys / "head.key", "--no-dashboard", "--scheduler-file", file]
    python = [sys.executable, "-m"]
    head = [*python, "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1"]
    worker = [*python, "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny"]
    worker += ["--local-directory", folder]
    with open(folder / "log", "wb") as log:
        quiet = {"stdout": log, "stderr": log}
        with started([*head, "--protocol", "tls", *own], **quiet) as process:
            wait_until(lambda: file.is_file() and file.read_text().endswith("}"), process)
            with started([*worker, *own], **quiet):
                found = json.loads(file.read_text())["address"]
                files = (str(keys / name) for name in ("ca.pem", "both.pem"))
                with connect(Scheduler(found, *files)) as client:
                    client.wait_for_workers(1, timeout=LIMIT)
                yield found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, run: Any) -> Path:
    folder = tmp_path_factory.mktemp("store")
    np.save(folder / "x.npy", np.random.default_rng(3).random((9, 10, 11), np.float32))
    run("apply", folder / "x.npy", "-k", "box:size=3", "-o", folder / "x.zarr", "-q")
    run("apply", folder / "x.zarr", "-k", "box:size=3", "-o", folder / "expected.zarr", "-q")
    return folder


@pytest.fixture
def apply(address: str, store: Path, run: Any, tmp_path: Path) -> Any:
    def call(*files: Any, code: int = 0, to: str = address) -> str:
        """files: of the authority, of the certificate, of its key; None for none."""
        options: list[Any] = []
        for name, path in zip(("ca-file", "cert", "key"), files, strict=False):
            options += [] if path is None else [f"--scheduler-tls-{name}", path]
        made = tmp_path / "y.zarr"
        result = run(
            "apply", store / "x.zarr", "-k", "box:size=3", "-o", made, "--scheduler", to,
            *options, "-q", code=code,
        )  # fmt: skip
        assert made.exists() == (code == 0)
        return str(result.stderr)

    return call


@pytest.mark.parametrize("split", [True, False])
def test_those_of_one_authority_work_together(
    split: bool, apply: Any, keys: Path, store: Path, tmp_path: Path
) -> None:
    own = (keys / "me.pem", keys / "me.key") if split else (keys / "both.pem",)
    assert apply(keys / "ca.pem", *own) == ""
    for path in (store / "expected.zarr").rglob("*"):
        if path.is_file():
            made = tmp_path / "y.zarr" / path.relative_to(store / "expected.zarr")
            assert made.read_bytes() == path.read_bytes()


def test_dask_s_configuration_serves_as_well(
    apply: Any, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    with dask.config.set({"distributed.comm.tls.ca-file": str(keys / "ca.pem")}):
        apply(None, keys / "me.pem", keys / "me.key")


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        (("other_ca.pem", "me.pem", "me.key"), 1, "its certificate is not of the authority in"),
        (("ca.pem", "stranger.pem", "stranger.key"), 1, "it refuses the certificate in"),
        (("ca.pem", "me.pem", "stranger.key"), 3, "stranger.key is not its key"),
        (("ca.pem", "me.pem"), 3, "me.pem is not its key"),
        (("ca.pem", "locked.pem", "locked.key"), 3, "or has a passphrase"),
        (("ca.key", "me.pem", "me.key"), 3, "ca.key: it holds no certificate in PEM form"),
        (("none.pem", "me.pem", "me.key"), 3, "none.pem: no such file"),
        (("ca.pem",), 2, "checks certificates: pass --scheduler-tls-cert FILE"),
        ((None, "both.pem"), 2, "checks certificates: pass --scheduler-tls-ca-file FILE"),
        ((), 2, "checks certificates: pass --scheduler-tls-ca-file FILE"),
    ],
)
def test_another_certificate_is_one_line(
    files: tuple[str | None, ...], code: int, message: str, apply: Any, keys: Path, error_line: Any
) -> None:
    paths = [None if name is None else keys / name for name in files]
    assert message in error_line(apply(*paths, code=code))


def test_a_scheduler_without_tls_is_named(apply: Any, keys: Path, error_line: Any) -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                with plain:
                    plain.sendall(b"\x00" * 64)

        threading.Thread(target=answer, daemon=True).start()
        to = f"tls://127.0.0.1:{server.getsockname()[1]}"
        said = apply(keys / "ca.pem", keys / "both.pem", code=1, to=to)
        assert "it does not speak TLS" in error_line(said)


def test_explain_asks_it_as_well(run: Any, address: str, store: Path, keys: Path) -> None:
    said = run(
        "explain", store / "x.zarr", "-k", "box:size=3", "--scheduler", address,
        "--scheduler-tls-ca-file", keys / "ca.pem", "--scheduler-tls-cert", keys / "both.pem",
    ).stdout  # fmt: skip
    assert "1 worker" in said


def test_certificates_belong_to_tls(run: Any, store: Path, error_line: Any) -> None:
    given = ["apply", store / "x.zarr", "-k", "box:size=3", "-o", store / "z.zarr"]
    given += ["--scheduler-tls-cert", "me.pem"]
    assert "pass --scheduler tls://HOST:PORT, too" in error_line(run(*given, code=2).stderr)
    for to in ("tcp://127.0.0.1:1", "local:1"):
        said = error_line(run(*given, "--scheduler", to, code=2).stderr)
        assert "is for schedulers at tls://HOST:PORT" in said
    with pytest.raises(SpecError, match="pass --scheduler-tls-cert FILE"):
        Scheduler("tls://127.0.0.1:1", tls_key="me.key")


def test_a_passphrase_is_never_asked_for(address: str, keys: Path, store: Path) -> None:
    """OpenSSL would read it from the terminal, and a batch would wait."""
    import pty
    import subprocess

    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [
                sys.executable, "-m", "conv3d_cli", "apply", store / "x.zarr", "-k", "box:size=3",
                "-o", store / "p.zarr", "--scheduler", address, "--scheduler-tls-ca-file",
                keys / "ca.pem", "--scheduler-tls-cert", keys / "locked.pem",
                "--scheduler-tls-key", keys / "locked.key",
            ],
            stdin=slave,
            capture_output=True,
            start_new_session=True,
            timeout=LIMIT,
        )  # fmt: skip
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 3
    assert done.stderr.count(b"\n") == 1
