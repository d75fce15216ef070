#!/usr/bin/env bash
# The site, from the notebooks' stored outputs, into _docs: bash nbs/_sphinx/build.sh
# Needs pip install -e '.[dev,docs]', and npm once. Any warning fails. DOCS_OFFLINE= (empty) links types to the sites of Python, NumPy and PyTorch.
set -euo pipefail
cd "$(dirname "$0")/../.."
unset PYTHONPATH IN_TEST
vendor=nbs/_sphinx/static/vendor
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

javascript() {  # for formulas and widgets: the files that a page loads, of the 60 MB that npm has
    (cd "$fresh" && npm pack --silent mathjax@3.2.2 @jupyter-widgets/html-manager@1.0.15 requirejs@2.3.8 >/dev/null) || return
    for pack in mathjax jupyter-widgets-html-manager requirejs; do
        mkdir -p "$fresh/$pack" && tar xzf "$fresh/$pack"-*.tgz -C "$fresh/$pack" --strip-components 1 || return
    done
    local from=$fresh/mathjax/es5 to=$fresh/vendor/mathjax
    mkdir -p "$to"/{output/chtml,input/tex,sre/mathmaps} &&
        cp "$from/tex-mml-chtml.js" "$to" && cp -r "$from/output/chtml/fonts" "$to/output/chtml" && cp -r "$from/input/tex/extensions" "$to/input/tex" &&
        cp -r "$from/a11y" "$to" && cp "$from/sre"/mathmaps/{base,en}.json "$to/sre/mathmaps" &&  # for screen readers
        cp "$fresh/jupyter-widgets-html-manager/dist/embed-amd.js" "$fresh/requirejs/require.js" "$fresh/vendor" &&
        rm -rf "$vendor" && mv "$fresh/vendor" "$vendor"
}

if [ ! -e "$vendor/require.js" ] && ! javascript; then
    echo "npm is not here or reaches no registry: formulas and widgets will load their JavaScript from the web" >&2
fi
rm -rf _docs
python nbs/_sphinx/prep.py
DOCS_OFFLINE=${DOCS_OFFLINE-1} python -m sphinx -W --keep-going -q -b html -d "$fresh/doctrees" -c nbs/_sphinx _site_src _docs
echo "_docs/index.html: $(find _docs -maxdepth 2 -name '*.html' | wc -l) pages, $(du -sm _docs | cut -f1) MB, $SECONDS s"
