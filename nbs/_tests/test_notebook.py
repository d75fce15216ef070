"What a notebook keeps after it was run and saved"
import os

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks")

SLOW = """
import time
from advlook.functions import progress
for i in progress(range(2), "outer"):
    for j in progress(range(8), "inner"): time.sleep(0.2)
bar = progress(range(3), "short")
for i in bar: bar.set_description(f"short {i}", refresh=False)
print("done")
"""


def test_no_bar_is_kept(monkeypatch):
    "Bars are drawn while it runs; in the file there is none, neither as text nor as a widget"
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    drawn = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, number):
            if "display_data" in message["msg_type"]: drawn.append(message["content"]["data"].get("text/plain", ""))
            return super().process_message(message, cell, number)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SLOW)])
    Client(notebook).execute()
    assert any("inner" in text for text in drawn) and any("outer" in text for text in drawn)
    *bars, said = notebook.cells[0].outputs
    assert said["text"] == "done\n" and bars and all(bar["data"] == {} for bar in bars)
    assert "widgets" not in notebook.metadata
