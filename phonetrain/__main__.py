"""`python -m phonetrain`, which is how torchrun starts it."""

from phonetrain.cli.main import main

if __name__ == "__main__":
    main()
