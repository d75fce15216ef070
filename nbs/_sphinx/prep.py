"""Notebooks with their stored outputs -> _site_src, for myst-nb

They lose their hidden cells and nbdev's directives.
"""
import re, shutil

import nbformat
from nbdev.config import get_config

TAGS = {
    "echo: false": "remove-input",
    "output: false": "remove-output",
    "hide_input": "remove-input",
    "hide_output": "remove-output",
    "code-fold: true": "hide-input",
}
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.+?)\s*$\n?", re.M)
CHAPTERS = [
    "Foundations",
    "Attacks",
    "Training",
    "What models look at",
    "What they can do without",
    "Several models",
    "Put together",
]


def prep(nb):
    "Only what is to be read; directives become tags"
    cells = []
    for cell in nb.cells:
        said = DIRECTIVE.findall(cell.source) if cell.cell_type == "code" else []
        if cell.cell_type == "raw" or any(map(hides, said)): continue
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
            cell.metadata["tags"] = [TAGS[s] for s in said if s in TAGS]
        cells.append(cell)
    nb.cells = cells
    return nb


def hides(directive):
    return directive in ("hide", "include: false") or directive.startswith("default_exp")


def toc(pages):
    "The pages by chapter, which the first digit of their number tells; then folders of pages, then the reference"
    parts = {title: [] for title in CHAPTERS}
    for p in pages:
        folder = p.parent.name
        if folder != "nbs": parts.setdefault(folder.capitalize(), []).append(f"{folder}/{p.stem}")
        elif re.match(r"\d\d[a-z]?_", p.name): parts[CHAPTERS[int(p.name[0])]].append(p.stem)
    parts["Reference"] = ["api"]
    return "\n\n".join(toctree(title, names) for title, names in parts.items() if names)


def toctree(title, names):
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", *names, "```"])


def api(pages):
    "Every module's functions on one page"
    texts = [p.read_text(encoding="utf-8") for p in pages]
    names = [name for text in texts for name in re.findall(r"#\| *default_exp (\w+)", text)]
    return "# Reference\n\n" + "\n".join(map(reference, names))


def reference(module):
    return f"## {module}\n\n```{{eval-rst}}\n.. automodule:: advlook.{module}\n   :members:\n```\n"


def land(nb, pages):
    "The landing page: it lives one level up, and holds the table of contents"
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = cell.source.replace("](nbs/", "](")
    nb.cells.append(nbformat.v4.new_markdown_cell(toc(pages)))


def main():
    config = get_config()
    nbs, out = config.nbs_path, config.config_path/"_site_src"
    hidden = lambda page: any(part[0] in "._" for part in page.relative_to(nbs).parts)
    pages = sorted(page for page in nbs.rglob("*.ipynb") if not hidden(page))
    shutil.rmtree(out, ignore_errors=True)
    for p in pages:
        nb, target = prep(nbformat.read(p, 4)), out/p.relative_to(nbs)
        if p.name == "index.ipynb": land(nb, [q for q in pages if q != p])
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, target)
    if (nbs/"images").is_dir(): shutil.copytree(nbs/"images", out/"images", dirs_exist_ok=True)
    (out/"api.md").write_text(api(pages), encoding="utf-8")


if __name__ == "__main__": main()
