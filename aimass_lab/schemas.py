"""The published JSON Schemas of the records: files beside this one, so that others can check what we write without us.

``python -m aimass_lab.schemas`` writes them again; a test fails when they do not fit the records.
"""

from __future__ import annotations

import json
from pathlib import Path

from .records import RECORDS, json_schema

FOLDER = Path(__file__).with_name("schema_files")


def schema_texts() -> dict[str, str]:
    """File name and content of each record's schema."""
    return {f"{kind.__struct_config__.tag}.schema.json": json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n" for kind in RECORDS}


def write_schemas(folder: Path = FOLDER) -> None:
    """Write every schema into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, text in schema_texts().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write_schemas()
