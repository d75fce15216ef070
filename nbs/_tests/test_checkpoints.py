"Checkpoints from strangers: nothing in a file is ever run, damaged ones get a sentence, and the hub is met as it is"
import copyreg, io, math, os, pickle, random, struct, subprocess, sys, tempfile, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from advlook import fitting, matching, pickles
from advlook.checkpoints import read_weights
from advlook.models import create_model
from advlook.preparation import set_preparation
from advlook.saved import load_checkpoint, save_model
from advlook.sources import open_model


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
    before = dict(pickles._KNOWN), pickles._tensor.__defaults__, dict(os.environ), list(sys.path), torch._utils._rebuild_tensor_v2.__defaults__
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    for program in (name("os", "environ") + text("HARM") + text("1") + b"s", name("sys", "path") + text("harm") + b"a", name("sys", "modules") + text("harm") + text("1") + b"s",
                    rebuild + b"N}" + text("__defaults__") + b"(K\x01ts\x86b", rebuild + b"}" + text("__wrapped__") + text("harm") + b"sb", name("collections", "OrderedDict") + b"}" + text("fromkeys") + b"Nsb"):
        for n, content in enumerate([zipped(b"\x80\x02" + program + b"."), legacy(b"\x80\x02" + program + b".")]):
            (tmp_path/f"{n}.pt").write_bytes(content)
            with pytest.raises(ValueError): read_weights(tmp_path/f"{n}.pt")
    assert before == (pickles._KNOWN, pickles._tensor.__defaults__, dict(os.environ), sys.path, torch._utils._rebuild_tensor_v2.__defaults__)
    assert not hasattr(pickles._tensor, "__wrapped__") and "harm" not in sys.modules


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
        from advlook.sources import open_model
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


class InFront(nn.Module):
    "Normalization as many write it, under names of their choice"

    def __init__(self, mean, std, names=("mean", "std"), shape=(1, -1, 1, 1), scale=1):
        super().__init__()
        self.names, self.scale = names, scale
        for key, value in zip(names, (mean, std)): self.register_buffer(key, torch.tensor(value).view(shape))

    def forward(self, x):
        mean, std = (getattr(self, key).view(-1, 1, 1) for key in self.names)
        return (x * self.scale - mean) / std


class Whole(nn.Module):
    "A network and what stands beside it, by the names of the arguments"

    def __init__(self, **parts):
        super().__init__()
        for key, value in parts.items():
            if isinstance(value, torch.Tensor): self.register_buffer(key, value)
            else: self.add_module(key, value)


def network(name="torchvision:resnet18", classes=7, size=64, seed=0):
    "A network whose running statistics are not those of a fresh one; in evaluation mode"
    net = create_model(name, num_classes=classes, seed=seed, size=size).model
    for key, value in net.named_buffers():
        if key.endswith("running_var"): value.uniform_(0.5, 2, generator=torch.Generator().manual_seed(seed))
    return net.eval()


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
RESNET, X = "torchvision:resnet18", torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def loaded(folder, content, architecture=RESNET, **options):
    torch.save(content, folder/"a.pt")
    return load_checkpoint(folder/"a.pt", architecture, **options)


def refused(folder, content, architecture=RESNET, **options):
    "The sentence"
    with pytest.raises(ValueError) as told: loaded(folder, content, architecture, **options)
    assert "\n" not in str(told.value) and len(str(told.value)) < 600
    return str(told.value)


@pytest.fixture
def hasty(monkeypatch):
    "Without two seconds of looking for what else a file could be, where that is not the matter"
    monkeypatch.setattr(fitting.nearest, "__defaults__", (None, 0))


def named(state, prefix): return {prefix + key: value for key, value in state.items()}


IN_FRONT = {
    "0.mean": lambda net: nn.Sequential(InFront(MEAN, STD), net), "flat": lambda net: nn.Sequential(InFront(MEAN, STD, shape=(-1,)), net),
    "normalize.mean": lambda net: Whole(normalize=InFront(MEAN, STD, shape=(-1, 1, 1)), model=net), "norm.mean": lambda net: Whole(norm=InFront(MEAN, STD), backbone=net),
    "normalizer.new_mean": lambda net: Whole(normalizer=InFront(MEAN, STD, ("new_mean", "new_std")), model=net),
    "mu": lambda net: Whole(mu=torch.tensor(MEAN).view(1, 3, 1, 1), sigma=torch.tensor(STD).view(1, 3, 1, 1), net=net),
    "mean": lambda net: Whole(mean=torch.tensor(MEAN), std=torch.tensor(STD), net=net), "pixel_mean": lambda net: Whole(prepare=InFront(MEAN, STD, ("pixel_mean", "pixel_std")), net=net)}


