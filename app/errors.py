"""What a failure says and returns: one line, and an exit code."""

import sys


def report_error(error: Exception, *, prepared: bool = False) -> int:
    """Prints one line. Returns 2 for bad input (ValueError, OSError before the first step), 1 for anything else."""
    bad_input = isinstance(error, ValueError | OSError) and not prepared
    expected = bad_input or isinstance(error, FloatingPointError)
    text = " ".join(str(error).split())
    if not expected:
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    print(f"error: {text}", file=sys.stderr)
    return 2 if bad_input else 1
