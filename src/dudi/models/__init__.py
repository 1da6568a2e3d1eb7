"""Models as files and in memory: checked, loaded, sharded over processes."""
