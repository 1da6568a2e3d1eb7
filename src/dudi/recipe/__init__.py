"""Recipes: their schema, their files, and the stages that follow from one. No torch."""
