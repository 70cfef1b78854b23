import re
import tomllib
from collections import Counter
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def pinned(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text().splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pins}


def lowest() -> dict[str, Version]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = map(Requirement, project["dependencies"])
    bounds = {canonicalize_name(one.name): list(one.specifier) for one in needed}
    assert all([spec.operator for spec in specs] == [">="] for specs in bounds.values()), "a cap"
    return {name: Version(specs[0].version) for name, specs in bounds.items()}


def test_what_is_tested_as_the_lowest_versions_are_the_lowest_allowed() -> None:
    tested, allowed = pinned("constraints-minimum.txt"), lowest()
    assert tested.keys() == allowed.keys() - {"pip"}  # Python brings its own
    for name, version in tested.items():
        assert name == "torch" or version == allowed[name], name
    assert tested["torch"] >= allowed["torch"]


def test_the_pinned_versions_are_allowed() -> None:
    pins = pinned("constraints.txt")
    for name, version in lowest().items():
        assert name == "pip" or pins[name] >= version, name


def test_the_citation_has_what_the_format_requires() -> None:
    """Version 1.2.0 of the Citation File Format; cffconvert accepts the file."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    paper = citation["preferred-citation"]
    assert paper["type"] == "conference-paper"
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", paper["url"])
    for work in (citation, paper):
        assert work["title"]
        assert all("name" in author or "family-names" in author for author in work["authors"])


def test_no_two_files_of_tests_have_one_name() -> None:
    """Pytest imports them by their names alone, and leaves the second one out with an error."""
    names = Counter(file.name for file in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []
