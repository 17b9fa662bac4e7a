"""Compiles every CUDA kernel with NVRTC, for both number formats and several GPUs, on a machine without a GPU.

    pip install nvidia-cuda-nvrtc
    python tools/cuda/compile.py [--nvrtc PATH/libnvrtc.so.13] [--arch sm_80,sm_90,sm_100] [--head-dim 128] [norm.cu ...]

Prints registers, spills and static shared memory of each kernel, as ptxas says, and ends with 1 if anything did not compile.
"""

import argparse
import ctypes
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2] / "src/compute/cuda"


def find_nvrtc():
    import importlib.util

    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else []:
        for path in sorted(pathlib.Path(place).glob("*/lib/libnvrtc.so.*")):
            if "alt" not in path.name:
                return path
    sys.exit("no libnvrtc: pip install nvidia-cuda-nvrtc, or give --nvrtc PATH")


class Nvrtc:
    def __init__(self, path):
        # NVRTC opens its builtins by name alone: loaded before, they are found wherever they are.
        for builtins in sorted(pathlib.Path(path).parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        self.lib = ctypes.CDLL(str(path))

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.lib, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    def compile(self, source, headers, options):
        """Returns (cubin or None, log)."""
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*[h.name.encode() for h in headers])
        texts = (ctypes.c_char_p * len(headers))(*[h.read_bytes() for h in headers])
        create = self.lib.nvrtcCreateProgram
        code = create(ctypes.byref(program), source.read_bytes(), source.name.encode(), len(headers), texts, names)
        assert code == 0, f"nvrtcCreateProgram: {code}"
        flags = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        code = self.lib.nvrtcCompileProgram(program, len(options), flags)
        log = self.text(program, "ProgramLog").rstrip(b"\0").decode()
        cubin = self.text(program, "CUBIN") if code == 0 else None
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin, log


def kernels(log):
    """(name, registers, spilled bytes, static shared bytes) of each kernel in ptxas's log."""
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        number = lambda pattern: sum(int(n) for n in re.findall(pattern, part))
        name = part.split("'")[0]
        found.append((name, number(r"Used (\d+) registers"), number(r"(\d+) bytes spill"), number(r"(\d+) bytes smem")))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvrtc", help="the library; found in the installed nvidia-cuda-nvrtc otherwise")
    parser.add_argument("--arch", default="sm_80,sm_90,sm_100", help="with commas between them")
    parser.add_argument("--head-dim", type=int, help="attention for this head dimension only")
    parser.add_argument("files", nargs="*", help="names such as norm.cu; all otherwise")
    args = parser.parse_args()
    nvrtc = Nvrtc(args.nvrtc or find_nvrtc())
    headers = sorted(ROOT.glob("*.cuh"))
    failed = 0
    for source in sorted(ROOT.glob("*.cu")):
        if args.files and source.name not in args.files:
            continue
        for real in ["float", "bf16"]:
            for arch in args.arch.split(","):
                options = [f"--gpu-architecture={arch}", f"-DREAL={real}", "--std=c++17", "--ptxas-options=-v"]
                if args.head_dim:
                    options.append(f"-DHEAD_DIM={args.head_dim}")
                start = time.time()
                cubin, log = nvrtc.compile(source, headers, options)
                seconds = time.time() - start
                print(f"{source.name} {real} {arch}: {len(cubin) if cubin else 'FAILED'} bytes, {seconds:.1f} s")
                if cubin is None:
                    failed += 1
                    print(log)
                    continue
                for line in log.splitlines():
                    if "warning" in line:
                        print(f"  {line}")
                for name, registers, spills, shared in kernels(log):
                    print(f"  {name}: {registers} registers, {spills} bytes spilled, {shared} bytes shared")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
