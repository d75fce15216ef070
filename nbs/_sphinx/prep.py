"Notebooks with their stored outputs -> _site_src, plain notebooks that myst-nb reads: without hidden cells and nbdev's directives"
import re, shutil
from pathlib import Path

import nbformat
from nbdev.config import get_config

TAGS = {"echo: false": "remove-input", "output: false": "remove-output", "hide_input": "remove-input", "hide_output": "remove-output", "code-fold: true": "hide-input"}
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.+?)\s*$\n?", re.M)
CHAPTERS = ["Foundations", "Attacks", "Training", "What models look at", "What they can do without", "Several models", "Put together"]


def prep(nb):
    "Only what is to be read; directives become tags"
    cells = []
    for cell in nb.cells:
        said = DIRECTIVE.findall(cell.source) if cell.cell_type == "code" else []
        if cell.cell_type == "raw" or {"hide", "include: false"} & set(said) or any(s.startswith("default_exp") for s in said): continue
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
            cell.metadata["tags"] = [TAGS[s] for s in said if s in TAGS]
        cells.append(cell)
    nb.cells = cells
    return nb


def toc(pages):
    "The pages by chapter, which the first digit of their number tells; then folders of pages, then the reference"
    parts = {title: [p.stem for p in pages if re.match(rf"{i}\d[a-z]?_", p.name) and p.parent.name == "nbs"] for i, title in enumerate(CHAPTERS)}
    for p in pages:
        if p.parent.name != "nbs": parts.setdefault(p.parent.name.capitalize(), []).append(f"{p.parent.name}/{p.stem}")
    parts["Reference"] = ["api"]
    return "\n\n".join(f"```{{toctree}}\n:hidden:\n:caption: {title}\n" + "\n".join(names) + "\n```" for title, names in parts.items() if names)


def api(pages):
    "Every module's functions on one page"
    names = [name for p in pages for name in re.findall(r"#\| *default_exp (\w+)", p.read_text(encoding="utf-8"))]
    return "# Reference\n\n" + "\n".join(f"## {n}\n\n```{{eval-rst}}\n.. automodule:: advlook.{n}\n   :members:\n```\n" for n in names)


def main():
    config = get_config()
    nbs, out = config.nbs_path, config.config_path/"_site_src"
    pages = sorted(p for p in nbs.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(nbs).parts))
    shutil.rmtree(out, ignore_errors=True)
    for p in pages:
        nb, target = prep(nbformat.read(p, 4)), out/p.relative_to(nbs)
        if p.name == "index.ipynb":   # the real file lives one level up
            for cell in nb.cells:
                if cell.cell_type == "markdown": cell.source = cell.source.replace("](nbs/", "](")
            nb.cells.append(nbformat.v4.new_markdown_cell(toc([q for q in pages if q != p])))
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, target)
    if (nbs/"images").is_dir(): shutil.copytree(nbs/"images", out/"images", dirs_exist_ok=True)
    (out/"api.md").write_text(api(pages), encoding="utf-8")


if __name__ == "__main__": main()
