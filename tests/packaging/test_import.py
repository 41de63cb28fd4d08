"""What importing does, with and without the parts it may lack."""

import ast
import importlib.util
import inspect
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import innerloop
from innerloop import _native, cli, diagnostics

HIDE = """
import sys
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise {error}(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hider())
"""
CALL = """
import torch, innerloop as il
model, x = il.MLP([3, 5, 2]), torch.ones(4, 6, 3)
params, y = model.init(), torch.zeros(4, 6, 2)
result = il.meta_grad(params, (x, y), (x, y), model=model, inner_lr=0.1, steps=1)
"""


def python(code, *, hide=(), error="ModuleNotFoundError"):
    """Returns the finished run of a fresh interpreter that cannot find some modules."""
    prefix = HIDE.format(names=tuple(hide), error=error) if hide else ""
    return subprocess.run(
        [sys.executable, "-c", prefix + code],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


MISSING = "innerloop needs PyTorch 2.4 or later (there is no torch): pip install torch"
OLD = "innerloop needs PyTorch 2.4 or later (this is {}): pip install --upgrade torch"
OLD_TORCH = """
import sys, types
torch = types.ModuleType("torch")
torch.__version__ = {!r}
sys.modules["torch"] = torch
"""
# the package as its commands import it: the script of the installation, and the module
COMMANDS = {
    "innerloop compare": "sys.argv[:] = ['/usr/bin/innerloop', 'compare']; import innerloop.cli",
    "python -m innerloop": "sys.argv[:] = ['-m']; "
    "sys.orig_argv[:] = ['python', '-m', 'innerloop']; import innerloop",
}


@pytest.mark.parametrize("module", ["innerloop", "innerloop.bounds", "innerloop.cli"])
def test_without_torch_one_clear_error(module):
    run = python(f"import {module}", hide=["torch"])
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"ModuleNotFoundError: {MISSING}"
    assert "During handling" not in run.stderr


@pytest.mark.parametrize("version", ["2.3.1+cu121", "1.13.1", "2.3.0a0+git1234"])
def test_with_an_old_torch_one_clear_error(version):
    run = python(OLD_TORCH.format(version) + "import innerloop")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"ImportError: {OLD.format(version)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_without_torch_print_one_line(command):
    code = f"import sys; {COMMANDS[command]}"
    run = python(code, hide=["torch"])
    assert (run.returncode, run.stdout, run.stderr) == (1, "", MISSING + "\n")
    run = python(OLD_TORCH.format("2.3.1") + code)
    assert (run.returncode, run.stdout, run.stderr) == (1, "", OLD.format("2.3.1") + "\n")


def test_a_module_that_torch_lacks_is_not_called_a_missing_torch():
    run = python("import innerloop", hide=["torch._C"])
    assert "innerloop needs PyTorch" not in run.stderr
    assert "torch._C" in run.stderr.splitlines()[-1]


def test_the_module_run_for_real_with_an_old_torch(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '2.0.0'")
    path = os.pathsep.join([str(tmp_path), str(Path(innerloop.__file__).parents[1])])
    run = subprocess.run(
        [sys.executable, "-m", "innerloop", "compare"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, OLD.format("2.0.0") + "\n")


def test_without_the_extension_the_batched_operations_work_and_say_so():
    """So does the report; to demand the extension raises."""
    run = python(
        "import warnings\nwarnings.simplefilter('always')\n"
        + CALL
        + "print(result.backend, il.backend_for(model).reason)\n"
        + "from innerloop import diagnostics; print(diagnostics.report())\n"
        + CALL.replace("steps=1", "steps=1, backend='fused'"),
        hide=["innerloop._cpu"],
        error="ImportError",
    )
    assert run.stdout.startswith("batched batched operations over the tasks, since the native ext")
    assert "cannot be used: innerloop._cpu could" in run.stdout
    assert re.search(r"^fused CPU kernels +no: innerloop\._cpu could not be", run.stdout, re.M)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("NotImplementedError: meta_grad: backend")


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/self/maps")
def test_one_openmp_runtime_after_a_call():
    """Two in one process are slow, wrong or fatal; the extension brings none."""
    run = python(CALL + "assert result.backend == 'fused'\nprint(open('/proc/self/maps').read())")
    assert run.returncode == 0, run.stderr
    mapped = {os.path.realpath(line.split()[-1]) for line in run.stdout.splitlines() if "/" in line}
    assert any("_cpu" in os.path.basename(name) for name in mapped)
    runtimes = [n for n in mapped if re.match(r"lib(g|i)?omp", os.path.basename(n))]
    assert len(runtimes) == 1, runtimes


def test_import_is_quiet_and_needs_no_command_packages():
    run = python(
        CALL, hide=["typer", "rich", "pandas", "pyarrow", "scipy", "matplotlib", "pybind11"]
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


AS_MODULE = """
import runpy, sys
sys.argv[1:] = {!r}
runpy.run_module("innerloop", run_name="__main__")
"""


@pytest.mark.parametrize("arguments", [["compare"], ["info", "--help"]], ids=" ".join)
def test_command_without_its_extra_prints_what_to_install(arguments):
    run = python(AS_MODULE.format(arguments), hide=["typer", "rich"])
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert re.fullmatch(
        r"innerloop: package '(typer|rich)' is missing; run pip install \"innerloop\[cli\]\"", line
    )


@pytest.mark.parametrize("arguments", [[], ["info"]], ids=["none", "info"])
def test_the_report_needs_no_extra(arguments):
    absent = "import sys; sys.modules.update(typer=None, pandas=None)"
    run = python(absent + AS_MODULE.format(arguments))
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(r"^extra: cli +no: typer,.* pandas\b.* missing; pip install", run.stdout, re.M)


@pytest.mark.skipif(importlib.util.find_spec("typer") is None, reason="needs innerloop[cli]")
def test_command_is_installed():
    """The console script, when the package is installed, else the module behind it."""
    script = Path(sys.executable).with_name("innerloop")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "innerloop"]
    run = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "compare" in run.stdout


@pytest.mark.skipif(importlib.util.find_spec("typer") is None, reason="needs innerloop[cli]")
def test_version_and_info(capfd):
    assert cli.run(["--version"]) == 0
    assert capfd.readouterr().out == f"innerloop {innerloop.__version__}\n"
    assert cli.run(["info"]) == 0
    assert capfd.readouterr().out == diagnostics.report() + "\n"


def test_report_names_extras_as_pyproject_does(monkeypatch):
    """What an extra installs is what the report looks for; a missing module names its extra."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for extra, modules in diagnostics.EXTRAS.items():
        (listed,) = re.findall(rf"^{extra} = \[(.*)\]$", table, re.M)
        wanted = {re.split(r"[><=;\[]", name)[0] for name in re.findall(r'"([^"]+)"', listed)}
        assert wanted - {"innerloop"} == {name.replace("_", "-") for name in modules}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "submitit" else find(name)
    )
    text = diagnostics.report()
    assert 'no: submitit missing; pip install "innerloop[cluster]"' in text
    assert "INNERLOOP_CUDA=ON pip install ." in text


# ---------------------------------------------------------------- the stub of the extension


@pytest.fixture(params=["_cpu", "_cuda"])
def stub_and_module(request):
    """The parsed stub of an extension, and the extension."""
    path = Path(innerloop.__file__).with_name(f"{request.param}.pyi")
    if request.param == "_cuda" and not _native.has_cuda_module():
        pytest.skip("built without nvcc")
    module = importlib.import_module(f"innerloop.{request.param}")
    return ast.parse(path.read_text(encoding="utf-8")), module


def signatures(module):
    """Returns {function: parameter count} of a pybind11 module, from its docstrings."""
    found = {}
    for name, value in vars(module).items():
        if inspect.isbuiltin(value):
            line = (value.__doc__ or "").splitlines()[0]
            arguments = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", line))
            inner = arguments[arguments.index("(") + 1 : arguments.rindex(")")]
            found[name] = len([a for a in inner.split(",") if a.strip()])
    return found


def test_stub_names_and_arguments_match_the_module(stub_and_module):
    stub, module = stub_and_module
    functions = {
        node.name: len(node.args.posonlyargs) + len(node.args.args)
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    assert functions == signatures(module)


def test_stub_classes_match_the_module(stub_and_module):
    stub, module = stub_and_module
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    assert sorted(classes) == sorted(n for n, v in vars(module).items() if inspect.isclass(v))
    (init,) = [n for n in classes["Plan"].body if isinstance(n, ast.FunctionDef)]
    names = [argument.arg for argument in init.args.args[1:]]
    layer = ((0, 0.0), (2, 3), (1, 0.0), True, True)
    made_of = ([layer], 0, (0, ()), (4, (1.0,)), 1, 2, (0.0, 1.0, 0.0, 0.0), [True, False], False)
    module.Plan(**dict(zip(names, (*made_of, (False, False), "model"), strict=True)))


def test_module_runs_from_any_folder(tmp_path):
    """Nothing is looked up relative to the source tree."""
    run = subprocess.run(
        [sys.executable, "-m", "innerloop"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "INNERLOOP_SIMD"},
        timeout=120,
        check=True,
    )
    assert re.search(r"^fused CPU kernels +yes$", run.stdout, re.M)
