"""`python -m absorb_pl` is `absorb-pl`."""

from absorb_pl.cli import main

if __name__ == "__main__":
    main()
