"""The tables, comparisons and pictures of the commands, imported when a command runs and not for its help."""
