#!/usr/bin/env bash
# The site, from the notebooks' stored outputs, into _docs: bash nbs/_sphinx/build.sh
# Needs pip install -e '.[dev,docs]'. Formulas and widgets need JavaScript beside the pages, which npm fetches once.
set -euo pipefail
cd "$(dirname "$0")/../.."
unset PYTHONPATH IN_TEST
vendor=nbs/_sphinx/static/vendor
if [ ! -e "$vendor/mathjax" ]; then
    command -v npm >/dev/null || { echo "npm is needed once, for the JavaScript that shows formulas and widgets; install Node.js" >&2; exit 1; }
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    (cd "$fresh" && npm pack --silent mathjax@3.2.2 @jupyter-widgets/html-manager@1.0.15 requirejs@2.3.8 >/dev/null && for pack in *.tgz; do mkdir "${pack%.tgz}" && tar xzf "$pack" -C "${pack%.tgz}" --strip-components 1; done)
    mkdir -p "$vendor"
    cp "$fresh"/requirejs-*/require.js "$vendor/require.js"
    cp "$fresh"/jupyter-widgets-html-manager-*/dist/embed-amd.js "$vendor/embed-amd.js"
    cp -r "$fresh"/mathjax-*/es5 "$vendor/mathjax"
fi
python nbs/_sphinx/prep.py
DOCS_OFFLINE=${DOCS_OFFLINE:-1} sphinx-build -W --keep-going -q -b html -c nbs/_sphinx _site_src _docs
echo "_docs/index.html"
