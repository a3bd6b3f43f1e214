"""Writes the units of strategies into a folder, which `qcu` processes of other containers share.

    units.py FOLDER FILE...

FOLDER/NAME is the bundle of the unit NAME: its code, and NAME.json, which `TRELLIS_UNIT_FILE` names.
"""

import json
import pathlib
import sys

from trellis import _trellis
from trellis.deploy import load_strategies, make_bundle

folder = pathlib.Path(sys.argv[1])
for file in sys.argv[2:]:
    for strategy in load_strategies(file):
        bundle, module, digest = make_bundle(strategy, folder)
        manifest = _trellis.check_manifest(json.dumps(strategy.manifest(module, digest)), None)
        (bundle / f"{strategy.name}.json").write_text(manifest)
        link = folder / strategy.name
        fresh = folder / f".{strategy.name}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(bundle.relative_to(folder))
        fresh.replace(link)
        print(f"unit {strategy.name}, {digest[:19]}", flush=True)
