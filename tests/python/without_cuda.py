"""Lets PyTorch load without the libraries of CUDA.

The package for Linux links cuBLAS, cuDNN and others, gigabytes that nothing calls where there is no graphics card. One small
library takes their names: it has the functions that PyTorch wants to find, and each of them ends the program. Only the CUDA
runtime is real, since it is called when PyTorch is loaded.
"""

import collections, pathlib, subprocess, sysconfig, tempfile

PACKAGES = pathlib.Path(sysconfig.get_paths()["purelib"])
FOLDER = PACKAGES / "torch" / "lib"
STAND_IN = FOLDER / "libcuda_stand_in.so"


def read(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(kind, library):
    """Names and versions of the functions that a library has (`defined`) or wants (`undefined`)."""
    found = {}
    for line in read("nm", "--dynamic", f"--{kind}-only", library).splitlines():
        name, _, version = line.split()[-1].partition("@")
        found[name] = version.lstrip("@")
    return found


def make():
    ours = sorted(FOLDER.glob("lib*.so"))
    runtime = next(PACKAGES.glob("nvidia/**/libcudart.so.*"))
    there = set().union(*(symbols("defined", library) for library in [*ours, runtime]))
    versions = collections.defaultdict(set)
    for library in ours:
        for name, version in symbols("undefined", library).items():
            if name not in there and name.startswith(("cu", "nccl", "nvshmem", "nvrtc", "nvtx", "nvml")):
                versions[version].add(name)
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        # Those without a version are seen by all the same.
        for version, names in versions.items():
            if version:
                script.write(f"{version} {{ global: {'; '.join(sorted(names))}; }};\n")
        script.flush()
        source = "".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in sorted(set().union(*versions.values())))
        command = ["cc", "-shared", "-fPIC", "-O0", "-w", "-x", "c", "-", "-o", STAND_IN]
        subprocess.run([*command, f"-Wl,--version-script={script.name}"], check=True, input=source, text=True)
    for library in ours:
        lines = read("readelf", "--dynamic", "--wide", library).splitlines()
        for name in (line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line):
            is_cuda = name.startswith(("libcu", "libnccl", "libnv")) and not name.startswith("libcuda.")
            if is_cuda and not (FOLDER / name).exists():
                (FOLDER / name).symlink_to(runtime if name.startswith("libcudart") else STAND_IN.name)


if not STAND_IN.exists():
    make()
