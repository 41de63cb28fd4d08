"""What users receive: the installed files and metadata, and an sdist that builds anywhere."""

import re
import subprocess
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import binaries
import innerloop

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "innerloop/__init__.py",
    "innerloop/__main__.py",
    "innerloop/_cpu.pyi",
    "innerloop/_cuda.pyi",
    "innerloop/cli.py",
    "innerloop/compare/__init__.py",
    "innerloop/data/countries_life_expectancy.csv",
    "innerloop/data/us_states_productivity.csv",
    "innerloop/learners/__init__.py",
    "innerloop/py.typed",
    "innerloop/reference.py",
)
EXTENSION = re.compile(r"innerloop/_(cpu|cuda)\.[^/]+\.so$")  # _cuda: where there was nvcc
ALLOWED = re.compile(
    r"innerloop/.*\.(py|pyi|csv|md)$|innerloop/py\.typed$|innerloop-[^/]*\.dist-info/"
)


def check_wheel_files(names):
    """Asserts that the files of a wheel are those that users need and no others."""
    names = [name for name in names if not name.endswith(("/", ".pyc"))]
    assert [name for name in NEEDED if name not in names] == []
    found = sorted(match.group(1) for name in names if (match := EXTENSION.match(name)))
    assert found in (["cpu"], ["cpu", "cuda"])
    assert any(re.match(r"innerloop-[^/]*\.dist-info/licenses/LICENSE$", name) for name in names)
    others = [name for name in names if not ALLOWED.match(name) and not EXTENSION.match(name)]
    assert [name for name in others if not name.startswith("..")] == []  # ../../bin/innerloop


@pytest.fixture(scope="module")
def installed():
    """The installed distribution, which must be the package under test."""
    try:
        distribution = metadata.distribution("innerloop")
    except metadata.PackageNotFoundError:
        pytest.skip("innerloop runs from a source tree here; run pip install .")
    package = Path(str(distribution.locate_file("innerloop/__init__.py")))
    if not package.exists() or not package.samefile(innerloop.__file__):
        pytest.skip("innerloop is installed in editable mode; run pip install .")
    return distribution


def test_installed_files(installed):
    check_wheel_files([str(path) for path in installed.files])


def test_installed_metadata(installed):
    """A floor and no cap for torch, so that installing never replaces the user's."""
    assert installed.version == innerloop.__version__
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    assert installed.metadata["Requires-Python"] == ">=3.10"
    plain = sorted(r for r in installed.requires if "extra ==" not in r)
    assert [re.split(r"[><=!~ ]", r)[0] for r in plain] == ["numpy", "torch"]
    assert plain[1] == "torch>=2.4"
    (script,) = [e for e in installed.entry_points if e.group == "console_scripts"]
    assert (script.name, script.value) == ("innerloop", "innerloop.cli:app")


def test_version_is_said_once_more_nowhere():
    """The three files that name the version agree; the changelog may be ahead, unreleased."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'\nversion = "{innerloop.__version__}"\n' in project
    assert f"\nversion: {innerloop.__version__}\n" in citation
    released = re.search(r"^## (\d+\.\d+\.\d+)$", changelog, re.M)  # above it: what is not yet
    assert released.group(1) == innerloop.__version__


def test_readme_commands_are_those_that_continuous_integration_runs():
    """.ci/run takes one line of code after each mark."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("main", "test"):
        block = re.search(rf"<!-- {name} command -->\n+```\w*\n([^\n]+)\n```\n", readme)
        assert block, f"README.md: no one-line block after <!-- {name} command -->"
        assert block.group(1).startswith("python3 -m venv .venv && ")


# ---------------------------------------------------------------- from the sdist


def run(*command, **options):
    """Runs a command that must succeed, without CUDA on the path."""
    path = "/usr/bin:/bin"
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
        **{"env": {"PATH": path, "CUDA_HOME": "", **options.pop("env", {})}, **options},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with pip and the build back end alone: no torch, no numpy."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "scikit-build-core>=0.11", "pybind11>=2.13")
    return python


@pytest.mark.slow
def test_sdist_builds_a_wheel_without_torch_or_nvcc(bare_python, tmp_path):
    """What pip does where no wheel fits; then the extension is loaded, still without torch."""
    if binaries.MISSING:
        pytest.skip("binutils not found")
    code = f"import scikit_build_core.build as b; print(b.build_sdist({str(tmp_path)!r}))"
    run(bare_python, "-c", code, cwd=ROOT)
    (sdist,) = tmp_path.glob("innerloop-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    for needed in ("csrc/core/kernels.h", "cmake/exports.map", "CMakeLists.txt", "LICENSE"):
        assert needed in names
    unwanted = (".venv/", "build/", "benchmarks/results/", ".ci/")
    assert [name for name in names if name.startswith(unwanted) or name.endswith(".so")] == []

    wheels = tmp_path / "wheels"
    run(bare_python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, sdist, cwd=tmp_path)
    (wheel,) = wheels.glob("innerloop-*.whl")
    assert wheel.stat().st_size < 4 << 20
    with zipfile.ZipFile(wheel) as archive:
        check_wheel_files(archive.namelist())
    run(bare_python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    code = """
import glob, importlib.util, sysconfig
path, = glob.glob(sysconfig.get_path("platlib") + "/innerloop/_cpu*.so")
spec = importlib.util.spec_from_file_location("innerloop._cpu", path)
cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu)
print(cpu.simd_level(), cpu.build_info()["cuda"], path)
try:
    import innerloop
except ModuleNotFoundError as error:
    print(error)
"""
    first, second = run(bare_python, "-c", code, cwd=tmp_path).splitlines()
    assert first.startswith(("baseline not built", "avx2 not built", "avx512 not built"))
    assert second == ("innerloop needs PyTorch 2.4 or later (there is no torch): pip install torch")
    extension = first.split()[-1]
    assert binaries.exported_symbols(extension) == ["PyInit__cpu"]
    assert not {tag for tag, _ in binaries.dynamic_entries(extension)} & {"RPATH", "RUNPATH"}