@pytest.mark.parametrize("kind", IN_FRONT)
def test_normalizer_in_front(kind, tmp_path):
    "Its numbers become the normalization, and are said"
    net = network()
    model = loaded(tmp_path, {"state_dict": named(IN_FRONT[kind](net).state_dict(), "module.")})
    assert torch.equal(model(X), net(InFront(MEAN, STD)(X))) and model.preparation["mean"] == MEAN and model.preparation["std"] == STD
    assert any("were taken for its normalization" in note for note in model.notes) and not any("left out" in note for note in model.notes)
    given = loaded(tmp_path, {"state_dict": IN_FRONT[kind](net).state_dict()}, mean=STD)
    assert torch.equal(given(X), net(InFront(STD, STD)(X))) and any("was replaced by" in note for note in given.notes)


def test_normalizer_of_another_scale(tmp_path, hasty):
    net = network()
    large = InFront(tuple(255 * v for v in MEAN), tuple(255 * v for v in STD), scale=255)
    model = loaded(tmp_path, nn.Sequential(large, net).state_dict())
    assert torch.allclose(model(X), net(large(X)), rtol=1e-4, atol=1e-4) and any("divided by 255" in note for note in model.notes)
    single = loaded(tmp_path, nn.Sequential(InFront((0.5,), (0.25,)), net).state_dict())
    assert single.preparation["mean"] == (0.5,) * 3
    for mean, std in (((123.0, -4, 3), STD), ((0.5,) * 3, (0.0,) * 3), ((123.0, 116, 103), STD), ((math.nan,) * 3, STD)):
        odd = nn.Sequential(InFront(mean, std), net).state_dict()
        assert "0.mean and 0.std" in refused(tmp_path, odd)
        assert torch.equal(loaded(tmp_path, odd, mean=MEAN, std=STD)(X), net(InFront(MEAN, STD)(X)))
    several = Whole(a=InFront(MEAN, STD), b=InFront(STD, STD), net=net).state_dict()
    assert "in several ways" in refused(tmp_path, several)
    for beside in InFront((0.0,) * 64, (1.0,) * 64), Whole(mean=torch.tensor(3.0), std=torch.tensor(1.0)):   # of features, of targets
        model = loaded(tmp_path, named(net.state_dict(), "net.") | (named(beside.state_dict(), "norm." if len(beside.state_dict()["mean"].shape) else "")))
        assert model.preparation["mean"] == (0.485, 0.456, 0.406) and any("mean" in note and "left out" in note for note in model.notes)


