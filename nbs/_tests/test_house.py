"What holds for the repository as a whole: exported code, README.md, stored outputs, imports"
import ast, base64, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from execnb.nbio import nb2str
from nbdev.clean import clean_nb

ROOT = Path(__file__).parents[2]


def python(*args, cwd=ROOT):
    "What Python prints; its error is ours"
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}  # with it, nbdev_export does nothing
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode: pytest.fail(done.stdout + done.stderr, pytrace=False)
    return done.stdout


def read(path): return (ROOT/path).read_text(encoding="utf-8")


def files():
    "What is in the repository, or would be with the next `git add`"
    if not (ROOT/".git").exists(): pytest.skip("not a git repository")
    command = "git ls-files -z --cached --others --exclude-standard".split()
    names = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    return sorted({Path(name) for name in names if name and (ROOT/name).is_file()})


def notebooks():
    return [path for path in files() if path.suffix == ".ipynb" and not (ROOT/path).is_symlink()]


def cells(path): return json.loads(read(path))["cells"]


def test_export_changes_nothing(tmp_path):
    "advlook/*.py is what the notebooks export, and nothing else"
    for path in files():
        if path.parts[0] not in ("nbs", "index.ipynb", "settings.ini"): continue
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/path, tmp_path/path, follow_symlinks=False)
    (tmp_path/"advlook").mkdir()
    python("-c", "from nbdev.doclinks import nbdev_export; nbdev_export()", cwd=tmp_path)
    modules = lambda root: {path.name: path.read_bytes() for path in (root/"advlook").glob("*.py")}
    new, old = modules(tmp_path), modules(ROOT)
    assert len(new) > 2
    stale = sorted(name for name in new | old if new.get(name) != old.get(name))
    advice = "run `nbdev_export`, and delete what no notebook exports"
    assert not stale, f"not what the notebooks export: {stale}; {advice}"


def test_readme_is_current():
    python("nbs/_sphinx/readme.py", "--check")
    assert "pip install . && advlook look" in read("README.md")
    assert "pip install -e '.[dev]' && pytest" in read("README.md")


def test_notebooks_are_clean():
    unclean = []
    for path in notebooks():
        nb = json.loads(read(path))
        clean_nb(nb)
        if nb2str(nb) != read(path): unclean.append(str(path))
    assert not unclean, f"run `nbdev_clean`: {unclean}"


def test_stored_outputs():
    "No errors, and nothing that makes a page slow to open"
    wrong = [f"{path} is over 1 MB" for path in notebooks() if (ROOT/path).stat().st_size > 1e6]
    for path in notebooks():
        for number, cell in enumerate(cells(path)):
            said = [why for output in cell.get("outputs", []) for why in too_much(output)]
            wrong += [f"cell {number} of {path} stores {why}" for why in said]
    assert not wrong


def too_much(output):
    "What an output should not hold, in words"
    if output["output_type"] == "error": yield "an error"
    for kind, data in output.get("data", {}).items():
        if kind not in ("image/png", "image/jpeg"): continue
        size = len(base64.b64decode("".join(data)))
        if size > 200e3: yield f"a picture of {size / 1e3:.0f} kB"


def test_stored_tables_are_whole():
    "pandas cuts what is long, wide or many; the stored page would show no more than it did"
    wrong = []
    for path in notebooks():
        for number, cell in enumerate(cells(path)):
            said = [why for output in cell.get("outputs", []) for why in cut_off(output)]
            wrong += [f"cell {number} of {path} stores {why}" for why in said]
    advice = 'show less, or `pd.set_option("display.max_colwidth", None)`, or "max_rows", "max_columns"'
    assert not wrong, "\n".join([*wrong, advice])


CUT_TEXT = re.compile(r"(?m)\.\.\.(\s|$)|\s\.\.\s|\bLength: \d+")
CUT_HTML = re.compile(r"(\.\.\.|…)\s*</t[hd]>")
SOME_ROWS = re.compile(r"\d+ rows [x×] \d+ columns")   # pandas says so only where it leaves some out
CONTINUED = re.compile(r" \\\n")   # the other columns follow below


def cut_off(output):
    "What pandas has cut in a stored table, in words"
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
    text, html = data.get("text/plain", ""), data.get("text/html", "")
    printed = "".join(output.get("text", ""))
    if CUT_TEXT.search(text) or SOME_ROWS.search(text): yield "a text that is cut off"
    if CUT_HTML.search(html) or SOME_ROWS.search(html): yield "a table that is cut off"
    if CONTINUED.search(text) and not html: yield "a table in parts, and none as HTML"
    if CONTINUED.search(printed) or SOME_ROWS.search(printed): yield "a printed table that is cut off or in parts"


