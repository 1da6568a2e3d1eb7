"""What a user might add, one file each: nothing else of the package is changed but the line that names it."""
