"""What commands compute, compare and draw: imported when a command runs, and not for its help."""
