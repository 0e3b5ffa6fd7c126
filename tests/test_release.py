"""What builds a release agrees with what the package says of itself."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheels_are_for_the_pythons_that_are_promised() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    promised = set(re.findall(r"Programming Language :: Python :: (3\.\d+)", project))
    built = {f"3.{minor}" for minor in re.findall(r'"cp3(\d+)-\*"', project)}
    assert built == promised
    assert f"{min(promised, key=lambda v: int(v[2:]))}" in project.split("requires-python")[1][:12]


def test_the_workflow_builds_both_libcs_tests_and_publishes_from_tags_alone() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    jobs = workflow["jobs"]
    assert jobs["wheels"]["strategy"]["matrix"]["image"] == ["manylinux", "musllinux"]
    assert "refs/tags/v" in jobs["publish"]["if"]
    assert set(jobs["publish"]["needs"]) == {"wheels", "sdist"}
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in jobs.values())
