"Checkpoints from strangers: nothing in a file is ever run, damaged ones get a sentence, and the hub is met as it is"
import copyreg, io, os, pickle, random, struct, subprocess, sys, tempfile, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from advlook import checkpoints
from advlook.checkpoints import read_weights


def name(module, thing): return f"c{module}\n{thing}\n".encode()


def text(value): return b"X" + struct.pack("<I", len(value)) + value.encode()


def reduce(what, *args): return what + b"(" + b"".join(args) + b"tR"


def harmful(harm):
    "Programs that make the file `harm`, in many spellings; each is one value on the stack"
    command, source = f"touch {harm}", f"open({str(harm)!r}, 'w').close()"
    system = reduce(name("os", "system"), text(command))
    module = reduce(name("builtins", "__import__"), text("os"))
    inner = legacy(b"\x80\x02" + system + b".")   # which torch reads the ordinary way
    pair = b"(" + text("k") + system + b"t"
    return {
        "reduce": system, "inst": b"(" + text(command) + b"ios\nsystem\n", "obj": b"(" + name("os", "system") + text(command) + b"o",
        "obj with a class": b"(" + name("subprocess", "Popen") + b"(" + text("touch") + text(str(harm)) + b"lo",
        "eval": reduce(name("builtins", "eval"), text(source)), "exec": reduce(name("builtins", "exec"), text(source)), "Python 2's eval": reduce(name("__builtin__", "eval"), text(source)),
        "getattr": reduce(reduce(name("builtins", "getattr"), module, text("system")), text(command)),
        "stack global": text("os") + text("system") + b"\x93(" + text(command) + b"tR", "dotted global": text("torch") + text("serialization.os.system") + b"\x93(" + text(command) + b"tR",
        "extension": b"\x82\x77(" + text(command) + b"tR", "partial": reduce(name("functools", "partial"), name("os", "system"), text(command)) + b")R",
        "in a list": b"](" + system + b"e", "in an ordered dict": reduce(name("collections", "OrderedDict"), b"](" + pair + b"e"), "in a set": reduce(name("builtins", "set"), b"](" + system + b"e"),
        "map": reduce(name("builtins", "list"), reduce(name("builtins", "map"), name("os", "system"), b"](" + text(command) + b"e")),
        "in a state": reduce(name("argparse", "Namespace")) + b"}(" + text("k") + system + b"ub", "as a key": b"}" + system + b"Ns", "memo": system + b"q\x05" + b"0h\x05",
        "torch's own": reduce(name("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(inner)) + inner), "in a tensor": reduce(name("torch._utils", "_rebuild_parameter"), system, b"\x88", b"N"),
        "class of a module": b"(" + text("module") + system + text("a.py") + text("source") + b"tQ",
    }


def zipped(program):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, value in {"a/data.pkl": program, "a/version": b"3\n", "a/byteorder": b"little"}.items(): archive.writestr(key, value)
    return buffer.getvalue()


def legacy(program):
    from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION
    return b"".join([pickle.dumps(MAGIC_NUMBER, 2), pickle.dumps(PROTOCOL_VERSION, 2), pickle.dumps(dict(little_endian=True), 2), program, pickle.dumps([], 2)])


class Bare(pickle.Unpickler):
    def persistent_load(self, what): return what[1]


@pytest.mark.parametrize("kind", harmful("x"))
def test_nothing_is_run(kind, tmp_path):
    "What Python's unpickler runs, torch's reader refuses and ours keeps as words; the weights beside it are read"
    harm = tmp_path/"harm"
    if kind == "extension": copyreg.add_extension("posix", "system", 0x77)
    try:
        program = (b"\x80\x04" if "global" in kind else b"\x80\x02") + harmful(harm)[kind] + b"."   # from 4 on names may hold dots; up to 2 those of Python 2 are translated
        try: Bare(io.BytesIO(program)).load()
        except Exception: pass
        for _ in range(200):   # Popen does not wait
            if harm.exists(): break
            threading.Event().wait(0.01)
        assert harm.exists(), "this program is harmless, so it proves nothing"
        harm.unlink()
        buffer = io.BytesIO()
        torch.save({"state_dict": {"w": torch.arange(3.0)}}, buffer)
        beside = zipfile.ZipFile(buffer).read("archive/data.pkl")[2:-1]   # without protocol and stop: a dict on the stack
        beside = beside + text("extra") + harmful(harm)[kind] + b"s"
        for n, content in enumerate([zipped(program), legacy(program)]):
            (tmp_path/f"{n}.pt").write_bytes(content)
            with pytest.raises(ValueError): read_weights(tmp_path/f"{n}.pt")
        if kind != "extension":
            with zipfile.ZipFile(tmp_path/"beside.pt", "w") as archive:
                for entry in zipfile.ZipFile(buffer).infolist():
                    archive.writestr(entry.filename, b"\x80\x04" + beside + b"." if entry.filename.endswith("data.pkl") else zipfile.ZipFile(buffer).read(entry.filename))
            state, about = read_weights(tmp_path/"beside.pt")
            assert state["w"].tolist() == [0, 1, 2] and "extra" in about["left_out"] and about["inert"]
        assert not harm.exists()
    finally:
        if kind == "extension": copyreg.remove_extension("posix", "system", 0x77); copyreg._extension_cache.pop(0x77, None)


def test_disguised_archive(tmp_path):
    "A tar archive of PyTorch's earliest format that looks like a pickle; torch reads such pickles the ordinary way"
    import tarfile
    harm, buffer = tmp_path/"harm", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin1") as archive:
        for member, content in {"\x80\x02": b"", "storages": b"\x80\x02" + harmful(harm)["reduce"] + b"."}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    head = bytearray(buffer.getvalue())
    head[257:265], head[148:156] = bytes(8), b" " * 8   # without the magic word, and with the sum that then is right
    head[148:156] = b"%06o\0 " % sum(head[:512])
    (tmp_path/"a.pt").write_bytes(head)
    with pytest.raises(Exception): torch.load(tmp_path/"a.pt", weights_only=False)
    assert harm.exists(), "this archive is harmless, so it proves nothing"
    harm.unlink()
    with pytest.raises(ValueError): read_weights(tmp_path/"a.pt")
    assert not harm.exists()


def test_nothing_is_changed(tmp_path):
    "A program can't reach functions, modules or the environment to change them"
    import torch._utils
    before = dict(checkpoints._KNOWN), checkpoints._tensor.__defaults__, dict(os.environ), list(sys.path), torch._utils._rebuild_tensor_v2.__defaults__
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    for program in (name("os", "environ") + text("HARM") + text("1") + b"s", name("sys", "path") + text("harm") + b"a", name("sys", "modules") + text("harm") + text("1") + b"s",
                    rebuild + b"N}" + text("__defaults__") + b"(K\x01ts\x86b", rebuild + b"}" + text("__wrapped__") + text("harm") + b"sb", name("collections", "OrderedDict") + b"}" + text("fromkeys") + b"Nsb"):
        for n, content in enumerate([zipped(b"\x80\x02" + program + b"."), legacy(b"\x80\x02" + program + b".")]):
            (tmp_path/f"{n}.pt").write_bytes(content)
            with pytest.raises(ValueError): read_weights(tmp_path/f"{n}.pt")
    assert before == (checkpoints._KNOWN, checkpoints._tensor.__defaults__, dict(os.environ), sys.path, torch._utils._rebuild_tensor_v2.__defaults__)
    assert not hasattr(checkpoints._tensor, "__wrapped__") and "harm" not in sys.modules


@pytest.mark.parametrize("program", [
    b"\x96" + struct.pack("<Q", 2**40), b"\x8e" + struct.pack("<Q", 2**60), b"\x8b" + struct.pack("<i", 2**31 - 1), b"]" + b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"h\x07", b"0" * 9, b"R", b"(" * 99,
    b"]" * 100_000, b"I" + b"9" * 10_000 + b"\n", b"]q\x00" + b"".join(b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200)),
    b"}q\x00" + b"".join(text(k) + b"h\x00s" for k in ("model", "net", "state_dict", "ema", "params"))])
def test_greedy_programs(program, tmp_path):
    "Claims of terabytes, lists of lists of lists and dicts that hold themselves get a sentence, at once"
    import resource
    for content in zipped(b"\x80\x04" + program + b"."), legacy(b"\x80\x04" + program + b"."):
        (tmp_path/"a.pt").write_bytes(content)
        with pytest.raises(ValueError, match="^'a.pt'") as told: read_weights(tmp_path/"a.pt")
        assert "\n" not in str(told.value) and len(str(told.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8e6   # kB


def test_claims(tmp_path):
    "A tensor outside of its storage, or larger, in both formats and by our own reader"
    from types import SimpleNamespace
    extra = SimpleNamespace(a=1)   # so that torch's reader refuses
    for zip_format in True, False:
        torch.save({"w": torch.zeros(4, 4), "extra": extra}, tmp_path/"a.pt", _use_new_zipfile_serialization=zip_format)
        assert read_weights(tmp_path/"a.pt")[0]["w"].shape == (4, 4)
        content = (tmp_path/"a.pt").read_bytes()
        assert content.count(b"K\x04K\x04\x86") == 1
        for size in b"K\x04K\x09\x86", b"K\x04J\xff\xff\xff\x7f\x86", b"K\x04J\xff\xff\xff\xff\x86":
            changed = content.replace(b"K\x04K\x04\x86", size)
            if zip_format:
                program = next(zipfile.ZipFile(io.BytesIO(content)).read(n) for n in zipfile.ZipFile(io.BytesIO(content)).namelist() if n.endswith("data.pkl")).replace(b"K\x04K\x04\x86", size)
                buffer = io.BytesIO()
                with zipfile.ZipFile(buffer, "w") as archive:
                    for n in zipfile.ZipFile(io.BytesIO(content)).namelist(): archive.writestr(n, program if n.endswith("data.pkl") else zipfile.ZipFile(io.BytesIO(content)).read(n))
                changed = buffer.getvalue()
            (tmp_path/"b.pt").write_bytes(changed)
            with pytest.raises(ValueError, match="b.pt"): read_weights(tmp_path/"b.pt")


@pytest.mark.parametrize("zip_format", [True, False, "safetensors"])
def test_damage(zip_format, tmp_path):
    "Cut or scrambled anywhere: tensors, or one sentence"
    from types import SimpleNamespace
    from safetensors.torch import save
    state = {"a.weight": torch.randn(8, 4), "a.bias": torch.randn(8)}
    if zip_format == "safetensors": (tmp_path/"a.pt").write_bytes(save(state))
    else: torch.save({"model": state, "extra": SimpleNamespace(a=1)}, tmp_path/"a.pt", _use_new_zipfile_serialization=zip_format)
    content, rng, told = (tmp_path/"a.pt").read_bytes(), random.Random(0), set()
    for trial in range(400):
        damaged = bytearray(content)
        if trial % 4 == 0: del damaged[rng.randrange(len(damaged)):]
        else:
            for _ in range(rng.choice([1, 1, 4])): damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path/"b.pt").write_bytes(damaged)
        try: read_weights(tmp_path/"b.pt")
        except ValueError as error:
            assert "\n" not in str(error) and "b.pt" in str(error), error
            told.add(str(error))
    assert len(told) > 3


def test_no_permission():
    "Root may read everything, so the reader becomes somebody else"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        torch.save({"w": torch.zeros(2)}, f"{folder}/a.pt")
        os.chmod(f"{folder}/a.pt", 0)
        program = f"import os; os.getuid() or os.setuid(65534)\ntry: read_weights({folder + '/a.pt'!r})\nexcept ValueError as error: print(error)"
        done = subprocess.run([sys.executable, "-c", "from advlook.checkpoints import read_weights\n" + program], capture_output=True, text=True)
        assert done.stdout == "'a.pt' can't be opened: no permission\n", done


class Hub(BaseHTTPRequestHandler):
    "As much of the hub as a download needs"
    files = {"me/mine": {"good.pt": b""}}

    def do_HEAD(self):
        path = self.path.lstrip("/").partition("?")[0]
        if path == "": return self.answer(200)
        repo, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2]
        if repo == "me/gated": return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if repo not in self.files: return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if file not in self.files[repo]: return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40})
        content = self.files[repo][file]
        self.answer(200, content, {"ETag": '"abc"', "X-Repo-Commit": "a" * 40})

    def do_GET(self):
        if self.path.startswith("/api/models/me/mine/tree/"): return self.answer(200, b'[{"type": "file", "path": "good.pt", "size": 9, "oid": "a"}]', {"Content-Type": "application/json"})
        self.do_HEAD()

    def answer(self, code, content=b"", headers={}):
        self.send_response(code)
        for key, value in ({"Content-Length": str(len(content))} | headers).items(): self.send_header(key, value)
        self.end_headers()
        if self.command == "GET": self.wfile.write(content)

    def log_message(self, *_): pass


