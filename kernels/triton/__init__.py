"""Triton kernels, one file per op family; imported when a call first needs one, never by `import fastgen`."""
