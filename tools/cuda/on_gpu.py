"""The tests on a GPU, on a machine that has no Rust: packed here, run there.

    python tools/cuda/on_gpu.py pack FOLDER [--tests lib,cuda,golden,...]     # builds, strips and compresses; copies this script along
    python FOLDER/on_gpu.py run [--tests ...] [--sanitizer memcheck,racecheck] [--device cuda:0] [--limit 300] [--filter NAME]

`run` needs Python alone, NVIDIA's driver, and NVRTC and cublasLt (docs/CUDA.md), which it looks for among this Python's packages unless
BUPO_CUDA_LIBRARIES says otherwise. A line for each test program: how it ended, how long it took, what failed. With --sanitizer each is run
under compute-sanitizer as well, which must find nothing. Exit code 1 if anything failed.
"""
import argparse
import gzip
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time

HERE = pathlib.Path(__file__).resolve().parent
# Kernels and products by themselves; the whole decoder; everything against PyTorch; training; the program itself.
TESTS = ["lib", "cuda", "golden", "golden_analysis", "token_maps", "ablate", "lora", "ppo", "training", "run"]
# The library's tests that go to a device.
OF_LIBRARY = ["compute::cuda::emulated", "rollout::device"]

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("what", choices=["pack", "run"])
ap.add_argument("folder", type=pathlib.Path, nargs="?", help="pack: where to")
ap.add_argument("--tests", default=",".join(TESTS))
ap.add_argument("--device", default="cuda:0")
ap.add_argument("--sanitizer", default="", help="run: tools of compute-sanitizer, after the plain run")
ap.add_argument("--limit", type=float, default=300, help="run: seconds for one program")
ap.add_argument("--filter", default="", help="run: only tests with this in their names")
a = ap.parse_args()
tests = a.tests.split(",")
if unknown := set(tests) - set(TESTS):
    sys.exit(f"--tests: no {', '.join(unknown)}; there are {', '.join(TESTS)}")


def built(target):
    """Where cargo put a test program."""
    command = ["cargo", "test", "--release", "--features", "emulator", "--no-run", "--message-format", "json"]
    command += ["--lib"] if target == "lib" else ["--test", target]
    out = subprocess.run(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = [m["executable"] for m in map(json.loads, out.splitlines()) if m.get("executable") and m.get("profile", {}).get("test")]
    return pathlib.Path(found[-1])


def pack():
    root = HERE.parents[1]
    a.folder.mkdir(parents=True, exist_ok=True)
    programs = {test: built(test) for test in tests} | {"bupo": root / "target" / "release" / "bupo"}
    for name, program in programs.items():
        stripped = a.folder / name
        subprocess.run(["strip", "-o", stripped, program], check=True)
        with open(stripped, "rb") as plain, gzip.open(f"{stripped}.gz", "wb", 9) as packed:
            shutil.copyfileobj(plain, packed)
        stripped.unlink()
    shutil.copytree(root / "tests" / "golden", a.folder / "tests" / "golden", dirs_exist_ok=True)
    shutil.copytree(root / "recipes", a.folder / "recipes", dirs_exist_ok=True)
    shutil.copy(__file__, a.folder / "on_gpu.py")
    size = sum(path.stat().st_size for path in a.folder.rglob("*") if path.is_file())
    print(f"{a.folder}: {len(programs)} programs, {size / 2**20:.0f} MiB")


def unpacked(name):
    program = HERE / name
    if not program.exists():
        with gzip.open(f"{program}.gz", "rb") as packed, open(program, "wb") as plain:
            shutil.copyfileobj(packed, plain)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def run_one(name, tool, env):
    """True if it passed."""
    names = [a.filter] if a.filter else OF_LIBRARY if name == "lib" else []
    command = [unpacked(name), *names, "--test-threads", "1" if name in ("ppo", "run") or tool else "4"]
    if tool:
        # Kernels that are compiled when they are needed ask the driver for symbols that an older one lacks: no error of ours.
        command = ["compute-sanitizer", "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9", *command]
    start = time.monotonic()
    try:
        done = subprocess.run([*map(str, command)], cwd=HERE, env=env, timeout=a.limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, errors="replace")
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, output = f"more than {a.limit:.0f} s", (late.stdout or b"").decode(errors="replace")
    counts = re.findall(r"(\d+) passed; (\d+) failed", output)
    passed, failed = (sum(int(c[i]) for c in counts) for i in (0, 1))
    what = f"{name}{' under ' + tool if tool else ''}"
    print(f"{what}: exit {code}, {passed} passed, {failed} failed, {time.monotonic() - start:.0f} s", flush=True)
    if code != 0:
        print("\n".join(output.splitlines()[-40:]), flush=True)
    return code == 0


def run():
    env = os.environ | {"BUPO_TEST_DEVICE": a.device, "BUPO_TEST_BINARY": str(unpacked("bupo"))}
    env.setdefault("BUPO_CUDA_LIBRARIES", sysconfig.get_path("purelib"))
    tools = [None, *filter(None, a.sanitizer.split(","))]
    results = [run_one(name, tool, env) for tool in tools for name in tests]
    sys.exit(not all(results))


pack() if a.what == "pack" else run()
