"""A recipe, run: its stages in one folder, alone or in several processes."""
