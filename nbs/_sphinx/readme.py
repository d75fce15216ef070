"""The book's table in index.ipynb, then README.md from the stored outputs of index.ipynb

With `--check` nothing is written, and it fails if either is out of date.
"""
import re, sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbconvert import MarkdownExporter

from book import bound

ROOT, PICTURES = Path(__file__).parents[2], "nbs/images/readme"
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.+?)\s*$\n?", re.M)


def markdown_table(html):
    "The table in `html`, such as pandas makes of a DataFrame"
    rows = [cells(row) for row in html.find_all("tr")]
    if len({len(row) for row in rows}) > 1:
        sys.exit("a table whose rows are merged has no Markdown; show `table.reset_index()`")
    heads = len(html.thead.find_all("tr")) if html.thead else 1
    head = [" ".join(filter(None, column)) for column in zip(*rows[:heads])]  # a named index has a row of its own
    ruler = [":--"] + ["--:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ruler, *rows[heads:]])


def cells(row):
    "The words of a row, those of a wide cell once a column"
    words = []
    for cell in row.find_all(["th", "td"]):
        text = cell.get_text(" ", strip=True).replace("|", r"\|")
        words += [text] * int(cell.get("colspan", 1))
    return words


def readable(output):
    "`output` with a table as Markdown, which GitHub and PyPI show well, in place of HTML"
    data = output.get("data", {})
    html = BeautifulSoup("".join(data.get("text/html", "")), "html.parser")
    if html.table and "text/markdown" not in data: data["text/markdown"] = markdown_table(html)
    if "text/markdown" in data: data.pop("text/html", None)
    return output


def shown(cell):
    "The cell without its directives, or None if it is hidden; `#| fig-alt:` describes its picture"
    directives = DIRECTIVE.findall(cell.source)
    cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
    if {"hide", "include: false"} & {*directives} or not cell.source: return None
    if "echo: false" in directives: cell.metadata["transient"] = {"remove_source": True}
    if cell.cell_type == "code":
        kept = [] if "output: false" in directives else cell.outputs
        cell.outputs = list(map(readable, kept))
    told = [d.partition(":")[2].strip() for d in directives if d.startswith("fig-alt:")]
    cell.metadata["alt"] = told[0] if told else "a figure"
    return cell


def described(text, cells):
    "Each picture with its own description"
    alt = lambda found: f"![{cells[int(found[2])].metadata.alt}]({found[1]}"
    return re.sub(r"!\[png\]\((\S+/fig_(\d+)_)", alt, text)


def tidied(text):
    "Without spaces at the ends of lines, and at most one empty line"
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.M)).strip()


def readme():
    "{path: bytes} of index.ipynb, README.md and its pictures"
    index = bound()
    nb = nbformat.reads(index, 4)
    nb.cells = [cell for cell in map(shown, nb.cells) if cell]
    nb.metadata["language_info"] = {"name": "python"}  # nbdev_clean drops it
    where = {"output_files_dir": PICTURES, "unique_key": "fig"}
    text, made = MarkdownExporter().from_notebook_node(nb, resources=where)
    text = tidied(described(text, nb.cells))
    head = "<!-- Made from index.ipynb: edit that, then run `python nbs/_sphinx/readme.py` -->\n\n"
    pictures = {ROOT/name: data for name, data in made["outputs"].items()}
    return {ROOT/"index.ipynb": index.encode(), ROOT/"README.md": (head + text + "\n").encode()} | pictures


wanted = readme()
unwanted = set((ROOT/PICTURES).glob("*")) - wanted.keys()
if "--check" in sys.argv:
    fresh = lambda path: path.exists() and path.read_bytes() == wanted[path]
    stale = [str(path.relative_to(ROOT)) for path in wanted if not fresh(path)]
    stale += [path.name for path in unwanted]
    if stale: sys.exit(f"out of date, run `python nbs/_sphinx/readme.py`: {' '.join(stale)}")
else:
    (ROOT/PICTURES).mkdir(parents=True, exist_ok=True)
    for path in unwanted: path.unlink()
    for path, data in wanted.items(): path.write_bytes(data)
