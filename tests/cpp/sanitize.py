"""Builds the kernels with a sanitizer and runs them without Python.

`python tests/cpp/sanitize.py address,undefined` and `python tests/cpp/sanitize.py thread` take some
minutes each. They need CMake, a C++ compiler and the sanitizer's run-time library. The build is not
optimised: optimising sanitized kernels takes ten times longer than it saves.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    # fresh memory is full of NaN, so that a value read before it is written shows in the results
    "ASAN_OPTIONS": "malloc_fill_byte=255:max_malloc_fill_size=1000000000:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def build(folder, sanitizers, jobs):
    """Returns the folder of the drivers, built in `folder`."""
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(folder), "-DINNERLOOP_CPP_TESTS=ON"),
        *(f"-DINNERLOOP_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=None"),
        *("-DCMAKE_CXX_FLAGS=-O0", "-DINNERLOOP_WERROR=OFF"),
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "-j", str(jobs)], check=True)
    return folder / "tests/cpp"


def run(driver, *arguments):
    """Runs a driver; says what to repeat if it fails."""
    command = [str(driver), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **OPTIONS}, check=False)
    if done.returncode:
        command[0] = driver.name
        sys.exit(f"sanitize: failed with status {done.returncode}: {' '.join(command)}")


def main():
    """Runs one caller over every level and layout, then several callers at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sanitizers", help="address,undefined or thread (anything GCC takes)")
    parser.add_argument("--cases", type=int, help="default: 60 for thread, else 300")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--build", type=Path, help="build folder to keep; a temporary one if absent"
    )
    options = parser.parse_args()
    cases = options.cases or (60 if "thread" in options.sanitizers else 300)
    with tempfile.TemporaryDirectory() as temporary:
        drivers = build(options.build or Path(temporary), options.sanitizers, options.jobs)
        run(drivers / "innerloop_regression_driver", cases, options.seed)
        run(drivers / "innerloop_image_layers_driver", cases, options.seed)
        run(drivers / "innerloop_driver", cases, options.seed, 1)
        run(drivers / "innerloop_driver", max(cases // 6, 1), options.seed, 6)
    print(f"sanitize: {options.sanitizers} found nothing")


if __name__ == "__main__":
    main()
