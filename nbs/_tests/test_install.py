"""What an editable install hides

Is all of it in the wheel, and does README.md's first command work where nothing is installed?
"""
import os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from zipfile import ZipFile

import pytest
from test_house import ROOT, files

pytestmark = pytest.mark.slow  # minutes, the package registry, and 6 GB of disk while it runs
OURS = "ADVLOOK_DATA HF_HOME IN_TEST MPLBACKEND NB_FLAGS PYTHONPATH TQDM_DISABLE VIRTUAL_ENV XDG_CACHE_HOME".split()


def run(*command, cwd, **env):
    "Run it as a stranger would, without what our environment tells it; print the time"
    start, words = time.perf_counter(), list(map(str, command))
    env = {key: value for key, value in os.environ.items() if key not in OURS} | env
    how = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run(words, cwd=cwd, env=env, **how)
    print(f"{time.perf_counter() - start:6.1f} s  {' '.join(Path(word).name for word in words)}")
    if done.returncode: pytest.fail(done.stdout, pytrace=False)
    return done.stdout


@pytest.fixture
def folder():
    "Deleted when done, unlike pytest's own. Its `clone` is what git would clone"
    with tempfile.TemporaryDirectory() as folder:
        for path in files():
            Path(folder, "clone", path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/path, Path(folder, "clone", path), follow_symlinks=False)
        yield Path(folder)


def test_wheel_is_whole(folder):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ".", cwd=folder/"clone")
    wheel = ZipFile(next(folder.glob("*.whl")))
    ours = lambda names: {name for name in names if name.startswith("advlook/")}
    packed = ours(wheel.namelist())
    assert packed == ours(map(Path.as_posix, files()))
    assert any(name.endswith(".safetensors") for name in packed)
    infos = [info for info in wheel.namelist() if ".dist-info/" in info]
    about = {Path(info).name: wheel.read(info).decode() for info in infos}
    assert "advlook = advlook.cli:main" in about["entry_points.txt"]
    dead = re.search(r"\]\((?!https?:|#)", about["METADATA"])
    assert not dead, "README.md on PyPI links to a file that is not there"


def test_readme_command(folder):
    "`pip install . && advlook look`, looking from another folder, with no data but what can be found"
    run(sys.executable, "-m", "venv", "venv", cwd=folder)
    commands = folder/"venv"/("Scripts" if os.name == "nt" else "bin")
    run(commands/"python", "-m", "pip", "install", "--quiet", ".", cwd=folder/"clone")
    print(run(commands/"advlook", "look", "--n", "8", cwd=folder, HOME=str(folder)))
    report = folder/"advlook-report"
    for kind in "index.html", "*.csv", "*.json", "*.png": assert any(report.rglob(kind)), f"no {kind} in the report"
    found = "from importlib.util import find_spec; print(*filter(find_spec, ['nbdev', 'fastcore']))"
    assert run(commands/"python", "-c", found, cwd=folder).strip() == ""
