"""The book's table in index.ipynb: every page with a clause, chapter by chapter

A page that is not in it joins with the beginning of its own description, up to the first colon or full stop. What
stands there already is kept, so a clause can be made shorter by hand.
"""
import json, re
from pathlib import Path

from prep import CHAPTERS

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"\[[^]]+\]\((nbs/[\w/]+\.ipynb)\) [^;|]*[^;| ]")


def pages():
    "Their paths as text, in the order of the book"
    found = [path.relative_to(ROOT) for path in (ROOT/"nbs").rglob("*.ipynb") if not path.is_symlink()]
    kept = [path for path in found if not any(part[0] in "._" for part in path.parts)]
    return [path.as_posix() for path in sorted(kept, key=lambda path: (len(path.parts), path))]


def chapter(page):
    "By its number, or the name of its folder"
    folder, name = page.split("/")[-2:]
    return CHAPTERS[int(name[0])] if folder == "nbs" else folder.capitalize()


def clause(page):
    "The beginning of its description"
    title = "".join(json.loads((ROOT/page).read_text(encoding="utf-8"))["cells"][0]["source"])
    said = re.search(r"^> (.+)", title, re.M)
    words = re.split(r"[:;.?(]", said[1])[0].strip() if said else "a page"
    return words[:1].lower() + words[1:]


def table(old):
    "The table anew, with the lines that stand in the old one"
    known = {found[1]: found[0] for found in LINE.finditer(old)}
    rows = {}
    for page in pages(): rows.setdefault(chapter(page), []).append(known.get(page) or line(page))
    lines = [f"| {title} | {'; '.join(some)} |" for title, some in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def line(page):
    name = re.sub(r"^\d\d[a-z]?_", "", Path(page).stem).replace("_", " ")
    return f"[{name}]({page}) {clause(page)}"


def bound():
    "index.ipynb with the table as it should be, as text"
    book = json.loads((ROOT/"index.ipynb").read_text(encoding="utf-8"))
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if found := re.search(r"^\| \| \|\n(\|.*\n?)+", source, re.M):
            source = source.replace(found[0].rstrip("\n"), table(found[0]))
            cell["source"] = source.splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
