"""Where profiles, recipes and job templates are: the user's own folder first, then the shipped ones."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hpcgemma.errors import InputError

Kind = Literal["profile", "recipe", "template"]

_FOLDER: Mapping[Kind, str] = {
    "profile": "cluster_profiles",
    "recipe": "recipes",
    "template": "job_templates",
}
_SUFFIX: Mapping[Kind, str] = {"profile": ".yaml", "recipe": ".yaml", "template": ".sbatch.j2"}
_PACKAGE = Path(__file__).resolve().parent


def user_config_dir() -> Path:
    """Return the user's own folder: HPCGEMMA_CONFIG_DIR, else hpcgemma under XDG_CONFIG_HOME or ~/.config."""
    chosen = os.environ.get("HPCGEMMA_CONFIG_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "hpcgemma"


def user_data_dir() -> Path:
    """Return where the index of runs lies: HPCGEMMA_DATA_DIR, else hpcgemma under XDG_DATA_HOME or ~/.local/share."""
    chosen = os.environ.get("HPCGEMMA_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "hpcgemma"


def folders(kind: Kind) -> list[Path]:
    """Return the folders searched for a kind of file, first match first.

    An installed wheel carries the top-level folders inside the package; a checkout has them beside it.
    """
    name = _FOLDER[kind]
    return [user_config_dir() / name, _PACKAGE / name, _PACKAGE.parent / name]


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of what hpcgemma itself brings of a kind."""
    name = _FOLDER[kind]
    return _PACKAGE / name if (_PACKAGE / name).is_dir() else _PACKAGE.parent / name


def names(kind: Kind) -> list[str]:
    """Return the names of all files of a kind, sorted."""
    suffix = _SUFFIX[kind]
    found = {path.name.removesuffix(suffix) for folder in folders(kind) for path in folder.glob(f"*{suffix}")}
    return sorted(found)


def find(kind: Kind, name: str) -> Path:
    """Return the file of a name, or of a path given in place of a name.

    Raises:
        InputError: There is none; the hint lists the valid names.
    """
    suffix = _SUFFIX[kind]
    if "/" in name or name.endswith(suffix):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise InputError(f"{kind} file {name!r} does not exist", f"check the path, or use a name: {_listing(kind)}")
    for folder in folders(kind):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    close = difflib.get_close_matches(name, names(kind), n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"there is no {kind} named {name!r}", f"{meant}valid: {_listing(kind)}")


def _listing(kind: Kind) -> str:
    return ", ".join(names(kind)) or "(none found)"
