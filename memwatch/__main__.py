"""`python -m memwatch` is `memwatch`."""

from memwatch.cli import main

if __name__ == "__main__":
    main()
