"""`python -m p2pdist.cli`: the same as the console script, from this very interpreter."""

from p2pdist.cli import main

if __name__ == "__main__":
    main()
