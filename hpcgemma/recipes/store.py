"""Reading recipes by name or path."""

from __future__ import annotations

from collections.abc import Sequence

from hpcgemma import assets, configfile
from hpcgemma.recipes.foreign_names import FOREIGN_NAMES
from hpcgemma.recipes.types import Recipe


def recipe_names() -> list[str]:
    """Return the names of all recipes, the user's own and the shipped ones."""
    return assets.names("recipe")


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name or path, with `--set` settings applied.

    Raises:
        InputError: No such recipe.
        ConfigError: It has problems; all are listed.
    """
    path = assets.find("recipe", name)
    document = configfile.with_settings(configfile.read_document(path, "recipe"), settings)
    return configfile.build(Recipe, document, subject=f"recipe {name!r}", foreign_names=FOREIGN_NAMES)
