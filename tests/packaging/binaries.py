"""Reads what a compiled object says about itself, through binutils."""

import re
import shutil
import subprocess
from pathlib import Path

TOOLS = ("objdump", "nm")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
LEVEL = re.compile(r"\binnerloop::(baseline|avx2|avx512)::")

# Wider than x86-64's own SSE2: VEX- and EVEX-coded (their names begin with v), mask moves, wide
# registers, and the legacy coded ones of SSE3 to SSE4.2 and POPCNT.
_WIDE_REGISTER = re.compile(r"%(ymm|zmm|k[0-7]\b)")
_NEWER_LEGACY = re.compile(
    r"^(pshufb|palignr|pabs[bwd]|psign[bwd]|ph(add|sub)\w+|pmaddubsw|pmulhrsw|h(add|sub)p[sd]|addsubp[sd]|"
    r"mov(ddup|s[hl]dup|ntdqa)|lddqu|pmulld|pmuldq|p(min|max)(sb|sd|uw|ud)|pmov[sz]x\w+|ptest|round[ps][sd]|"
    r"p?blend\w+|dpp[sd]|(p?extr|p?insr)[bdq]|extractps|insertps|packusdw|pcmp(eqq|gtq|[ei]str\w)|mpsadbw|"
    r"phminposuw|popcnt|crc32\w?)$"
)
# The only old instructions of user code that begin with v.
_LEGACY_V = frozenset({"verr", "verw"})


def run(*command):
    """Returns the standard output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr.strip()}"
    return done.stdout


def dynamic_entries(path):
    """Returns [(tag, value)] of the dynamic section: NEEDED, RPATH, RUNPATH, ..."""
    found = re.findall(r"^ {2}([A-Z_]+) +(\S+)$", run("objdump", "-p", path), re.MULTILINE)
    assert any(tag == "NEEDED" for tag, _ in found), f"{path}: no dynamic section"
    return found


def exported_symbols(path):
    """Returns the names that the dynamic linker can see."""
    lines = run("nm", "-D", "--defined-only", path).splitlines()
    return sorted(line.split()[-1].split("@")[0] for line in lines)


def weak_symbols(path):
    """Returns the demangled names that the linker may take from another object instead."""
    found = []
    for line in run("nm", "-C", "--defined-only", path).splitlines():
        _, kind, name = line.split(" ", 2)
        if kind in "wWvVu" and not name.startswith("DW.ref."):
            found.append(name)
    return found


def wide_instructions(path):
    """Returns ({function: first wide instruction}, number of functions looked at).

    `function` is demangled. Functions of `innerloop::avx2` and `innerloop::avx512` are left out:
    they run only after a look at the processor.
    """
    found, functions, name = {}, 0, ""
    skipped = False
    for line in run("objdump", "-d", "-C", "--no-show-raw-insn", path).splitlines():
        if line.endswith(">:"):
            name = line[line.index("<") + 1 : -2]
            level = LEVEL.search(name)
            skipped = level is not None and level.group(1) != "baseline"
            functions += not skipped
        elif not skipped and "\t" in line and name not in found:
            text = line.split("\t")[-1].strip()
            if is_wide(text):
                found[name] = text
    return found, functions


def is_wide(text):
    """Says whether one disassembled instruction needs more than SSE2."""
    parts = text.split()
    while parts and parts[0] in ("lock", "rep", "repz", "repnz", "bnd", "notrack", "data16", "cs"):
        parts.pop(0)
    if not parts:
        return False
    mnemonic = parts[0]
    if mnemonic.startswith("v") and mnemonic not in _LEGACY_V:
        return True
    return bool(_NEWER_LEGACY.match(mnemonic) or _WIDE_REGISTER.search(text))


def fresh_build(root):
    """Returns (folder, "") of a CMake build of the present sources, or (None, what to do)."""
    sources = [*root.glob("csrc/**/*.*"), *root.glob("cmake/*"), root / "CMakeLists.txt"]
    newest = max(path.stat().st_mtime for path in sources)
    for ninja in sorted(root.glob("build/*/build.ninja")):
        modules = sorted(ninja.parent.glob("_cpu*.so"))
        if modules and modules[0].stat().st_mtime >= newest:
            return ninja.parent, ""
    return None, "build/ holds no build of the present sources; run pip install ."


def level_objects(build, source):
    """Returns {level: path of its object file of csrc/cpu/<source>.cpp}."""
    pattern = f"CMakeFiles/innerloop_*.dir/csrc/cpu/{source}.cpp.o"
    found = {Path(p).parts[-4][len("innerloop_") : -len(".dir")]: p for p in build.glob(pattern)}
    assert "baseline" in found, f"{build}: no object of the baseline"
    return found
