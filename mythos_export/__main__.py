"""`mythos-export`, and `python -m mythos_export`: ready for an interrupt before anything large is imported."""

from __future__ import annotations

import sys

from mythos_export.console import prepare_signals, prepare_streams
from mythos_export.installation import leave_working_folder

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    prepare_streams()
    try:
        prepare_signals()
        from mythos_export.cli import main as command_line
    except KeyboardInterrupt:
        print("error: interrupted; nothing was kept", file=sys.stderr)
        sys.exit(2)
    command_line()


if __name__ == "__main__":
    leave_working_folder()
    main()
