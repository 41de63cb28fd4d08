"""What the compiled extension may depend on, show and execute."""

import sys
import sysconfig

import pytest

import binaries

ALLOWED = ("libstdc++.so", "libm.so", "libc.so", "libgcc_s.so", "libpthread.so", "libdl.so")
ALLOWED += ("librt.so", "ld-linux")
SOURCES = ("kernels_float32", "kernels_float64", "regression")  # compiled once per level


def test_needs_system_libraries_only(extension_file):
    """No torch, no OpenMP, no CUDA: one wheel serves every torch. The CUDA runtime is static."""
    needed = [value for tag, value in binaries.dynamic_entries(extension_file) if tag == "NEEDED"]
    assert [name for name in needed if not name.startswith(ALLOWED)] == []


def test_has_no_run_path(extension_file):
    """Nothing of the machine that built it."""
    tags = {tag for tag, _ in binaries.dynamic_entries(extension_file)}
    assert not tags & {"RPATH", "RUNPATH"}


def test_exports_its_init_function_only(extension_file):
    """No symbol of ours (or of a static library) can capture another library's calls."""
    name = extension_file.split("/")[-1].split(".")[0]
    assert binaries.exported_symbols(extension_file) == [f"PyInit_{name}"]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="Python has a GIL")
def test_loading_leaves_the_gil_off(extension_file):
    """The extension alone: torch may have its own needs."""
    name = extension_file.split("/")[-1].split(".")[0]
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location({name!r}, {extension_file!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(sys._is_gil_enabled())"
    )
    assert binaries.run(sys.executable, "-W", "error", "-c", code) == "False\n"


def test_code_outside_the_wide_levels_runs_on_any_x86_64(build):
    """Binding, dispatch, pool, baseline, and the inline functions that the linker kept."""
    module = next(build.glob("_cpu*.so"))
    wide, functions = binaries.wide_instructions(module)
    assert functions > 200, "the module has no symbols, so this test sees nothing"
    assert wide == {}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_wide_objects_share_no_inline_functions(build, level, source):
    """A weak function in a wide object could replace the baseline's copy of the same name."""
    objects = binaries.level_objects(build, source)
    if level not in objects:
        pytest.skip(f"the compiler of this build has no {level}")
    weak = binaries.weak_symbols(objects[level])
    assert weak, "an object of templates without weak symbols: not the one meant here"
    assert [name for name in weak if f"innerloop::{level}::" not in name] == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_wide_levels_are_wide(build, level, source):
    """The check above would find wide instructions where they are."""
    objects = binaries.level_objects(build, source)
    if level not in objects:
        pytest.skip(f"the compiler of this build has no {level}")
    register = {"avx2": "%ymm", "avx512": "%zmm"}[level]
    text = binaries.run("objdump", "-d", "--no-show-raw-insn", objects[level])
    assert text.count(register) > 1000
    assert any(binaries.is_wide(line.split("\t")[-1]) for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("mulps  %xmm1,%xmm0", False),
        ("vmulps %xmm1,%xmm0,%xmm0", True),
        ("kmovw  %eax,%k1", True),
        ("rep stos %al,%es:(%rdi)", False),
        ("notrack jmp *%rax", False),
        ("roundps $0x8,%xmm0,%xmm0", True),
        ("cvttps2dq %xmm0,%xmm0", False),
        ("pshufb %xmm1,%xmm0", True),
        ("lea    0x0(,%rax,8),%rdx", False),
    ],
)
def test_recognises_wide_instructions(text, wide):
    """Of the disassembler's own spelling."""
    assert binaries.is_wide(text) is wide
