"""The C extensions under the address and undefined-behaviour sanitizers, and the sampler under valgrind's memcheck.

    python bench/sanitize.py [address] [valgrind]           default: both

Works on a copy, for the running Python, and prints one line per run. `address` runs the tests of the sampler, the child and the
evidence with instrumented extensions (leaks are not looked for: the interpreter's own are many); `valgrind` runs a program that
does everything once, over pymalloc and over malloc, and counts the errors that have the sampler in their stack. Exits with 1 if
anything is found. Needs gcc and valgrind. About ten minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread"]
TESTS = (
    "test_sampler.py", "test_sampler_stress.py", "test_child.py", "test_evidence.py",
    "test_routes_ledger.py", "test_integrations_asgi_awaiting.py", "test_caches_engine.py",
)  # fmt: skip
# What the sanitizer itself changes: address space, stacks, malloc and its statistics; and tests of something else.
NOT_UNDER_ASAN = (
    "not memory_ends and not tables_it_declines and not very_deep and not native_memory and not compiler and not own_test_suite "
    "and not memray and not memory_of_malloc"
)

EVERYTHING = """
import gc, os, sys, threading, tracemalloc, zlib
import memwatch.evidence._sampler as sampler

def work(count):
    kept = [[], {}, bytearray(), "x" * 9]
    for number in range(count):
        kept[0].append(str(number)); kept[1][number] = bytes(number % 700); kept[2].extend(b"y" * 99)
    return kept

def generate():
    yield work(50)

for mean in (1024, 4096):
    sampler.start(mean, depth=20)
    kept = work(3000), [*generate()], zlib.compress(bytes(100_000))
    sampler.watch_native(True)
    threads = [threading.Thread(target=work, args=(800,)) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    tracemalloc.start(); other = work(500); sampler.maintain(); tracemalloc.stop(); sampler.maintain()
    for key, *_ in sampler.live():
        sampler.stack(key)
    sampler.blocks(0.0, 10); sampler.native(); sampler.statistics(); sampler.set_mean(2048)
    for number in range(300):
        exec(f"def f{number}(): return bytes(3000)\\nkept_{number} = f{number}()", {})
    if os.fork() == 0:
        work(500); sampler.live(); os._exit(0)
    os.wait()
    del kept, other
    gc.collect()
    sampler.stop()
"""


def build(tree: Path, *flags: str) -> None:
    shutil.copytree(ROOT / "memwatch", tree / "memwatch", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    include = sysconfig.get_paths()["include"]
    for name in ("evidence/_sampler", "evidence/_heap", "routes/_flights", "caches/_engine"):
        source = tree / f"memwatch/{name}.c"
        target = source.with_name(f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}")
        subprocess.run(["gcc", *FLAGS, *flags, f"-I{include}", "-o", target, source, "-lm", "-ldl"], check=True)


def address(tree: Path) -> bool:
    build(tree, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=1:detect_stack_use_after_return=0",
    }
    well = True
    for name in TESTS:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-k", NOT_UNDER_ASAN, f"tests/{name}"],
            cwd=tree, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = re.findall(r"(?:AddressSanitizer|runtime error).*", done.stdout + done.stderr)
        lines = done.stdout.strip().splitlines()
        print(f"address, undefined  {name:<26}{lines[-1] if lines else done.stderr[-500:]}  {'; '.join(found[:3])}", flush=True)
        if done.returncode != 0:
            print(done.stdout[-3000:])
        well = well and done.returncode == 0 and not found
    return well


def valgrind(tree: Path) -> bool:
    build(tree)
    (tree / "everything.py").write_text(EVERYTHING)
    well = True
    for allocator in ("pymalloc", "malloc"):
        done = subprocess.run(
            ["valgrind", "--tool=memcheck", "--num-callers=30", "--error-limit=no", sys.executable, tree / "everything.py"],
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONMALLOC": allocator}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        errors = re.split(r"^==\d+== \n", done.stderr, flags=re.MULTILINE)
        ours = [error for error in errors if "_sampler" in error and re.search(r"Invalid|uninitialised|Mismatched", error)]
        summary = re.findall(r"ERROR SUMMARY: .*", done.stderr)
        print(f"memcheck            PYTHONMALLOC={allocator:<13}{len(ours)} errors in the sampler; status {done.returncode}; "
              f"{summary[-1] if summary else done.stderr[-500:]}", flush=True)  # fmt: skip
        for error in ours[:3]:
            print(error)
        well = well and done.returncode == 0 and not ours
    return well


def main() -> int:
    chosen = sys.argv[1:] or ["address", "valgrind"]
    well = True
    for name, run in (("address", address), ("valgrind", valgrind)):
        if name in chosen:
            with tempfile.TemporaryDirectory(prefix="sampler-sanitize-") as directory:
                well = run(Path(directory)) and well
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