def beside(net):
    "State dicts with something beside the network"
    state, more = net.state_dict(), {k: v + 1 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    lightning = named(state, "model.") | {"criterion.weight": torch.ones(7), "train_acc.total": torch.tensor(5.0), "val_confusion.confmat": torch.zeros(7, 7)}
    return {
        "criterion": state | {"criterion.weight": torch.ones(7)}, "second head": state | {"fc2.weight": torch.ones(4, 512), "fc2.bias": torch.ones(4)}, "Lightning": {"state_dict": lightning, "epoch": 3, "hyper_parameters": {}},
        "projector": named(state, "encoder.") | {"projector.0.weight": torch.ones(64, 512), "projector.1.running_mean": torch.ones(64), "queue": torch.ones(64, 9)},
        "mu of features": state | {"mu": torch.zeros(512), "sigma": torch.ones(512)}, "thop": state | {f"{k.rpartition('.')[0]}.{n}": torch.zeros(1, dtype=torch.float64) for k in state for n in ("total_ops", "total_params")},
        "infinite metric": state | {"best.value": torch.tensor([math.inf])}, "complex": state | {"freqs": torch.zeros(3, dtype=torch.complex64)}, "shadow copy": named(more, "ema.module.") | named(state, "module."),
        "teacher first": named(more, "teacher.") | named(state, "student."), "larger teacher": {"teacher": network("torchvision:resnet34").state_dict(), "student": state},
        "mmpretrain": {"meta": {"epoch": 1}, "state_dict": {("head." if k.startswith("fc") else "backbone.") + k: v for k, v in state.items()}}, "head apart": {("" if k.startswith("fc") else "body.") + k: v for k, v in state.items()},
        "one nest deeper": {"state": {"model": {"state_dict": state}}, "optimizer": {"state": {"conv1.weight": {"exp_avg": torch.ones(64, 3, 7, 7)}}}}, "EMA beside": {"state_dict": state, "state_dict_ema": more},
        "shadow alone": {"epoch": 1, "ema": {"decay": 0.9, "shadow": named(state, "module.")}}, "tuple": (state, {"lr": 0.1}), "pairs": {"state_dict": list(state.items()), "accuracy": torch.tensor(0.9)}, "names": {"best": state, "scores": {"per_class": torch.ones(7)}},
        "channels last": {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state.items()}, "compiled": named(state, "model._orig_mod.module.net.")}


def test_beside_the_network(tmp_path):
    "What the architecture needs is taken, to the last bit, and the rest is listed"
    net, untold = network(), []
    plain = loaded(tmp_path, net.state_dict())(X)
    assert torch.equal(plain, net(InFront((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(X)))
    for kind, content in beside(net).items():
        model = loaded(tmp_path, content)
        assert torch.equal(model(X), plain), kind
        if len(model.notes) < 2: untold.append(kind)   # one is on normalization
    assert untold == ["head apart", "channels last", "compiled"]   # with nothing beside
    assert "criterion.weight, train_acc.total, val_confusion.confmat" in str(loaded(tmp_path, beside(net)["Lightning"]).notes)
    assert "'student' was read and not 'teacher'" in str(loaded(tmp_path, beside(net)["larger teacher"]).notes)


def test_no_network(tmp_path, hasty):
    net = network()
    state = net.state_dict()
    for content in {"state_dict": list(net.parameters()), "accuracy": torch.tensor(0.9)}, list(net.parameters()), {"state_dict": list(net.parameters()), "per_class": torch.ones(7)}:
        assert "is a list of 62 tensors without names" in refused(tmp_path, content)
    assert "single numbers are none" in refused(tmp_path, {"accuracy": torch.tensor(0.9), "epoch": 3})
    assert "several state dicts, g, d" in refused(tmp_path, {"g": state, "d": {k: v + 1 for k, v in state.items()}})
    assert "no last layer fc.weight" in refused(tmp_path, {"per_class": torch.ones(7)})
    assert "has 7 classes, not 10" in refused(tmp_path, state, num_classes=10) and loaded(tmp_path, state, num_classes=7)(X).shape == (2, 7)


def test_what_a_file_could_be(tmp_path):
    assert "the weights fit torchvision:resnet18 or timm:resnet18: write FILE:torchvision:resnet18" in refused(tmp_path, network().state_dict(), None)


LARGER = {  # a network that is not what it is called: the file's, what it is called, words of the sentence
    "deeper": ("torchvision:resnet34", RESNET, "layer1.2.conv1.weight", "torchvision:resnet34 or timm:resnet34"), "squeezed": ("timm:seresnet18", "timm:resnet18", "layer1.0.se", ""),
    "other shapes": ("torchvision:resnet50", RESNET, "of another shape", "torchvision:resnet50 or timm:resnet50"), "wider": ("torchvision:wide_resnet50_2", "torchvision:resnet50", "of another shape", "torchvision:wide_resnet50_2"),
    "denser": ("torchvision:densenet169", "torchvision:densenet121", "features.denseblock3.denselayer25", "torchvision:densenet169"), "VGG": ("torchvision:vgg13", "torchvision:vgg11", "", "torchvision:vgg13"),
    "ours": ("resnet20", "resnet8", "stage1.1", "resnet20")}


@pytest.mark.parametrize("kind", LARGER)
def test_larger_networks(kind, hasty):
    "Half of a network is never read, and what it is is named. On torch's meta device: the numbers don't matter"
    real, called, said, fits = LARGER[kind]
    with torch.device("meta"): state, model = create_model(real, num_classes=7).model.state_dict(), create_model(called, num_classes=7)
    with pytest.raises(ValueError) as told: fitting.fit_weights(model, state, "'a.pt'")
    assert "does not fit" in str(told.value) and said in str(told.value)
    near = fitting.nearest(state, called, seconds=30)
    assert not fits or " or ".join(near).startswith(fits)


def test_parts_of_larger_networks():
    "Both sides of the line, on pairs of published architectures of which one contains the other"
    for small, large in ("timm:vit_small_patch16_rope_224", "timm:vit_small_patch16_rope_ape_224"), ("timm:vit_small_patch16_rope_224", "timm:vit_small_patch16_rope_mixed_224"), \
            ("timm:vit_base_patch16_siglip_gap_224", "timm:vit_base_patch16_siglip_224"), ("timm:mvitv2_small", "timm:mvitv2_small_cls"), ("timm:efficientvim_m1", "timm:efficientvim_m1_dist"), ("timm:deit_tiny_patch16_224", None):
        own = matching.shapes_of(small)
        if large: state = matching.shapes_of(large)
        else: state = own | {k.replace("blocks.0", "blocks.12"): v for k, v in own.items()}
        assert all(k in state and state[k].shape == v.shape for k, v in own.items()), "not contained, so this proves nothing"
        assert matching.parts_beyond(state, own, *matching.align(state, own)), large
    own = matching.shapes_of(RESNET)
    state = {k: torch.empty_like(v, device="meta") for k, v in own.items()} | {"fc.weight": torch.empty(7, 512), "fc.bias": torch.empty(7)}
    for more in named(state, "0.") | {"1.weight": torch.ones(3, 7)}, named(state, "backbone.") | {"out.weight": torch.ones(3, 7)}, named(state, "net1.") | named(state, "net2."):   # a layer behind, an ensemble
        assert matching.parts_beyond(more, own, *matching.align(more, own))
    for more in {"head2.weight": torch.ones(7, 512)}, {"centers": torch.ones(7, 512)}, {"loss.weight": torch.ones(7)}, {"model_ema.conv1weight": torch.ones(64, 3, 7, 7)}, {"layer1.0.attn_mask": torch.ones(4, 4)}, {"mask_token": torch.ones(1, 1, 9)}:
        assert not matching.parts_beyond(state | more, own, *matching.align(state | more, own)), more


def test_what_may_be_missing(tmp_path, hasty):
    "What is computed, and what does not act in evaluation; nothing that was learned"
    google = "torchvision:googlenet"
    net = network(google)
    state = net.state_dict()
    for kept in {k: v for k, v in state.items() if not k.startswith("aux")}, state | {"aux1.fc2.weight": torch.zeros(1000, 1024), "aux1.fc2.bias": torch.zeros(1000)}:
        model = loaded(tmp_path, kept, google, size=64)
        assert torch.equal(model.model(X), net(X)) and "no effect" in str(model.notes) and "0.4.1" not in str(model.notes)
    assert "missing: inception5b" in refused(tmp_path, {k: v for k, v in state.items() if not k.startswith(("aux", "inception5b"))}, google, size=64)
    state = network("torchvision:inception_v3", 5, None).state_dict()
    assert "left out, 14 in all: AuxLogits.conv0.conv.weight" in str(loaded(tmp_path, state, "timm:inception_v3").notes)
    swin = network("torchvision:swin_t", 5, None)
    kept = {k: v for k, v in swin.state_dict().items() if not k.endswith("relative_position_index")} | {"features.1.1.attn.attn_mask": torch.full((64, 49, 49), -math.inf)}
    model = loaded(tmp_path, kept, "torchvision:swin_t")
    assert torch.equal(model.model(X), swin(X)) and "computes by itself" in str(model.notes)
    net = network()
    state = net.state_dict()
    assert "0.4.1" in str(loaded(tmp_path, {k: v for k, v in state.items() if "num_batches" not in k}).notes)
    assert "missing: bn1.running_mean" in refused(tmp_path, {k: v for k, v in state.items() if k != "bn1.running_mean"})
    assert "'conv1.weight' holds NaN" in refused(tmp_path, state | {"conv1.weight": torch.full((64, 3, 7, 7), math.nan)})
    assert "conv1.weight ([64, 3, 3, 3], not [64, 3, 7, 7])" in refused(tmp_path, state | {"conv1.weight": torch.zeros(64, 3, 3, 3)})


WRONG = {"two means": dict(mean=(0.5, 0.5)), "no mean": dict(mean=()), "two stds": dict(std=(0.5, 0.5)), "one mean": dict(mean=(0.5,)), "a number": dict(mean=0.5), "to 255": dict(mean=(123.7, 116.3, 103.5)), "std to 255": dict(std=(58.4, 57.1, 57.4)),
         "std 0": dict(std=(0.0, 0.2, 0.2)), "negative": dict(std=(-0.2, 0.2, 0.2)), "negative mean": dict(mean=(-0.2, 0.2, 0.2)), "NaN": dict(mean=(math.nan, 0.2, 0.2)), "infinite": dict(std=(math.inf, 0.2, 0.2)), "words": dict(mean="abc"),
         "size 0": dict(size=0), "half a pixel": dict(size=32.5), "crop 0": dict(crop_pct=0.0), "crop 2": dict(crop_pct=2), "crop NaN": dict(crop_pct=math.nan), "cubic": dict(interpolation="cubic"), "classes": dict(num_classes=9)}


@pytest.mark.parametrize("kind", WRONG)
def test_options_that_cant_be_right(kind, tmp_path, monkeypatch):
    "However a model is named, a sentence, before anything is downloaded"
    torch.save(create_model("resnet8", seed=0).model.state_dict(), tmp_path/"a.pt")
    (tmp_path/"of_mine.py").write_text("from advlook.models import create_model\ndef make(): return create_model('resnet8')\n")
    monkeypatch.chdir(tmp_path)
    for spec in "a.pt:resnet8", "bundled:cifar10/adv-0", "bundled:cifar10/random-0", "of_mine:make", "timm:resnet18", "torchvision:resnet18":
        if "resnet18" in spec and kind == "one mean": continue   # how many channels it has, its weights tell
        with pytest.raises(ValueError) as told: open_model(spec, **WRONG[kind])
        assert "\n" not in str(told.value), spec
    if kind != "classes":
        with pytest.raises(ValueError): create_model("resnet8", **{k: v for k, v in WRONG[kind].items() if k in ("mean", "std", "size")} or dict(size=-1))
    grey = create_model("resnet8", channels=1)
    for wrong in dict(mean=MEAN), dict(std=STD):
        with pytest.raises(ValueError, match="of which there are 1"): set_preparation(grey, **wrong)
    with pytest.raises(TypeError, match="no option is called 'crop'"): open_model("a.pt:resnet8", crop=0.5)


def test_one_sentence_at_the_command_line(tmp_path):
    torch.save(create_model("resnet20", seed=0).model.state_dict(), tmp_path/"f.pt")
    done = subprocess.run([sys.executable, "-m", "advlook.cli", "look", "--models", "A=f.pt:resnet20", "--mean", "0.5,0.5"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "one number a channel" in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f.pt"]


def test_size_of_our_files(tmp_path):
    "A file of ours is built as it was trained, also for images of another size: `resnet18_thin` has a layer less below 96 pixels"
    model = create_model("resnet18_thin", size=128, seed=0).eval()
    save_model(model, tmp_path/"a.safetensors")
    small = load_checkpoint(tmp_path/"a.safetensors", size=64)
    assert torch.allclose(small(X), model(X), atol=2e-2) and small.preparation["input_size"] == (3, 64, 64) and isinstance(small.model.first_pool, nn.MaxPool2d)
    save_model(create_model("timm:vit_tiny_patch16_224", num_classes=3, size=64), tmp_path/"b.safetensors")
    with pytest.raises(ValueError, match="can't take images of 96 pixels"): load_checkpoint(tmp_path/"b.safetensors", size=96)


def test_each_name_once():
    for wrong, words in ("resnt18", "timm:resnet18 or torchvision:resnet18"), ("torchvision:resnt18", "did you mean resnet18"), ("resnet_8", "resnet8"):
        with pytest.raises(ValueError) as told: create_model(wrong)
        names = str(told.value).partition("did you mean ")[2].rstrip("?").split(" or ")
        assert words in str(told.value) and len(names) == len(set(names))
