"""`python -m mythos_export`."""

from mythos_export.cli import main

main()
