"""`python -m u2export`."""

from u2export.cli.app import main

main()
