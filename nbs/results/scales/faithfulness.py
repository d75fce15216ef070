"""Do the maps that take many passes, and class activation maps, lie where the answer came from?

    python nbs/results/scales/faithfulness.py

On Shapes x Textures with cues in conflict, as on page 38_faithfulness: a row of faithfulness.csv, beside this file, is
a model, a map, and an image whose answer followed one of its two cues.
"""
import argparse, sys, time
from pathlib import Path

import torch

from advlook.cam import grad_cam
from advlook.core import frozen, predict, to_float
from advlook.faithfulness import cue_followed, energy_gain, grown, points_at
from advlook.files import versions
from advlook.functions import in_batches
from advlook.gradients import integrated_grad, smooth_grad
from advlook.shapes import shapes_textures
from advlook.zoo import load_trio

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from common import write_down

HERE = Path(__file__).parent
COLUMNS = "model map image gain points chance".split()
ATTRIBUTIONS = {"SmoothGrad": smooth_grad, "Integrated": integrated_grad, "Grad-CAM": grad_cam}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=112, help="images")
    parser.add_argument("--seed", type=int, default=1, help="of the images")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made, trio, rows = shapes_textures(args.n, conflict=True, seed=args.seed), load_trio("scales"), []
    for who in "STD", "ADV":
        model = trio[who]
        answers = predict(model, made.images.x)
        index, region = cue_followed(made, answers)
        x, covered = to_float(made.images.x)[index], grown(region).double().mean((1, 2)).tolist()
        for name, attribution in ATTRIBUTIONS.items():
            with frozen(model): maps = in_batches(attribution, model, x, answers[index])
            found = energy_gain(maps, region).tolist(), points_at(maps, region).tolist(), covered
            for image, gain, points, chance in zip(index.tolist(), *found):
                rows.append(dict(zip(COLUMNS, (who, name, image, f"{gain:.5f}", int(points), f"{chance:.5f}"))))
            print(who, name, flush=True)
    about = dict(command="python nbs/results/scales/faithfulness.py", date=time.strftime("%Y-%m-%d"), device="cpu")
    about |= dict(n=args.n, seed=args.seed, trio="scales", threads=args.threads, versions=versions())
    write_down(HERE / "faithfulness", COLUMNS, rows, about)


if __name__ == "__main__": main()
