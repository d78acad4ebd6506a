"""The executors of a `Program`: in Python as the specification, in C++, and as CUDA graphs."""
