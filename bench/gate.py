"""The correctness gate: nothing is timed that is not right on the very inputs it would be timed on.

(Where the reference would take many minutes for them, on the part of them that the op's `gate_part` names.)
"""


class RedGate(Exception):
    """A kernel is wrong on the inputs it would be timed on; the message says where and by how much."""
