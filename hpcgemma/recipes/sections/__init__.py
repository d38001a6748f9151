"""The sections of a recipe. Each field carries its doc, and its unit, under it."""
