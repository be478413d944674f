"""`python -m medkit` is `medkit`."""

from medkit.cli import main

if __name__ == "__main__":
    main()
