"""Recipes: what a run wants, in units that hold on every cluster. The shipped ones lie beside this file."""

from hpcgemma.recipes.store import load_recipe, recipe_names
from hpcgemma.recipes.types import Recipe

__all__ = ["Recipe", "load_recipe", "recipe_names"]
