"Notebooks with their stored outputs -> _site_src, plain notebooks that myst-nb reads: without hidden cells and nbdev's directives"
import os, re, shutil
from pathlib import Path

import nbformat
from nbdev.config import get_config

TAGS = {"echo: false": "remove-input", "output: false": "remove-output", "hide_input": "remove-input", "hide_output": "remove-output", "code-fold: true": "hide-input"}
CHAPTERS = ["Foundations", "Attacks", "Training", "Attributions", "Transforms", "Several models", "Report and command"]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^\s()#]+)")


def directives(source):
    "What the `#|` lines on top of a cell say, and the cell without them"
    head = re.match(r"(\s*#\s*\|.*(\n|$))*", source)[0]
    return re.findall(r"#\s*\|\s*(.+?)\s*$", head, re.M), source[len(head):].strip("\n")


def readable(cell):
    "The cell as the site shows it, or None"
    if cell.cell_type != "code": return cell if cell.cell_type == "markdown" else None
    said, cell.source = directives(cell.source)
    if {"hide", "include: false"} & {*said} or any(s.startswith("default_exp") for s in said) or not cell.source: return None
    cell.metadata["tags"] = [TAGS[s] for s in said if s in TAGS]
    alt = next((s.partition(":")[2].strip() for s in said if s.startswith("fig-alt:")), None)
    if alt: cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return cell


def link(target, page, config):
    "`target`, as `page` in the repository says it, for the site: pages and pictures are in it, other files are on GitHub"
    path = (page.parent/target).resolve()
    if path == config.config_path/"index.ipynb": path = config.nbs_path/"index.ipynb"
    if not path.exists(): return target  # Sphinx complains
    if path.is_relative_to(config.nbs_path) and (path.suffix == ".ipynb" or path.is_relative_to(config.nbs_path/"images")):
        return Path(os.path.relpath(path, config.nbs_path if page.name == "index.ipynb" else page.parent)).as_posix()
    return f"{config.git_url}/{'tree' if path.is_dir() else 'blob'}/{config.branch}/{path.relative_to(config.config_path).as_posix()}"


def toc(pages, nbs):
    "The pages by chapter, which the first digit of their number tells; then folders of pages, then the reference"
    parts = {}
    for p in pages:
        p = p.relative_to(nbs)
        numbered = len(p.parts) == 1 and re.match(r"\d\d_", p.name)
        title = CHAPTERS[int(p.name[0])] if numbered and int(p.name[0]) < len(CHAPTERS) else p.parts[0].capitalize() if len(p.parts) > 1 else "More"
        parts.setdefault(title, []).append(p.with_suffix("").as_posix())
    parts["Reference"] = ["api"]
    return "\n\n".join(f"```{{toctree}}\n:hidden:\n:caption: {title}\n" + "\n".join(names) + "\n```" for title, names in parts.items())


def api(pages):
    "Every module's functions on one page"
    modules = [(name, p) for p in pages for name in re.findall(r"#\| *default_exp (\w+)", p.read_text(encoding="utf-8"))]
    return "# Functions\n\n" + "\n".join(f"## [{n}]({p.name})\n\n```{{eval-rst}}\n.. automodule:: advlook.{n}\n   :members:\n```\n" for n, p in modules)


def main(out=None):
    config = get_config(path=Path(__file__).parent)
    nbs, out = config.nbs_path, Path(out or config.config_path/"_site_src")
    pages = sorted(p for p in nbs.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(nbs).parts))
    rooms = [p for p in pages if p != nbs/"index.ipynb"]
    shutil.rmtree(out, ignore_errors=True)
    for p in pages:
        nb, target = nbformat.read(p, 4), out/p.relative_to(nbs)
        nb.cells = [cell for cell in map(readable, nb.cells) if cell]
        real = p.resolve()  # index.ipynb lives one level up
        for cell in nb.cells:
            if cell.cell_type == "markdown": cell.source = LINK.sub(lambda found: link(found[0], real, config), cell.source)
        if p not in rooms: nb.cells.append(nbformat.v4.new_markdown_cell(toc(rooms, nbs)))
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, target)
    if (nbs/"images").is_dir(): shutil.copytree(nbs/"images", out/"images")
    (out/"api.md").write_text(api(rooms), encoding="utf-8")


if __name__ == "__main__": main()
