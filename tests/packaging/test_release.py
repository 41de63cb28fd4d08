"""What a release changes in the checkout, and what its files promise."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import innerloop

ROOT = Path(__file__).parents[2]
HOME, REF = "https://example.org/project", "v1.2.3"

pytestmark = pytest.mark.skipif(
    not (ROOT / "release").is_dir(), reason="release/ is not part of this checkout"
)


@pytest.fixture
def checkout(tmp_path):
    """The files that a release changes, as they are before."""
    if "[project.urls]" in (ROOT / "pyproject.toml").read_text(encoding="utf-8"):
        pytest.skip("this checkout is prepared for a release already")
    (tmp_path / "release").mkdir()
    for name in ("README.md", "pyproject.toml", "release/links.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def links(folder, *arguments):
    """The finished run of the script in a checkout."""
    command = [sys.executable, str(folder / "release" / "links.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_links_of_the_released_readme_are_absolute_and_lead_to_files(checkout):
    done = links(checkout, HOME + "/", REF)
    assert done.returncode == 0, done.stderr
    text = (checkout / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"(!?)\[[^\[\]]*\]\(([^)]+)\)", text)
    assert len(targets) > 10
    for mark, target in targets:
        if not target.startswith("#"):
            kind = "raw" if mark else "blob"
            assert target.startswith(f"{HOME}/{kind}/{REF}/")
            path = target.removeprefix(f"{HOME}/{kind}/{REF}/").partition("#")[0]
            assert (ROOT / path).exists(), path
    assert text.count("\n") == (ROOT / "README.md").read_text(encoding="utf-8").count("\n")


def test_release_names_the_project_s_addresses_once(checkout):
    assert links(checkout, HOME, REF).returncode == 0
    text = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.urls]\n")[2].partition("\n\n")[0]
    assert f'Source = "{HOME}/tree/{REF}"' in table
    assert len(table.splitlines()) == 5
    again = links(checkout, HOME, REF)
    assert again.returncode == 1
    assert again.stderr == "links.py: pyproject.toml has [project.urls] already\n"


@pytest.mark.parametrize("arguments", [[], [HOME], ["project", REF]], ids=["none", "one", "no-url"])
def test_wrong_arguments_change_nothing(arguments, checkout):
    assert links(checkout, *arguments).stderr.startswith("usage: ")
    for name in ("README.md", "pyproject.toml"):
        assert (checkout / name).read_bytes() == (ROOT / name).read_bytes()


def test_recipe_has_the_version_and_the_requirements():
    recipe = (ROOT / "release" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    assert f'  version: "{innerloop.__version__}"\n' in recipe
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (core,) = re.findall(r"^dependencies = \[(.*)\]$", project, re.M)
    (extra,) = re.findall(r"^cli = \[(.*)\]$", project, re.M)
    conda = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    for name, floor in re.findall(r'"([a-z]+)>=([\d.]+)"', f"{core}, {extra}"):
        assert f"- {conda.get(name, name)} >={floor}\n" in recipe


# ---------------------------------------------------------------- release/check.py
LISTED = """torch (2.15.0)
Available versions: 2.15.0, 2.13.0+cpu, 2.13.0, 2.9.1+cpu, 2.10.0+cpu, 2.4.1+cpu, 2.4.0, 2.3.1+cpu
  INSTALLED: 2.13.0
"""


@pytest.fixture
def check(monkeypatch):
    pytest.importorskip("tomllib", reason="the script needs Python 3.11")
    monkeypatch.syspath_prepend(str(ROOT / "release"))
    import check

    return check


def test_oldest_middle_and_newest_torch(check):
    cpu = check.torches(LISTED, check.oldest_torch(), any_build=False)
    assert cpu == ["2.4.1+cpu", "2.9.1+cpu", "2.10.0+cpu", "2.13.0+cpu"]
    assert check.three_of(cpu) == ["2.4.1+cpu", "2.10.0+cpu", "2.13.0+cpu"]
    every = check.torches(LISTED, check.oldest_torch(), any_build=True)
    assert (every[0], every[-1]) == ("2.4.0", "2.15.0")
    assert check.torches("ERROR: none", (2, 4), any_build=True) == check.three_of([]) == []
    assert check.three_of(["2.13.0+cpu"]) == ["2.13.0+cpu"]


def test_a_package_that_cannot_be_tested_says_so_and_fails(check, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check, "environment", lambda folder, python: folder / "bin" / "python")
    monkeypatch.setattr(check, "wheel_of", lambda *_: tmp_path / "a.whl")

    def run(*command, **_):
        if "--sdist" in command:
            (command[command.index("-o") + 1] / "a.tar.gz").touch()
        return "Available versions: 2.15.0" if "index" in command else ""

    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(check.platform, "system", lambda: "Linux")
    monkeypatch.setattr(check.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "argv", ["check.py", "torch", "python9"])
    assert check.main() == 1
    said = capsys.readouterr().out
    assert "NOT TESTED: torch 2.4: pip has no CPU build of it for python9 here\n" in said
    assert said.endswith("FAILED: no test was run\n")


def test_interpreters_are_where_the_caller_stands(check, monkeypatch, capsys, tmp_path):
    """Options and interpreters in any order; a path of the caller's folder; one line if none."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(check, "check_wheels", lambda *given: seen.append(given) or ["one"])
    monkeypatch.setattr(sys, "argv", ["check.py", "wheels", "--cuda-builds", "a/python", "python3"])
    assert check.main() == 0
    assert seen[0][0] == [str(tmp_path / "a" / "python"), "python3"]
    assert seen[0][2] is True
    monkeypatch.setattr(sys, "argv", ["check.py", "torch", "a/python"])
    assert check.main() == 1
    said = capsys.readouterr().out
    assert "a/python -m venv" in said
    assert "No such file" in said


def test_the_reduced_suite_has_a_case_of_every_test(tmp_path):
    cases = "import pytest\n@pytest.mark.parametrize('i', range(21))\n"
    (tmp_path / "test_a.py").write_text(f"{cases}def test_many(i): pass\ndef test_one(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "reduced", "-p", "no:cacheprovider", "."],
        env={"PYTHONPATH": str(ROOT / "release"), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "4 passed, 18 deselected" in done.stdout
