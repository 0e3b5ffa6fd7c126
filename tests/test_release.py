"""What builds a release agrees with what the package says of itself."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheels_are_for_the_pythons_that_are_promised() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    promised = set(re.findall(r"Programming Language :: Python :: (3\.\d+)", project))
    built = {f"3.{minor}" for minor in re.findall(r'"cp3(\d+)-\*"', project)}
    assert built == promised
    assert f"{min(promised, key=lambda v: int(v[2:]))}" in project.split("requires-python")[1][:12]


def test_the_workflow_builds_both_libcs_and_leaves_the_pythons_to_the_project() -> None:
    wheels = _jobs()["wheels"]
    matrix = wheels["strategy"]["matrix"]
    assert matrix["image"] == ["manylinux", "musllinux"]
    assert matrix["arch"] == ["x86_64", "aarch64"]
    others = {one["image"]: one["other"] for one in matrix["include"] if "image" in one}
    assert others == {"manylinux": "musllinux", "musllinux": "manylinux"}
    (step,) = [step for step in wheels["steps"] if "cibuildwheel" in step["uses"]]
    assert re.fullmatch(r"pypa/cibuildwheel@v4\.(\d+)\.\d+", step["uses"])
    # CIBW_BUILD, even for one libc, would be in the place of the project's list.
    assert set(step["env"]) == {"CIBW_SKIP", "CIBW_ARCHS"}
    assert step["env"]["CIBW_SKIP"] == "*-${{ matrix.other }}_*"


def test_what_is_published_was_tested_and_checked_and_comes_from_a_tag() -> None:
    jobs = _jobs()
    assert "not root" in (ROOT / "pyproject.toml").read_text().split("test-command")[1]
    assert set(jobs["check"]["needs"]) == {"wheels", "sdist"}
    assert any("twine check --strict" in step.get("run", "") for step in jobs["check"]["steps"])
    publish = jobs["publish"]
    assert publish["needs"] == "check" and "refs/tags/v" in publish["if"]
    assert publish["environment"] == "pypi" and publish["permissions"] == {"id-token": "write"}
    assert _workflow()["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in jobs.values())


def test_nothing_is_built_for_the_processor_of_the_builder_alone() -> None:
    flags = (ROOT / "CMakeLists.txt").read_text()
    assert re.findall(r"-m(?:arch|tune|cpu)|-mavx\S*|-msse\S*", flags) == []


def _workflow() -> Any:
    return yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())


def _jobs() -> Any:
    return _workflow()["jobs"]
