"""`pytest` runs every notebook under nbs/ as one item, cell by cell, beside the tests in _tests.

Cells and tests flagged with one of settings.ini's `tst_flags` run only with NB_FLAGS, as in `NB_FLAGS=slow pytest`.

pyproject.toml's `-n auto` lets as many processes as there are cores share the files, with one thread each.
A single file runs in this process, as all do with `-n 0` or `--pdb`.
"""
import gc, os, random, sys, textwrap, traceback
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

os.environ.update(MPLBACKEND="Agg", TQDM_DISABLE="1")  # before anything imports matplotlib or tqdm
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; what a test starts inherits it

import pytest
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from nbdev.config import get_config
from nbdev.process import NBProcessor

FLAGS = get_config(path=Path(__file__).parent).tst_flags.split()
OFF = set(FLAGS) - set(os.environ.get("NB_FLAGS", "").split())
LONGEST = """
    test_train.py test_cli.py 63_cli.ipynb test_faults.py 19c_flags.ipynb 14_apgd.ipynb index.ipynb
    test_checkpoints.py test_data.py 18_universal.ipynb 12_minimal.ipynb 06b_states.ipynb
""".split()
HistoryManager.enabled = False  # the IPython history of whoever runs the tests is not ours to fill


def pytest_configure(config):
    for flag in FLAGS: config.addinivalue_line("markers", f"{flag}: runs with NB_FLAGS={flag}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    "What `-n auto` means: no process but this one for a single file, and never more than there are files"
    paths = {Path(word.partition("::")[0]) for word in config.args}
    if not all(path.is_file() for path in paths): return None  # a folder: xdist counts the cores
    config.option.maxprocesses = min(len(paths), config.option.maxprocesses or len(paths))
    return 0 if len(paths) == 1 else None


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"): items.sort(key=lambda item: rank(item.path.name))
    for item in items:
        for name in {mark.name for mark in item.iter_markers()} & OFF:
            item.add_marker(pytest.mark.skip(reason=f"{name}: runs with NB_FLAGS={name}"))


def rank(name: str) -> int:
    "The longest files first, so that all processes end at about the same time"
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_report_teststatus(report, config):
    "A line an item, with its time"
    if report.when == "call" and report.outcome != "skipped" and not hasattr(report, "wasxfail"):
        return report.outcome, "." if report.passed else "F", f"{report.outcome.upper()} {report.duration:.1f} s"


def pytest_collect_file(file_path, parent):
    hidden = any(part[0] in "._" for part in file_path.relative_to(parent.config.rootpath).parts)
    if file_path.suffix == ".ipynb" and not hidden: return Notebook.from_parent(parent, path=file_path)


class Notebook(pytest.File):
    def collect(self): yield Cells.from_parent(self, name="notebook")


class CellError(Exception): "What a cell raised is its cause"


class Cells(pytest.Item):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.nb, self.cell = NBProcessor(self.path).nb, None
        directives = {flag for cell in self.nb.cells for flag in cell.directives_}
        for flag in directives & set(FLAGS) - OFF: self.add_marker(flag)

    def runs(self, cell) -> bool:
        flags = cell.directives_
        if cell.cell_type != "code" or "nbdev_export(" in cell.source: return False
        return flags.get("eval:") != ["false"] and not OFF & set(flags)

    def runtest(self):
        errors = []  # those that IPython shows without stopping, too: a figure that can't be drawn
        def keep(exc_tuple=None, *args, **kwargs): errors.append((exc_tuple or sys.exc_info())[1])
        with alone(), working_directory(self.path.resolve().parent):
            shell = CaptureShell(self.path, mpl_format="png")
            shell.showtraceback = shell.showsyntaxerror = keep
            try:
                for self.cell in filter(self.runs, self.nb.cells):
                    shell.cell(self.cell)
                    error = shell.exc if shell.exc is not None else next(iter(errors), None)
                    if isinstance(error, (Exception, SystemExit)): raise CellError from error
                    if error is not None: raise error  # Ctrl-C stops everything, pytest.skip() skips
            finally: shell.user_ns.clear()  # IPython keeps every shell until the end

    def repr_failure(self, excinfo, style=None):
        if not isinstance(excinfo.value, CellError): return super().repr_failure(excinfo)
        error = traceback.TracebackException.from_exception(excinfo.value.__cause__)
        ours = (i for i, frame in enumerate(error.stack) if frame.filename.startswith("<ipython-input"))
        del error.stack[:next(ours, None)]  # IPython's own
        *_, last = error.format_exception_only()
        source = textwrap.indent(self.cell.source, "    ")
        streams = [out for out in self.cell.outputs if out["output_type"] == "stream"]
        said = "".join([*(line for out in streams for line in out["text"]), *error.format()])
        place = f"cell {self.cell.idx_} ({self.cell.id}) of {self.reportinfo()[2]}"
        return f"{last}in {place}:\n\n{source}\n\n{said}"

    def reportinfo(self): return self.path, None, str(self.path.relative_to(self.config.rootpath))


@contextmanager
def alone():
    "Seeds on entry; on exit the process is as it was, whatever the notebook did to torch, pandas, matplotlib, Python"
    import matplotlib, numpy, pandas, torch
    from matplotlib import pyplot
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    for seed in random.seed, numpy.random.seed, torch.manual_seed: seed(0)
    main = sys.modules["__main__"]
    python = patch.dict(os.environ, IN_TEST="1"), patch.object(sys, "path", sys.path[:])
    with python[0], python[1], matplotlib.rc_context(), torch.enable_grad():
        try: yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            pandas.reset_option("^display.(width|max_)")
            pyplot.close("all")
            pyplot.switch_backend("agg")
            sys.modules["__main__"] = main
            InteractiveShell._instance = None
            gc.collect()