def test_cut_tables_are_seen():
    import pandas as pd
    def stored(table): return {"data": {"text/plain": [repr(table)], "text/html": [table._repr_html_()]}}
    def seen(output): return len([*cut_off(output)])

    wide, long = pd.DataFrame([range(40)]), pd.DataFrame({"sentence": ["a word and " * 9], "n": [1]})
    many, fine = pd.DataFrame({"n": range(99)}), pd.DataFrame({"n": ["1..2"]}, index=["..., then"])
    for table in wide, long, many: assert seen(stored(table))
    assert seen({"data": {"text/plain": [repr(many.n)]}})
    assert seen({"text": [repr(wide)]})
    assert not seen(stored(fine))
    with pd.option_context("display.max_columns", None):
        assert not seen(stored(wide))   # as HTML it is whole
        assert seen({"text": [repr(wide)]})


@pytest.mark.parametrize("module", ["advlook.attacks", "advlook.gradients"])
def test_import_is_light(module):
    heavy = "torchvision timm datasets pandas matplotlib scipy accelerate cv2 typer jinja2 IPython ipywidgets"
    print(python("-c", f"""if True:
        import sys, time, torch
        before, start = set(sys.modules), time.perf_counter()
        import {module}
        print(f"{module}: {{time.perf_counter() - start:.3f}} s beyond torch")
        heavy = {set(heavy.split())} & (sys.modules.keys() - before)
        assert not heavy, f"import {module} imports {{heavy}}"
    """))


def test_help_needs_no_torch():
    shown = python("-c", """if True:
        import sys
        sys.modules['torch'] = None
        sys.argv = ['advlook', '--help']
        from advlook.cli import main
        main()
    """)
    assert "look" in shown


def imported(path):
    "(module, names) of each import, wherever in the file it stands"
    for node in ast.walk(ast.parse(read(path), filename=path)):
        if isinstance(node, ast.Import): yield from ((alias.name, []) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "advlook." * node.level + (node.module or ""), [alias.name for alias in node.names]


@pytest.mark.filterwarnings("error")  # a backslash in a docstring, which Python 3.12 complains of
def test_modules_lean_on_lower_ones():
    "So there are no cycles and chapters can be read in order; nbdev and fastcore stay out of what is installed"
    number = {}   # of each module, as in 03 < 03b < 04
    for path in notebooks():
        text = "\n".join("".join(cell["source"]) for cell in cells(path))
        for name in re.findall(r"^#\| *default_exp (\w+)", text, re.M):
            number[name] = re.match(r"\d\d[a-z]?(?=_)", path.name)[0]
    for name in number:
        for module, names in imported(f"advlook/{name}.py"):
            top, *rest = module.strip(".").split(".")
            assert top not in ("nbdev", "fastcore", "execnb"), f"advlook/{name}.py imports {module}"
            for used in (rest[:1] or names) if top == "advlook" else []:
                lower = number.get(used, "") < number[name]
                assert lower, f"{number[name]}_{name} imports {number[used]}_{used}"


LONGEST_LINE = 120   # characters; the site cuts code at about 95


def test_lines_are_short():
    "Code, tests and messages; a page's prose may run on"
    scripts = [path for path in files() if path.suffix == ".py" and path.parts[0] != "advlook"]   # that is exported
    sources = {path: read(path) for path in scripts}
    for path in notebooks():
        code = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]
        sources[path] = "\n".join(code)
    lines = [(path, line) for path, text in sources.items() for line in text.splitlines()]
    long = [f"{path}: {line.strip()[:60]}..." for path, line in lines if len(line) > LONGEST_LINE]
    listed = "\n".join(long[:20])
    assert not long, f"{len(long)} lines are longer than {LONGEST_LINE} characters:\n{listed}"


def test_top_level():
    allowed = "nbs advlook settings.ini setup.py README.md index.ipynb .github".split()
    demanded = "pyproject.toml MANIFEST.in LICENSE .gitignore .ci".split()   # by tools
    assert {path.parts[0] for path in files()} <= {*allowed, *demanded}


def test_nothing_private():
    "No paths of somebody's machine and no addresses of package mirrors, in sources or in stored outputs"
    folder = r"(?<![\w./~-])/(work|root|tmp|opt|home|Users|mnt)/\w\S*"
    private = re.compile(rf"{folder}|index[-]url|find[-]links|python[h]osted")
    found = {}
    for path in files():
        data = (ROOT/path).read_bytes()
        match = b"\0" not in data and private.search(data.decode(errors="replace").replace("\\n", "\n"))
        if match: found[str(path)] = match[0]
    assert not found


def test_files_are_shared_among_processes():
    "Several files run in a process each, with one thread; a single one in pytest's own, and all with -n 0"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    env["PYTEST_XDIST_AUTO_NUM_WORKERS"] = "2"
    command = [sys.executable, "-m", "pytest", "-k", "top_level or workflows"]
    house, release = "nbs/_tests/test_house.py", "nbs/_tests/test_release.py"
    for words, workers in ((house,), 0), ((house, release), 2), ((house, release, "-n", "0"), 0):
        said = subprocess.run([*command, *words], cwd=ROOT, env=env, capture_output=True, text=True).stdout
        assert ("2 workers" in said) == bool(workers), said
        assert f"{len(words[:2])} passed" in said, said
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch
        threads = os.environ["OMP_NUM_THREADS"]
        assert str(torch.get_num_threads()) == threads
        assert python("-c", "import os; print(os.environ['OMP_NUM_THREADS'])").strip() == threads
