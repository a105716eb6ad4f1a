"""A codec's folder: `codec.json` names its kind, and the codec of that kind reads the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ayf_core.data.codecs.base import Codec
from ayf_core.errors import AyfError
from ayf_core.files import read_json, write_whole
from ayf_core.registry import find, names

FORMAT = 1
CODEC_FILE = "codec.json"


def load_codec(folder: str | Path) -> Codec:
    """Read a codec that its `save` wrote; a trained or pretrained one comes frozen and in evaluation mode.

    Raises:
        AyfError: naming the file that is missing, foreign, truncated, or not what it was when it was saved.
    """
    place = Path(folder)
    file = place / CODEC_FILE
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise AyfError(f"no codec at {place} ({CODEC_FILE} is missing): `dvc repro train_codec` makes it") from None
    except (OSError, ValueError) as error:
        raise AyfError(f"cannot read {file} ({error}): `dvc repro --force train_codec` makes it again") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in names("codec"):
        raise AyfError(
            f"{file} does not describe a codec that is known here ({kind!r}): name a folder that "
            "`dvc repro train_codec` made, and the plug-in that a codec of your own comes from"
        )
    if content.get("format") != FORMAT:
        raise AyfError(f"{file} has format {content.get('format')}, this version reads {FORMAT}: make it again")
    return find("codec", kind).load().read(place, content)


def write_codec_file(folder: Path, content: Mapping[str, Any]) -> None:
    """Write codec.json; the last file to be written, since a folder without it counts as unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CODEC_FILE, json.dumps({"format": FORMAT, **content}, indent=2) + "\n")
