"""How every command fails, and what may stand on stderr where it does not."""


def fails(result, *said):
    """Whether a command, of which the fixture `run` told, failed as all do: status 2, nothing on stdout, and on stderr
    one line that says it, without a traceback.
    """
    status, output, errors = result
    assert status == 2, errors
    assert errors.count("\n") == 1 and errors.startswith("fastgen") and not output, (output, errors)
    for words in said:
        assert words in errors, errors
    return True


def but_bias(errors):
    """What a command printed on stderr, without the warning that a Fréchet distance of few examples is biased."""
    return "".join(line for line in errors.splitlines(True) if not line.startswith("fastgen: warning: fid of "))
