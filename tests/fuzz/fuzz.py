#!/usr/bin/env python
"""Coverage-guided fuzzing with atheris, for `make fuzz`: `fuzz.py [TARGET] [SECONDS]`, for example `fuzz.py nifti 60`.

TARGET is a reader (`nifti`, `kernel-json`), a kind of readers (`kernel`) or `all`; SECONDS is for each of them. A reader runs
in a process of its own, under a limit of memory and of seconds an input, and is started anew after each find. What it
learns stays in `.fuzz/`, so that the next run goes on from there; finds are in `.fuzz/finds/`. A last table tells executions,
seconds and finds. Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutate import mutate
from targets import TARGETS, Target, corpus_of, find_targets, try_input

WORK = Path(__file__).parent.parent.parent / ".fuzz"
SECONDS_AN_INPUT = 10
HEADROOM = 384 << 20  # bytes of memory that an input may take; none is longer than 64 kB
LONGEST = 1 << 16
WEIGHTS_AT_MOST = 200_000  # of a kernel that is asked for by name: legal giants only cost time


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(target.name for target in TARGETS)
    parser.add_argument(
        "target", nargs="?", default="all", help=f"all, kernel, config, weights, or one of {names}"
    )
    parser.add_argument(
        "seconds", nargs="?", type=int, default=60, help="for each reader (default 60)"
    )
    parser.add_argument(
        "--replay", help="try one file on TARGET, as users have it, and say what comes of it"
    )
    if sys.argv[1:2] == ["--child"]:  # the rest is libFuzzer's
        return fuzz_here(named(sys.argv[2]), sys.argv[3:])
    arguments = parser.parse_args()
    chosen = find_targets(arguments.target)
    if not chosen:
        parser.error(f"no reader is called {arguments.target!r}; there are {names}")
    if arguments.replay:
        with tempfile.TemporaryDirectory() as folder:
            limit_memory()
            print(
                try_input(
                    named(arguments.target),
                    Path(arguments.replay).read_bytes(),
                    Path(folder),
                    isolated=True,
                )
            )
        return 0
    found = [run_target(target, arguments.seconds) for target in chosen]
    print(f"\n{'reader':<22}{'executions':>12}{'seconds':>9}{'finds':>7}")
    for target, (executions, seconds, finds) in zip(chosen, found, strict=True):
        print(f"{target.name:<22}{executions:>12,}{seconds:>9.0f}{len(finds):>7}")
    for _, _, finds in found:
        for path, what in finds.items():
            print(f"{path}: {what}")
    return 1 if any(finds for _, _, finds in found) else 0


def named(name: str) -> Target:
    return next(target for target in TARGETS if target.name == name)


def run_target(target: Target, seconds: int) -> tuple[int, float, dict[str, str]]:
    """Fuzz one reader for some seconds: executions, seconds, finds by file with the last line of each."""
    learnt, finds = WORK / "corpus" / target.name, WORK / "finds" / target.name
    for folder in (learnt, finds):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**target.seeds(), **corpus_of(target)}.items():
        (learnt / f"seed-{name}").write_bytes(data)
    executions, kept = 0, {}
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as words:
        words.write("".join(f'"{_escaped(word)}"\n' for word in target.words))
        words.flush()
        while (left := int(seconds - (time.monotonic() - begin))) > 0:
            options = [
                f"-max_total_time={left}",
                f"-timeout={SECONDS_AN_INPUT}",
                "-rss_limit_mb=0",
                f"-max_len={LONGEST}",
            ]
            options += [f"-artifact_prefix={finds}/", "-print_final_stats=1", str(learnt)]
            options += [f"-dict={words.name}"] if target.words else []
            command = [sys.executable, __file__, "--child", target.name, *options]
            ran = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False
            )
            counts = re.findall(
                r"stat::number_of_executed_units: (\d+)|^#(\d+)\t", ran.stderr, re.MULTILINE
            )
            executions += max((int(a or b) for a, b in counts), default=0)
            if not ran.returncode:
                break
            artifact = re.search(r"Test unit written to (\S+)", ran.stderr)
            if artifact is None:
                raise SystemExit(f"{target.name}: the fuzzer itself failed:\n{ran.stderr[-3000:]}")
            what = replay(target, Path(artifact[1]))
            if what is None:
                Path(
                    artifact[1]
                ).unlink()  # the C library's, which users meet in a process of its own
            elif what in kept.values():
                Path(artifact[1]).unlink()
            else:
                kept[artifact[1]] = what
    took = time.monotonic() - begin
    with open(WORK / "log.jsonl", "a") as log:
        log.write(
            json.dumps(
                {"reader": target.name, "executions": executions, "seconds": took, "finds": kept}
            )
            + "\n"
        )
    print(f"{target.name}: {executions:,} executions, {took:.0f} s, {len(kept)} finds", flush=True)
    return executions, took, kept


def replay(target: Target, path: Path) -> str | None:
    """What breaks the promise when a file is read as users have it; None if nothing does."""
    command = [sys.executable, __file__, target.name, "--replay", str(path)]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return "does not come to an end"
    if not ran.returncode:
        return None if target.isolated else "only in the fuzzer: slow, or greedy"
    places = re.findall(r'File ".*?/(conv3d_cli/\S+)", line (\d+)', ran.stderr)
    where = ":".join(places[-1]) if places else ""
    return (
        f"{where} {(ran.stderr.strip().splitlines() or [f'exit code {ran.returncode}'])[-1][:200]}"
    )


def _escaped(word: str) -> str:
    return "".join(
        c if c.isalnum() or c in " _.,:=-" else "".join(f"\\x{b:02x}" for b in c.encode())
        for c in word
    )


def limit_memory() -> None:
    """No more data than the process has now and `HEADROOM` besides: what needs more is a MemoryError, and so a find."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (used + HEADROOM, resource.RLIM_INFINITY))


def fuzz_here(target: Target, options: list[str]) -> int:
    """The child's work: fuzz one reader until the time is over or something is found."""
    import atheris

    rooms = (
        "formats",
        "kernels",
        "layer",
        "model",
        "settings.config",
        "pipeline.kernel_adaptation",
    )
    with atheris.instrument_imports(
        include=[*(f"conv3d_cli.{room}" for room in rooms), "tifffile"]
    ):
        import tifffile  # noqa: F401

        import conv3d_cli.formats
        import conv3d_cli.kernels.builtin
        import conv3d_cli.kernels.expressions
        import conv3d_cli.kernels.minc
        import conv3d_cli.kernels.weights
        import conv3d_cli.layer
        import conv3d_cli.pipeline.kernel_adaptation
        import conv3d_cli.pipeline.run
        import conv3d_cli.settings.config
    for module in (
        conv3d_cli.kernels.builtin,
        conv3d_cli.kernels.expressions,
        conv3d_cli.pipeline.run,
    ):
        module.MAX_WEIGHTS = WEIGHTS_AT_MOST
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared) as name:
        folder = Path(name)
        for data in target.seeds().values():  # libraries are loaded before memory is limited
            if (said := try_input(target, data, folder)) != "read":
                print(f"{target.name}: a seed is refused: {said}", file=sys.stderr)
        limit_memory()

        def one(data: bytes) -> None:
            try_input(target, data, folder)

        def change(data: bytes, longest: int, seed: int) -> bytes:
            changed = mutate(
                data,
                random.Random(seed),
                lambda content: atheris.Mutate(content, len(content) + 64),
            )
            return changed if len(changed) <= longest else atheris.Mutate(data, longest)

        atheris.Setup([sys.argv[0], *options], one, custom_mutator=change)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
