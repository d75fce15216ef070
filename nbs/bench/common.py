"What the scripts and pages of this folder share: rows that survive a kill, and whether the code has changed since"
import csv, hashlib, importlib.metadata, json, os, platform, sys, time
from importlib.util import find_spec
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
PEERS = {   # as tables call them: as registries do
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "ART": "adversarial-robustness-toolbox",
    "adv-lib": "adv-lib",
    "official": "pyautoattack",
}


def fingerprint(module: str) -> str:
    "Of an exported module's lines, but for those that are only comments; 'absent' if there is none"
    spec = find_spec(f"advlook.{module}")
    if spec is None: return "absent"
    text = Path(spec.origin).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def stale(about: dict) -> list[str]:
    "Which modules have changed since"
    return [module for module, was in about["code"].items() if fingerprint(module) != was]


def age(about: dict) -> str:
    "When something was measured, and whether the code is still the same, in a sentence"
    changed = stale(about)
    measured = f"Measured on {about['date']} with `{about['command']}`"
    if not changed: return f"{measured}, on the code as it is now."
    modules = ", ".join(f"`{module}`" for module in changed)
    return f"{measured}, BEFORE the last change of {modules}: run it again."


def load(name: str):
    "The rows of a bench as a table without its notes, and how each part came to be"
    import pandas as pd
    rows = pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=False, na_values=[""])
    return rows, json.loads((RESULTS / f"{name}.json").read_text())


def versions(*packages: str) -> dict[str, str]:
    def of(name):
        try: return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError: return "absent"
    names = "advlook", "torch", "numpy", *packages
    return {"python": platform.python_version()} | {name: of(name) for name in names}


def processor() -> str:
    "What the numbers were measured on, in words"
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text]
    return f"{name}, {os.cpu_count()} cores ({', '.join(has)})"


class Rows:
    "A csv file to which rows are appended as they come, one json file beside it with how each part came to be"

    def __init__(self, stem: Path, columns: list[str], key: list[str]):
        self.csv, self.json = stem.with_suffix(".csv"), stem.with_suffix(".json")
        self.columns, self.key = columns, key
        stem.parent.mkdir(parents=True, exist_ok=True)
        self.about = json.loads(self.json.read_text()) if self.json.exists() else {}
        self.rows = self._read() if self.csv.exists() else []

    def _read(self) -> list[dict]:
        text = self.csv.read_text()
        whole = text[:text.rfind("\n") + 1]
        if whole != text: self.csv.write_text(whole)   # half a row, from a kill
        return list(csv.DictReader(whole.splitlines()))

    def begin(self, part: str, settings: dict, modules: list[str], packages: list[str], again: bool) -> None:
        "Go on with a part that was measured with the same settings, versions and code; else say what differs, and stop"
        code = {module: fingerprint(module) for module in modules}
        now = dict(settings=settings, versions=versions(*packages), code=code, device=processor())
        old = self.about.get(part)
        differ = ", ".join(key for key in now if old and old[key] != now[key])
        if differ and not again:
            sys.exit(f"{part}: {self.csv.name} was measured with other {differ}; --again measures this part anew")
        if old and again: self.forget(part)
        if not old or again: self.about[part] = dict(command=command(), date=time.strftime("%Y-%m-%d")) | now
        self._note()

    def has(self, **key) -> bool: return any(all(r[k] == str(key[k]) for k in self.key) for r in self.rows)

    def forget(self, part: str, note: bool = False) -> None:
        "The rows of a part, and with `note` how it came to be"
        self.rows = [r for r in self.rows if r["part"] != part]
        self._write()
        if not note: return
        self.about.pop(part, None)
        self._note()

    def add(self, **row) -> None:
        new = not self.csv.exists() or not self.csv.stat().st_size
        row = {k: _short(row.get(k, "")) for k in self.columns}
        with self.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if new: writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append({k: str(v) for k, v in row.items()})
        print(time.strftime("%H:%M:%S"), *(v for v in row.values() if v != ""), flush=True)

    def _write(self) -> None:
        part = self.csv.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        part.replace(self.csv)

    def _note(self) -> None:
        part = self.json.with_suffix(".part")
        part.write_text(json.dumps(self.about, indent=1) + "\n")
        part.replace(self.json)


def write_down(stem: Path, columns: list[str], rows: list[dict], about: dict) -> None:
    "A whole table of results, and beside it how it came to be"
    from advlook.files import atomic
    with atomic(stem.with_suffix(".json")) as part: part.write_text(json.dumps(about, indent=1) + "\n")
    with atomic(stem.with_suffix(".csv")) as part, part.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def command() -> str:
    "The command line that runs, as anyone would type it"
    words = [word for word in sys.argv[1:] if word != "--again"]
    return " ".join(["python", f"nbs/bench/{Path(sys.argv[0]).name}", *words])


def _short(v): return f"{v:.6g}" if isinstance(v, float) else v