@pytest.fixture
def hub(tmp_path):
    from advlook.models import create_model
    model, buffer = create_model("resnet8", seed=0), io.BytesIO()
    torch.save(model.model.state_dict(), buffer)
    Hub.files["me/mine"]["good.pt"] = buffer.getvalue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()


def test_hub(hub):
    "A download, the same from the cache once the hub is gone, and a sentence for each thing that can be wrong"
    endpoint, home = hub
    program = """if True:
        import sys
        from advlook.zoo import open_model
        for spec in sys.argv[1:]:
            try: print(spec, "opened", open_model(spec).architecture["name"])
            except (ValueError, ConnectionError) as error: print(type(error).__name__, error)"""
    def ask(endpoint, *specs):
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "HF_HUB_OFFLINE"} | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", program, *specs], capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    told = ask(endpoint, "hub:me/mine/good.pt:resnet8", "hub:me/mine/god.pt:resnet8", "hub:me/other/good.pt:resnet8", "hub:me/gated/good.pt:resnet8", "hub:me/mine", "hub:mine/good.pt")
    print(*told, sep="\n")
    assert told[0].endswith("opened resnet8")
    for said, words in zip(told[1:], ["did you mean good.pt", "no repository 'me/other'", "accept its terms", "no file 'config.json'", "no repository 'mine/good.pt'"], strict=True): assert words in said
    gone = ask("http://127.0.0.1:9", "hub:me/mine/good.pt:resnet8", "hub:me/mine/else.pt:resnet8")
    assert gone[0].endswith("opened resnet8") and gone[1].startswith("ConnectionError") and "can't be reached" in gone[1]
