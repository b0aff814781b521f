"""`python -m rstar_trl`, the form that `accelerate launch -m` needs."""

from rstar_trl.cli import main

if __name__ == "__main__":
    main()
