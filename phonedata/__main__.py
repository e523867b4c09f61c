"""`python -m phonedata`."""

from phonedata.cli import main

main()
