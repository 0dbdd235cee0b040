"""The guide to the simulator is true: its keys exist and are all there, its scenario and its program run."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from gridnode.cli.main import build_parser
from gridnode.simulation.load import load, shipped
from scheduler import variants
from simulator import oracle
from simulator.report import QUANTITIES
from simulator.runner import run
from simulator.scenariotext import parse

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
GUIDE = (DOCS / "simulator.md").read_text()
KEYS = (DOCS / "scenario_keys.md").read_text()
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "experiments").glob("*.md"))]


def test_the_tables_of_keys_are_those_of_the_code():
    script = runpy.run_path(str(ROOT / "packaging" / "scenario_keys.py"))
    assert script["written"](KEYS) == KEYS, "run: .venv/bin/python packaging/scenario_keys.py"


def known_keys():
    return {re.sub(r"\[\]", "", key) for key in re.findall(r"^\| `([^`]+)` \|", KEYS, re.MULTILINE)}


def test_every_key_that_a_page_changes_exists():
    """Places in lists, by number, name or `*`, are left out."""
    known = known_keys()
    found = set()
    for page in PAGES:
        for text in re.findall(r"--(?:set|vary) '?([\w.*]+)=", page.read_text()):
            if text in ("KEY", "key"):
                continue
            first, *rest = text.split(".")
            found.add((page.name, ".".join([first, *(rest[1:] if first in ("nodes", "sources", "models") else rest)])))
    assert len(found) > 5
    # A daemon's settings are another table.
    assert {
        (page, key) for page, key in found if key not in known and not key.startswith(("runtime.", "http."))
    } == set()


def test_every_key_of_a_shipped_scenario_is_in_the_tables():
    import tomllib

    known = known_keys() | {"sources.kind", "faults.kind"}
    known |= {key.rpartition(".")[0] for key in known}

    def keys(data, path):
        for key, value in data.items():
            place = f"{path}.{key}".removeprefix(".").replace("nodes.link.", "network.link.")
            yield place
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict) and key not in ("mean_s", "measured_s", "media_mbit_s", "places"):
                    yield from keys(each, place)

    for name, file in shipped().items():
        assert {key for key in keys(tomllib.loads(file.read_text()), "") if key not in known} == set(), name


def test_the_scenario_of_the_guide_shows_what_it_says():
    text = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)[1]
    scenario = parse(text)
    assert scenario.name == "yard"
    mine, alone = run(scenario), run(scenario, policy="local_only")
    assert (mine.lost, mine.submitted) == (0, 1800)
    assert mine.within > 0.9
    assert alone.within < 0.7
    assert {node.name for node in mine.nodes} == {"pi0", "pi1", "pc"}


def test_the_mistake_of_the_guide_is_told_as_it_says():
    text = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)[1]
    said = re.search(r"`yard.toml: (.*?)`", GUIDE)[1]
    with pytest.raises(Exception, match=re.escape(said.partition(": ")[2])):
        parse(text.replace("count = 2", "count = 0"))


def test_the_program_of_the_guide_runs(capsys):
    programs = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (program,) = [each for each in programs if each.startswith("from gridnode")]
    exec(compile(program, "docs/simulator.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "answered, mean" in lines[0]
    assert lines[3].startswith("capd: ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_simulate_command_of_a_page_is_one(page):
    parser = build_parser()
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?:    |\$ |)gridnode (simulate \w.*)$", text, re.MULTILINE):
        if "..." in line:
            continue
        parser.parse_args(shlex.split(line.partition("  #")[0]))


def test_policies_of_the_guide_and_their_page_are_known():
    listed = set(re.findall(r"`([a-z_0-9]+)`", (DOCS / "policies.md").read_text().partition("## Mech")[0]))
    assert set(variants.names()) | set(oracle.names()) <= listed
    for text in re.findall(r"--policy '?([^'\s]+(?: [^']*)?)'?", GUIDE):
        if text.startswith(("NAME", "P")):
            continue
        assert run(load("pilot", {"duration_s": 0.2, "warm_up_s": 0.1}), policy=text.split()[0]).policy


def test_quantities_of_reports_have_a_meaning():
    assert all(QUANTITIES.values())


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    headings = {
        page.name: {
            re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-")
            for each in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        }
        for page in PAGES
    }
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
            if "://" not in target:
                assert anchor in headings[Path(target).name or page.name], f"{page.name}: {target}#{anchor}"
