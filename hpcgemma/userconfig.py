"""The user's own settings: what a shipped profile must not hold."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hpcgemma import assets, configfile
from hpcgemma.configfile import Section
from hpcgemma.errors import InputError
from hpcgemma.profiles import Profile

FILE_NAME = "config.yaml"


class UserConfig(Section):
    """config.yaml in the user's configuration folder; every field may be left out."""

    accounts: dict[str, str] = {}
    """Account that pays, by profile name."""
    runs_dir: str | None = None
    """Folder of run folders, for every profile."""


def load_user_config() -> UserConfig:
    """Return the user's settings; without a file, the defaults.

    Raises:
        ConfigError: The file has problems; all are listed.
    """
    path = assets.user_config_dir() / FILE_NAME
    if not path.is_file():
        return UserConfig()
    return configfile.build(UserConfig, configfile.read_document(path, "profile"), subject=str(path))


def resolve_account(given: str | None, profile: Profile, config: UserConfig) -> str | None:
    """Return the account: the option (or HPCGEMMA_ACCOUNT, which click reads), else the user's own for the profile."""
    return given or config.accounts.get(profile.name)


def resolve_runs_dir(given: str | None, profile: Profile, config: UserConfig, account: str | None) -> Path:
    """Return the absolute folder of run folders: the option, the user's setting, or the profile's."""
    chosen = given or config.runs_dir or profile.storage.runs.replace("{account}", account or "")
    expanded = os.path.expandvars(chosen)
    if re.search(r"\$(\w|\{)", expanded):
        raise InputError(
            f"the folder of runs {chosen!r} names a variable that is not set here",
            "set it, or choose another folder with --runs-dir or HPCGEMMA_RUNS_DIR",
        )
    return Path(expanded).expanduser().absolute()
