"The workflows call scripts that run here; a release that is not in order is refused with a sentence"
import re, shutil, subprocess
from pathlib import Path

import pytest
import yaml

from test_house import ROOT, files


@pytest.fixture
def clone(tmp_path):
    "What would be committed, as a repository of its own; run(...) is git or the release script in it"
    for path in files():
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/path, tmp_path/path, follow_symlinks=False)
    run = lambda *words: subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    run("git", "init", "-q")
    run("git", "add", "-A")
    somebody = "-c", "user.name=a", "-c", "user.email=a@example.org"
    run.commit = lambda: run("git", *somebody, "commit", "-qam", "more")
    run.commit()
    run.place = tmp_path
    return run


def version(): return re.search(r"^version *= *(\S+)", (ROOT/"settings.ini").read_text(), re.M)[1]


def test_release_is_built(clone):
    done = clone("bash", ".ci/release", f"v{version()}")
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert {p.suffix for p in (clone.place/"dist").iterdir()} == {".gz", ".whl"}


def test_what_is_not_in_order(clone):
    def refused(tag, *said):
        done = clone("bash", ".ci/release", tag)
        print(done.stderr)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        for words in said: assert words in done.stderr
        assert not (clone.place/"dist").exists()
    refused("v99", "v99", version())
    (clone.place/"README.md").write_text("changed")
    refused(f"v{version()}", "not committed", "README.md")
    clone("git", "checkout", "README.md")
    setup = clone.place/"setup.py"
    setup.write_text(setup.read_text().replace("'*.jinja', ", ""))
    clone.commit()
    refused(f"v{version()}", "the wheel lacks", "report.jinja")


def test_workflows_call_what_is_here():
    for path in (ROOT/".github"/"workflows").glob("*.yaml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        steps = [step for job in jobs.values() for step in job["steps"]]
        scripts = re.findall(r"bash (\S+)", "\n".join(step.get("run", "") for step in steps))
        assert all((ROOT/script).is_file() for script in scripts), path
        assert all("@" in step["uses"] for step in steps if "uses" in step)
    release = (ROOT/".github"/"workflows"/"release.yaml").read_text()
    assert "id-token" in release
    assert "password" not in release.replace("no password", "")
