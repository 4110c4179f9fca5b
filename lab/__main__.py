"""The command line, `python -m lab`; `lab/commands.py` has its commands."""

import sys

if __name__ == "__main__":
    try:
        from lab.commands import main  # which takes seconds

        status = main()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        status = 130  # as shells count
    sys.exit(status)
