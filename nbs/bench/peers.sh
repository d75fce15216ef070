#!/usr/bin/env bash
# The libraries that advlook is measured against, in a virtual environment of their own:
#
#     bash nbs/bench/peers.sh [FOLDER]            default: .peers beside this script
#     bash nbs/bench/peers.sh --light [FOLDER]    only what nbs/_tests/test_parity*.py need, in seconds
#     nbs/bench/.peers/bin/python nbs/bench/attacks.py
#
# Exact versions, each --no-deps: what a peer pins (torchattacks: requests 2.25) or pulls in but does not need stays out.
# torch and what advlook requires are lent by the python that runs this (PYTHON names another); with --apart they are installed anew.
# advlook is this working tree, as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."
apart= light=
while case "${1:-}" in --apart) apart=yes ;; --light) light=yes ;; *) false ;; esac; do shift; done
folder=${1:-nbs/bench/.peers}
python=${PYTHON:-python}

peers="torchattacks==3.5.1 foolbox==3.3.4 adversarial-robustness-toolbox==1.20.1 adv-lib==0.2.8 pyautoattack==0.2.0 robustness==1.2.1.post2 captum==0.9.0 grad-cam==1.5.7 quantus==0.6.0"
needs="cox==0.2 tensorboardX==2.6.5 dill==0.4.1 eagerpy==0.30.0 GitPython==3.2.1 gitdb==4.0.12 smmap==5.0.3 scikit-learn==1.9.1 cloudpickle==3.1.2 joblib==1.6.0 threadpoolctl==3.8.0 narwhals==2.29.0 visdom==0.2.4 ttach==0.0.3 scikit-image==0.26.0 lazy-loader==0.6 cachetools==8.0.2"

if [ -n "$light" ]; then
    peers="torchattacks==3.5.1 foolbox==3.3.4 pyautoattack==0.2.0 captum==0.9.0 grad-cam==1.5.7 quantus==0.6.0"
    needs="eagerpy==0.30.0 GitPython==3.2.1 gitdb==4.0.12 smmap==5.0.3 ttach==0.0.3 scikit-image==0.26.0 lazy-loader==0.6 cachetools==8.0.2 scikit-learn==1.9.1 cloudpickle==3.1.2 joblib==1.6.0 threadpoolctl==3.8.0 narwhals==2.29.0"
fi

"$python" -m venv "$folder"
paths() { "$1" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }
site=$(paths "$folder/bin/python")
if [ -n "$apart" ]; then
    "$folder/bin/pip" install --quiet -e .
else
    paths "$python" >"$site/lent.pth"   # after the environment's own folder, so the versions above win
    pwd >"$site/advlook-here.pth"
fi
# shellcheck disable=SC2086
"$folder/bin/pip" install --quiet --no-deps $peers $needs
# shellcheck disable=SC2086
"$folder/bin/python" - $peers <<'P'
import importlib, importlib.metadata, sys
modules = {"adversarial-robustness-toolbox": "art", "adv-lib": "adv_lib.attacks", "grad-cam": "pytorch_grad_cam"}
failed = []
for package in [*(p.split("==")[0] for p in sys.argv[1:]), "torch", "advlook"]:
    try: importlib.import_module(modules.get(package, package)); print(package, importlib.metadata.version(package))
    except ImportError as error: failed.append(f"{package} does not import: {error}")
sys.exit("\n".join(failed) or 0)
P
