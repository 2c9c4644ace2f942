"""Has a factory's own code read an entry, and write the submit file that it would start glideins by.

    python factory_submits.py CHECKOUT ENTRY_XML FOLDER

CHECKOUT is one of GlideinWMS, whose example of a factory's XML gets the entry. The submit file is FOLDER/ENTRY.condor.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path


def main(checkout: Path, entry_xml: Path, folder: Path) -> None:
    (folder / "glideinwms").symlink_to(checkout)
    sys.path.insert(0, str(folder))
    for name in ("M2Crypto", "M2Crypto.EVP"):  # what it is for is not done here
        sys.modules.setdefault(name, types.ModuleType(name))
    from glideinwms.creation.lib import cgWCreate, factoryXmlConfig

    text = (checkout / "unittests/fixtures/factory/glideinWMS.xml").read_text()
    (folder / "glideinWMS.xml").write_text(text.replace("</entries>", entry_xml.read_text() + "</entries>"))
    config = factoryXmlConfig.parse(str(folder / "glideinWMS.xml"))
    entry = config.get_entries()[-1]
    entry.validate()
    submit = cgWCreate.GlideinSubmitDictFile(str(folder), f"{entry.getName()}.condor")
    submit.populate("glidein_startup.sh", entry.getName(), config, entry)
    submit.save()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
