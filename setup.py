import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['=']); cfg.read(here/'settings.ini', encoding='utf-8')
s = cfg['DEFAULT']
words = lambda key: s.get(key, '').split()
# PyPI shows README.md elsewhere, so links and pictures get full addresses there
absolute = lambda m: f"{m[1]}{s['git_url']}/{'raw' if m[1].startswith('!') else 'blob'}/{s['branch']}/"
readme = re.sub(r'(!?\[[^][]*\]\()(?![a-z]+:|#)', absolute, (here/'README.md').read_text(encoding='utf-8'))
setup(
    name=s['lib_name'], version=s['version'], description=s['description'], keywords=words('keywords'),
    author=s['author'], author_email=s['author_email'], url=s['git_url'], license='Apache-2.0',
    long_description=readme, long_description_content_type='text/markdown',
    packages=find_packages(include=['advlook', 'advlook.*']), include_package_data=False,
    package_data={'advlook': ['*.jinja', 'weights/**/*.safetensors', 'weights/**/*.json']},
    python_requires=f">={s['min_python']}", install_requires=words('requirements'),
    extras_require={'dev': words('dev_requirements'), 'docs': words('docs_requirements')},
    entry_points={'console_scripts': [s['console_scripts']], 'nbdev': ['advlook=advlook._modidx:d']}, zip_safe=False,
)
